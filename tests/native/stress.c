/*
 * Threads against one another on all map types, for a time given in milliseconds; made for sanitizers.
 * `stress MS` checks invariants and prints one line for each map type; `stress bench` prints nanoseconds.
 */
#define UB_HOSTED 1
#include "library.c"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define THREADS 4
#define N_CPUS 2
#define KEYS 512
#define ETERNAL 1000000u

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #what);                                   \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct value {
    uint64_t key, a, b;
};

static struct ub_map_def def;
static uint8_t *base;
static int64_t deadline;

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void map_make(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries)
{
    CHECK(ub_map_geometry(type, key_size, value_size, max_entries, 0, N_CPUS, 0x1234567890abcdefull, &def) == 0);
    base = mmap(NULL, def.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    ub_map_create(&def, base, def.size, 0);
}

static void map_drop(void)
{
    CHECK(munmap(base, def.size) == 0);
}

static void run_threads(void *(*function)(void *), long n)
{
    pthread_t threads[THREADS + 1];
    for (long i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], NULL, function, (void *)i) == 0);
    for (long i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* ---- hash ------------------------------------------------------------------------------------------ */

static void *hash_worker(void *number)
{
    uint64_t state = 88172645463325252ull + (uint64_t)number * 7919, rounds = 0;
    struct value v;

    while (rounds++ % 64 || now_ns() < deadline) {
        uint64_t random = next_random(&state);
        uint32_t key = random % KEYS;
        int err;
        switch ((random >> 32) % 8) {
        case 0:
        case 1:
            err = ub_map_delete(&def, base, &key);
            CHECK(err == 0 || err == -UB_ENOENT || err == -UB_EBUSY);
            break;
        case 2:
        case 3:
        case 4:
            v = (struct value){key, random, ~random};
            err = ub_map_update(&def, base, &key, &v, UB_ANY);
            CHECK(err == 0 || err == -UB_E2BIG || err == -UB_EBUSY);
            break;
        case 5:
            key = ETERNAL;
            v = (struct value){key, random, ~random};
            err = ub_map_update(&def, base, &key, &v, UB_EXIST);
            CHECK(err == 0 || err == -UB_EBUSY);
            break;
        case 6:
            key = ETERNAL;
            /* fall through */
        default:
            err = ub_map_lookup(&def, base, &key, (uint8_t *)&v);
            CHECK(err == 0 || (err == -UB_ENOENT && key != ETERNAL) || err == -UB_EBUSY);
            if (err == 0)
                CHECK(v.key == key && v.a == ~v.b);
        }
    }
    return NULL;
}

static void hash_stress(void)
{
    uint32_t key = ETERNAL;
    struct value v = {key, 1, ~1ull};
    int64_t count;

    map_make(UB_MAP_HASH, 4, sizeof v, KEYS / 2);
    CHECK(ub_map_update(&def, base, &key, &v, UB_NOEXIST) == 0);
    run_threads(hash_worker, THREADS);
    /* exactly max_entries fit, whatever happened before */
    count = ub_map_count(&def, base);
    CHECK(count <= def.max_entries);
    for (key = 2 * ETERNAL; count < def.max_entries; key++, count++)
        CHECK(ub_map_update(&def, base, &key, &v, UB_NOEXIST) == 0);
    CHECK(ub_map_update(&def, base, &key, &v, UB_NOEXIST) == -UB_E2BIG);
    CHECK(ub_map_count(&def, base) == def.max_entries);
    printf("hash: ok\n");
    map_drop();
}

/* ---- per-cpu --------------------------------------------------------------------------------------- */

static uint64_t percpu_runs;

static void *percpu_worker(void *number)
{
    uint64_t done = 0;
    (void)number;
    for (uint64_t rounds = 1; rounds % 64 || now_ns() < deadline; rounds++) {
        struct ub_run run = {.cpu = 0};
        const struct ub_map_def *const defs[] = {&def};
        uint8_t *const bases[] = {base};
        uint32_t key = 3;
        uint64_t *value;
        run.cpu = ub_percpu_enter(&run, defs, bases, 1);
        if (run.cpu == UINT32_MAX)
            continue;
        value = ub_helper_map_lookup_elem(&run, &def, base, &key);
        CHECK(value != NULL);
        ++*value; /* plain: the slot is ours */
        done++;
        ub_percpu_exit(&run, defs, bases, 1);
    }
    __atomic_fetch_add(&percpu_runs, done, __ATOMIC_RELAXED);
    return NULL;
}

static void percpu_stress(void)
{
    uint32_t key = 3;
    uint64_t values[N_CPUS], sum = 0;

    map_make(UB_MAP_PERCPU_ARRAY, 4, 8, 10);
    run_threads(percpu_worker, THREADS);
    CHECK(ub_map_lookup(&def, base, &key, (uint8_t *)values) == 0);
    for (int i = 0; i < N_CPUS; i++)
        sum += values[i];
    CHECK(sum == percpu_runs);
    printf("percpu: ok, %llu runs\n", (unsigned long long)sum);
    map_drop();
}

/* ---- events ---------------------------------------------------------------------------------------- */

static uint64_t sent[THREADS], refused[THREADS];
static uint32_t producers_left;

static void *event_worker(void *number)
{
    long me = (long)number;
    struct value v = {(uint64_t)me, 0, 0};
    uint64_t state = 42 + (uint64_t)me, got[THREADS] = {0}, next[THREADS] = {0}, lost = 0;
    static uint64_t buffer[1 << 15];

    if (me < THREADS - 1) {
        for (uint64_t rounds = 1; rounds % 64 || now_ns() < deadline; rounds++) {
            struct ub_run run = {.cpu = (uint32_t)(next_random(&state) % N_CPUS)};
            uint64_t err;
            v.a = rounds;
            v.b = ~rounds;
            if (def.type == UB_MAP_RINGBUF)
                err = ub_helper_ringbuf_output(&run, &def, base, &v, sizeof v, 0);
            else
                err = ub_helper_perf_event_output(&run, NULL, &def, base, UINT32_MAX, &v, sizeof v);
            *(err ? &refused[me] : &sent[me]) += 1;
        }
        __atomic_fetch_sub(&producers_left, 1, __ATOMIC_RELEASE);
        ub_map_wake(base);
        return NULL;
    }
    for (;;) {
        uint32_t left = __atomic_load_n(&producers_left, __ATOMIC_ACQUIRE), since = ub_map_wake_seq(base);
        int64_t used = ub_map_consume(&def, base, (uint8_t *)buffer, sizeof buffer);
        CHECK(used >= 0);
        for (int64_t at = 0; at < used;) {
            struct ub_event *event = (struct ub_event *)((uint8_t *)buffer + at);
            struct value *value = (struct value *)(event + 1);
            at += (int64_t)(sizeof *event + (event->size + 7) / 8 * 8);
            lost += event->lost;
            if (event->lost)
                continue;
            CHECK(event->size >= sizeof v && value->key < THREADS && value->a == ~value->b);
            CHECK(def.type != UB_MAP_RINGBUF || value->a > next[value->key]); /* in order */
            next[value->key] = value->a;
            got[value->key]++;
        }
        if (used == 0 && left == 0)
            break;
        if (used == 0)
            ub_map_wait(&def, base, since, -1);
    }
    for (int i = 0; i < THREADS - 1; i++)
        CHECK(got[i] == sent[i]);
    printf("%s: ok\n", def.type == UB_MAP_RINGBUF ? "ringbuf" : "perf");
    return NULL;
}

static void event_stress(uint32_t type)
{
    for (int i = 0; i < THREADS; i++)
        sent[i] = refused[i] = 0;
    producers_left = THREADS - 1;
    if (type == UB_MAP_RINGBUF)
        map_make(type, 0, 0, 16384);
    else
        map_make(type, 4, 4, N_CPUS);
    run_threads(event_worker, THREADS);
    map_drop();
}

/* ---- speed ----------------------------------------------------------------------------------------- */

#define BENCH_ROUNDS 4000000
#define TIME(name, expression)                                                                                         \
    do {                                                                                                               \
        int64_t best = INT64_MAX;                                                                                      \
        for (int turn = 0; turn < 3; turn++) {                                                                         \
            int64_t start = now_ns();                                                                                  \
            for (uint64_t i = 0; i < BENCH_ROUNDS; i++)                                                                      \
                expression;                                                                                            \
            int64_t took = now_ns() - start;                                                                           \
            best = took < best ? took : best;                                                                          \
        }                                                                                                              \
        printf("%-24s %6.2f ns\n", name, (double)best / BENCH_ROUNDS);                                                       \
    } while (0)

static void bench_hash(uint32_t key_size)
{
    struct ub_run run = {.cpu = 0};
    struct value v = {0, 0, 0};
    uint64_t key[8] = {0};
    volatile uint64_t sink;

    map_make(UB_MAP_HASH, key_size, sizeof v, 10240);
    printf("hash, %u-byte keys\n", key_size);
    for (uint32_t i = 0; i < 4096; i++) {
        key[0] = i;
        CHECK(ub_map_update(&def, base, key, &v, UB_ANY) == 0);
    }
    TIME("  lookup hit", {
        key[0] = i & 1023;
        sink = (uint64_t)ub_helper_map_lookup_elem(&run, &def, base, key);
    });
    TIME("  lookup miss", {
        key[0] = 100000 + (i & 1023);
        sink = (uint64_t)ub_helper_map_lookup_elem(&run, &def, base, key);
    });
    TIME("  update existing", {
        key[0] = i & 1023;
        sink = ub_helper_map_update_elem(&run, &def, base, key, &v, UB_ANY);
    });
    TIME("  insert and delete", {
        key[0] = 100000 + (i & 1023);
        sink = ub_helper_map_update_elem(&run, &def, base, key, &v, UB_ANY);
        sink = ub_helper_map_delete_elem(&run, &def, base, key);
    });
    (void)sink;
    map_drop();
}

static void bench(void)
{
    struct ub_run run = {.cpu = 0};
    uint64_t v = 1;
    const struct ub_map_def *const defs[] = {&def};

    bench_hash(4);
    bench_hash(8);
    bench_hash(24);
    map_make(UB_MAP_PERCPU_ARRAY, 4, 8, 10);
    TIME("percpu enter and exit", {
        uint8_t *const bases[] = {base};
        run.cpu = ub_percpu_enter(&run, defs, bases, 1);
        ub_percpu_exit(&run, defs, bases, 1);
    });
    map_drop();
    map_make(UB_MAP_RINGBUF, 0, 0, 1 << 20);
    TIME("ringbuf output, 8 bytes", {
        ub_helper_ringbuf_output(&run, &def, base, &v, sizeof v, 0);
        if ((i & 4095) == 0)
            ub_store_release(ub_rb_consumer(base), ub_load(ub_rb_producer(base)));
    });
    map_drop();
    TIME("prandom", v += ub_helper_get_prandom_u32(&run));
    TIME("ktime (system call)", v += ub_helper_ktime_get_ns(&run));
}

int main(int argc, char **argv)
{
    int64_t ms = argc > 1 ? atoi(argv[1]) : 1000;

    ub_library_init(1, N_CPUS);
    if (argc > 1 && argv[1][0] == 'b') {
        bench();
        return 0;
    }
    deadline = now_ns() + ms * 1000000 / 4;
    hash_stress();
    deadline = now_ns() + ms * 1000000 / 4;
    percpu_stress();
    deadline = now_ns() + ms * 1000000 / 4;
    event_stress(UB_MAP_RINGBUF);
    deadline = now_ns() + ms * 1000000 / 4;
    event_stress(UB_MAP_PERF_EVENT_ARRAY);
    return 0;
}
