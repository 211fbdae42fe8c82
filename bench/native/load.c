/* load: the load generator of the benchmark, one process, epoll, loopback only.
 *
 * It checks the length of every answer, and its bytes, which carry the connection's number and a serial number. So an
 * answer that goes to the wrong client or comes twice is an error too. Errors are counted by kind and never hidden: a
 * server can't look fast by not answering. Latencies go into a log-linear histogram with 64 steps in each power of two
 * (1.6 % wide). The result is one line of JSON.
 *
 * Modes:
 *   echo     opens connections one after the other (each gets one answer), then keeps one message in flight on each;
 *            with --idle N it first opens N more connections, which stay silent
 *   connect  each slot opens a connection, sends a message, waits for the echo, closes, and starts over
 *   request  like connect, but sends --send TEXT (or nothing) and reads to end of file, at least --min-bytes
 *   burst    opens all connections at once and sends one message on each; counts the answers within --timeout
 *   bulk     each connection writes and reads blocks of --size without pause; all bytes that it sent must come back
 *
 * With --sync it prints "ready" when the connections are open, starts when a line comes on standard input, and keeps the
 * connections open after the result until standard input ends. So another process can measure exactly the load.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, BLOCK = 65536, TAG = 8, STEPS = 64, SOURCES = 200 };

enum mode { ECHO, CONNECT, REQUEST, BURST, BULK };

struct slot { /* one connection, or the place of one after another */
    int fd;
    uint32_t serial;
    size_t sent, received;
    uint64_t started; /* ns; 0: no message is in flight */
    bool writing;     /* watched for EPOLLOUT */
};

static enum mode mode = ECHO;
static int port, connections = 1, idle;
static size_t size = 128, min_bytes;
static double seconds = 1, warmup, timeout = 5;
static long request_limit;
static const char *request_text;
static bool synchronous;

static struct slot *slots;
static char *message, *buffer;
static size_t buffer_size;
static int epoll_fd;
static unsigned next_source;

static struct {
    uint64_t requests, bytes, timeouts, refused, resets, closed_early, wrong, setup;
} count;
static uint64_t histogram[64 * STEPS], latencies;
static uint64_t total_sent, total_received;

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t after(double s)
{
    return now_ns() + (uint64_t)(s * 1e9);
}

/* -- latencies ---------------------------------------------------------------------------------------------- */

static void note_latency(uint64_t ns)
{
    int power = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 6; /* 2^6 is STEPS */
    uint64_t step = ns >> power;                               /* 64..127, or less where power is 0 */
    histogram[(uint64_t)power * STEPS + step]++;
    latencies++;
}

static double percentile_us(double part)
{
    uint64_t wanted = (uint64_t)(part * (double)latencies), seen = 0;
    if (!latencies)
        return 0;
    for (unsigned power = 0; power < 57; power++) /* power 0 has the steps from 0, the others those from 64 */
        for (unsigned step = power ? STEPS : 0; step < 2 * STEPS; step++) {
            seen += histogram[power * STEPS + step];
            if (seen > wanted)
                return ((double)step + 0.5) * (double)(1ull << power) / 1000;
        }
    return 0;
}

/* -- messages ----------------------------------------------------------------------------------------------- */

static void put_tag(const struct slot *slot)
{
    uint32_t tag[2] = {(uint32_t)(slot - slots), slot->serial};
    if (size >= TAG)
        memcpy(message, tag, TAG);
}

static bool right_bytes(const struct slot *slot, const char *bytes, size_t length)
{
    if (slot->received + length > size)
        return false;
    put_tag(slot);
    return memcmp(message + slot->received, bytes, length) == 0;
}

/* The stream of bulk mode: byte p is p modulo 251, a prime, so that a lost or repeated block shows at once. */
static bool right_stream(uint64_t position, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length && i < 64; i++)
        if ((unsigned char)bytes[i] != (position + i) % 251)
            return false;
    return true;
}

/* -- connections -------------------------------------------------------------------------------------------- */

/* Connections in sequence leave the client's ports in TIME_WAIT, and one address has only 28,000 of them. All of 127/8
 * is this machine, so the connections come from 200 addresses in turn. */
