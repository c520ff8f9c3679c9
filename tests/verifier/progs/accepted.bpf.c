/* Programs that people write for uprobes. Every one of them must be accepted. */
#include "common.h"

#define SLOTS 27
#define NAME_MAX_LEN 64

struct key {
    u32 pid;
    u64 bucket;
};

struct stat {
    u64 count, total, least, most;
    u64 slots[SLOTS];
};

struct event {
    u64 time;
    u32 pid, tid;
    s32 length;
    char comm[16];
    char name[NAME_MAX_LEN];
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u64);
} counts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, struct key);
    __type(value, struct stat);
} stats SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, u32);
    __type(value, struct event);
} scratch SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 16);
} ring SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(key_size, 4);
    __uint(value_size, 4);
} perf SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 64);
    __type(key, u32);
    __type(value, u64);
} histogram SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u64);
    __type(value, u64);
} starts SEC(".maps");

const volatile u32 only_pid = 0;
const volatile u32 sample_shift = 3;
const volatile u8 verbose = 1;
u64 table[32];
u64 matrix[8][8];
char last_name[NAME_MAX_LEN];
u32 calls;

static __always_inline u32 log2_u32(u32 v)
{
    u32 shift, r;

    r = (v > 0xFFFF) << 4;
    v >>= r;
    shift = (v > 0xFF) << 3;
    v >>= shift;
    r |= shift;
    shift = (v > 0xF) << 2;
    v >>= shift;
    r |= shift;
    shift = (v > 0x3) << 1;
    v >>= shift;
    r |= shift;
    r |= v >> 1;
    return r;
}

static __always_inline u32 log2_u64(u64 v)
{
    u32 high = v >> 32;

    return high ? log2_u32(high) + 32 : log2_u32(v);
}

SEC("uprobe")
int count_by_pid(struct pt_regs *ctx)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    u64 one = 1, *count;

    if (only_pid && pid != only_pid)
        return 0;
    count = bpf_map_lookup_elem(&counts, &pid);
    if (count)
        __sync_fetch_and_add(count, 1);
    else
        bpf_map_update_elem(&counts, &pid, &one, BPF_NOEXIST);
    return 0;
}

SEC("uprobe")
int log2_histogram(struct pt_regs *ctx)
{
    u32 slot = log2_u64(PT_REGS_PARM1(ctx));
    u64 *value;

    if (slot >= 64)
        slot = 63;
    value = bpf_map_lookup_elem(&histogram, &slot);
    if (value)
        __sync_fetch_and_add(value, 1);
    return 0;
}

SEC("uprobe")
int histogram_by_loop(struct pt_regs *ctx)
{
    u64 size = PT_REGS_PARM1(ctx);
    u32 slot = 0;
    u64 *value;

    for (int i = 0; i < 63; i++) {
        if (size <= 1)
            break;
        size >>= 1;
        slot++;
    }
    value = bpf_map_lookup_elem(&histogram, &slot);
    if (value)
        *value += 1;
    return 0;
}

SEC("uprobe")
int unrolled(struct pt_regs *ctx)
{
    u64 size = PT_REGS_PARM1(ctx);
    u32 slot = 0;

#pragma unroll
    for (int i = 0; i < 20; i++)
        if (size > (1ULL << i))
            slot = i;
    table[slot & 31]++;
    return 0;
}

SEC("uprobe")
int statistics(struct pt_regs *ctx)
{
    struct key key = {};
    struct stat *stat, zero = {};
    u64 size = PT_REGS_PARM1(ctx);
    u32 slot;

    key.pid = bpf_get_current_pid_tgid() >> 32;
    key.bucket = size >> 20;
    stat = bpf_map_lookup_elem(&stats, &key);
    if (!stat) {
        zero.least = ~0ULL;
        bpf_map_update_elem(&stats, &key, &zero, BPF_NOEXIST);
        stat = bpf_map_lookup_elem(&stats, &key);
        if (!stat)
            return 0;
    }
    stat->count++;
    stat->total += size;
    if (size < stat->least)
        stat->least = size;
    if (size > stat->most)
        stat->most = size;
    slot = log2_u64(size);
    if (slot < SLOTS)
        __sync_fetch_and_add(&stat->slots[slot], 1);
    return 0;
}

SEC("uprobe")
int record_in_ring(struct pt_regs *ctx)
{
    struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
    u64 id = bpf_get_current_pid_tgid();

    if (!event)
        return 0;
    event->time = bpf_ktime_get_ns();
    event->pid = id >> 32;
    event->tid = id;
    bpf_get_current_comm(event->comm, sizeof(event->comm));
    event->length = bpf_probe_read_user_str(event->name, sizeof(event->name), (void *)PT_REGS_PARM1(ctx));
    if (event->length < 0) {
        bpf_ringbuf_discard(event, 0);
        return 0;
    }
    bpf_ringbuf_submit(event, 0);
    return 0;
}

SEC("uprobe")
int output_to_ring(struct pt_regs *ctx)
{
    struct event event = {};

    event.time = bpf_ktime_get_ns();
    event.length = bpf_probe_read_user_str(event.name, sizeof(event.name), (void *)PT_REGS_PARM1(ctx));
    bpf_ringbuf_output(&ring, &event, sizeof(event), 0);
    return 0;
}

SEC("uprobe")
int output_of_variable_size(struct pt_regs *ctx)
{
    struct event *event;
    u32 zero = 0;
    long length;

    event = bpf_map_lookup_elem(&scratch, &zero);
    if (!event)
        return 0;
    length = bpf_probe_read_user_str(event->name, sizeof(event->name), (void *)PT_REGS_PARM1(ctx));
    if (length <= 0 || length > sizeof(event->name))
        return 0;
    event->length = length;
    bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, event, __builtin_offsetof(struct event, name) + length);
    return 0;
}

