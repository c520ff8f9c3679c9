/*
 * map_perf.h: the perf event array: one ring for each CPU, laid out as perf_event_open(2) maps them.
 */
#ifndef MAP_PERF_H
#define MAP_PERF_H

#include "ub_lock.h"

#define UB_PERF_RECORD_LOST 2
#define UB_PERF_RECORD_SAMPLE 9

/* struct perf_event_header, include/uapi/linux/perf_event.h */
struct ub_perf_record {
    uint32_t type;
    uint16_t misc;
    uint16_t size;
};

UB_INLINE struct ub_perf_page *ub_perf_page(const struct ub_map_def *def, uint8_t *base, uint32_t ring)
{
    return (struct ub_perf_page *)(base + def->data_off + (uint64_t)ring * UB_PERF_STRIDE);
}

uint64_t ub_perf_output(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, uint64_t flags,
                        const void *data, uint64_t size) UB_KEEP_REGS;

#endif
