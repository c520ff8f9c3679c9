/*
 * map_hash.h: hash maps. What readers do, inlined into programs; the writers are in map_hash.c.
 *
 * Buckets are chains of element indices. Readers take no lock. They may stand on an element that a writer
 * unlinks and uses again, and so leave their chain: a hit is always right (the key is compared), and a
 * miss counts only when the stripe's sequence says that no writer was at work during the walk.
 */
#ifndef MAP_HASH_H
#define MAP_HASH_H

#include "ub_lock.h"

#define UB_WALK_LIMIT (1u << 20) /* a chain of a map that works is a hundred thousand times shorter */
#define UB_WALK_INLINE 16        /* steps before the walk goes on out of line */

UB_INLINE uint64_t ub_mix(uint64_t a, uint64_t b)
{
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/* Keyed by def->seed, which is secret as long as the map's file is: a 128-bit multiply for 8 bytes. */
UB_INLINE uint64_t ub_hash(const struct ub_map_def *def, const void *key)
{
    const uint64_t k0 = 0xa0761d6478bd642full, k1 = 0xe7037ed1a0b428dbull;
    const uint8_t *p = key;
    uint32_t n = def->key_size;
    uint64_t h = def->seed ^ k0;

    if (n == 4)
        return ub_mix(*(const ub_any32 *)p ^ h, k1 ^ 4);
    for (; n > 8; n -= 8, p += 8)
        h = ub_mix(*(const ub_any64 *)p ^ h, k1);
    if (n == 8)
        return ub_mix(*(const ub_any64 *)p ^ h, k1 ^ def->key_size);
    uint64_t tail = 0;
    for (uint32_t i = 0; i < n; i++)
        tail |= (uint64_t)p[i] << (8 * i);
    return ub_mix(tail ^ h, k1 ^ def->key_size);
}

UB_INLINE uint32_t ub_bucket(const struct ub_map_def *def, const void *key)
{
    uint64_t h = ub_hash(def, key);
    return (uint32_t)(h ^ h >> 32) & (def->n_buckets - 1);
}

/* Steps of a walk: no chain is longer than this, whatever its links say. */
UB_INLINE uint32_t ub_walk_limit(const struct ub_map_def *def)
{
    return ub_min(def->n_elems, UB_WALK_LIMIT);
}

UB_INLINE uint32_t ub_n_stripes(const struct ub_map_def *def)
{
    return ub_min(def->n_buckets, (uint32_t)UB_MAX_STRIPES);
}

UB_INLINE struct ub_stripe *ub_stripe(const struct ub_map_def *def, uint8_t *base, uint32_t bucket)
{
    uint64_t at = UB_PAGE + (def->type == UB_MAP_PERCPU_HASH ? (uint64_t)def->n_cpus * UB_HOLD_STRIDE : 0);
    return (struct ub_stripe *)(base + at) + (bucket & (ub_n_stripes(def) - 1));
}

UB_INLINE uint32_t *ub_head(const struct ub_map_def *def, uint8_t *base, uint32_t bucket)
{
    return (uint32_t *)(base + def->buckets_off) + bucket;
}

/* `link` is an index + 1 that was read from shared memory; NULL for the end and for what cannot be. */
UB_INLINE struct ub_elem *ub_elem(const struct ub_map_def *def, uint8_t *base, uint32_t link)
{
    if (link - 1 >= def->n_elems)
        return NULL;
    return (struct ub_elem *)(base + def->elems_off + (uint64_t)(link - 1) * def->elem_stride);
}

UB_INLINE uint8_t *ub_elem_key(struct ub_elem *e)
{
    return (uint8_t *)(e + 1);
}

/* Value of the element behind `link`, which ub_elem() has accepted. */
UB_INLINE uint8_t *ub_elem_value(const struct ub_map_def *def, uint8_t *base, uint32_t link, uint32_t cpu)
{
    if (def->type == UB_MAP_PERCPU_HASH)
        return ub_percpu_value(def, base, link - 1, cpu);
    return base + def->elems_off + (uint64_t)(link - 1) * def->elem_stride + sizeof(struct ub_elem) +
           ((def->key_size + 7) & ~7u);
}

UB_INLINE int ub_key_equal(const struct ub_map_def *def, const uint8_t *shared, const void *key)
{
    const uint8_t *own = key;
    uint32_t n = def->key_size, i = 0;

    if (n == 4)
        return ub_load((const uint32_t *)shared) == *(const ub_any32 *)own;
    for (; i + 8 <= n; i += 8)
        if (ub_load((const uint64_t *)(shared + i)) != *(const ub_any64 *)(own + i))
            return 0;
    for (; i < n; i++)
        if (ub_load(shared + i) != own[i])
            return 0;
    return 1;
}

/* Link of the element of `key` in its bucket as far as `steps` lead; *whole: the end was reached. */
UB_INLINE uint32_t ub_walk(const struct ub_map_def *def, uint8_t *base, uint32_t bucket, const void *key,
                           uint32_t steps, int *whole)
{
    /* acquire, here and on next: against the release that links an element whose key and value are written */
    uint32_t link = ub_load_acquire(ub_head(def, base, bucket));

    *whole = 1;
#if defined(__clang__)
#pragma clang loop unroll(disable) /* chains are short: code that stays in the cache is worth more */
#endif
    while (steps-- > 0) {
        struct ub_elem *e = ub_elem(def, base, link);
        if (e == NULL)
            return 0;
        if (ub_key_equal(def, ub_elem_key(e), key))
            return link;
        link = ub_load_acquire(&e->next);
    }
    *whole = 0;
    return 0;
}

/* map_hash.c. All return 0 or -errno as 64 bits, or a link. `cpu`: slot of per-cpu maps. */
uint32_t ub_hash_find_slow(const struct ub_map_def *def, uint8_t *base, const void *key) UB_KEEP_REGS;
uint64_t ub_hash_update(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key,
                        const void *value, uint64_t flags) UB_KEEP_REGS;
uint64_t ub_hash_delete(struct ub_run *run, const struct ub_map_def *def, uint8_t *base,
                        const void *key) UB_KEEP_REGS;
int ub_stripe_lock(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, struct ub_stripe *stripe);

UB_INLINE uint32_t ub_hash_find(const struct ub_map_def *def, uint8_t *base, const void *key)
{
    int whole;
    uint32_t link = 0;
    if (def->key_size == 4 || def->key_size == 8)
        link = ub_walk(def, base, ub_bucket(def, key), key, UB_WALK_INLINE, &whole);
    if (ub_likely(link))
        return link;
    return ub_hash_find_slow(def, base, key);
}

UB_INLINE void *ub_hash_lookup(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key)
{
    uint32_t link = ub_hash_find(def, base, key);
    return ub_likely(link) ? ub_elem_value(def, base, link, run->cpu) : NULL;
}

#endif
