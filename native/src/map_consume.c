/*
 * Consumers of ring buffers and perf event arrays, and waiting for them.
 */
#include "map_perf.h"
#include "map_ringbuf.h"
#include "map_wake.h"

#define REAP_NS 50000000 /* how often a waiting consumer asks whether the owner of a busy record lives */

/* Header of a record in the caller's buffer: the sample follows, padded to 8. */
struct ub_event {
    uint32_t size;
    uint32_t cpu;  /* perf event array: the ring. Ring buffer: 0 */
    uint64_t lost; /* perf event array: not 0: no sample, so many were dropped here */
};

/* One committed record that is not discarded; 0: none; -ENOSPC: out is too small for it. */
static int64_t ringbuf_take(const struct ub_map_def *def, uint8_t *base, uint8_t *out, uint64_t room)
{
    uint64_t cons = ub_load(ub_rb_consumer(base)) & ~7ull;
    uint64_t prod = ub_load_acquire(ub_rb_producer(base)); /* against the producer's release: headers are there */

    if (prod - cons > def->max_entries) { /* not positions of this ring: begin anew */
        ub_store_release(ub_rb_consumer(base), prod);
        return 0;
    }
    while (cons < prod) {
        struct ub_record *rec = ub_rb_record(def, base, cons);
        uint32_t len = ub_load_acquire(&rec->len), size; /* against the commit: the sample is there */
        uint64_t span, rest = def->max_entries - (cons & (def->max_entries - 1));

        if (len & UB_RB_BUSY) {
            if (!ub_ringbuf_reap(def, base, cons))
                return 0;
            continue;
        }
        size = len & ~UB_RB_DISCARD;
        span = ub_round_up((uint64_t)size + sizeof *rec, 8);
        if (span > rest) { /* a record that straddles is none of ours */
            ub_store_release(ub_rb_consumer(base), prod);
            return 0;
        }
        if (!(len & UB_RB_DISCARD)) {
            struct ub_event event = {.size = size};
            uint64_t need = sizeof event + ub_round_up(size, 8);
            if (need > room)
                return -UB_ENOSPC;
            ub_copy_in(out, &event, sizeof event);
            ub_copy_out(out + sizeof event, rec + 1, size);
            ub_store_release(ub_rb_consumer(base), cons + span); /* our reads come before it is free */
            return (int64_t)need;
        }
        cons += span;
        ub_store_release(ub_rb_consumer(base), cons);
    }
    return 0;
}

static void ring_get(const uint8_t *ring, uint64_t at, uint8_t *out, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = ub_load(ring + ((at + i) & (UB_PERF_DATA_SIZE - 1)));
}

static int64_t perf_take(const struct ub_map_def *def, uint8_t *base, uint32_t cpu, uint8_t *out, uint64_t room)
{
    struct ub_perf_page *page = ub_perf_page(def, base, cpu);
    const uint8_t *ring = (uint8_t *)page + UB_PAGE;
    uint64_t tail = ub_load(&page->data_tail), head = ub_load_acquire(&page->data_head);

    while (head != tail) {
        struct ub_event event = {.cpu = cpu};
        struct ub_perf_record header;
        uint32_t raw = 0;

        ring_get(ring, tail, (uint8_t *)&header, sizeof header);
        if (header.size < sizeof header || header.size & 7 || header.size > head - tail) {
            ub_store_release(&page->data_tail, head); /* nothing that we wrote: begin anew */
            return 0;
        }
        if (header.type == UB_PERF_RECORD_SAMPLE && header.size >= sizeof header + 4) {
            ring_get(ring, tail + sizeof header, (uint8_t *)&raw, sizeof raw);
            event.size = ub_min(raw, header.size - (uint32_t)sizeof header - 4);
        } else if (header.type == UB_PERF_RECORD_LOST && header.size >= sizeof header + 16) {
            ring_get(ring, tail + sizeof header + 8, (uint8_t *)&event.lost, sizeof event.lost);
        } else {
            tail += header.size;
            ub_store_release(&page->data_tail, tail);
            continue;
        }
        if (sizeof event + ub_round_up(event.size, 8) > room)
            return -UB_ENOSPC;
        ub_copy_in(out, &event, sizeof event);
        ring_get(ring, tail + sizeof header + 4, out + sizeof event, event.size);
        ub_store_release(&page->data_tail, tail + header.size); /* our reads come before it is free */
        return (int64_t)(sizeof event + ub_round_up(event.size, 8));
    }
    return 0;
}

