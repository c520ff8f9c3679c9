/*
 * The ring buffer: producers. One lock for the positions, none while a record is written. A record never
 * straddles the end of the data: a discarded record fills the rest, so that a plain mapping of the file is
 * enough for a consumer that knows the kernel's layout.
 *
 * Who dies inside the lock has not moved the producer's position yet: nothing to repair. Who dies between
 * reserve and commit leaves a busy record that would stop the consumer for ever: the list of reservations in
 * the header says whose it was, and the consumer, or a producer that finds no space, discards it.
 */
#include "map_ringbuf.h"
#include "map_wake.h"

#define RECORD_MAX (UINT32_MAX / 4) /* RINGBUF_MAX_RECORD_SZ */

static uint32_t record_span(uint32_t len)
{
    return (uint32_t)ub_round_up((len & ~(UB_RB_BUSY | UB_RB_DISCARD)) + sizeof(struct ub_record), 8);
}

static void inflight_add(struct ub_map_header *h, uint64_t owner, uint64_t pos)
{
    for (uint32_t i = 0; i < UB_INFLIGHT; i++) {
        struct ub_inflight *f = &h->inflight[i];
        /* We hold the ring's lock: nobody else adds. What lies before pending_pos is committed. */
        if (ub_load_acquire(&f->owner) == 0 || ub_load(&f->pos) < ub_load(&h->pending_pos)) {
            ub_store(&f->pos, pos);
            ub_store_release(&f->owner, owner);
            return;
        }
    }
}

static struct ub_inflight *inflight_find(struct ub_map_header *h, uint64_t pos)
{
    for (uint32_t i = 0; i < UB_INFLIGHT; i++) {
        struct ub_inflight *f = &h->inflight[i];
        if (ub_load_acquire(&f->owner) != 0 && ub_load(&f->pos) == pos)
            return f;
    }
    return NULL;
}

UB_OUTLINE int ub_ringbuf_reap(const struct ub_map_def *def, uint8_t *base, uint64_t pos)
{
    struct ub_record *rec = ub_rb_record(def, base, pos);
    struct ub_inflight *f = inflight_find(ub_header(base), pos);
    uint32_t len = ub_load(&rec->len);
    uint64_t owner = f ? ub_load(&f->owner) : 0;

    if (owner == 0 || !(len & UB_RB_BUSY) || !ub_owner_is_dead(owner))
        return 0;
    /* of two that reap, one wins; the dead owner cannot commit any more */
    if (__atomic_compare_exchange_n(&rec->len, &len, (len & ~UB_RB_BUSY) | UB_RB_DISCARD, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_RELAXED))
        ub_store_release(&f->owner, 0);
    return 1;
}

/* The position before which all records are committed: they are the consumer's to free. */
static uint64_t pending_advance(const struct ub_map_def *def, uint8_t *base, uint64_t prod, int reap)
{
    struct ub_map_header *h = ub_header(base);
    uint64_t pos = ub_load(&h->pending_pos);

    if (prod - pos > def->max_entries) /* not a position of this ring */
        pos = prod;
    while (pos < prod) {
        uint32_t len = ub_load_acquire(&ub_rb_record(def, base, pos)->len);
        if (len & UB_RB_BUSY && !(reap && ub_ringbuf_reap(def, base, pos)))
            break;
        pos += record_span(len);
    }
    ub_store(&h->pending_pos, pos);
    return pos;
}

static void record_begin(const struct ub_map_def *def, uint8_t *base, uint64_t pos, uint32_t len)
{
    struct ub_record *rec = ub_rb_record(def, base, pos);
    ub_store(&rec->len, len);
    ub_store(&rec->pg_off, (uint32_t)(((uint8_t *)rec - base) / UB_PAGE));
}

/* Under the lock: __bpf_ringbuf_reserve. */
static void *reserve_locked(const struct ub_map_def *def, uint8_t *base, uint32_t size, uint64_t me)
{
    uint64_t mask = def->max_entries - 1;
    uint64_t cons = ub_load_acquire(ub_rb_consumer(base)); /* against the consumer's release: it has read them */
    uint64_t prod = ub_load(ub_rb_producer(base)) & ~7ull;
    uint32_t span = record_span(size), rest = (uint32_t)(mask + 1 - (prod & mask));
    uint32_t pad = rest < span ? rest : 0;
    uint64_t end = prod + pad + span, pending = pending_advance(def, base, prod, 0);

    if (end - pending > mask)
        pending = pending_advance(def, base, prod, 1);
    if (end - cons > mask || end - pending > mask) {
        /* A record of more than half the ring may never fit behind this position: leave it to the next. */
        if (pad && span > (mask + 1) / 2 && prod + pad - cons <= mask && prod + pad - pending <= mask) {
            record_begin(def, base, prod, (pad - (uint32_t)sizeof(struct ub_record)) | UB_RB_DISCARD);
            ub_store_release(ub_rb_producer(base), prod + pad);
        }
        return NULL;
    }
    if (pad)
        record_begin(def, base, prod, (pad - (uint32_t)sizeof(struct ub_record)) | UB_RB_DISCARD);
    record_begin(def, base, prod + pad, size | UB_RB_BUSY);
    inflight_add(ub_header(base), me, prod + pad);
    ub_store_release(ub_rb_producer(base), end); /* the headers are there before consumers look */
    return ub_rb_record(def, base, prod + pad) + 1;
}

UB_OUTLINE void *ub_ringbuf_reserve(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, uint64_t size)
{
    struct ub_map_header *h = ub_header(base);
    uint64_t me = ub_owner(run);
    void *sample = NULL;

    if (size > RECORD_MAX || ub_round_up(size + sizeof(struct ub_record), 8) > def->max_entries)
        return NULL;
    if (ub_lock(&h->ring_lock, me) >= 0) {
        sample = reserve_locked(def, base, (uint32_t)size, me);
        ub_unlock(&h->ring_lock);
    }
    if (!sample)
        __atomic_fetch_add(&h->dropped, 1, __ATOMIC_RELAXED);
    return sample;
}

UB_OUTLINE void ub_ringbuf_commit(struct ub_run *run, uint8_t *base, void *sample, uint64_t flags, int discard)
{
    struct ub_map_header *h = ub_header(base);
    struct ub_record *rec = (struct ub_record *)sample - 1;
    uint64_t offset = (uint64_t)((uint8_t *)rec - base) - UB_RB_DATA_OFF, me = ub_owner(run);
    uint32_t len = ub_load(&rec->len) & ~(UB_RB_BUSY | UB_RB_DISCARD), i;

    for (i = 0; i < UB_INFLIGHT; i++)
        if (ub_load(&h->inflight[i].owner) == me && ((ub_load(&h->inflight[i].pos) ^ offset) & (h->max_entries - 1)) == 0)
            break;
    /* a full barrier: the record before `waiting` is read, against a consumer about to sleep */
    __atomic_exchange_n(&rec->len, discard ? len | UB_RB_DISCARD : len, __ATOMIC_SEQ_CST);
    if (i < UB_INFLIGHT) /* compared: the slot may have been given away since the record is committed */
        __atomic_compare_exchange_n(&h->inflight[i].owner, &me, 0, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
    if (flags & UB_RB_FORCE_WAKEUP)
        ub_wake_now(h);
    else if (!(flags & UB_RB_NO_WAKEUP))
        ub_wake_waiting(h);
}