static int open_socket(bool nonblocking)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (fd < 0) {
        perror("socket");
        exit(1);
    }
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(0x7f000101u + next_source++ % SOURCES)};
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0) {
        perror("bind");
        exit(1);
    }
    return fd;
}

static int start_connect(int fd)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((unsigned short)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static void watch(int operation, struct slot *slot, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = slot};
    if (epoll_ctl(epoll_fd, operation, slot->fd, &event) < 0) {
        perror("epoll_ctl");
        exit(1);
    }
}

static void close_slot(struct slot *slot, bool reset)
{
    if (reset)
        setsockopt(slot->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(slot->fd);
    slot->fd = -1;
    slot->started = 0;
}

static void count_errno(int error)
{
    if (error == ECONNREFUSED)
        count.refused++;
    else
        count.resets++;
}

/* Opens a connection and waits for one answer, blocking; tries three times, and counts each failure. */
static bool open_and_greet(struct slot *slot)
{
    struct timeval limit = {(time_t)timeout, (suseconds_t)((timeout - (double)(time_t)timeout) * 1e6)};
    for (int attempt = 0; attempt < 3; attempt++) {
        slot->fd = open_socket(false);
        slot->received = 0;
        setsockopt(slot->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        setsockopt(slot->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        size_t length = mode == BULK ? 1 : size;
        put_tag(slot);
        if (start_connect(slot->fd) == 0 &&
            send(slot->fd, mode == BULK ? "" : message, length, MSG_NOSIGNAL) == (ssize_t)length) {
            while (slot->received < length) {
                ssize_t got = recv(slot->fd, buffer, length - slot->received, 0);
                if (got <= 0 || (mode != BULK && !right_bytes(slot, buffer, (size_t)got)))
                    break;
                slot->received += (size_t)got;
            }
            if (slot->received == length) {
                fcntl(slot->fd, F_SETFL, O_NONBLOCK);
                slot->serial++;
                return true;
            }
        }
        count.setup++;
        close_slot(slot, true);
    }
    return false;
}

/* -- echo on connections that stay -------------------------------------------------------------------------- */

static void send_message(struct slot *slot)
{
    put_tag(slot);
    ssize_t sent = send(slot->fd, message + slot->sent, size - slot->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        count_errno(errno);
        close_slot(slot, true);
        return;
    }
    if (sent > 0)
        slot->sent += (size_t)sent;
    bool writing = slot->sent < size;
    if (writing != slot->writing) {
        slot->writing = writing;
        watch(EPOLL_CTL_MOD, slot, EPOLLIN | (writing ? (unsigned)EPOLLOUT : 0));
    }
}

static void begin_message(struct slot *slot)
{
    slot->sent = slot->received = 0;
    slot->started = now_ns();
    send_message(slot);
}

/* True when the whole answer has arrived. */
static bool read_answer(struct slot *slot)
{
    ssize_t got = recv(slot->fd, buffer, buffer_size, 0);
    if (got < 0 && errno == EAGAIN)
        return false;
    if (got <= 0) {
        if (got == 0)
            count.closed_early++;
        else
            count_errno(errno);
        close_slot(slot, true);
        return false;
    }
    if (!slot->started || !right_bytes(slot, buffer, (size_t)got)) {
        count.wrong++;
        close_slot(slot, true);
        return false;
    }
    slot->received += (size_t)got;
    return slot->received == size;
}

static double run_echo(double duration, long limit)
{
    uint64_t start = now_ns(), end = start + (uint64_t)(duration * 1e9), give_up = 0, finish = 0;
    long begun = 0;
    int under_way = 0;
    for (int i = 0; i < connections; i++)
        if (slots[i].fd >= 0 && (!limit || begun < limit)) {
            begun++;
            begin_message(&slots[i]);
            under_way += slots[i].fd >= 0;
        }
    while (under_way) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, 50);
        uint64_t now = now_ns();
        if (!give_up && (limit ? begun >= limit : now >= end)) { /* send no more from here on */
            finish = limit ? 0 : now;
            give_up = now + (uint64_t)(timeout * 1e9);
        }
        for (int i = 0; i < ready; i++) {
            struct slot *slot = events[i].data.ptr;
            bool busy = slot->started != 0;
            if (slot->fd < 0)
                continue;
            if (events[i].events & EPOLLOUT)
                send_message(slot);
            if (slot->fd >= 0 && events[i].events & ~(unsigned)EPOLLOUT && read_answer(slot)) {
                now = now_ns();
                if (!finish) { /* answers after the end are checked, but neither they nor their times count */
                    note_latency(now - slot->started);
                    count.requests++;
                    count.bytes += size;
                }
                slot->serial++;
                slot->started = 0;
                if (!finish && (limit ? begun < limit : now < end)) {
                    begun++;
                    begin_message(slot);
                }
            }
            if (busy && !slot->started)
                under_way--;
        }
        if (give_up && now > give_up)
            break;
    }
    for (int i = 0; i < connections; i++)
        if (slots[i].fd >= 0 && slots[i].started) {
            count.timeouts++;
            slots[i].started = 0;
        }
    return (double)((finish ? finish : now_ns()) - start) / 1e9;
}

/* -- bulk --------------------------------------------------------------------------------------------------- */

static double run_bulk(double duration)
{
    uint64_t start = now_ns(), end = start + (uint64_t)(duration * 1e9), finish = 0, give_up = 0;
    uint64_t *out = calloc((size_t)connections, sizeof *out), *in = calloc((size_t)connections, sizeof *in);
    char *stream = malloc(size + 251);
    int open = 0;
    for (size_t i = 0; i < size + 251; i++)
        stream[i] = (char)(i % 251);
    for (int i = 0; i < connections; i++)
        if (slots[i].fd >= 0) {
            open++;
            watch(EPOLL_CTL_MOD, &slots[i], EPOLLIN | EPOLLOUT);
        }
    while (open) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, 50);
        uint64_t now = now_ns();
        if (!finish && now >= end) {
            finish = now;
            count.bytes = total_received;
            give_up = now + (uint64_t)(timeout * 1e9);
            for (int i = 0; i < connections; i++)
                if (slots[i].fd >= 0) {
                    watch(EPOLL_CTL_MOD, &slots[i], EPOLLIN);
                    if (in[i] == out[i])
                        open--;
                }
            if (!open)
                break;
        }
        for (int i = 0; i < ready; i++) {
            struct slot *slot = events[i].data.ptr;
            long n = slot - slots;
            if (slot->fd < 0)
                continue;
            if (!finish && events[i].events & EPOLLOUT) {
                ssize_t sent = send(slot->fd, stream + out[n] % 251, size, MSG_NOSIGNAL);
                if (sent > 0) {
                    out[n] += (uint64_t)sent;
                    total_sent += (uint64_t)sent;
                }
            }
            if (!(events[i].events & ~(unsigned)EPOLLOUT))
                continue;
            ssize_t got = recv(slot->fd, buffer, buffer_size, 0);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0 || !right_stream(in[n], buffer, (size_t)got) || in[n] + (uint64_t)got > out[n]) {
                if (got == 0)
                    count.closed_early++;
                else if (got < 0)
                    count_errno(errno);
                else
                    count.wrong++;
                close_slot(slot, true);
                open--;
                continue;
            }
            in[n] += (uint64_t)got;
            total_received += (uint64_t)got;
            count.requests++;
            if (finish && in[n] == out[n])
                open--;
        }
        if (give_up && now > give_up) {
            count.timeouts += (uint64_t)open;
            break;
        }
    }
    if (!finish)
        count.bytes = total_received;
    return (double)((finish ? finish : now_ns()) - start) / 1e9;
}