/*
 * Moves events (struct ub_event and sample each) into the caller's 8-aligned buffer: the bytes used, 0 when
 * there is nothing, -ENOSPC when the first one does not fit, -EOPNOTSUPP for maps without events.
 * One consumer at a time.
 */
UB_EXPORT int64_t ub_map_consume(const struct ub_map_def *def, uint8_t *base, uint8_t *out, uint64_t room)
{
    uint32_t rings = def->type == UB_MAP_PERF_EVENT_ARRAY ? def->n_elems : 1;
    int64_t used = 0;

    if (def->type != UB_MAP_PERF_EVENT_ARRAY && def->type != UB_MAP_RINGBUF)
        return -UB_EOPNOTSUPP;
    for (uint32_t i = 0; i < rings;) {
        int64_t got = def->type == UB_MAP_RINGBUF ? ringbuf_take(def, base, out + used, room - (uint64_t)used)
                                                  : perf_take(def, base, i, out + used, room - (uint64_t)used);
        if (got < 0)
            return used ? used : got;
        if (got == 0)
            i++;
        used += got;
    }
    return used;
}

/* 1: there is something to consume; 2: only a record that is not committed yet; 0: nothing. */
static int pending(const struct ub_map_def *def, uint8_t *base)
{
    if (def->type == UB_MAP_RINGBUF) {
        uint64_t cons = ub_load(ub_rb_consumer(base)), prod = ub_load_acquire(ub_rb_producer(base));
        if (cons == prod)
            return 0;
        return ub_load_acquire(&ub_rb_record(def, base, cons)->len) & UB_RB_BUSY && !ub_ringbuf_reap(def, base, cons)
                   ? 2
                   : 1;
    }
    for (uint32_t i = 0; i < def->n_elems; i++) {
        struct ub_perf_page *page = ub_perf_page(def, base, i);
        if (ub_load_acquire(&page->data_head) != ub_load(&page->data_tail))
            return 1;
    }
    return 0;
}

static int64_t now_ns(void)
{
    int64_t ts[2];
    ub_sys(UB_NR_CLOCK_GETTIME, 1, (long)ts, 0, 0);
    return ts[0] * 1000000000 + ts[1];
}

/*
 * Waits until there is something to consume, ub_map_wake() is called, or `timeout_ns` are over (< 0: no
 * limit). `since` is ub_map_wake_seq() from before the caller decided to wait: a wake-up since then counts.
 * 1: look; 0: over, or woken for nothing; -EINTR: a signal came.
 */
UB_EXPORT int ub_map_wait(const struct ub_map_def *def, uint8_t *base, uint32_t since, int64_t timeout_ns)
{
    struct ub_map_header *h = ub_header(base);
    int64_t until = timeout_ns < 0 ? INT64_MAX : now_ns() + timeout_ns;

    if (def->type != UB_MAP_PERF_EVENT_ARRAY && def->type != UB_MAP_RINGBUF)
        return -UB_EOPNOTSUPP;
    for (;;) {
        uint32_t seq = ub_load_acquire(&h->wake_seq);
        int64_t left, ts[2];
        long err;
        int state;

        /* a full barrier: `waiting` before the positions are read, against a producer that commits */
        __atomic_exchange_n(&h->waiting, 1, __ATOMIC_SEQ_CST);
        state = pending(def, base);
        if (state == 1)
            return 1;
        left = until - now_ns();
        if (left <= 0 || seq != since)
            return 0;
        if (state == 2)
            left = ub_min(left, (int64_t)REAP_NS);
        ts[0] = left / 1000000000;
        ts[1] = left % 1000000000;
        err = ub_sys(UB_NR_FUTEX, (long)&h->wake_seq, UB_FUTEX_WAIT, (long)seq, (long)ts);
        if (err == -UB_EINTR)
            return -UB_EINTR;
    }
}

UB_EXPORT uint32_t ub_map_wake_seq(uint8_t *base)
{
    return ub_load_acquire(&ub_header(base)->wake_seq);
}

/* Ends every wait on this map. */
UB_EXPORT void ub_map_wake(uint8_t *base)
{
    ub_wake_now(ub_header(base));
}
