/*
 * Map files: the header of a new one, and the check of one that came from somewhere.
 */
#include "map_hash.h"
#include "map_perf.h"

_Static_assert(sizeof(struct ub_map_header) <= UB_PAGE, "the header is one page");
_Static_assert(offsetof(struct ub_map_header, wake_seq) == 128, "run-time words begin on a cache line");
_Static_assert(offsetof(struct ub_map_header, dropped) == 192, "own cache line");
_Static_assert(offsetof(struct ub_map_header, free_seq) == 256, "own cache line");
_Static_assert(offsetof(struct ub_map_header, ring_lock) == 320, "own cache line");
_Static_assert(offsetof(struct ub_map_header, inflight) == 384, "own cache line");
_Static_assert(sizeof(struct ub_stripe) == UB_CACHE_LINE, "one lock, one cache line");

/* Writes what a new map needs into zeroed memory of def->size bytes. The magic comes last. */
UB_EXPORT void ub_map_create(const struct ub_map_def *def, uint8_t *base, uint64_t meta_off, uint64_t meta_size)
{
    struct ub_map_header *h = ub_header(base);

    h->version = UB_MAP_VERSION;
    h->type = def->type;
    h->key_size = def->key_size;
    h->value_size = def->value_size;
    h->max_entries = def->max_entries;
    h->flags = def->flags;
    h->n_cpus = def->n_cpus;
    h->seed = def->seed;
    h->size = def->size;
    h->meta_off = meta_off;
    h->meta_size = meta_size;
    if (def->n_buckets) { /* the stripes' first spare elements are not free */
        uint64_t *bits = (uint64_t *)(ub_stripe(def, base, 0) + ub_n_stripes(def));
        for (uint64_t i = def->max_entries; i < def->n_elems; i++)
            bits[i / 64] |= 1ull << (i % 64);
    }
    for (uint32_t i = 0; def->type == UB_MAP_PERF_EVENT_ARRAY && i < def->n_elems; i++) {
        struct ub_perf_page *page = ub_perf_page(def, base, i);
        page->data_offset = UB_PAGE;
        page->data_size = UB_PERF_DATA_SIZE;
    }
    ub_store_release(&h->magic, UB_MAP_MAGIC);
}

/*
 * Checks a file of `file_size` bytes whose first page is at `base`, and derives its geometry. The five
 * numbers are read once: who can write to the file can change them, but not what we go by.
 * 0; -EINVAL: not a map, or not of this version; -E2BIG: the file is cut off.
 */
UB_EXPORT int ub_map_check(const uint8_t *base, uint64_t file_size, struct ub_map_def *out)
{
    const struct ub_map_header *h = (const struct ub_map_header *)base;
    struct ub_map_def def;
    uint64_t size;
    int err;

    if (file_size < UB_PAGE || ub_load_acquire(&h->magic) != UB_MAP_MAGIC || ub_load(&h->version) != UB_MAP_VERSION)
        return -UB_EINVAL;
    size = ub_load(&h->size);
    err = ub_map_geometry(ub_load(&h->type), ub_load(&h->key_size), ub_load(&h->value_size), ub_load(&h->max_entries),
                          ub_load(&h->flags), ub_load(&h->n_cpus), ub_load(&h->seed), &def);
    if (err || def.size != size)
        return -UB_EINVAL;
    if (file_size < def.size)
        return -UB_E2BIG;
    *out = def;
    return 0;
}
