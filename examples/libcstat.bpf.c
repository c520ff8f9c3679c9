/*
 * libcstat: who calls malloc, how often, and for how much.
 *
 * Counts the calls and bytes of every thread, with a histogram of the sizes by powers of two, in a
 * hash map; streams every large request through a ring buffer. Runs in user space under userbpf and,
 * unchanged, in the kernel.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define SLOTS 24

char LICENSE[] SEC("license") = "GPL";

/* Requests of at least this many bytes become events. */
const volatile __u64 large = 256 * 1024;

struct thread_stat {
    __u64 calls;
    __u64 bytes;
    __u64 sizes[SLOTS]; /* sizes[i]: requests of 2^i to 2^(i+1) - 1 bytes */
    char comm[16];
};

struct large_event {
    __u64 time;
    __u64 size;
    __u32 tid;
    char comm[16];
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, struct thread_stat);
} stats SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 65536);
    __type(value, struct large_event);
} events SEC(".maps");

static __always_inline __u32 log2_slot(__u64 size)
{
    __u32 slot = 0;

    if (size >> 16) {
        slot += 16;
        size >>= 16;
    }
    if (size >> 8) {
        slot += 8;
        size >>= 8;
    }
    if (size >> 4) {
        slot += 4;
        size >>= 4;
    }
    if (size >> 2) {
        slot += 2;
        size >>= 2;
    }
    if (size >> 1)
        slot += 1;
    return slot < SLOTS ? slot : SLOTS - 1;
}

SEC("uprobe/libc.so.6:malloc")
int BPF_KPROBE(count_malloc, __u64 size)
{
    __u32 tid = bpf_get_current_pid_tgid();
    struct thread_stat *stat = bpf_map_lookup_elem(&stats, &tid);

    if (!stat) {
        struct thread_stat fresh = {};

        bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
        bpf_map_update_elem(&stats, &tid, &fresh, BPF_NOEXIST);
        stat = bpf_map_lookup_elem(&stats, &tid);
        if (!stat)
            return 0;
    }
    /* Only this thread writes its own entry: no atomic is needed. */
    stat->calls++;
    stat->bytes += size;
    stat->sizes[log2_slot(size)]++;

    if (size >= large) {
        struct large_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

        if (event) {
            event->time = bpf_ktime_get_ns();
            event->size = size;
            event->tid = tid;
            __builtin_memcpy(event->comm, stat->comm, sizeof(event->comm));
            bpf_ringbuf_submit(event, 0);
        }
    }
    return 0;
}
