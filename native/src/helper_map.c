/*
 * Helpers on maps: the dispatchers that programs call. `def` is a constant there, so each melts into
 * the operation of its map type.
 */
#include "map_array.h"
#include "map_hash.h"
#include "map_perf.h"
#include "map_ringbuf.h"

UB_EXPORT_INLINE void *ub_helper_map_lookup_elem(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                                 const void *key)
{
    switch (def->type) {
    case UB_MAP_ARRAY:
    case UB_MAP_PERCPU_ARRAY:
        return ub_array_lookup(run, def, base, key);
    case UB_MAP_HASH:
    case UB_MAP_PERCPU_HASH:
        return ub_hash_lookup(run, def, base, key);
    default: /* the verifier lets no program look into another type */
        return NULL;
    }
}

UB_EXPORT_INLINE uint64_t ub_helper_map_update_elem(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                                    const void *key, const void *value, uint64_t flags)
{
    switch (def->type) {
    case UB_MAP_ARRAY:
    case UB_MAP_PERCPU_ARRAY:
        return ub_array_update(run, def, base, key, value, flags);
    case UB_MAP_HASH:
    case UB_MAP_PERCPU_HASH:
        return ub_hash_update(run, def, base, key, value, flags);
    default:
        return ub_error(UB_ENOTSUPP);
    }
}

UB_EXPORT_INLINE uint64_t ub_helper_map_delete_elem(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                                    const void *key)
{
    switch (def->type) {
    case UB_MAP_ARRAY:
    case UB_MAP_PERCPU_ARRAY:
        return ub_error(UB_EINVAL);
    case UB_MAP_HASH:
    case UB_MAP_PERCPU_HASH:
        return ub_hash_delete(run, def, base, key);
    default:
        return ub_error(UB_ENOTSUPP);
    }
}

UB_EXPORT_INLINE void *ub_helper_ringbuf_reserve(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                                 uint64_t size, uint64_t flags)
{
    return flags ? NULL : ub_ringbuf_reserve(run, def, base, size);
}

/*
 * The base of the ring that a sample is in. The record says how far away it is, and the record lies in
 * memory that others write, so its word is taken for a ring only when a ring buffer's header is there.
 */
UB_INLINE uint8_t *ub_ringbuf_base(void *sample)
{
    struct ub_record *rec = (struct ub_record *)sample - 1;
    uint64_t page = (uint64_t)rec & ~(uint64_t)(UB_PAGE - 1);
    uint8_t *base = (uint8_t *)(page - (uint64_t)ub_load(&rec->pg_off) * UB_PAGE);
    struct {
        uint64_t magic;
        uint32_t version, type;
    } seen;

    if (ub_env.copy_from_user(&seen, base, sizeof seen) != 0 || seen.magic != UB_MAP_MAGIC ||
        seen.type != UB_MAP_RINGBUF)
        return NULL;
    return base;
}

UB_OUTLINE uint64_t ub_ringbuf_finish(struct ub_run *run, void *sample, uint64_t flags, int discard)
{
    uint8_t *base = ub_ringbuf_base(sample);
    if (base)
        ub_ringbuf_commit(run, base, sample, flags, discard);
    return 0;
}

UB_EXPORT_INLINE uint64_t ub_helper_ringbuf_submit(struct ub_run *run, void *sample, uint64_t flags)
{
    return ub_ringbuf_finish(run, sample, flags, 0);
}

UB_EXPORT_INLINE uint64_t ub_helper_ringbuf_discard(struct ub_run *run, void *sample, uint64_t flags)
{
    return ub_ringbuf_finish(run, sample, flags, 1);
}

UB_OUTLINE uint64_t ub_helper_ringbuf_output(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                             const void *data, uint64_t size, uint64_t flags)
{
    void *sample;

    if (flags & ~(uint64_t)(UB_RB_NO_WAKEUP | UB_RB_FORCE_WAKEUP))
        return ub_error(UB_EINVAL);
    sample = ub_ringbuf_reserve(run, def, base, size);
    if (!sample)
        return ub_error(UB_EAGAIN);
    ub_copy_in(sample, data, (uint32_t)size);
    ub_ringbuf_commit(run, base, sample, flags, 0);
    return 0;
}

UB_EXPORT_INLINE uint64_t ub_helper_ringbuf_query(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                                                  uint64_t flags)
{
    (void)run;
    switch (flags) {
    case UB_RB_AVAIL_DATA: {
        uint64_t cons = ub_load_acquire(ub_rb_consumer(base));
        return ub_load_acquire(ub_rb_producer(base)) - cons;
    }
    case UB_RB_RING_SIZE:
        return def->max_entries;
    case UB_RB_CONS_POS:
        return ub_load_acquire(ub_rb_consumer(base));
    case UB_RB_PROD_POS:
        return ub_load_acquire(ub_rb_producer(base));
    default:
        return 0;
    }
}

UB_EXPORT_INLINE uint64_t ub_helper_perf_event_output(struct ub_run *run, void *ctx, const struct ub_map_def *def,
                                                      uint8_t *base, uint64_t flags, const void *data, uint64_t size)
{
    (void)ctx;
    return ub_perf_output(run, def, base, flags, data, size);
}
