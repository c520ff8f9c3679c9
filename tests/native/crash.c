/*
 * A writer is killed at every single instruction of an operation on a shared map: a traced child is stepped
 * 1, 2, 3 … instructions into it and then killed with SIGKILL. After each kill the map must be usable, the entry
 * whole (old, new, or not there), and exactly max_entries must fit. `crash [STRIDE]`: at every STRIDE-th
 * instruction. Prints the number of instructions of each operation. At last, several writers at once are killed at
 * random moments.
 */
#define UB_HOSTED 1
#include "library.c"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_CPUS 2
#define MAX_ENTRIES 6

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: after %ld instructions of %s: %s does not hold\n", __FILE__, __LINE__, step_count, \
                    operation_name, #what);                                                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

struct value {
    uint64_t a, b, c;
};

static struct ub_map_def def;
static uint8_t *base;
static long step_count, stride = 1;
static const char *operation_name = "creation";
static const uint32_t KEY = 3;

static void map_make(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries)
{
    CHECK(ub_map_geometry(type, key_size, value_size, max_entries, 0, N_CPUS, 99, &def) == 0);
    base = mmap(NULL, def.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    ub_map_create(&def, base, def.size, 0);
}

/* 1: killed after step_count instructions of `operation`. 0: it ended before. */
static int kill_inside(void (*operation)(void))
{
    int status;
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        ub_current_tid(NULL); /* the child's own identity is not part of the operation */
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        ub_sys(SYS_kill, ub_current_tgid(), SIGSTOP, 0, 0); /* not libc's: its instructions would be stepped too */
        operation();
        ub_sys(SYS_exit_group, 0, 0, 0, 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
    for (long i = 0; i < step_count; i++) {
        CHECK(ptrace(PTRACE_SINGLESTEP, pid, 0, 0) == 0);
        CHECK(waitpid(pid, &status, 0) == pid);
        if (WIFEXITED(status))
            return 0;
    }
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    return 1;
}

static void set(void)
{
    struct value v = {7, 7, 7};
    ub_map_update(&def, base, &KEY, &v, UB_ANY);
}

static void unset(void)
{
    ub_map_delete(&def, base, &KEY);
}

static void check_hash(int had, int may_have)
{
    struct value v;
    uint32_t key;
    int err = ub_map_lookup(&def, base, &KEY, (uint8_t *)&v), n = 0;

    CHECK(err == 0 || err == -UB_ENOENT);
    CHECK(err == 0 ? may_have : !had || !may_have || operation_name[0] == 'd');
    CHECK(err != 0 || (v.a == v.b && v.b == v.c && (v.a == 7 || v.a == 5)));
    v = (struct value){5, 5, 5};
    for (key = 0; key < 100; key++) { /* every stripe is taken over and every element found */
        err = ub_map_update(&def, base, &key, &v, UB_ANY);
        CHECK(err == 0 || err == -UB_E2BIG);
    }
    CHECK(ub_map_count(&def, base) == MAX_ENTRIES);
    for (key = 0; key < 100; key++) {
        int there = ub_map_lookup(&def, base, &key, (uint8_t *)&v) == 0;
        n += there;
        CHECK(ub_map_update(&def, base, &key, &v, UB_EXIST) == (there ? 0 : -UB_ENOENT));
        CHECK(ub_map_delete(&def, base, &key) == (there ? 0 : -UB_ENOENT));
    }
    CHECK(n == MAX_ENTRIES && ub_map_count(&def, base) == 0);
}

static void crash_hash(const char *name, void (*operation)(void), int had, int neighbours)
{
    struct value v = {5, 5, 5};

    operation_name = name;
    map_make(UB_MAP_HASH, 4, sizeof v, MAX_ENTRIES);
    for (step_count = 1;; step_count += stride) {
        for (uint32_t key = 50; key < 50 + (uint32_t)neighbours; key++)
            CHECK(ub_map_update(&def, base, &key, &v, UB_ANY) == 0);
        if (had)
            CHECK(ub_map_update(&def, base, &KEY, &v, UB_ANY) == 0);
        if (!kill_inside(operation))
            break;
        check_hash(had, 1);
    }
    printf("%s: ok, %ld instructions\n", name, step_count - 1);
}

static void output(void)
{
    struct ub_run run = {.cpu = 0};
    struct value v = {7, 7, 7};
    ub_helper_ringbuf_output(&run, &def, base, &v, sizeof v, 0);
}

/* What a killed producer left must not keep the next record from the consumer. */
static void crash_ringbuf(void)
{
    operation_name = "ringbuf output";
    map_make(UB_MAP_RINGBUF, 0, 0, 4096);
    for (step_count = 1;; step_count += stride) {
        uint64_t buffer[1024];
        int64_t used;
        if (!kill_inside(output))
            break;
        output();
        used = ub_map_consume(&def, base, (uint8_t *)buffer, sizeof buffer);
        CHECK(used == 40 || used == 80);
        CHECK(buffer[2] == 7 && buffer[3] == 7 && buffer[4] == 7);
        CHECK(ub_map_consume(&def, base, (uint8_t *)buffer, sizeof buffer) == 0);
        CHECK(ub_load(ub_rb_consumer(base)) == ub_load(ub_rb_producer(base)));
    }
    for (int i = 0; i < UB_INFLIGHT; i++)
        CHECK(ub_header(base)->inflight[i].owner == 0 || ub_owner_is_dead(ub_header(base)->inflight[i].owner));
    printf("%s: ok, %ld instructions\n", operation_name, step_count - 1);
}

static void perf_output(void)
{
    struct ub_run run = {.cpu = 0};
    struct value v = {7, 7, 7};
    ub_helper_perf_event_output(&run, NULL, &def, base, UINT32_MAX, &v, sizeof v);
}

static void crash_perf(void)
{
    operation_name = "perf output";
    map_make(UB_MAP_PERF_EVENT_ARRAY, 4, 4, N_CPUS);
    for (step_count = 1;; step_count += stride) {
        uint64_t buffer[1024];
        int64_t used;
        if (!kill_inside(perf_output))
            break;
        perf_output();
        used = ub_map_consume(&def, base, (uint8_t *)buffer, sizeof buffer);
        CHECK(used == 48 || used == 96);
        CHECK(buffer[2] == 7 && buffer[3] == 7 && buffer[4] == 7);
    }
    printf("%s: ok, %ld instructions\n", operation_name, step_count - 1);
}

static void percpu_run(void)
{
    struct ub_run run = {.cpu = 0};
    const struct ub_map_def *const defs[] = {&def};
    uint8_t *const bases[] = {base};
    run.cpu = ub_percpu_enter(&run, defs, bases, 1);
    if (run.cpu == UINT32_MAX)
        _exit(3);
    ub_percpu_exit(&run, defs, bases, 1);
}

/* Slots of the dead are free again; all slots held by the dead do not stop a run. */
static void crash_percpu(void)
{
    operation_name = "percpu run";
    map_make(UB_MAP_PERCPU_ARRAY, 4, 8, 4);
    for (step_count = 1;; step_count += stride) {
        if (!kill_inside(percpu_run))
            break;
        if ((step_count / stride) % N_CPUS == 0)
            percpu_run();
    }
    printf("%s: ok, %ld instructions\n", operation_name, step_count - 1);
}

/* ---- several writers at once, one of them killed at a random moment, again and again ------------------- */

#define WRITERS 3
#define KILLS 300

static pid_t start_writer(uint32_t number)
{
    pid_t pid = fork();

    CHECK(pid >= 0);
    for (uint64_t state = number * 2654435761u + 1; pid == 0;) {
        uint32_t key = (uint32_t)(state >> 33) % 12;
        struct value v = {state, state, state};
        state = state * 6364136223846793005u + 1442695040888963407u;
        if (state >> 63)
            ub_map_update(&def, base, &key, &v, UB_ANY);
        else
            ub_map_delete(&def, base, &key);
    }
    return pid;
}

static void check_crowd(void)
{
    struct value v = {5, 5, 5};
    int n = 0;

    for (uint32_t key = 0; key < 12; key++) {
        struct value seen;
        int err = ub_map_lookup(&def, base, &key, (uint8_t *)&seen);
        CHECK(err == -UB_ENOENT || (err == 0 && seen.a == seen.b && seen.b == seen.c));
        if (err == 0)
            CHECK(ub_map_delete(&def, base, &key) == 0);
    }
    for (uint32_t key = 0; key < 100; key++) {
        int err = ub_map_update(&def, base, &key, &v, UB_ANY);
        CHECK(err == 0 || err == -UB_E2BIG);
        n += err == 0;
    }
    CHECK(n == MAX_ENTRIES && ub_map_count(&def, base) == MAX_ENTRIES);
}

static void crash_crowd(void)
{
    pid_t writers[WRITERS];
    uint32_t number = 0;

    operation_name = "a crowd of writers";
    map_make(UB_MAP_HASH, 4, sizeof(struct value), MAX_ENTRIES);
    for (int i = 0; i < WRITERS; i++)
        writers[i] = start_writer(number++);
    for (step_count = 0; step_count < KILLS; step_count++) {
        pid_t *victim = &writers[ub_cycles() % WRITERS];
        int64_t pause[2] = {0, (int64_t)(ub_cycles() % 1000000)};
        ub_sys(UB_NR_NANOSLEEP, (long)pause, 0, 0, 0); /* any moment will do */
        kill(*victim, SIGKILL);
        CHECK(waitpid(*victim, NULL, 0) == *victim);
        *victim = start_writer(number++);
    }
    for (int i = 0; i < WRITERS; i++) {
        kill(writers[i], SIGKILL);
        CHECK(waitpid(writers[i], NULL, 0) == writers[i]);
    }
    check_crowd();
    printf("%s: ok, %d kills\n", operation_name, KILLS);
}

int main(int argc, char **argv)
{
    stride = argc > 1 ? atol(argv[1]) : 1;
    ub_library_init(1, N_CPUS);
    crash_hash("insert", set, 0, 3);
    crash_hash("insert the last", set, 0, MAX_ENTRIES - 1);
    crash_hash("replace", set, 1, MAX_ENTRIES - 1);
    crash_hash("delete", unset, 1, 3);
    crash_ringbuf();
    crash_perf();
    crash_percpu();
    crash_crowd();
    return 0;
}
