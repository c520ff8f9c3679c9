/*
 * Maps as bpf(2) shows them, for the controller: values are copied, per-cpu values are all CPUs' at once
 * (value_stride apart), and what is copied was in the map at one moment. kernel/bpf/syscall.c
 */
#include "map_array.h"
#include "map_hash.h"

#define TRIES 256 /* undisturbed copies; then under the stripe's lock */

static int is_array(const struct ub_map_def *def)
{
    return def->type == UB_MAP_ARRAY || def->type == UB_MAP_PERCPU_ARRAY;
}

static int is_hash(const struct ub_map_def *def)
{
    return def->type == UB_MAP_HASH || def->type == UB_MAP_PERCPU_HASH;
}

/* Bytes of one value in a caller's buffer. */
UB_EXPORT uint64_t ub_map_value_bytes(const struct ub_map_def *def)
{
    if (def->type == UB_MAP_PERCPU_ARRAY || def->type == UB_MAP_PERCPU_HASH)
        return (uint64_t)def->value_stride * def->n_cpus;
    return def->value_size;
}

/* `index`: of an array, or of a hash element. A per-cpu value's padding is zero. */
static void value_copy(const struct ub_map_def *def, uint8_t *base, uint32_t index, uint8_t *out)
{
    if (def->type == UB_MAP_ARRAY) {
        ub_copy_out(out, base + def->data_off + (uint64_t)index * def->elem_stride, def->value_size);
        return;
    }
    if (def->type == UB_MAP_HASH) {
        ub_copy_out(out, ub_elem_value(def, base, index + 1, 0), def->value_size);
        return;
    }
    for (uint32_t i = 0; i < def->n_cpus; i++, out += def->value_stride) {
        ub_copy_out(out, ub_percpu_value(def, base, index, i), def->value_size);
        for (uint32_t b = def->value_size; b < def->value_stride; b++)
            out[b] = 0;
    }
}

/*
 * A stripe is stable while `before` is even and unchanged. After TRIES the lock makes it so: `held` says
 * that the caller has it then. Returns 0, or -EBUSY.
 */
struct stable {
    struct ub_stripe *stripe;
    uint32_t before, tries;
    int held;
};

static int stable_begin(struct stable *s, const struct ub_map_def *def, uint8_t *base, uint32_t bucket)
{
    s->stripe = ub_stripe(def, base, bucket);
    if (s->tries++ >= TRIES && !s->held) {
        struct ub_run run = {.cpu = UB_ALL_CPUS};
        int err = ub_stripe_lock(&run, def, base, s->stripe);
        if (err)
            return err;
        s->held = 1;
    }
    s->before = ub_load_acquire(&s->stripe->seq);
    return 0;
}

/* 1: what was copied since stable_begin was there at one moment. 0: copy again. */
static int stable_end(struct stable *s)
{
    int ok;

    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* the copy comes before the second look at the sequence */
    ok = s->held || (!(s->before & 1) && ub_load(&s->stripe->seq) == s->before);
    if (!ok)
        ub_pause();
    else if (s->held)
        ub_unlock(&s->stripe->lock);
    return ok;
}

/* BPF_MAP_LOOKUP_ELEM into `out`, of ub_map_value_bytes(). 0 or -errno. */
UB_EXPORT int ub_map_lookup(const struct ub_map_def *def, uint8_t *base, const void *key, uint8_t *out)
{
    struct stable s = {.tries = 0};
    uint32_t link;

    if (is_array(def)) {
        uint32_t index = *(const ub_any32 *)key;
        if (index >= def->max_entries)
            return -UB_ENOENT;
        value_copy(def, base, index, out);
        return 0;
    }
    if (!is_hash(def))
        return -UB_EOPNOTSUPP;
    do {
        int err = stable_begin(&s, def, base, ub_bucket(def, key));
        if (err)
            return err;
        link = ub_hash_find(def, base, key);
        if (link)
            value_copy(def, base, link - 1, out);
    } while (!stable_end(&s));
    return link ? 0 : -UB_ENOENT;
}

/* BPF_MAP_UPDATE_ELEM: `value` is of ub_map_value_bytes(). */
UB_EXPORT int ub_map_update(const struct ub_map_def *def, uint8_t *base, const void *key, const void *value,
                            uint64_t flags)
{
    struct ub_run run = {.cpu = UB_ALL_CPUS};

    if (is_array(def))
        return (int)ub_array_update(&run, def, base, key, value, flags);
    return is_hash(def) ? (int)ub_hash_update(&run, def, base, key, value, flags) : -UB_EOPNOTSUPP;
}

/* BPF_MAP_DELETE_ELEM */
UB_EXPORT int ub_map_delete(const struct ub_map_def *def, uint8_t *base, const void *key)
{
    struct ub_run run = {.cpu = UB_ALL_CPUS};

    if (is_array(def))
        return -UB_EINVAL;
    return is_hash(def) ? (int)ub_hash_delete(&run, def, base, key) : -UB_EOPNOTSUPP;
}

