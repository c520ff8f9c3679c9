/*
 * A program to probe. Reads commands, one a line, and answers each with one line when it is done:
 *
 *   call N          target_fn(0) ... target_fn(N - 1)
 *   threads T N     the same in each of T new threads
 *   recurse D       recursive_fn, D deep
 *   jump N          N times: a function that leaves by longjmp
 *   fork N          a child calls N times and exits; then the parent calls N times
 *   default         1 when SIGSEGV has no handler, as the program sees it
 *   segv            the program's own SIGSEGV handler sees its own fault
 *   handler         installs that handler only now
 *   once            installs it for one fault only (SA_RESETHAND)
 *   blocked N       N calls in a thread that blocks all signals
 *   registers       checks that a call keeps what a caller may rely on
 *   bytes           the first 16 bytes of target_fn, in hex
 *   quit
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline, used)) uint64_t target_fn(uint64_t x, const char *text)
{
    __asm__ volatile("" : "+r"(x), "+r"(text));
    return x * 2 + 1;
}

__attribute__((noinline, used)) uint64_t recursive_fn(uint64_t depth)
{
    uint64_t deeper = depth ? recursive_fn(depth - 1) : 0;
    __asm__ volatile("" : "+r"(deeper));
    return deeper + 1;
}

static jmp_buf landing;

__attribute__((noinline, used)) uint64_t jumping_fn(uint64_t x)
{
    __asm__ volatile("" : "+r"(x));
    if (x != UINT64_MAX)
        longjmp(landing, 1);
    return x;
}

__attribute__((noinline, used)) uint64_t eight_fn(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f,
                                            uint64_t g, uint64_t h)
{
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f), "+r"(g), "+r"(h));
    return a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f + 1000000 * g + 10000000 * h;
}

/* Calls target_fn with every general register set, and counts those that come back changed (rax, rcx, rdx, rsi,
 * rdi are the callee's own by the compiler's code above; r8 to r11 are kept by it, so hooks must keep them). */
static uint64_t changed_registers(void)
{
    uint64_t bad = 0;
    __asm__ volatile("mov $8, %%r8\n mov $9, %%r9\n mov $10, %%r10\n mov $11, %%r11\n mov $12, %%r12\n"
                     "mov $13, %%r13\n mov $14, %%r14\n mov $15, %%r15\n mov $3, %%rbx\n mov $7, %%rdi\n mov $6, %%rsi\n"
                     "lea -256(%%rsp), %%rsp\n call target_fn\n lea 256(%%rsp), %%rsp\n"
                     "xor %0, %0\n"
                     "cmp $8, %%r8\n je 1f\n inc %0\n1: cmp $9, %%r9\n je 1f\n inc %0\n1: cmp $10, %%r10\n je 1f\n inc %0\n"
                     "1: cmp $11, %%r11\n je 1f\n inc %0\n1: cmp $12, %%r12\n je 1f\n inc %0\n"
                     "1: cmp $13, %%r13\n je 1f\n inc %0\n1: cmp $14, %%r14\n je 1f\n inc %0\n"
                     "1: cmp $15, %%r15\n je 1f\n inc %0\n1: cmp $3, %%rbx\n je 1f\n inc %0\n1: cmp $15, %%rax\n je 1f\n inc %0\n1:\n"
                     : "=&c"(bad)
                     :
                     : "rax", "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
                       "cc");
    return bad;
}

static uint64_t calls;

static void *work(void *unused)
{
    uint64_t sum = 0;
    (void)unused;
    for (uint64_t i = 0; i < calls; i++)
        sum += target_fn(i, "hello");
    return (void *)(uintptr_t)sum;
}

static void *blocked_work(void *unused)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    return work(unused);
}

static sigjmp_buf after_fault;
static volatile sig_atomic_t faults;

static void on_fault(int sig)
{
    (void)sig;
    faults++;
    siglongjmp(after_fault, 1);
}

static int own_fault(void)
{
    int before = faults;
    volatile int *volatile nowhere = (volatile int *)8;
    if (sigsetjmp(after_fault, 1) == 0)
        *nowhere = 1;
    return faults - before;
}

static void in_threads(int threads, void *(*body)(void *))
{
    pthread_t ids[256];
    for (int i = 0; i < threads; i++)
        pthread_create(&ids[i], 0, body, 0);
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], 0);
}

int main(void)
{
    char line[128];
    unsigned long a = 0, b = 0;
    struct sigaction act = {.sa_handler = on_fault};

    setvbuf(stdout, 0, _IOLBF, 0);
    printf("ready %d\n", getpid());
    while (fgets(line, sizeof line, stdin)) {
        char verb[32] = "";
        if (sscanf(line, "%31s %lu %lu", verb, &a, &b) < 1)
            continue;
        if (!strcmp(verb, "call")) {
            calls = a;
            printf("done %lu\n", (unsigned long)(uintptr_t)work(0));
        } else if (!strcmp(verb, "threads")) {
            calls = b;
            in_threads((int)a, work);
            printf("done\n");
        } else if (!strcmp(verb, "blocked")) {
            calls = a;
            in_threads(1, blocked_work);
            printf("done\n");
        } else if (!strcmp(verb, "recurse")) {
            printf("done %lu\n", (unsigned long)recursive_fn(a));
        } else if (!strcmp(verb, "jump")) {
            volatile unsigned long n = 0;
            while (n < a) {
                n++;
                if (setjmp(landing) == 0)
                    jumping_fn(n);
            }
            printf("done %lu\n", n);
        } else if (!strcmp(verb, "eight")) {
            printf("done %lu\n", (unsigned long)eight_fn(1, 2, 3, 4, 5, 6, 7, 8));
        } else if (!strcmp(verb, "fork")) {
            pid_t child = fork();
            int status = -1;
            calls = a;
            if (child == 0) {
                work(0);
                recursive_fn(3);
                _exit(7);
            }
            waitpid(child, &status, 0);
            work(0);
            printf("done %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
        } else if (!strcmp(verb, "handler")) {
            sigaction(SIGSEGV, &act, 0);
            printf("done\n");
        } else if (!strcmp(verb, "once")) {
            struct sigaction once = {.sa_handler = on_fault, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER)};
            sigaction(SIGSEGV, &once, 0);
            printf("done\n");
        } else if (!strcmp(verb, "default")) {
            struct sigaction now;
            sigaction(SIGSEGV, 0, &now);
            printf("done %d\n", now.sa_handler == SIG_DFL);
        } else if (!strcmp(verb, "segv")) {
            printf("done %d\n", own_fault());
        } else if (!strcmp(verb, "registers")) {
            printf("done %lu\n", (unsigned long)changed_registers());
        } else if (!strcmp(verb, "bytes")) {
            for (int i = 0; i < 16; i++)
                printf("%02x", ((const unsigned char *)target_fn)[i]);
            printf("\n");
        } else if (!strcmp(verb, "quit")) {
            break;
        }
    }
    return 0;
}
