/*
 * A target under load: threads that call `work` and `leaf` and check every result, threads that block,
 * and a signal that keeps coming. Prints "ready", then obeys one line from standard input: any line ends it.
 * Exit status 0 says that every call gave the right result.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define THREADS 3

static atomic_bool stop;
static atomic_ulong calls[THREADS + 1];
static atomic_ulong wrong;
static atomic_ulong alarms;

__attribute__((noinline, visibility("default"))) unsigned long work(unsigned long a, unsigned long b)
{
    unsigned long sum = 0;
    for (unsigned long i = 0; i < (a & 7); i++)
        sum += i * b ^ a;
    return sum + a;
}

static unsigned long work_expected(unsigned long a, unsigned long b)
{
    unsigned long sum = 0;
    for (unsigned long i = 0; i < (a & 7); i++)
        sum += i * b ^ a;
    return sum + a;
}

/* Uses the red zone: what is below the stack pointer has to survive a hook. */
__attribute__((noinline, visibility("default"))) unsigned long leaf(unsigned long a)
{
    volatile unsigned long box[8];
    for (int i = 0; i < 8; i++)
        box[i] = a + i;
    unsigned long sum = 0;
    for (int i = 0; i < 8; i++)
        sum += box[i];
    return sum;
}

static void *run(void *arg)
{
    long id = (long)arg;
    for (unsigned long n = 0; !atomic_load(&stop); n++) {
        if (work(n, n + 1) != work_expected(n, n + 1) || leaf(n) != 8 * n + 28)
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&calls[id], 1);
    }
    return NULL;
}

static void *nap(void *arg)
{
    (void)arg;
    struct timespec t = {0, 2000000};
    while (!atomic_load(&stop)) {
        nanosleep(&t, NULL);
        work(1, 2);
        atomic_fetch_add(&calls[THREADS], 1);
    }
    return NULL;
}

static void on_alarm(int sig)
{
    (void)sig;
    work(3, 4);
    atomic_fetch_add(&alarms, 1);
}

int main(void)
{
    pthread_t threads[THREADS + 1];
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &act, NULL);
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, run, (void *)i);
    pthread_create(&threads[THREADS], NULL, nap, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &every, NULL);
    puts("ready");
    fflush(stdout);
    char line[64];
    char *got = fgets(line, sizeof line, stdin);
    timer_delete(timer);
    atomic_store(&stop, true);
    for (int i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    unsigned long total = 0;
    for (int i = 0; i < THREADS; i++)
        total += calls[i];
    printf("%lu %lu %lu %lu\n", total, atomic_load(&calls[THREADS]), atomic_load(&wrong), atomic_load(&alarms));
    return got == NULL || wrong != 0;
}
