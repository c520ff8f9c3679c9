/*
 * Geometry of maps, and the checks of map creation: kernel/bpf/arraymap.c array_map_alloc_check and
 * fd_array_map_alloc_check, kernel/bpf/hashtab.c htab_map_alloc_check and htab_map_alloc,
 * kernel/bpf/ringbuf.c ringbuf_map_alloc. Same order of checks, same errors.
 */
#include "ub_base.h"

#define BPF_F_NO_PREALLOC (1u << 0)
#define BPF_F_NO_COMMON_LRU (1u << 1)
#define BPF_F_NUMA_NODE (1u << 2)
#define BPF_F_RDONLY (1u << 3)
#define BPF_F_WRONLY (1u << 4)
#define BPF_F_ZERO_SEED (1u << 6)
#define BPF_F_RDONLY_PROG (1u << 7)
#define BPF_F_WRONLY_PROG (1u << 8)
#define BPF_F_MMAPABLE (1u << 10)
#define BPF_F_PRESERVE_ELEMS (1u << 11)
#define BPF_F_INNER_MAP (1u << 12)

#define ACCESS_FLAGS (BPF_F_RDONLY | BPF_F_WRONLY | BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG)
#define ARRAY_FLAGS (BPF_F_NUMA_NODE | BPF_F_MMAPABLE | ACCESS_FLAGS | BPF_F_PRESERVE_ELEMS | BPF_F_INNER_MAP)
#define HASH_FLAGS (BPF_F_NO_PREALLOC | BPF_F_NO_COMMON_LRU | BPF_F_NUMA_NODE | ACCESS_FLAGS | BPF_F_ZERO_SEED)

#define PCPU_MIN_UNIT_SIZE (32u << 10) /* include/linux/percpu.h */
#define KMALLOC_MAX_SIZE (4u << 20)    /* include/linux/slab.h, 4 KiB pages */
#define SIZEOF_HTAB_ELEM 48            /* kernel/bpf/hashtab.c struct htab_elem without its key */
#define MAX_BUCKETS (1u << 28)         /* U32_MAX / sizeof(struct bucket) */
#define MAX_SIZE (1ull << 46)          /* of one map: less than half of the address space of a process */

static int access_ok(uint32_t flags)
{
    const uint32_t both = BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG;
    return (flags & both) != both;
}

static uint32_t round_up_pow2(uint32_t n)
{
    return n <= 1 ? 1 : 1u << (32 - __builtin_clz(n - 1));
}

static int array_geometry(struct ub_map_def *d)
{
    int percpu = d->type == UB_MAP_PERCPU_ARRAY;
    uint64_t at;

    if (d->type == UB_MAP_PERF_EVENT_ARRAY &&
        (d->value_size != 4 || d->flags & (BPF_F_RDONLY_PROG | BPF_F_WRONLY_PROG)))
        return -UB_EINVAL;
    if (d->max_entries == 0 || d->key_size != 4 || d->value_size == 0 || d->flags & ~ARRAY_FLAGS ||
        !access_ok(d->flags) || (percpu && d->flags & BPF_F_NUMA_NODE))
        return -UB_EINVAL;
    if (d->type != UB_MAP_ARRAY && d->flags & (BPF_F_MMAPABLE | BPF_F_INNER_MAP))
        return -UB_EINVAL;
    if (d->type != UB_MAP_PERF_EVENT_ARRAY && d->flags & BPF_F_PRESERVE_ELEMS)
        return -UB_EINVAL;
    if (d->value_size > INT32_MAX || (percpu && d->value_stride > PCPU_MIN_UNIT_SIZE))
        return -UB_E2BIG;

    d->elem_stride = d->value_stride;
    d->n_elems = d->max_entries;
    if (d->type == UB_MAP_PERF_EVENT_ARRAY) {
        d->elem_stride = UB_PERF_STRIDE;
        d->n_elems = ub_min(d->max_entries, d->n_cpus);
        d->data_off = UB_PAGE;
        d->size = d->data_off + (uint64_t)d->n_elems * UB_PERF_STRIDE;
        return 0;
    }
    at = UB_PAGE + (percpu ? (uint64_t)d->n_cpus * UB_HOLD_STRIDE : 0);
    d->data_off = ub_round_up(at, UB_PAGE);
    d->size = d->data_off + (percpu ? d->n_cpus * ub_cpu_stride(d) : (uint64_t)d->max_entries * d->value_stride);
    return 0;
}

