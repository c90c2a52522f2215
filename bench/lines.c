/* Packets of many lines through a path: when does each arrive?
 *
 * usage: lines SENDER_NETNS SENDER_INTERFACE RECEIVER_NETNS RECEIVER_INTERFACE LINES BYTES PPS SECONDS FILE
 * Sends UDP frames of BYTES over IPv4 at PPS in all, line by line in turn: line n has the destination
 * port FIRST_PORT + n, a socket of its own, and the priority PRIORITY + n, which is its class in a qdisc
 * with the handle 1:. So a line whose queue is full holds up no other. Frames are for the receiving
 * interface's MAC, but for an unused IP address: the receiving stack drops them.
 * FILE gets a record of each frame that arrived: the kernel's time of arrival and the sender's time,
 * which is in the frame, in ns of CLOCK_REALTIME (both unsigned 64 bits), the line and the length
 * (both unsigned 32 bits).
 * Prints {"sent": ..., "refused": ..., "received": ..., "missed": ...}; missed: for want of room in the receiver. */
#include "interface.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sys/resource.h>

enum {
    FIRST_PORT = 5000, PRIORITY = 0x10001, LINES_MOST = 4096, FRAME_MOST = 1514, MESSAGES = 64, TICK_NS = 50000,
    BUFFER = 64 << 20, LAST_MS = 500, HEADERS = 42, STAMP = 8, SNAP = HEADERS + STAMP, LINE_BUFFER = 8 << 20
};

struct record { uint64_t arrived_ns, sent_ns; uint32_t line, bytes; };

static struct record *records;
static size_t count, room;
static volatile int ended;
static int receiving;
static unsigned missed;

static uint64_t real_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void open_receiver(const char *interface)
{
    int on = 1, bytes = BUFFER;
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP),
                              .sll_ifindex = (int)if_nametoindex(interface) };
    receiving = socket(AF_PACKET, SOCK_RAW, 0);
    if (receiving < 0 || setsockopt(receiving, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on)
        || setsockopt(receiving, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes)
        || setsockopt(receiving, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on)
        || bind(receiving, (struct sockaddr *)&at, sizeof at))
        die("packet socket of the receiver");
    struct timeval wait = { 0, 100000 };
    if (setsockopt(receiving, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait))
        die("SO_RCVTIMEO");
}

static void note(const uint8_t *frame, unsigned bytes, struct msghdr *message)
{
    const struct iphdr *ip = (const struct iphdr *)(frame + sizeof(struct ethhdr));
    const struct udphdr *udp = (const struct udphdr *)(ip + 1);
    struct record *r = &records[count];
    if (bytes < SNAP || ip->protocol != IPPROTO_UDP || ntohs(udp->dest) < FIRST_PORT || count == room)
        return;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            r->arrived_ns = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
            memcpy(&r->sent_ns, frame + HEADERS, sizeof r->sent_ns);
            r->line = ntohs(udp->dest) - FIRST_PORT;
            r->bytes = bytes;
            count++;
        }
    }
}

static void *receive(void *unused)
{
    static uint8_t frames[MESSAGES][SNAP], control[MESSAGES][128];
    struct mmsghdr messages[MESSAGES];
    struct iovec parts[MESSAGES];
    (void)unused;
    memset(messages, 0, sizeof messages);
    for (;;) {
        for (int i = 0; i < MESSAGES; i++) {
            parts[i] = (struct iovec){ frames[i], SNAP };
            messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1, .msg_control = control[i],
                                                   .msg_controllen = sizeof control[i] };
        }
        int n = recvmmsg(receiving, messages, MESSAGES, MSG_TRUNC | MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++)
            note(frames[i], messages[i].msg_len, &messages[i].msg_hdr);
        if (n < 0 && ended)
            return NULL;
    }
}

static void build(uint8_t *frame, unsigned bytes, const uint8_t *to, const uint8_t *from)
{
    struct ethhdr *eth = (struct ethhdr *)frame;
    struct iphdr *ip = (struct iphdr *)(eth + 1);
    struct udphdr *udp = (struct udphdr *)(ip + 1);
    uint32_t sum = 0;
    memset(frame, 0, bytes);
    memcpy(eth->h_dest, to, ETH_ALEN);
    memcpy(eth->h_source, from, ETH_ALEN);
    eth->h_proto = htons(ETH_P_IP);
    ip->version = 4;
    ip->ihl = sizeof *ip / 4;
    ip->tot_len = htons((uint16_t)(bytes - sizeof *eth));
    ip->ttl = 64;
    ip->protocol = IPPROTO_UDP;
    ip->saddr = inet_addr("10.99.0.1");
    ip->daddr = inet_addr("10.99.0.99");
    for (unsigned i = 0; i < sizeof *ip / 2; i++)
        sum += ((uint16_t *)ip)[i];
    sum = (sum >> 16) + (sum & 0xffff);
    ip->check = (uint16_t)~(sum + (sum >> 16));
    udp->source = htons(4096);
    udp->len = htons((uint16_t)(bytes - sizeof *eth - sizeof *ip));
}

