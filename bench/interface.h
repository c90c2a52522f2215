/* Shared by the probes that send frames: the address of an interface. */
#ifndef VNIC_BENCH_INTERFACE_H
#define VNIC_BENCH_INTERFACE_H
#include "common.h"
#include <linux/if_ether.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* The MAC address of an interface of this thread's namespace. */
static inline void read_mac(const char *interface, uint8_t *mac)
{
    struct ifreq ask = { 0 };
    snprintf(ask.ifr_name, IFNAMSIZ, "%s", interface);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || ioctl(s, SIOCGIFHWADDR, &ask))
        die(interface);
    memcpy(mac, ask.ifr_hwaddr.sa_data, ETH_ALEN);
    close(s);
}
#endif
