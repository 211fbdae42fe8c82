/* cgi_loop: run a CGI program N times in sequence, with all that CGI needs, and no server around it.
 *
 * As spawn_loop, and besides: a process group of its own, signals at their default, a pipe for the output and one for
 * standard error, both read to their end, and the resource usage of each program. Prints one line of JSON.
 *
 * usage: cgi_loop N PROGRAM [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *environment[] = {
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "GATEWAY_INTERFACE=CGI/1.1",
    "SERVER_SOFTWARE=loop",
    "SERVER_PROTOCOL=HTTP/1.1",
    "REQUEST_METHOD=GET",
    "QUERY_STRING=",
    "REQUEST_URI=/cgi-bin/program",
    "SCRIPT_NAME=/cgi-bin/program",
    "SERVER_NAME=127.0.0.1",
    "SERVER_PORT=80",
    "REMOTE_ADDR=127.0.0.1",
    "REMOTE_PORT=1024",
    "HTTP_HOST=127.0.0.1",
    NULL,
};

static void read_all(int fd, long *bytes)
{
    char buffer[65536];
    ssize_t size;
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        *bytes += size;
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: cgi_loop N PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    long total = atol(argv[1]), errors = 0;
    double cpu = 0;
    sigset_t none, ignored;
    sigemptyset(&none);
    sigemptyset(&ignored);
    sigaddset(&ignored, SIGPIPE);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigdefault(&attributes, &ignored);
    posix_spawnattr_setsigmask(&attributes, &none);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < total; i++) {
        int output[2], error_output[2];
        if (pipe2(output, O_CLOEXEC) || pipe2(error_output, O_CLOEXEC)) {
            perror("pipe2");
            return 1;
        }
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
        posix_spawn_file_actions_adddup2(&actions, output[1], 1);
        posix_spawn_file_actions_adddup2(&actions, error_output[1], 2);
        pid_t pid;
        int status, error = posix_spawn(&pid, argv[2], &actions, &attributes, argv + 2, environment);
        posix_spawn_file_actions_destroy(&actions);
        if (error) {
            fprintf(stderr, "%s: %s\n", argv[2], strerror(error));
            return 1;
        }
        close(output[1]);
        close(error_output[1]);
        long bytes = 0, error_bytes = 0;
        read_all(output[0], &bytes);
        read_all(error_output[0], &error_bytes);
        struct rusage used;
        if (wait4(pid, &status, 0, &used) != pid || status != 0 || bytes == 0 || error_bytes != 0)
            errors++;
        cpu += (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
               (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    cpu += (double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) +
           (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec) / 1e6;
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    printf("{\"requests\": %ld, \"seconds\": %.6f, \"errors\": %ld, \"cpu_seconds\": %.6f}\n", total, seconds, errors, cpu);
    return 0;
}
