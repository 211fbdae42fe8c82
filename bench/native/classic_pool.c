/* classic_pool: the half-sync/half-async process pool as textbooks of Linux network programming teach it.
 *
 * The parent watches the listening socket edge-triggered. For each event it writes one note to the next worker, round
 * robin, over a stream socketpair. The worker reads one note per event, accepts one connection, registers it
 * edge-triggered in its own epoll, and reads until EAGAIN; here it echoes what it reads. Signals become events
 * through a pipe. The classic listening queue is 5 long.
 *
 * This is a reference, so it keeps the faults of that form. Connections that arrive together cause one edge and one
 * note, so some of them wait until others arrive. Notes that arrive together are read as one, or one at each later
 * edge. A dead worker is not replaced. Later workers inherit earlier workers' pipe ends. Only what would make its
 * figures meaningless is corrected: it does not crash, and it keeps output that the kernel does not take at once, and
 * writes it later (the textbooks' web server does the same). The buffer is as large as the other servers'.
 *
 * usage: classic_pool PORT WORKERS [BACKLOG]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 10000, MAX_FD = 65536, MAX_WORKERS = 16 };

struct worker {
    pid_t pid;
    int pipe[2];
};

struct user { /* one client of a worker, and the output that remains to be written to it */
    char *rest;
    size_t at, length;
};

static struct worker workers[MAX_WORKERS];
static struct user users[MAX_FD];
static struct epoll_event events[EVENTS];
static char buffer[BUFFER];
static int epoll_fd, signal_pipe[2], listener, worker_count;

static void set_nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void add_fd(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    set_nonblocking(fd);
}

static void remove_fd(int fd)
{
    free(users[fd].rest);
    users[fd] = (struct user){0};
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
}

static void on_signal(int number)
{
    int saved = errno;
    unsigned char byte = (unsigned char)number;
    ssize_t ignored = send(signal_pipe[1], &byte, 1, 0);
    (void)ignored;
    errno = saved;
}

static void add_signal(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigfillset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

static void setup_signals(void)
{
    epoll_fd = epoll_create(5);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, signal_pipe) < 0)
        exit(1);
    set_nonblocking(signal_pipe[1]);
    add_fd(signal_pipe[0]);
    add_signal(SIGCHLD, on_signal);
    add_signal(SIGTERM, on_signal);
    add_signal(SIGINT, on_signal);
    add_signal(SIGPIPE, SIG_IGN);
}

/* True when all of the kept output has been written; only then does the worker read on. */
static bool write_rest(int fd)
{
    struct user *user = &users[fd];
    while (user->at < user->length) {
        ssize_t sent = send(fd, user->rest + user->at, user->length - user->at, 0);
        if (sent < 0) {
            if (errno != EAGAIN)
                remove_fd(fd);
            return false;
        }
        user->at += (size_t)sent;
    }
    free(user->rest);
    *user = (struct user){0};
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
    return true;
}

static void process(int fd)
{
    if (users[fd].rest && !write_rest(fd))
        return;
    for (;;) {
        ssize_t got = recv(fd, buffer, BUFFER, 0);
        if (got < 0) {
            if (errno != EAGAIN)
                remove_fd(fd);
            return;
        }
        if (got == 0) {
            remove_fd(fd);
            return;
        }
        ssize_t sent = send(fd, buffer, (size_t)got, 0);
        if (sent == got)
            continue;
        if (sent < 0) {
            if (errno != EAGAIN) {
                remove_fd(fd);
                return;
            }
            sent = 0;
        }
        struct user *user = &users[fd];
        user->at = 0;
        user->length = (size_t)(got - sent);
        user->rest = malloc(user->length);
        if (!user->rest)
            abort();
        memcpy(user->rest, buffer + sent, user->length);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
        return;
    }
}

static void run_worker(int notes)
{
    setup_signals();
    add_fd(notes);
    bool stop = false;
    while (!stop) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            return;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == notes) {
                int note = 0;
                ssize_t got = recv(fd, &note, sizeof note, 0);
                if ((got < 0 && errno != EAGAIN) || got == 0)
                    continue;
                struct sockaddr_in peer;
                socklen_t length = sizeof peer;
                int client = accept(listener, (struct sockaddr *)&peer, &length);
                if (client < 0)
                    continue;
                if (client >= MAX_FD) {
                    close(client);
                    continue;
                }
                add_fd(client);
            } else if (fd == signal_pipe[0]) {
                char numbers[1024];
                ssize_t got = recv(fd, numbers, sizeof numbers, 0);
                for (ssize_t n = 0; n < got; n++) {
                    if (numbers[n] == SIGTERM || numbers[n] == SIGINT)
                        stop = true;
                    else if (numbers[n] == SIGCHLD)
                        while (waitpid(-1, NULL, WNOHANG) > 0)
                            ;
                }
            } else if (events[i].events & (EPOLLIN | EPOLLOUT)) {
                process(fd);
            } else { /* an error alone: the textbooks ignore it, which would make this loop spin */
                remove_fd(fd);
            }
        }
    }
}

static void run_parent(void)
{
    setup_signals();
    add_fd(listener);
    int next = 0, note = 1;
    bool stop = false;
    while (!stop) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            return;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int chosen = next;
                do {
                    if (workers[chosen].pid != -1)
                        break;
                    chosen = (chosen + 1) % worker_count;
                } while (chosen != next);
                if (workers[chosen].pid == -1) {
                    stop = true;
                    break;
                }
                next = (chosen + 1) % worker_count;
                send(workers[chosen].pipe[0], &note, sizeof note, 0);
            } else if (fd == signal_pipe[0]) {
                char numbers[1024];
                ssize_t got = recv(fd, numbers, sizeof numbers, 0);
                for (ssize_t n = 0; n < got; n++) {
                    if (numbers[n] == SIGCHLD) {
                        pid_t pid;
                        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
                            for (int w = 0; w < worker_count; w++)
                                if (workers[w].pid == pid) {
                                    close(workers[w].pipe[0]);
                                    workers[w].pid = -1;
                                }
                        stop = true;
                        for (int w = 0; w < worker_count; w++)
                            if (workers[w].pid != -1)
                                stop = false;
                    } else {
                        for (int w = 0; w < worker_count; w++)
                            if (workers[w].pid != -1)
                                kill(workers[w].pid, SIGTERM);
                    }
                }
            }
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_WORKERS) {
        fprintf(stderr, "usage: classic_pool PORT WORKERS [BACKLOG]\n");
        return 2;
    }
    worker_count = atoi(argv[2]);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((unsigned short)atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, argc > 3 ? atoi(argv[3]) : 5) < 0) {
        perror("bind");
        return 1;
    }
    set_nonblocking(listener); /* before the fork: a worker that finds the queue empty must not block in accept */
    for (int w = 0; w < worker_count; w++) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, workers[w].pipe) < 0)
            return 1;
        workers[w].pid = fork();
        if (workers[w].pid < 0)
            return 1;
        if (workers[w].pid == 0) {
            close(workers[w].pipe[0]);
            run_worker(workers[w].pipe[1]);
            return 0;
        }
        close(workers[w].pipe[1]);
    }
    run_parent();
    return 0;
}
