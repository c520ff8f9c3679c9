/*
 * Threads that wait in system calls and check that nobody disturbs them: no call may fail with EINTR, no sleep may
 * end early, no queued signal may be lost. Prints "ready"; a line on standard input ends it.
 * With an argument it waits in vfork instead.
 * Prints: wrong results, naps, reads, waits, epoll waits, signals received.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static atomic_bool stop;
static atomic_ulong wrong, naps, reads, waits, polls, received;
static int fds[2], epoll;

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000l + t.tv_nsec;
}

static void *nap(void *arg)
{
    struct timespec t = {0, 15000000};
    while (!atomic_load(&stop)) {
        long begin = now();
        if (nanosleep(&t, NULL) != 0 || now() - begin < t.tv_nsec)
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&naps, 1);
    }
    return arg;
}

static void *feed(void *arg)
{
    struct timespec t = {0, 10000000};
    while (!atomic_load(&stop)) {
        nanosleep(&t, NULL);
        if (write(fds[1], "x", 1) != 1)
            atomic_fetch_add(&wrong, 1);
    }
    close(fds[1]);
    return arg;
}

static void *reader(void *arg)
{
    char c;
    ssize_t got;
    while ((got = read(fds[0], &c, 1)) == 1)
        atomic_fetch_add(&reads, 1);
    if (got != 0)
        atomic_fetch_add(&wrong, 1);
    return arg;
}

static void *waiter(void *arg)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    pthread_mutex_lock(&lock);
    while (!atomic_load(&stop)) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 12000000;
        if (t.tv_nsec >= 1000000000) {
            t.tv_nsec -= 1000000000;
            t.tv_sec++;
        }
        if (pthread_cond_timedwait(&cond, &lock, &t) != ETIMEDOUT)
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&waits, 1);
    }
    pthread_mutex_unlock(&lock);
    return arg;
}

static void *poller(void *arg)
{
    struct epoll_event event;
    while (!atomic_load(&stop)) {
        if (epoll_wait(epoll, &event, 1, 11) != 0)
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&polls, 1);
    }
    return arg;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    if (info->si_code != SI_USER && info->si_code != SI_TKILL && info->si_code != SI_QUEUE)
        atomic_fetch_add(&wrong, 1);
    atomic_fetch_add(&received, 1);
}

/* A parent in vfork cannot be stopped until its child has ended; the child waits for a line. */
static int in_vfork(void)
{
    char c;
    puts("ready");
    fflush(stdout);
    pid_t pid = vfork();
    if (pid == 0) {
        ssize_t got = read(0, &c, 1);
        _exit(got < 0);
    }
    puts("0");
    return 0;
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1)
        return in_vfork();
    void *(*const functions[])(void *) = {nap, feed, reader, waiter, poller};
    pthread_t threads[5];
    sigset_t all;
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (pipe(fds) != 0 || epoll < 0)
        return 2;
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_RESTART | SA_SIGINFO};
    sigaction(SIGRTMIN, &act, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* workers take no signals; the main thread does */
    for (int i = 0; i < 5; i++)
        pthread_create(&threads[i], NULL, functions[i], NULL);
    pthread_sigmask(SIG_UNBLOCK, &all, NULL);
    puts("ready");
    fflush(stdout);
    char line[64];
    char *got = fgets(line, sizeof line, stdin);
    atomic_store(&stop, true);
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    printf("%lu %lu %lu %lu %lu %lu\n", atomic_load(&wrong), atomic_load(&naps), atomic_load(&reads),
           atomic_load(&waits), atomic_load(&polls), atomic_load(&received));
    return got == NULL || wrong != 0;
}
