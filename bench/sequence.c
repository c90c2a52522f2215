/* Effect of a fault on traffic: numbered datagrams at a steady rate, and a checked TCP stream.
 *
 * usage: sequence SENDER_NETNS RECEIVER_NETNS ADDRESS PPS SECONDS [TCP_ADDRESS]
 * Sends PPS datagrams of 22 bytes (64-byte frames) a second: all that are due at once, at least
 * TICK_NS apart; when more than ARREARS_NS late, the sender skips the datagrams due. With
 * TCP_ADDRESS, also sends a stream of increasing 64-bit numbers to that address, with at most
 * SEND_ROOM bytes on their way: so few that no queue of a path with a rate is ever full, and each
 * segment that is lost or overtaken is the path's fault. Everything ends after SECONDS, or at
 * SIGTERM.
 * Prints {"sent", "received", "lost", "reordered", "overrun" (lost in the receiver's own socket),
 * "resets" (of the stream), "damaged" (numbers of it that were not the next), "tcp_bytes",
 * "tcp_retransmitted" (segments, whether lost or only late), "tcp_reordered" (segments that arrived
 * out of order), "longest_ms", "gaps": [[at_ns, ms, lost], ...], "jumps": [[at_ns, number, expected],
 * ...]}: gaps of at least GAP_NS at the receiver, with the CLOCK_MONOTONIC time of their end, and
 * datagrams that were not the next: a higher number where some are lost or late, a lower one where
 * it is late itself. */
#include "common.h"
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PAYLOAD = 22, BURST = 64, TICK_NS = 50000, GAP_NS = 2000000, ARREARS_NS = 5000000, GAPS = 4096, JUMPS = 4096,
       QUIET_MS = 500, RESOLVE_MS = 200, CHUNK = 8192, SEND_ROOM = 1 << 19 };

static atomic_int over;

static void on_term(int number)
{
    (void)number;
    over = 1;
}

static struct {
    uint64_t sent, resets, damaged, tcp_bytes, ending, retransmitted, reordered;
} volatile *shared; /* by processes: the sender and the stream enter other namespaces */

static void send_numbers(const struct sockaddr_in *to, double pps, uint64_t end)
{
    uint8_t payloads[BURST][PAYLOAD] = { { 0 } };
    struct iovec parts[BURST];
    struct mmsghdr messages[BURST];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BURST; i++) {
        parts[i] = (struct iovec){ payloads[i], PAYLOAD };
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || connect(s, (const struct sockaddr *)to, sizeof *to))
        die("sender");
    prctl(PR_SET_TIMERSLACK, 1);
    /* The kernel lets datagrams overtake those that waited for the address' resolution: this one, which
     * is shorter than a number, makes it look before. */
    struct timespec resolve = { 0, RESOLVE_MS * 1000000 };
    send(s, payloads, 1, 0);
    nanosleep(&resolve, NULL);
    uint64_t began = now_ns(), number = 0, now;
    while (!over && (now = now_ns()) < end) {
        uint64_t due = (uint64_t)(pps * (double)(now - began) / 1e9);
        if (due == number) {
            struct timespec pause = { 0, TICK_NS };
            nanosleep(&pause, NULL);
            continue;
        }
        /* it had no CPU: to send all of it now would not be a steady rate */
        if (due - number > (uint64_t)(pps * ARREARS_NS / 1e9)) {
            began += (uint64_t)((double)(due - number) / pps * 1e9);
            continue;
        }
        int wanted = due - number < BURST ? (int)(due - number) : BURST;
        for (int i = 0; i < wanted; i++) {
            uint64_t each = number + (uint64_t)i;
            memcpy(payloads[i], &each, sizeof each);
        }
        int n = sendmmsg(s, messages, (unsigned)wanted, 0);
        if (n > 0)
            /* datagrams not accepted go with the next burst: only the path may lose any */
            number += (uint64_t)n;
        shared->sent = number;
    }
    _exit(0);
}

