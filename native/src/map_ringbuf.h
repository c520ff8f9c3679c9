/*
 * map_ringbuf.h: the ring buffer. kernel/bpf/ringbuf.c
 */
#ifndef MAP_RINGBUF_H
#define MAP_RINGBUF_H

#include "ub_lock.h"

UB_INLINE uint64_t *ub_rb_consumer(uint8_t *base)
{
    return (uint64_t *)(base + UB_RB_CONSUMER_OFF);
}

UB_INLINE uint64_t *ub_rb_producer(uint8_t *base)
{
    return (uint64_t *)(base + UB_RB_PRODUCER_OFF);
}

UB_INLINE struct ub_record *ub_rb_record(const struct ub_map_def *def, uint8_t *base, uint64_t pos)
{
    return (struct ub_record *)(base + UB_RB_DATA_OFF + (pos & (def->max_entries - 1) & ~7ull));
}

/* Space for `size` bytes, or NULL. */
void *ub_ringbuf_reserve(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, uint64_t size) UB_KEEP_REGS;

/* Gives a reserved sample to the consumer; discard: makes it skip it. The map's base is known. */
void ub_ringbuf_commit(struct ub_run *run, uint8_t *base, void *sample, uint64_t flags, int discard) UB_KEEP_REGS;

/* 1 when the record at `pos` was left uncommitted by a thread that died; it is a discarded one then. */
int ub_ringbuf_reap(const struct ub_map_def *def, uint8_t *base, uint64_t pos) UB_KEEP_REGS;

#endif
