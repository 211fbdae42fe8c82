/* spawn_loop: start a program and wait for its end, N times in sequence.
 *
 * The most that any server with one program per request can reach on one core: only posix_spawn and waitpid. The
 * program's output goes to the null device. Prints one line of JSON.
 *
 * usage: spawn_loop N PROGRAM [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

extern char **environ;

static double cpu_seconds(int who)
{
    struct rusage used;
    getrusage(who, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: spawn_loop N PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    long total = atol(argv[1]), errors = 0;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (long i = 0; i < total; i++) {
        pid_t pid;
        int status, error = posix_spawn(&pid, argv[2], &actions, NULL, argv + 2, environ);
        if (error) {
            fprintf(stderr, "%s: %s\n", argv[2], strerror(error));
            return 1;
        }
        if (waitpid(pid, &status, 0) != pid || status != 0)
            errors++;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    printf("{\"requests\": %ld, \"seconds\": %.6f, \"errors\": %ld, \"cpu_seconds\": %.6f}\n", total, seconds, errors,
           cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN));
    return 0;
}
