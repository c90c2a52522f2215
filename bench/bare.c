/* The lower bound of every TAP switch: reads a frame from one TAP and writes it to the other.
 *
 * usage: bare THREADS NETNS_A INTERFACE_A NETNS_B INTERFACE_B
 * THREADS 1: one thread for both directions, non-blocking, up to 32 frames a turn, poll() when both
 *            sides are empty.
 *         2: one blocking thread per direction.
 * GSO frames stay whole (IFF_VNET_HDR, all segmentation offloads). A frame that the other side
 * rejects is lost, as on a wire. */
#include "common.h"
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

enum { TURN = 32, FRAME = 70000 };
static int tap[2];

static int make_tap(const char *netns, const char *interface)
{
    struct ifreq want = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    snprintf(want.ifr_name, IFNAMSIZ, "%s", interface);
    enter_netns(netns);
    int fd = open("/dev/net/tun", O_RDWR);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &want) || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
        die(interface);
    return fd;
}

static int forward(int from, char *frame) /* returns 1 if there was a frame */
{
    ssize_t bytes = read(tap[from], frame, FRAME);
    if (bytes > 0 && write(tap[!from], frame, bytes) < 0 && errno == EBADFD)
        die("write");
    return bytes > 0;
}

static void *one_direction(void *from)
{
    char *frame = malloc(FRAME);
    for (;;)
        forward(from != NULL, frame);
    return NULL;
}

static void both_directions(void)
{
    char *frame = malloc(FRAME);
    struct pollfd wait[2] = { { tap[0], POLLIN, 0 }, { tap[1], POLLIN, 0 } };
    for (int i = 0; i < 2; i++)
        fcntl(tap[i], F_SETFL, O_NONBLOCK);
    for (;;) {
        int moved = 0;
        for (int from = 0; from < 2; from++)
            for (int n = 0; n < TURN && forward(from, frame); n++)
                moved = 1;
        if (!moved)
            poll(wait, 2, -1);
    }
}

int main(int argc, char **argv)
{
    pthread_t other;
    if (argc != 6) { fprintf(stderr, "usage: bare THREADS NETNS_A INTERFACE_A NETNS_B INTERFACE_B\n"); return 2; }
    end_with_parent();
    for (int i = 0; i < 2; i++)
        tap[i] = make_tap(argv[2 + 2 * i], argv[3 + 2 * i]);
    if (atoi(argv[1]) == 1)
        both_directions();
    if (pthread_create(&other, NULL, one_direction, (void *)1))
        die("thread");
    one_direction(NULL);
}
