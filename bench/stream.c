/* Goodput of one TCP stream between two namespaces.
 *
 * usage: stream SENDER_NETNS RECEIVER_NETNS RECEIVER_ADDRESS SECONDS
 * Uses CUBIC, whatever the machine's default (defaults differ, and a paced one would not show what
 * the path can do). The receiver counts the bytes that it reads in SECONDS after half a second of
 * warm-up, and prints {"gbps": ..., "seconds": ...}. */
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { CHUNK = 128 * 1024, WARM_UP_MS = 500 };

static void send_all(const char *netns, const struct sockaddr_in *to)
{
    static char chunk[CHUNK];
    enter_netns(netns);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || setsockopt(s, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5))
        die("TCP CUBIC");
    if (connect(s, (const struct sockaddr *)to, sizeof *to))
        die("connect");
    while (send(s, chunk, sizeof chunk, MSG_NOSIGNAL) > 0) { }
    _exit(0); /* the receiver has finished and closed */
}

int main(int argc, char **argv)
{
    static char chunk[CHUNK];
    struct sockaddr_in here = { .sin_family = AF_INET };
    socklen_t length = sizeof here;
    if (argc != 5 || !inet_aton(argv[3], &here.sin_addr)) {
        fprintf(stderr, "usage: stream SENDER_NETNS RECEIVER_NETNS RECEIVER_ADDRESS SECONDS\n");
        return 2;
    }
    end_with_parent();
    double seconds = atof(argv[4]);
    enter_netns(argv[2]);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 1)
        || getsockname(listener, (struct sockaddr *)&here, &length))
        die(argv[3]);
    pid_t sender = fork();
    if (sender < 0)
        die("fork");
    if (sender == 0) {
        end_with_parent();
        send_all(argv[1], &here);
    }
    /* if the path forwards nothing, the probe ends, not the whole run */
    alarm((unsigned)seconds + 10);
    int s = accept(listener, NULL, NULL);
    if (s < 0)
        die("accept");
    uint64_t start = now_ns() + WARM_UP_MS * 1000000ull, end = start + (uint64_t)(seconds * 1e9), now, bytes = 0, in_all = 0, first = 0;
    do {
        ssize_t n = read(s, chunk, sizeof chunk);
        if (n <= 0)
            die("read");
        now = now_ns();
        in_all += (uint64_t)n;
        if (now >= start) {
            if (first)
                bytes += (uint64_t)n;
            else
                first = now; /* bytes before this instant are not counted */
        }
    } while (now < end);
    printf("{\"gbps\": %.4f, \"seconds\": %.4f, \"bytes\": %llu}\n", (double)bytes * 8 / (double)(now - first),
           (double)(now - first) / 1e9, (unsigned long long)in_all); /* bytes: with the warm-up */
    kill(sender, SIGKILL);
    waitpid(sender, NULL, 0);
    return 0;
}