SEC("uprobe")
int read_of_variable_size(struct pt_regs *ctx)
{
    u64 size = PT_REGS_PARM2(ctx);

    if (size > sizeof(last_name))
        size = sizeof(last_name);
    bpf_probe_read_user(last_name, size, (void *)PT_REGS_PARM1(ctx));
    calls++;
    return 0;
}

SEC("uprobe")
int start_of_call(struct pt_regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();

    bpf_map_update_elem(&starts, &id, &now, BPF_ANY);
    return 0;
}

SEC("uretprobe")
int end_of_call(struct pt_regs *ctx)
{
    u64 id = bpf_get_current_pid_tgid(), *begin, delta;
    u32 slot;

    begin = bpf_map_lookup_elem(&starts, &id);
    if (!begin)
        return 0;
    delta = bpf_ktime_get_ns() - *begin;
    bpf_map_delete_elem(&starts, &id);
    slot = log2_u64(delta) & 31;
    table[slot]++;
    if (verbose)
        bpf_printk("took %llu ns, returned %ld", delta, PT_REGS_RC(ctx));
    return 0;
}

SEC("uprobe")
int two_indices(struct pt_regs *ctx)
{
    u32 row = PT_REGS_PARM1(ctx), column = PT_REGS_PARM2(ctx);

    if (row >= 8 || column >= 8)
        return 0;
    matrix[row][column]++;
    return 0;
}

SEC("uprobe")
int sum_of_matrix(struct pt_regs *ctx)
{
    u64 sum = 0;

    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++)
            sum += matrix[i][j];
    return sum > 100;
}

SEC("uprobe")
int signed_index(struct pt_regs *ctx)
{
    int index = PT_REGS_PARM1(ctx);

    if (index < 0 || index > 31)
        return 0;
    table[index]++;
    return 0;
}

SEC("uprobe")
int switch_on_size(struct pt_regs *ctx)
{
    u32 kind;

    switch (PT_REGS_PARM1(ctx)) {
    case 0 ... 15:
        kind = 0;
        break;
    case 16:
        kind = 7;
        break;
    case 17 ... 255:
        kind = 1;
        break;
    case 4096:
        kind = 9;
        break;
    default:
        kind = 2;
    }
    table[kind]++;
    return 0;
}

static __noinline u32 hash_of(const char *text, u32 length)
{
    u32 hash = 5381;

    for (u32 i = 0; i < 16; i++) {
        if (i >= length)
            break;
        hash = hash * 33 + text[i];
    }
    return hash;
}

SEC("uprobe")
int hash_of_comm(struct pt_regs *ctx)
{
    char comm[16];

    bpf_get_current_comm(comm, sizeof(comm));
    table[hash_of(comm, sizeof(comm)) & 31]++;
    return 0;
}

static __noinline int bump(u64 *slot, u64 by)
{
    if (!slot)
        return -1;
    *slot += by;
    return 0;
}

static __noinline int bump_counter(u32 index, u64 by)
{
    u64 *slot = bpf_map_lookup_elem(&histogram, &index);

    return bump(slot, by);
}

SEC("uprobe")
int through_subprograms(struct pt_regs *ctx)
{
    if (bump_counter(3, PT_REGS_PARM1(ctx)))
        return 1;
    return bump(&table[5], 1);
}

__noinline int weigh(u32 a, u32 b)
{
    return a > b ? a - b : b - a;
}

SEC("uprobe")
int through_global_function(struct pt_regs *ctx)
{
    table[weigh(PT_REGS_PARM1(ctx), 7) & 31]++;
    return 0;
}

SEC("uprobe")
int parse_text(struct pt_regs *ctx)
{
    char text[32] = {};
    u32 digits = 0, words = 0;
    int inside = 0;

    bpf_probe_read_user_str(text, sizeof(text), (void *)PT_REGS_PARM1(ctx));
    for (int i = 0; i < sizeof(text); i++) {
        char c = text[i];

        if (!c)
            break;
        if (c >= '0' && c <= '9')
            digits++;
        if (c == ' ')
            inside = 0;
        else if (!inside) {
            inside = 1;
            words++;
        }
    }
    __sync_fetch_and_add(&table[0], digits);
    __sync_fetch_and_add(&table[1], words);
    return 0;
}

SEC("uprobe")
int copy_on_stack(struct pt_regs *ctx)
{
    u8 ring_of_bytes[16] = {};
    u32 at = PT_REGS_PARM1(ctx);

    ring_of_bytes[at & 15] = 1;
    ring_of_bytes[(at + 5) & 15] = 2;
    return ring_of_bytes[(at >> 4) & 15];
}

SEC("uprobe")
int sample(struct pt_regs *ctx)
{
    if (bpf_get_prandom_u32() & ((1 << sample_shift) - 1))
        return 0;
    __sync_fetch_and_add(&calls, 1);
    return 0;
}

SEC("uprobe")
int compare_and_swap(struct pt_regs *ctx)
{
    u64 old = __sync_val_compare_and_swap(&table[0], 0, PT_REGS_PARM1(ctx));

    if (old)
        __sync_lock_test_and_set(&table[1], old);
    __sync_fetch_and_or(&table[2], old);
    return 0;
}

SEC("uprobe")
int two_records(struct pt_regs *ctx)
{
    u64 *first = bpf_ringbuf_reserve(&ring, 8, 0), *second;

    if (!first)
        return 0;
    second = bpf_ringbuf_reserve(&ring, 8, 0);
    if (!second) {
        bpf_ringbuf_discard(first, 0);
        return 0;
    }
    *first = *second = bpf_ktime_get_ns();
    bpf_ringbuf_submit(second, 0);
    bpf_ringbuf_submit(first, 0);
    return 0;
}
