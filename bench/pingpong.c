/* Round trips of a small UDP datagram between two namespaces.
 *
 * usage: pingpong CLIENT_NETNS SERVER_NETNS SERVER_ADDRESS COUNT PAUSE_US
 * With PAUSE_US > 0 the client sleeps between PAUSE_US and twice as long between round trips, so
 * that all processes on the path are asleep; with 0 the next one starts at once. The first reply
 * may take up to 10 s (it also resolves addresses, and switches learn them) and is not counted.
 * Prints {"p50_us": ..., "p99_us": ..., "p999_us": ..., "min_us": ...,
 * the same with the prefix "through_", "count": ..., "lost": ...}. "through" is one way, from the
 * clock reading before the send to the receiving kernel's time stamp: it includes the path's
 * wake-up, but not that of the receiving process. */
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

struct message {
    uint64_t number;
    uint64_t sent_ns;    /* CLOCK_REALTIME, as the kernel's time stamps of datagrams */
    uint64_t through_ns; /* in a reply: one-way time of the request */
};

enum { CONNECT_MS = 10000, RETRY_MS = 50, LOST_MS = 500 };

static uint64_t real_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* As recvfrom; through_ns: time since the sender's clock reading, 0 without a kernel time stamp. */
static ssize_t receive(int s, struct message *m, struct sockaddr_in *from, uint64_t *through_ns)
{
    union {
        char room[CMSG_SPACE(sizeof(struct timespec))];
        struct cmsghdr aligned;
    } control;
    struct iovec into = { m, sizeof *m };
    struct msghdr h = { .msg_name = from,
                        .msg_namelen = from ? sizeof *from : 0,
                        .msg_iov = &into,
                        .msg_iovlen = 1,
                        .msg_control = &control,
                        .msg_controllen = sizeof control };
    ssize_t n = recvmsg(s, &h, 0);
    struct cmsghdr *c = n == sizeof *m ? CMSG_FIRSTHDR(&h) : NULL;
    struct timespec t;
    *through_ns = 0;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
        memcpy(&t, CMSG_DATA(c), sizeof t);
        *through_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec - m->sent_ns;
    }
    return n;
}

static void want_times(int s)
{
    int yes = 1;
    if (setsockopt(s, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes))
        die("SO_TIMESTAMPNS");
}

static void echo(int s)
{
    struct message m;
    struct sockaddr_in from;
    for (;;) {
        if (receive(s, &m, &from, &m.through_ns) != sizeof m)
            continue;
        m.sent_ns = real_ns();
        sendto(s, &m, sizeof m, 0, (struct sockaddr *)&from, sizeof from);
    }
}

static void set_timeout(int s, int ms)
{
    struct timeval t = { ms / 1000, ms % 1000 * 1000 };
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

/* Nanoseconds until reply `number` came, 0 if none did; through[0], through[1]: there and back. */
static uint64_t round_trip(int s, uint64_t number, uint64_t through[2])
{
    struct message m = { .number = number, .sent_ns = real_ns() };
    uint64_t start = now_ns();
    if (send(s, &m, sizeof m, 0) != sizeof m)
        return 0;
    while (receive(s, &m, NULL, &through[1]) == sizeof m)
        if (m.number == number) { /* else: a late reply to a request given up */
            through[0] = m.through_ns;
            return now_ns() - start;
        }
    return 0;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Sorts the samples and prints their percentiles as members of an object. */
static void print_percentiles(const char *prefix, uint64_t *samples, long count)
{
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    printf("\"%sp50_us\": %.2f, \"%sp99_us\": %.2f, \"%sp999_us\": %.2f, \"%smin_us\": %.2f, ", prefix,
           (double)samples[count / 2] / 1e3, prefix, (double)samples[count * 99 / 100] / 1e3, prefix,
           (double)samples[count * 999 / 1000] / 1e3, prefix, (double)samples[0] / 1e3);
}

int main(int argc, char **argv)
{
    struct sockaddr_in server = { .sin_family = AF_INET };
    socklen_t length = sizeof server;
    long count = argc == 6 ? atol(argv[4]) : 0, pause_us = argc == 6 ? atol(argv[5]) : 0;
    if (count < 1 || !inet_aton(argv[3], &server.sin_addr)) {
        fprintf(stderr, "usage: pingpong CLIENT_NETNS SERVER_NETNS SERVER_ADDRESS COUNT PAUSE_US\n");
        return 2;
    }
    end_with_parent();
    enter_netns(argv[2]);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&server, sizeof server) || getsockname(s, (struct sockaddr *)&server, &length))
        die(argv[3]);
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        end_with_parent();
        want_times(s);
        echo(s);
    }
    close(s);
    enter_netns(argv[1]);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&server, sizeof server))
        die("connect");
    want_times(s);

    uint64_t *samples = calloc((size_t)count, sizeof *samples), *through = calloc(2 * (size_t)count + 2, sizeof *through), number = 0;
    if (!samples || !through)
        die("samples");
    long taken = 0, lost = 0, tries = CONNECT_MS / RETRY_MS;
    set_timeout(s, RETRY_MS);
    while (tries && !round_trip(s, ++number, through)) {
        tries--;
        usleep(1000);
    }
    set_timeout(s, LOST_MS);
    for (long i = 0; tries && i < count && lost < 20; i++) {
        if (pause_us)
            usleep((useconds_t)(pause_us + random() % pause_us));
        uint64_t took = round_trip(s, ++number, through + 2 * taken);
        if (took)
            samples[taken++] = took;
        else
            lost++;
    }
    kill(child, SIGKILL);
    if (!taken) {
        fprintf(stderr, "no answer from %s\n", argv[3]);
        return 1;
    }
    printf("{");
    print_percentiles("", samples, taken);
    print_percentiles("through_", through, 2 * taken);
    printf("\"count\": %ld, \"lost\": %ld}\n", taken, lost);
    return 0;
}
