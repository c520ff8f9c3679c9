/*
 * userbpf_map.h: how a map lies in its memory file.
 *
 *   page 0        struct ub_map_header: identity, wake-up words, counters
 *   per-cpu maps  one hold word per CPU slot, UB_HOLD_STRIDE apart (ub_map_hold)
 *   then          the areas of struct ub_map_def, then (behind def.size) the controller's description
 *
 * A file is an arena shared by processes that need not trust each other. No function here takes an
 * address, a size or an index from it without bounding it by the caller's own struct ub_map_def.
 */
#ifndef USERBPF_MAP_H
#define USERBPF_MAP_H

#include "userbpf.h"

/* enum bpf_map_type, include/uapi/linux/bpf.h */
#define UB_MAP_HASH 1
#define UB_MAP_ARRAY 2
#define UB_MAP_PERF_EVENT_ARRAY 4
#define UB_MAP_PERCPU_HASH 5
#define UB_MAP_PERCPU_ARRAY 6
#define UB_MAP_RINGBUF 27

/* flags of update, include/uapi/linux/bpf.h */
#define UB_ANY 0
#define UB_NOEXIST 1
#define UB_EXIST 2

/* flags of the ring buffer helpers and of ub_helper_ringbuf_query */
#define UB_RB_NO_WAKEUP 1
#define UB_RB_FORCE_WAKEUP 2
#define UB_RB_AVAIL_DATA 0
#define UB_RB_RING_SIZE 1
#define UB_RB_CONS_POS 2
#define UB_RB_PROD_POS 3

#define UB_MAP_MAGIC 0x70616d5f66706275ULL /* "ubpf_map" in the file */
#define UB_MAP_VERSION 1
#define UB_PAGE 4096
#define UB_HOLD_OFF UB_PAGE
#define UB_HOLD_STRIDE 64
#define UB_CACHE_LINE 64
#define UB_MAX_CPUS 8192

/* A reservation of the ring buffer whose record is not yet committed. */
struct ub_inflight {
    uint64_t owner; /* owner word (see ub_lock.h), 0: free */
    uint64_t pos;   /* producer position of the record header */
};
#define UB_INFLIGHT 64

/* Page 0 of a map. Everything up to `wake_seq` is written once, before the file is shared. */
struct ub_map_header {
    uint64_t magic;
    uint32_t version;
    uint32_t type, key_size, value_size, max_entries, flags;
    uint32_t n_cpus;
    uint32_t reserved;
    uint64_t seed;
    uint64_t size;      /* struct ub_map_def.size */
    uint64_t meta_off;  /* the controller's description of the map: name, BTF. Behind `size` */
    uint64_t meta_size;
    uint8_t pad0[56];
    /* written at run time; each group on its own cache line */
    uint32_t wake_seq; /* futex: changes when sleeping consumers are to look again */
    uint32_t waiting;  /* a consumer sleeps or is about to */
    uint64_t skipped;  /* runs that found no free CPU slot */
    uint8_t pad1[48];
    uint64_t dropped;   /* ring buffer: reservations refused because it was full */
    uint8_t pad2[56];
    uint64_t free_seq;  /* hash: number of frees, with full_at: a memo of "a whole search found nothing" */
    uint64_t full_at;   /* free_seq + 1 when the element bitmap was last seen full */
    uint32_t free_hint; /* hash: bitmap word of the last free */
    uint8_t pad3[44];
    uint64_t ring_lock;   /* ring buffer: owner word of the reserving thread */
    uint64_t pending_pos; /* ring buffer: every record before it is committed */
    uint8_t pad4[48];
    struct ub_inflight inflight[UB_INFLIGHT];
};

/* hash: one writer lock for a stripe of buckets, with a journal of what its holder is doing */
struct ub_stripe {
    uint64_t lock;   /* owner word */
    uint32_t seq;    /* odd while chains change: readers that miss look twice */
    uint32_t spare;  /* element (index + 1) for replacing, 0: the stripe's first one */
    uint32_t op;     /* enum ub_stripe_op */
    uint32_t bucket; /* operands of op */
    uint32_t elem;
    uint32_t old;
    uint32_t hint; /* bitmap word (+ 1) where the last free element was found */
    uint8_t pad[28];
};
#define UB_MAX_STRIPES 256

/* hash element; the key follows, then (not per-cpu) the value, both 8-aligned */
struct ub_elem {
    uint32_t next;  /* index + 1 of the next element of the chain, 0: end */
    uint32_t stripe; /* index + 1 of the owning stripe, 0: free */
};

/* ring buffer: page 1 and 2, as kernel/bpf/ringbuf.c struct bpf_ringbuf is seen through mmap(2) */
#define UB_RB_CONSUMER_OFF UB_PAGE
#define UB_RB_PRODUCER_OFF (2 * UB_PAGE)
#define UB_RB_DATA_OFF (3 * UB_PAGE)
#define UB_RB_BUSY 0x80000000u
#define UB_RB_DISCARD 0x40000000u

struct ub_record {
    uint32_t len;    /* with UB_RB_BUSY, UB_RB_DISCARD */
    uint32_t pg_off; /* pages from the start of the map to the header's page */
};

/* perf event array: per CPU a control page and UB_PERF_PAGES pages of data */
#define UB_PERF_PAGES 64
#define UB_PERF_DATA_SIZE (UB_PERF_PAGES * UB_PAGE)
#define UB_PERF_STRIDE (UB_PERF_DATA_SIZE + UB_PAGE)

/* The fields of struct perf_event_mmap_page that consumers read, at their offsets; ours behind them. */
struct ub_perf_page {
    uint32_t version, compat_version;
    uint8_t pad0[1016];
    uint64_t data_head; /* offset 1024, include/uapi/linux/perf_event.h */
    uint64_t data_tail;
    uint64_t data_offset;
    uint64_t data_size;
    uint8_t pad1[992];
    uint64_t lock; /* owner word of the writer */
    uint64_t lost; /* records dropped since the last PERF_RECORD_LOST */
    uint64_t lost_total;
};

/* A record of the trace ring buffer: bpf_trace_printk, bpf_trace_vprintk. The text has no NUL. */
struct ub_trace {
    uint64_t ktime;
    uint32_t pid, tid, cpu, len;
    char comm[16];
};

/* Set in ub_run.flags by ub_percpu_enter: an outer run of this thread holds the slot. */
#define UB_RUN_SHARES_SLOT 1u

/* ---- for everyone ------------------------------------------------------------------------------ */

int ub_map_geometry(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries, uint32_t flags,
                    uint32_t n_cpus, uint64_t seed, struct ub_map_def *out);

uint32_t ub_current_cpu(void);
uint32_t ub_percpu_enter(struct ub_run *run, const struct ub_map_def *const defs[], uint8_t *const bases[], uint32_t n);
void ub_percpu_exit(struct ub_run *run, const struct ub_map_def *const defs[], uint8_t *const bases[], uint32_t n);

#endif
