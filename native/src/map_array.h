/*
 * map_array.h: arrays and per-cpu arrays. kernel/bpf/arraymap.c
 */
#ifndef MAP_ARRAY_H
#define MAP_ARRAY_H

#include "ub_base.h"

UB_INLINE void *ub_array_lookup(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key)
{
    uint32_t index = *(const ub_any32 *)key;

    if (ub_unlikely(index >= def->max_entries))
        return NULL;
    if (def->type == UB_MAP_PERCPU_ARRAY)
        return ub_percpu_value(def, base, index, run->cpu);
    return base + def->data_off + (uint64_t)index * def->elem_stride;
}

/* array_map_update_elem */
UB_INLINE uint64_t ub_array_update(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, const void *key,
                                   const void *value, uint64_t flags)
{
    uint32_t index = *(const ub_any32 *)key;

    if (flags > UB_EXIST)
        return ub_error(UB_EINVAL);
    if (index >= def->max_entries)
        return ub_error(UB_E2BIG);
    if (flags == UB_NOEXIST)
        return ub_error(UB_EEXIST);
    if (def->type == UB_MAP_PERCPU_ARRAY)
        ub_percpu_copy_in(def, base, index, value, run->cpu);
    else
        ub_copy_in(base + def->data_off + (uint64_t)index * def->elem_stride, value, def->value_size);
    return 0;
}

#endif
