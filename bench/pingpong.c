/* Round trips of a small UDP datagram between two namespaces.
 *
 * usage: pingpong CLIENT_NETNS SERVER_NETNS SERVER_ADDRESS COUNT PAUSE_US
 * With PAUSE_US > 0 the client sleeps between PAUSE_US and twice as long between two round trips, so that everybody on the path
 * has gone to sleep; with 0 the next one starts at once. The first answer is waited for up to 10 s (it also resolves addresses and
 * teaches switches) and not counted. Prints {"p50_us": ..., "p99_us": ..., "p999_us": ..., "min_us": ..., "count": ..., "lost": ...}. */
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { PAYLOAD = 16, CONNECT_MS = 10000, RETRY_MS = 50, LOST_MS = 500 };

static void echo(int s)
{
    char data[2048];
    struct sockaddr_in from;
    for (;;) {
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(s, data, sizeof data, 0, (struct sockaddr *)&from, &length);
        if (n >= 0)
            sendto(s, data, (size_t)n, 0, (struct sockaddr *)&from, length);
    }
}

static void set_timeout(int s, int ms)
{
    struct timeval t = { ms / 1000, ms % 1000 * 1000 };
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
}

/* Nanoseconds until the answer numbered `number` came, 0 where none did. */
static uint64_t round_trip(int s, uint64_t number)
{
    uint64_t data[PAYLOAD / 8] = { number }, start = now_ns();
    if (send(s, data, sizeof data, 0) != sizeof data)
        return 0;
    while (recv(s, data, sizeof data, 0) == sizeof data)
        if (data[0] == number) /* else: a late answer to one given up */
            return now_ns() - start;
    return 0;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
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
        echo(s);
    }
    close(s);
    enter_netns(argv[1]);
    s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&server, sizeof server))
        die("connect");

    uint64_t *samples = calloc((size_t)count, sizeof *samples), number = 0;
    long taken = 0, lost = 0, tries = CONNECT_MS / RETRY_MS;
    set_timeout(s, RETRY_MS);
    while (tries && !round_trip(s, ++number)) {
        tries--;
        usleep(1000);
    }
    set_timeout(s, LOST_MS);
    for (long i = 0; tries && i < count && lost < 20; i++) {
        if (pause_us)
            usleep((useconds_t)(pause_us + random() % pause_us));
        uint64_t took = round_trip(s, ++number);
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
    qsort(samples, (size_t)taken, sizeof *samples, ascending);
    printf("{\"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"min_us\": %.2f, \"count\": %ld, \"lost\": %ld}\n",
           (double)samples[taken / 2] / 1e3, (double)samples[taken * 99 / 100] / 1e3, (double)samples[taken * 999 / 1000] / 1e3,
           (double)samples[0] / 1e3, taken, lost);
    return 0;
}
