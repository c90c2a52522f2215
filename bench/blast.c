/* Small packets per second through a path: sends 64-byte frames (60 without FCS), counts arrivals.
 *
 * usage: blast SENDER_NETNS SENDER_INTERFACE RECEIVER_NETNS RECEIVER_INTERFACE SECONDS [PPS]
 * Without PPS it sends as fast as it can; with PPS, at that rate: all frames that are due at once,
 * at least TICK_NS apart. Frames are valid UDP over IPv4 to the receiving interface's MAC, but to
 * an unused IP address, so that the receiving stack drops them early and does not reply. The result
 * is the receiving interface's rx_packets over SECONDS, after a warm-up of 200 ms.
 * Prints {"mpps": ..., "sent_mpps": ..., "seconds": ...}. */
#include "interface.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <netinet/ip.h>
#include <netinet/udp.h>

enum { FRAMES = 64, FRAME = 60, WARM_UP_MS = 200, TICK_NS = 50000 };

static uint16_t ones_complement(const void *data, size_t bytes)
{
    const uint16_t *word = data;
    uint32_t sum = 0;
    for (size_t i = 0; i < bytes / 2; i++)
        sum += word[i];
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~(sum + (sum >> 16));
}

/* rx_packets of `interface` from /proc/net/dev, opened in the receiver's namespace. */
static uint64_t received(int dev, const char *interface)
{
    char text[16384], name[IFNAMSIZ + 2], *line;
    unsigned long long packets;
    ssize_t n = pread(dev, text, sizeof text - 1, 0);
    if (n <= 0)
        die("/proc/net/dev");
    text[n] = 0;
    snprintf(name, sizeof name, "%s:", interface);
    if (!(line = strstr(text, name)) || sscanf(line + strlen(name), "%*u %llu", &packets) != 1) {
        errno = ENODEV;
        die(interface);
    }
    return packets;
}

static void build(uint8_t *frame, const uint8_t *to, const uint8_t *from)
{
    struct ethhdr *eth = (struct ethhdr *)frame;
    struct iphdr *ip = (struct iphdr *)(eth + 1);
    struct udphdr *udp = (struct udphdr *)(ip + 1);
    memset(frame, 0, FRAME);
    memcpy(eth->h_dest, to, ETH_ALEN);
    memcpy(eth->h_source, from, ETH_ALEN);
    eth->h_proto = htons(ETH_P_IP);
    ip->version = 4;
    ip->ihl = sizeof *ip / 4;
    ip->tot_len = htons(FRAME - sizeof *eth);
    ip->ttl = 64;
    ip->protocol = IPPROTO_UDP;
    ip->saddr = inet_addr("10.99.0.1");
    ip->daddr = inet_addr("10.99.0.99");
    ip->check = ones_complement(ip, sizeof *ip);
    udp->source = htons(4096);
    udp->dest = htons(4097);
    udp->len = htons(FRAME - sizeof *eth - sizeof *ip);
}

int main(int argc, char **argv)
{
    uint8_t to[ETH_ALEN], from[ETH_ALEN], frame[FRAME];
    double pps = argc == 7 ? atof(argv[6]) : 0;
    if (argc != 6 && (argc != 7 || pps <= 0)) {
        fprintf(stderr, "usage: blast SENDER_NETNS SENDER_INTERFACE RECEIVER_NETNS RECEIVER_INTERFACE SECONDS [PPS]\n");
        return 2;
    }
    end_with_parent();
    enter_netns(argv[3]);
    read_mac(argv[4], to);
    int dev = open("/proc/thread-self/net/dev", O_RDONLY);
    if (dev < 0)
        die("/proc/thread-self/net/dev");
    enter_netns(argv[1]);
    read_mac(argv[2], from);
    build(frame, to, from);

    int s = socket(AF_PACKET, SOCK_RAW, 0), on = 1;
    struct sockaddr_ll out = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(argv[2]) };
    if (s < 0 || bind(s, (struct sockaddr *)&out, sizeof out) || setsockopt(s, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on))
        die("packet socket");
    struct iovec part = { frame, FRAME };
    struct mmsghdr messages[FRAMES];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < FRAMES; i++) {
        messages[i].msg_hdr.msg_iov = &part;
        messages[i].msg_hdr.msg_iovlen = 1;
    }

    prctl(PR_SET_TIMERSLACK, 1);
    uint64_t began = now_ns(), due = 0; /* frames due since `began` */
    uint64_t start = began + WARM_UP_MS * 1000000ull, end = start + (uint64_t)(atof(argv[5]) * 1e9);
    uint64_t now, first = 0, sent = 0, before = 0, at_first = received(dev, argv[4]);
    do {
        int wanted = FRAMES;
        if (pps > 0) {
            uint64_t until = (uint64_t)(pps * (double)(now_ns() - began) / 1e9);
            if (until == due) {
                struct timespec pause = { 0, TICK_NS };
                nanosleep(&pause, NULL);
                now = now_ns();
                if (now < end)
                    continue;
                break;
            }
            wanted = until - due < FRAMES ? (int)(until - due) : FRAMES;
            due += (uint64_t)wanted;
        }
        /* a full queue is an error here: the frames are lost, and it continues */
        int n = sendmmsg(s, messages, (unsigned)wanted, 0);
        now = now_ns();
        if (!first && now >= start) {
            before = received(dev, argv[4]);
            first = now = now_ns();
            sent = 0;
        } else if (n > 0) {
            sent += (uint64_t)n;
        }
    } while (now < end);
    double ns = (double)(now - first);
    uint64_t in_all = received(dev, argv[4]);
    printf("{\"mpps\": %.5f, \"sent_mpps\": %.5f, \"seconds\": %.4f, \"packets\": %llu}\n", (double)(in_all - before) * 1e3 / ns,
           (double)sent * 1e3 / ns, ns / 1e9, (unsigned long long)(in_all - at_first)); /* packets: with the warm-up */
    return 0;
}