static int open_line(const char *interface, int line)
{
    int priority = PRIORITY + line, bytes = LINE_BUFFER;
    struct sockaddr_ll out = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(interface) };
    int s = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&out, sizeof out)
        || setsockopt(s, SOL_SOCKET, SO_PRIORITY, &priority, sizeof priority)
        || setsockopt(s, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes))
        die("packet socket of a line");
    return s;
}

int main(int argc, char **argv)
{
    uint8_t to[ETH_ALEN], from[ETH_ALEN], frame[FRAME_MOST];
    static int sockets[LINES_MOST];
    unsigned lines = argc == 10 ? (unsigned)atoi(argv[5]) : 0, bytes = argc == 10 ? (unsigned)atoi(argv[6]) : 0;
    double pps = argc == 10 ? atof(argv[7]) : 0, seconds = argc == 10 ? atof(argv[8]) : 0;
    if (lines < 1 || lines > LINES_MOST || bytes < 60 || bytes > FRAME_MOST || pps <= 0 || seconds <= 0) {
        fprintf(stderr, "usage: lines SENDER_NETNS SENDER_INTERFACE RECEIVER_NETNS RECEIVER_INTERFACE LINES BYTES PPS SECONDS FILE\n");
        return 2;
    }
    end_with_parent();
    struct rlimit files = { LINES_MOST + 64, LINES_MOST + 64 };
    setrlimit(RLIMIT_NOFILE, &files);
    FILE *file = fopen(argv[9], "wb");
    room = (size_t)(pps * (seconds + 1) * 1.5) + 1024;
    records = calloc(room, sizeof *records);
    if (!file || !records)
        die(argv[9]);
    enter_netns(argv[3]);
    read_mac(argv[4], to);
    open_receiver(argv[4]);
    enter_netns(argv[1]);
    read_mac(argv[2], from);
    build(frame, bytes, to, from);
    for (unsigned n = 0; n < lines; n++)
        sockets[n] = open_line(argv[2], (int)n);
    pthread_t receiver;
    if (pthread_create(&receiver, NULL, receive, NULL))
        die("pthread_create");

    prctl(PR_SET_TIMERSLACK, 1);
    struct udphdr *udp = (struct udphdr *)(frame + sizeof(struct ethhdr) + sizeof(struct iphdr));
    uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9), due = 0, refused = 0, sent = 0;
    for (unsigned line = 0; now_ns() < end;) {
        uint64_t until = (uint64_t)(pps * (double)(now_ns() - began) / 1e9);
        if (until == due) {
            struct timespec pause = { 0, TICK_NS };
            nanosleep(&pause, NULL);
        }
        for (; due < until; due++, line = line + 1 == lines ? 0 : line + 1) {
            uint64_t at_ns = real_ns();
            udp->dest = htons((uint16_t)(FIRST_PORT + line));
            memcpy(frame + HEADERS, &at_ns, sizeof at_ns);
            /* refused: the line's queue is full, as it is to be */
            if (send(sockets[line], frame, bytes, 0) == (ssize_t)bytes)
                sent++;
            else
                refused++;
        }
    }
    struct timespec last = { 0, LAST_MS * 1000000l };
    nanosleep(&last, NULL);
    struct tpacket_stats statistics;
    socklen_t length = sizeof statistics;
    if (!getsockopt(receiving, SOL_PACKET, PACKET_STATISTICS, &statistics, &length))
        missed = statistics.tp_drops;
    ended = 1;
    pthread_join(receiver, NULL);
    if (fwrite(records, sizeof *records, count, file) != count || fclose(file))
        die(argv[9]);
    printf("{\"sent\": %llu, \"refused\": %llu, \"received\": %zu, \"missed\": %u}\n", (unsigned long long)sent,
           (unsigned long long)refused, count, missed);
    return 0;
}