/* -- connections that come and go: connect, request, burst -------------------------------------------------- */

static void begin_connection(struct slot *slot)
{
    slot->fd = open_socket(true);
    slot->sent = slot->received = 0;
    slot->started = now_ns();
    if (start_connect(slot->fd) < 0 && errno != EINPROGRESS) {
        count_errno(errno);
        close_slot(slot, true);
        return;
    }
    watch(EPOLL_CTL_ADD, slot, EPOLLIN | EPOLLOUT | EPOLLET);
}

/* One event of such a connection. True when the connection is over; the counters say how it ended. */
static bool serve_connection(struct slot *slot, unsigned events)
{
    const char *bytes = mode == REQUEST ? request_text : message;
    size_t length = mode == REQUEST ? strlen(request_text) : size;
    if (events & EPOLLERR) {
        int error = 0;
        socklen_t width = sizeof error;
        getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &error, &width);
        if (error) {
            count_errno(error);
            close_slot(slot, true);
            return true;
        }
    }
    while (events & EPOLLOUT && slot->sent < length) {
        if (mode != REQUEST)
            put_tag(slot);
        ssize_t sent = send(slot->fd, bytes + slot->sent, length - slot->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN)
                break;
            count_errno(errno);
            close_slot(slot, true);
            return true;
        }
        slot->sent += (size_t)sent;
    }
    while (events & (EPOLLIN | EPOLLHUP)) {
        ssize_t got = recv(slot->fd, buffer, buffer_size, 0);
        if (got < 0 && errno == EAGAIN)
            return false;
        bool done = false;
        if (got < 0) {
            count_errno(errno);
        } else if (got == 0) {
            done = mode == REQUEST && slot->received >= min_bytes;
            if (!done)
                count.closed_early++;
        } else {
            if (mode != REQUEST && !right_bytes(slot, buffer, (size_t)got)) {
                count.wrong++;
                close_slot(slot, true);
                return true;
            }
            slot->received += (size_t)got;
            if (mode == REQUEST || slot->received < size)
                continue;
            done = true;
        }
        if (done) {
            note_latency(now_ns() - slot->started);
            count.requests++;
            count.bytes += slot->received;
        }
        slot->serial++;
        close_slot(slot, !done);
        return true;
    }
    return false;
}

