/*
 * target.c: the process that the benchmarks probe.
 *
 * It reads commands from standard input, one a line, and answers each with one line:
 *   call N   calls target_fn N times; prints the nanoseconds that took
 *   spin N   calls target_fn for N milliseconds, or until the next command, while it watches the
 *            clock; prints the longest gap between two looks in nanoseconds, and the number of calls
 *   stop 0   does nothing: ends a spin
 *   quit     ends
 */
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

__attribute__((noinline, visibility("default"))) uint64_t target_fn(uint64_t value)
{
    /* The barrier keeps the call and its argument; the body is what a small function is. */
    __asm__ volatile("" : "+r"(value) : : "memory");
    return value * 3 + 1;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t call(uint64_t count)
{
    uint64_t start = now();
    for (uint64_t i = 0; i < count; i++)
        target_fn(i);
    return now() - start;
}

static int command_waits(void)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    return poll(&input, 1, 0) > 0;
}

static void spin(uint64_t milliseconds)
{
    uint64_t start = now(), last = start, longest = 0, calls = 0;
    while (last - start < milliseconds * 1000000u) {
        target_fn(calls++);
        uint64_t look = now();
        if (look - last > longest)
            longest = look - last;
        last = look;
        if (calls % 4096 == 0) {
            if (command_waits())
                break;
            last = now(); /* what asking took is no gap */
        }
    }
    printf("%" PRIu64 " %" PRIu64 "\n", longest, calls);
}

int main(void)
{
    char verb[16];
    uint64_t count;

    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (scanf("%15s", verb) == 1 && strcmp(verb, "quit") != 0) {
        if (scanf("%" SCNu64, &count) != 1)
            return 2;
        if (strcmp(verb, "call") == 0)
            printf("%" PRIu64 "\n", call(count));
        else if (strcmp(verb, "spin") == 0)
            spin(count);
        else if (strcmp(verb, "stop") != 0)
            return 2;
    }
    return 0;
}