static struct tcp_info tcp_state(int s)
{
    struct tcp_info info;
    socklen_t length = sizeof info;
    memset(&info, 0, sizeof info); /* an older kernel knows less of it */
    getsockopt(s, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info;
}

static void stream_out(const struct sockaddr_in *to)
{
    static uint64_t chunk[CHUNK];
    uint64_t number = 0;
    int s = socket(AF_INET, SOCK_STREAM, 0), room = SEND_ROOM;
    setsockopt(s, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (s < 0 || connect(s, (const struct sockaddr *)to, sizeof *to)) {
        shared->resets++;
        _exit(1);
    }
    while (!over) {
        for (int i = 0; i < CHUNK; i++)
            chunk[i] = number++;
        for (size_t done = 0; done < sizeof chunk;) {
            ssize_t n = send(s, (char *)chunk + done, sizeof chunk - done, MSG_NOSIGNAL);
            if (n <= 0) {
                if (!over && !shared->ending)
                    shared->resets++;
                _exit(1);
            }
            done += (size_t)n;
        }
        shared->retransmitted = tcp_state(s).tcpi_total_retrans;
    }
    _exit(0);
}

static void stream_in(int listener)
{
    static char chunk[CHUNK * 8 + 8];
    uint64_t expected = 0, each;
    size_t rest = 0;
    int s = accept(listener, NULL, NULL);
    while (s >= 0 && !over) {
        ssize_t n = read(s, chunk + rest, sizeof chunk - rest);
        if (n <= 0) {
            if (!over && !shared->ending)
                shared->resets++;
            break;
        }
        shared->tcp_bytes += (uint64_t)n;
        size_t have = rest + (size_t)n, at = 0;
        for (; have - at >= 8; at += 8, expected++) {
            memcpy(&each, chunk + at, 8);
            if (each != expected) {
                shared->damaged++;
                expected = each;
            }
        }
        rest = have - at;
        memmove(chunk, chunk + at, rest);
        shared->reordered = tcp_state(s).tcpi_rcv_ooopack;
    }
    _exit(0);
}

static int bound(int type, struct sockaddr_in *here)
{
    socklen_t length = sizeof *here;
    int s = socket(AF_INET, type, 0);
    if (s < 0 || bind(s, (struct sockaddr *)here, sizeof *here) || getsockname(s, (struct sockaddr *)here, &length))
        die("receiver's address");
    return s;
}

int main(int argc, char **argv)
{
    struct sockaddr_in here = { .sin_family = AF_INET }, there = { .sin_family = AF_INET };
    double pps = argc >= 6 ? atof(argv[4]) : 0, seconds = argc >= 6 ? atof(argv[5]) : 0;
    if ((argc != 6 && argc != 7) || pps <= 0 || seconds <= 0 || !inet_aton(argv[3], &here.sin_addr)
        || (argc == 7 && !inet_aton(argv[6], &there.sin_addr))) {
        fprintf(stderr, "usage: sequence SENDER_NETNS RECEIVER_NETNS ADDRESS PPS SECONDS [TCP_ADDRESS]\n");
        return 2;
    }
    end_with_parent();
    /* no SA_RESTART: it interrupts blocking calls */
    struct sigaction term = { .sa_handler = on_term };
    sigaction(SIGTERM, &term, NULL);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    enter_netns(argv[2]);
    int s = bound(SOCK_DGRAM, &here), on = 1, room = 1 << 25;
    setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    setsockopt(s, SOL_SOCKET, SO_RXQ_OVFL, &on, sizeof on);
    int listener = argc == 7 ? bound(SOCK_STREAM, &there) : -1;
    if (listener >= 0 && listen(listener, 1))
        die("listen");
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
    pid_t children[3];
    int count = 0;
    for (int job = listener >= 0 ? 0 : 2; job < 3; job++) {
        if ((children[count] = fork()) == 0) {
            end_with_parent();
            if (job == 0)
                stream_in(listener);
            enter_netns(argv[1]);
            if (job == 1)
                stream_out(&there);
            send_numbers(&here, pps, end);
        }
        if (children[count++] < 0)
            die("fork");
    }
    if (listener >= 0)
        close(listener);

    static uint8_t data[BURST][64], control[BURST][64];
    static double gaps[GAPS][3];
    static uint64_t jumps[JUMPS][3];
    struct mmsghdr messages[BURST];
    struct iovec parts[BURST];
    uint64_t received = 0, highest = 0, reordered = 0, overrun = 0, last = 0, longest = 0;
    int gap_count = 0, jump_count = 0, told = 0;
    struct pollfd ready = { s, POLLIN, 0 };
    while (poll(&ready, 1, QUIET_MS) != 0 || (!over && now_ns() < end)) {
        /* packets in flight still arrive; the loop ends when QUIET_MS pass without any */
        if (over && !told) {
            told = 1;
            shared->ending = 1;
            for (int i = 0; i < count; i++)
                kill(children[i], SIGTERM);
        }
        memset(messages, 0, sizeof messages);
        for (int i = 0; i < BURST; i++) {
            parts[i] = (struct iovec){ data[i], sizeof data[i] };
            messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1, .msg_control = control[i], .msg_controllen = sizeof control[i] };
        }
        int n = recvmmsg(s, messages, BURST, MSG_DONTWAIT, NULL);
        uint64_t now = now_ns(), number, before = highest;
        for (int i = 0; i < n; i++) {
            if (messages[i].msg_len < sizeof number)
                continue;
            memcpy(&number, data[i], sizeof number);
            if (received && number != highest + 1 && jump_count < JUMPS) {
                jumps[jump_count][0] = now;
                jumps[jump_count][1] = number;
                jumps[jump_count++][2] = highest + 1;
            }
            if (received++ && number <= highest)
                reordered++;
            else
                highest = number;
            struct cmsghdr *c = CMSG_FIRSTHDR(&messages[i].msg_hdr);
            if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
                uint32_t lost;
                memcpy(&lost, CMSG_DATA(c), sizeof lost);
                overrun = lost;
            }
        }
        if (n > 0 && received) {
            if (last && now - last > longest)
                longest = now - last;
            memcpy(&number, data[0], sizeof number);
            if (last && now - last >= GAP_NS && gap_count < GAPS) {
                gaps[gap_count][0] = (double)now;
                gaps[gap_count][1] = (double)(now - last) / 1e6;
                gaps[gap_count++][2] = number > before ? (double)(number - before - 1) : 0;
            }
            last = now;
        }
    }
    shared->ending = 1;
    for (int i = 0; i < count; i++)
        kill(children[i], SIGTERM);
    for (int i = 0; i < count; i++)
        waitpid(children[i], NULL, 0);
    uint64_t sent = shared->sent;
    printf("{\"sent\": %llu, \"received\": %llu, \"lost\": %lld, \"reordered\": %llu, \"overrun\": %llu, \"resets\": %llu, \"damaged\": %llu,"
           " \"tcp_bytes\": %llu, \"tcp_retransmitted\": %llu, \"tcp_reordered\": %llu, \"longest_ms\": %.3f, \"gaps\": [", (unsigned long long)sent, (unsigned long long)received,
           (long long)(sent - received), (unsigned long long)reordered, (unsigned long long)overrun, (unsigned long long)shared->resets,
           (unsigned long long)shared->damaged, (unsigned long long)shared->tcp_bytes, (unsigned long long)shared->retransmitted,
           (unsigned long long)shared->reordered, (double)longest / 1e6);
    for (int i = 0; i < gap_count; i++)
        printf("%s[%.0f, %.3f, %.0f]", i ? ", " : "", gaps[i][0], gaps[i][1], gaps[i][2]);
    printf("], \"jumps\": [");
    for (int i = 0; i < jump_count; i++)
        printf("%s[%llu, %llu, %llu]", i ? ", " : "", (unsigned long long)jumps[i][0], (unsigned long long)jumps[i][1],
               (unsigned long long)jumps[i][2]);
    printf("]}\n");
    return 0;
}