static double run_connections(double duration, long limit, int width)
{
    uint64_t start = now_ns(), end = start + (uint64_t)(duration * 1e9), last_answer = start, look = 0;
    uint64_t patience = (uint64_t)(timeout * 1e9);
    long begun = 0;
    int open = 0;
    bool over = false;
    for (int i = 0; i < width && (!limit || begun < limit); i++, begun++) {
        begin_connection(&slots[i]);
        open += slots[i].fd >= 0;
    }
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, 20);
        uint64_t now = now_ns();
        over = limit ? begun >= limit : now >= end;
        for (int i = 0; i < ready; i++) {
            struct slot *slot = events[i].data.ptr;
            uint64_t before = count.requests;
            if (slot->fd < 0 || !serve_connection(slot, events[i].events))
                continue;
            open--;
            if (count.requests > before)
                last_answer = now_ns();
            over = limit ? begun >= limit : last_answer >= end;
            if (!over) {
                begun++;
                begin_connection(slot);
                open += slot->fd >= 0;
            }
        }
        if (now >= look) { /* end connections that wait too long, and refill slots whose connect failed at once */
            look = now + 20000000;
            for (int i = 0; i < width; i++) {
                struct slot *slot = &slots[i];
                if (slot->fd >= 0 && slot->started && now > slot->started && now - slot->started > patience) {
                    count.timeouts++;
                    close_slot(slot, true);
                    open--;
                }
                if (slot->fd < 0 && !over && (!limit || begun < limit)) {
                    begun++;
                    begin_connection(slot);
                    open += slot->fd >= 0;
                }
            }
            over = limit ? begun >= limit : now >= end;
        }
        if (over && (!open || !limit))
            break;
    }
    if (!limit) { /* connections still open at the end may finish, but count only if they fail */
        uint64_t counted = count.requests, bytes = count.bytes, give_up = after(timeout);
        double elapsed = (double)(now_ns() - start) / 1e9;
        while (open && now_ns() < give_up) {
            struct epoll_event events[EVENTS];
            int ready = epoll_wait(epoll_fd, events, EVENTS, 20);
            for (int i = 0; i < ready; i++) {
                struct slot *slot = events[i].data.ptr;
                if (slot->fd >= 0 && serve_connection(slot, events[i].events))
                    open--;
            }
        }
        count.timeouts += (uint64_t)open;
        count.requests = counted;
        count.bytes = bytes;
        return elapsed;
    }
    return (double)(last_answer - start) / 1e9;
}

/* -- the frame ---------------------------------------------------------------------------------------------- */