/*
 * Hold words, stripes, element bitmap, buckets, elements, and per-cpu values last. The spare elements,
 * one for each stripe, make replacing in a full map possible.
 */
static int hash_geometry(struct ub_map_def *d)
{
    int percpu = d->type == UB_MAP_PERCPU_HASH;
    uint64_t at;

    if (d->flags & ~HASH_FLAGS || !access_ok(d->flags) || d->flags & BPF_F_NO_COMMON_LRU ||
        (percpu && d->flags & BPF_F_NUMA_NODE))
        return -UB_EINVAL;
    if (d->max_entries == 0 || d->key_size == 0 || d->value_size == 0)
        return -UB_EINVAL;
    if ((uint64_t)d->key_size + d->value_size >= KMALLOC_MAX_SIZE - SIZEOF_HTAB_ELEM)
        return -UB_E2BIG;
    if (percpu && d->value_stride > PCPU_MIN_UNIT_SIZE)
        return -UB_E2BIG;
    if (d->max_entries > MAX_BUCKETS)
        return -UB_E2BIG;

    /* the power of two nearest to max_entries: 2.8 to 5.7 bytes of bucket per entry */
    d->n_buckets = round_up_pow2(d->max_entries);
    if (d->n_buckets > 1 && (uint64_t)d->max_entries * 10 < (uint64_t)d->n_buckets * 7)
        d->n_buckets /= 2;
    d->n_elems = d->max_entries + ub_min(d->n_buckets, UB_MAX_STRIPES);
    d->elem_stride =
        (uint32_t)(sizeof(struct ub_elem) + ub_round_up(d->key_size, 8) + (percpu ? 0 : d->value_stride));
    at = UB_PAGE + (percpu ? (uint64_t)d->n_cpus * UB_HOLD_STRIDE : 0);
    at += (uint64_t)ub_min(d->n_buckets, UB_MAX_STRIPES) * sizeof(struct ub_stripe);
    at += ub_round_up(d->n_elems, 64) / 8;
    d->buckets_off = ub_round_up(at, UB_CACHE_LINE);
    d->elems_off = ub_round_up(d->buckets_off + (uint64_t)d->n_buckets * sizeof(uint32_t), UB_PAGE);
    at = d->elems_off + (uint64_t)d->n_elems * d->elem_stride;
    d->data_off = percpu ? ub_round_up(at, UB_PAGE) : 0;
    d->size = percpu ? d->data_off + d->n_cpus * ub_cpu_stride(d) : at;
    return 0;
}

static int ringbuf_geometry(struct ub_map_def *d)
{
    uint32_t n = d->max_entries;

    if (d->flags & ~BPF_F_NUMA_NODE)
        return -UB_EINVAL;
    if (d->key_size || d->value_size || n == 0 || n & (n - 1) || n & (UB_PAGE - 1))
        return -UB_EINVAL;
    d->data_off = UB_RB_DATA_OFF;
    d->size = d->data_off + n;
    return 0;
}

/*
 * Derives the geometry of a map from the numbers of bpf(2) BPF_MAP_CREATE; `seed` is 0 or random.
 * Returns 0 or the kernel's -errno; -EINVAL also for a map type that is not offered.
 */
UB_EXPORT int ub_map_geometry(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries,
                              uint32_t flags, uint32_t n_cpus, uint64_t seed, struct ub_map_def *out)
{
    struct ub_map_def d = {.type = type,
                           .key_size = key_size,
                           .value_size = value_size,
                           .max_entries = max_entries,
                           .flags = flags,
                           .n_cpus = n_cpus,
                           .seed = flags & BPF_F_ZERO_SEED ? 0 : seed};
    int err;

    if (n_cpus == 0 || n_cpus > UB_MAX_CPUS)
        return -UB_EINVAL;
    d.value_stride = (uint32_t)ub_min(ub_round_up(value_size, 8), 0x80000000ull);
    switch (type) {
    case UB_MAP_ARRAY:
    case UB_MAP_PERCPU_ARRAY:
    case UB_MAP_PERF_EVENT_ARRAY:
        err = array_geometry(&d);
        break;
    case UB_MAP_HASH:
    case UB_MAP_PERCPU_HASH:
        err = hash_geometry(&d);
        break;
    case UB_MAP_RINGBUF:
        err = ringbuf_geometry(&d);
        break;
    default:
        err = -UB_EINVAL;
    }
    if (err)
        return err;
    d.size = ub_round_up(d.size, UB_PAGE);
    if (d.size > MAX_SIZE)
        return -UB_ENOMEM;
    *out = d;
    return 0;
}
