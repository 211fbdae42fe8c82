/* echo_min: the smallest echo server that epoll allows, as the limit to compare with.
 *
 * One process, one level-triggered epoll, one recv and one send per event. It has no timeouts, limits, log or
 * protocol: the cost of a real server is what it does beyond this. Output that the kernel does not take at once is
 * kept, and the client is not read until that output is written (so a slow reader costs at most one buffer).
 *
 * With PROCESSES there are so many, each with a listening socket of its own (SO_REUSEPORT).
 *
 * usage: echo_min PORT [PROCESSES]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 256, MAX_FD = 65536 };

struct rest { /* output that remains to be written to one client */
    char *bytes;
    size_t at, length;
};

static struct rest rests[MAX_FD];
static char buffer[BUFFER];
static int epoll_fd;

static void watch(int operation, int fd, unsigned events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0) {
        perror("epoll_ctl");
        exit(1);
    }
}

static void drop(int fd)
{
    free(rests[fd].bytes);
    rests[fd] = (struct rest){0};
    close(fd);
}

static void take_connections(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static void echo(int fd)
{
    ssize_t got = recv(fd, buffer, BUFFER, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            drop(fd);
        return;
    }
    ssize_t sent = send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
    if (sent == got)
        return;
    if (sent < 0) {
        if (errno != EAGAIN) {
            drop(fd);
            return;
        }
        sent = 0;
    }
    struct rest *rest = &rests[fd];
    rest->at = 0;
    rest->length = (size_t)(got - sent);
    rest->bytes = malloc(rest->length);
    if (!rest->bytes)
        abort();
    memcpy(rest->bytes, buffer + sent, rest->length);
    watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
}

static void write_rest(int fd)
{
    struct rest *rest = &rests[fd];
    ssize_t sent = send(fd, rest->bytes + rest->at, rest->length - rest->at, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            drop(fd);
        return;
    }
    rest->at += (size_t)sent;
    if (rest->at < rest->length)
        return;
    free(rest->bytes);
    *rest = (struct rest){0};
    watch(EPOLL_CTL_MOD, fd, EPOLLIN);
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: echo_min PORT [PROCESSES]\n");
        return 2;
    }
    bool shares = argc == 3;
    signal(SIGPIPE, SIG_IGN);
    for (int others = shares ? atoi(argv[2]) - 1 : 0; others > 0; others--)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            break;
        }
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &(int){shares}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("bind");
        return 1;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                take_connections(listener);
            else if (rests[fd].bytes)
                write_rest(fd);
            else
                echo(fd);
        }
    }
}