static void usage(void)
{
    fprintf(stderr,
            "usage: load --port PORT [--mode echo|connect|request|burst|bulk] [--connections N] [--idle N]\n"
            "            [--size BYTES] [--seconds S | --requests N] [--warmup S] [--timeout S]\n"
            "            [--send TEXT] [--min-bytes N] [--sync]\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    static const char *names[] = {"echo", "connect", "request", "burst", "bulk"};
    static const struct option options[] = {
        {"port", 1, 0, 'p'},     {"mode", 1, 0, 'm'},     {"connections", 1, 0, 'c'}, {"idle", 1, 0, 'i'},
        {"size", 1, 0, 's'},     {"seconds", 1, 0, 'd'},  {"requests", 1, 0, 'n'},    {"warmup", 1, 0, 'w'},
        {"timeout", 1, 0, 't'},  {"send", 1, 0, 'q'},     {"min-bytes", 1, 0, 'b'},   {"sync", 0, 0, 'y'},
        {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 'i': idle = atoi(optarg); break;
        case 's': size = (size_t)atol(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'n': request_limit = atol(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 't': timeout = atof(optarg); break;
        case 'q': request_text = optarg; break;
        case 'b': min_bytes = (size_t)atoll(optarg); break;
        case 'y': synchronous = true; break;
        case 'm':
            for (mode = ECHO; mode <= BULK && strcmp(optarg, names[mode]); mode++)
                ;
            if (mode > BULK)
                usage();
            break;
        default: usage();
        }
    }
    if (port <= 0 || port > 65535 || connections < 0 || idle < 0 || size < 1 || optind < argc)
        usage();
    if (!request_text)
        request_text = "";
}

static void forget_counts(void)
{
    uint64_t setup = count.setup;
    memset(&count, 0, sizeof count);
    memset(histogram, 0, sizeof histogram);
    latencies = 0;
    count.setup = setup;
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int total = connections + idle, connected = 0;
    slots = calloc((size_t)total + 1, sizeof *slots);
    message = malloc(size);
    buffer_size = size > BLOCK ? size : BLOCK;
    if (mode == REQUEST)
        buffer_size = 1 << 20;
    buffer = malloc(buffer_size);
    for (size_t i = 0; i < size; i++)
        message[i] = (char)('a' + i % 23);
    for (int i = 0; i < total; i++)
        slots[i].fd = -1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    if (mode == ECHO || mode == BULK) {
        int failed = 0; /* in sequence; give up soon on a server that answers none of them */
        for (int i = total - 1; i >= 0 && failed < 3; i--) /* the idle ones are last in the array, and open first */
            if (!open_and_greet(&slots[i])) {
                failed++;
            } else {
                failed = 0;
                connected++;
                if (i < connections || mode == ECHO)
                    watch(EPOLL_CTL_ADD, &slots[i], EPOLLIN);
            }
        if (mode == ECHO && warmup > 0)
            run_echo(warmup, 0);
    } else if (mode != BURST && warmup > 0) {
        run_connections(warmup, 0, connections);
    }
    forget_counts();

    char line[64];
    if (synchronous) {
        printf("ready\n");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            return 1;
    }
    double elapsed = 0;
    if (mode == ECHO)
        elapsed = connections ? run_echo(seconds, request_limit) : 0;
    else if (mode == BULK)
        elapsed = run_bulk(seconds);
    else if (mode == BURST)
        elapsed = run_connections(0, connections, connections);
    else
        elapsed = run_connections(seconds, request_limit, connections);

    uint64_t errors = count.timeouts + count.refused + count.resets + count.closed_early + count.wrong;
    int want = mode == ECHO || mode == BULK ? total : connected;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"errors\": %llu, \"p50_us\": %.2f, \"p99_us\": %.2f, "
           "\"bytes\": %llu, \"connected\": %d, \"not_connected\": %d, \"setup_errors\": %llu, \"timeouts\": %llu, "
           "\"refused\": %llu, \"resets\": %llu, \"closed_early\": %llu, \"wrong\": %llu}\n",
           (unsigned long long)count.requests, elapsed, (unsigned long long)errors, percentile_us(0.5),
           percentile_us(0.99), (unsigned long long)count.bytes, connected, want - connected,
           (unsigned long long)count.setup, (unsigned long long)count.timeouts, (unsigned long long)count.refused,
           (unsigned long long)count.resets, (unsigned long long)count.closed_early,
           (unsigned long long)count.wrong);
    fflush(stdout);
    if (synchronous)
        while (fgets(line, sizeof line, stdin))
            ;
    return 0;
}