/* First key of the first bucket from `bucket` on that has one. */
static int first_key_from(const struct ub_map_def *def, uint8_t *base, uint64_t bucket, uint8_t *next)
{
    for (; bucket < def->n_buckets; bucket++) {
        struct stable s = {.tries = 0};
        struct ub_elem *e;
        do {
            int err;
            if (ub_load(ub_head(def, base, (uint32_t)bucket)) == 0) {
                e = NULL;
                break;
            }
            err = stable_begin(&s, def, base, (uint32_t)bucket);
            if (err)
                return err;
            e = ub_elem(def, base, ub_load_acquire(ub_head(def, base, (uint32_t)bucket)));
            if (e)
                ub_copy_out(next, ub_elem_key(e), def->key_size);
        } while (!stable_end(&s));
        if (e)
            return 0;
    }
    return -UB_ENOENT;
}

/* htab_map_get_next_key: an unknown key is answered with the first one. */
static int hash_next_key(const struct ub_map_def *def, uint8_t *base, const void *key, uint8_t *next)
{
    struct stable s = {.tries = 0};
    uint32_t bucket, link;
    struct ub_elem *e;

    if (!key)
        return first_key_from(def, base, 0, next);
    bucket = ub_bucket(def, key);
    do {
        int err = stable_begin(&s, def, base, bucket);
        if (err)
            return err;
        link = ub_hash_find(def, base, key);
        e = link ? ub_elem(def, base, ub_load_acquire(&ub_elem(def, base, link)->next)) : NULL;
        if (e)
            ub_copy_out(next, ub_elem_key(e), def->key_size);
    } while (!stable_end(&s));
    if (e)
        return 0;
    return first_key_from(def, base, link ? (uint64_t)bucket + 1 : 0, next);
}

/* BPF_MAP_GET_NEXT_KEY; key may be NULL. -ENOENT: that was the last one. */
UB_EXPORT int ub_map_next_key(const struct ub_map_def *def, uint8_t *base, const void *key, uint8_t *next)
{
    uint32_t index;

    if (is_hash(def))
        return hash_next_key(def, base, key, next);
    if (!is_array(def))
        return -UB_EOPNOTSUPP;
    index = key ? *(const ub_any32 *)key : UINT32_MAX; /* array_map_get_next_key */
    if (index == def->max_entries - 1)
        return -UB_ENOENT;
    *(ub_any32 *)next = index >= def->max_entries ? 0 : index + 1;
    return 0;
}

/*
 * All elements of one bucket, as they were at one moment: their number, -ENOSPC when they are more than `room`,
 * -EFAULT when the chain is a circle (somebody has written into the map). keys NULL: only counts.
 */
static int64_t bucket_dump(const struct ub_map_def *def, uint8_t *base, uint32_t bucket, uint8_t *keys,
                           uint8_t *values, uint64_t room)
{
    struct stable s = {.tries = 0};
    uint64_t n, value_bytes = ub_map_value_bytes(def);

    do {
        uint32_t link;
        struct ub_elem *e;
        int err = stable_begin(&s, def, base, bucket);
        if (err)
            return err;
        link = ub_load_acquire(ub_head(def, base, bucket));
        for (n = 0; (e = ub_elem(def, base, link)) != NULL && n <= room && n <= ub_walk_limit(def); n++) {
            if (keys && n < room) {
                ub_copy_out(keys + n * def->key_size, ub_elem_key(e), def->key_size);
                value_copy(def, base, link - 1, values + n * value_bytes);
            }
            link = ub_load_acquire(&e->next);
        }
    } while (!stable_end(&s));
    if (n > ub_walk_limit(def))
        return -UB_EFAULT;
    return n <= room ? (int64_t)n : -UB_ENOSPC;
}

/*
 * Entries from *cursor (0 at first) into the caller's buffers of `room` entries: their number, 0 at the
 * end. Each bucket is of one moment; -ENOSPC: the next bucket alone has more than `room`.
 */
UB_EXPORT int64_t ub_map_dump(const struct ub_map_def *def, uint8_t *base, uint64_t *cursor, uint8_t *keys,
                              uint8_t *values, uint64_t room)
{
    uint64_t n = 0, value_bytes = ub_map_value_bytes(def);

    if (is_array(def)) {
        for (; n < room && *cursor < def->max_entries; n++, ++*cursor) {
            *(ub_any32 *)(keys + n * 4) = (uint32_t)*cursor;
            value_copy(def, base, (uint32_t)*cursor, values + n * value_bytes);
        }
        return (int64_t)n;
    }
    if (!is_hash(def))
        return -UB_EOPNOTSUPP;
    for (; *cursor < def->n_buckets; ++*cursor) {
        int64_t got;
        if (ub_load(ub_head(def, base, (uint32_t)*cursor)) == 0)
            continue;
        got = bucket_dump(def, base, (uint32_t)*cursor, keys + n * def->key_size, values + n * value_bytes, room - n);
        if (got < 0)
            return n && got == -UB_ENOSPC ? (int64_t)n : got;
        n += (uint64_t)got;
    }
    return (int64_t)n;
}

/* Number of entries of a hash; of an array, its size. -EFAULT: the chains of the hash are corrupted. */
UB_EXPORT int64_t ub_map_count(const struct ub_map_def *def, uint8_t *base)
{
    int64_t n = 0;

    if (!is_hash(def))
        return is_array(def) ? def->max_entries : 0;
    for (uint32_t bucket = 0; bucket < def->n_buckets; bucket++) {
        int64_t got;
        if (ub_load(ub_head(def, base, bucket)) == 0)
            continue;
        got = bucket_dump(def, base, bucket, NULL, NULL, UINT64_MAX);
        if (got < 0)
            return got;
        n += got;
    }
    return n;
}
