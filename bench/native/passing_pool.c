/* passing_pool: only poolsrv's way of passing connections on, in C.
 *
 * The dispatcher accepts, and passes up to 16 descriptors in a message to the next worker, round robin, over a
 * SOCK_SEQPACKET pair. It runs as SCHED_BATCH, and at most 64 descriptors are on their way to a worker. The worker
 * reports how many it has taken, once for at least 16, so none is lost however many come at once. It reads from a
 * connection as soon as it has it, and echoes. What poolsrv costs beyond this is Python and its features; what this
 * costs beyond one process that accepts for itself is the price of the design.
 *
 * usage: passing_pool PORT WORKERS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 512, MAX_WORKERS = 16, PER_MESSAGE = 16, UNDER_WAY = 64 };

static struct {
    int channel;
    int under_way;
} workers[MAX_WORKERS];
static char buffer[BUFFER];
static int epoll_fd, listener, worker_count;

union control { /* aligned as struct cmsghdr */
    char bytes[CMSG_SPACE(sizeof(int) * PER_MESSAGE)];
    struct cmsghdr header;
};

static void watch(int operation, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) {
        perror("epoll_ctl");
        exit(1);
    }
}

/* --- the worker */

/* A request of this benchmark fits the kernel's buffers; a client that doesn't read its answer is dropped. */
static void echo(int fd)
{
    ssize_t got = recv(fd, buffer, BUFFER, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0 || send(fd, buffer, (size_t)got, MSG_DONTWAIT | MSG_NOSIGNAL) != got)
        close(fd);
}

/* Returns the number of descriptors in the message. */
static int take(int channel)
{
    union control control;
    char note;
    struct iovec part = {.iov_base = &note, .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
    if (got == 0)
        exit(0); /* the dispatcher is gone */
    struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
    if (!header)
        return 0;
    int fds[PER_MESSAGE];
    int count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(header), sizeof(int) * (size_t)count);
    for (int i = 0; i < count; i++) {
        watch(EPOLL_CTL_ADD, fds[i], EPOLLIN);
        echo(fds[i]);
    }
    return count;
}

static void run_worker(int channel)
{
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_OTHER, &none);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, channel, EPOLLIN);
    int taken = 0;
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == channel)
                taken += take(channel);
            else
                echo(events[i].data.fd);
        }
        if (taken >= PER_MESSAGE) {
            unsigned char report = (unsigned char)taken;
            taken = send(channel, &report, 1, MSG_NOSIGNAL) == 1 ? 0 : taken;
        }
    }
}

/* --- the dispatcher */

static int choose(void)
{
    static int next;
    for (int tried = 0; tried < worker_count; tried++) {
        int chosen = next;
        next = (next + 1) % worker_count;
        if (workers[chosen].under_way <= UNDER_WAY - PER_MESSAGE)
            return chosen;
    }
    return -1;
}

static void pass(int worker, const int *fds, int count)
{
    union control control;
    struct iovec part = {.iov_base = "c", .iov_len = 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    memcpy(CMSG_DATA(header), fds, sizeof(int) * (size_t)count);
    if (sendmsg(workers[worker].channel, &message, MSG_NOSIGNAL) < 0) {
        perror("sendmsg");
        exit(1);
    }
    workers[worker].under_way += count;
    for (int i = 0; i < count; i++)
        close(fds[i]);
}

/* Accepts waiting connections and assigns them to workers in turn; false when all workers are full. */
static int take_connections(void)
{
    int fds[MAX_WORKERS][PER_MESSAGE], counts[MAX_WORKERS] = {0}, room = 1;
    for (int n = 0; n < PER_MESSAGE; n++) {
        int worker = choose();
        if (worker < 0) {
            room = 0;
            break;
        }
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            break;
        fds[worker][counts[worker]++] = fd;
    }
    for (int worker = 0; worker < worker_count; worker++)
        if (counts[worker])
            pass(worker, fds[worker], counts[worker]);
    return room;
}

static void run_dispatcher(void)
{
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    for (int w = 0; w < worker_count; w++)
        watch(EPOLL_CTL_ADD, workers[w].channel, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                if (!take_connections())
                    watch(EPOLL_CTL_MOD, listener, 0);
                continue;
            }
            for (int w = 0; w < worker_count; w++) {
                unsigned char report;
                if (workers[w].channel != fd)
                    continue;
                if (recv(fd, &report, 1, 0) != 1)
                    exit(1); /* a worker is gone */
                workers[w].under_way -= report;
            }
            watch(EPOLL_CTL_MOD, listener, EPOLLIN);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_WORKERS) {
        fprintf(stderr, "usage: passing_pool PORT WORKERS\n");
        return 2;
    }
    worker_count = atoi(argv[2]);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("bind");
        return 1;
    }
    for (int w = 0; w < worker_count; w++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            return 1;
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            close(listener);
            close(pair[0]);
            for (int other = 0; other < w; other++)
                close(workers[other].channel);
            run_worker(pair[1]);
        }
        close(pair[1]);
        workers[w].channel = pair[0];
    }
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_BATCH, &none);
    run_dispatcher();
}
