/*
 * Perf event array: producers. kernel/trace/bpf_trace.c bpf_perf_event_output for the errors,
 * kernel/events/ring_buffer.c for the layout. data_head is stored last, so a writer that is killed
 * leaves nothing half written.
 */
#include "map_perf.h"
#include "map_wake.h"

#define INDEX_MASK 0xffffffffull /* BPF_F_INDEX_MASK; as an index: BPF_F_CURRENT_CPU */
#define DATA_MASK (UB_PERF_DATA_SIZE - 1)

_Static_assert(offsetof(struct ub_perf_page, data_head) == 1024, "include/uapi/linux/perf_event.h");
_Static_assert(offsetof(struct ub_perf_page, data_size) == 1048, "include/uapi/linux/perf_event.h");
_Static_assert(offsetof(struct ub_perf_page, lock) == 2048, "outside of what the kernel may define");

/* Words of `n` bytes (the last one filled up) to position `at`; both are multiples of 4. */
static void ring_put(uint8_t *data, uint64_t at, const void *from, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 4) {
        uint32_t word = 0;
        for (uint32_t b = 0; b < 4 && i + b < n; b++)
            word |= (uint32_t)((const uint8_t *)from)[i + b] << (8 * b);
        ub_store((uint32_t *)(data + ((at + i) & DATA_MASK)), word);
    }
}

/* A PERF_RECORD_LOST for what was dropped before; the position behind it. */
static uint64_t put_lost(uint8_t *data, uint64_t head, uint64_t lost)
{
    struct ub_perf_record header = {UB_PERF_RECORD_LOST, 0, sizeof header + 16};
    uint64_t body[2] = {0, lost}; /* id, lost */

    ring_put(data, head, &header, sizeof header);
    ring_put(data, head + sizeof header, body, sizeof body);
    return head + header.size;
}

static uint64_t output_locked(struct ub_perf_page *page, const void *data, uint32_t size)
{
    uint8_t *ring = (uint8_t *)page + UB_PAGE;
    uint64_t head = ub_load(&page->data_head) & ~7ull;
    uint64_t tail = ub_load_acquire(&page->data_tail); /* against the consumer's release: it has read them */
    uint64_t lost = ub_load(&page->lost);
    uint32_t raw = (uint32_t)ub_round_up(size + 4, 8) - 4; /* the size that consumers see is padded */
    struct ub_perf_record header = {UB_PERF_RECORD_SAMPLE, 0, (uint16_t)(sizeof header + 4 + raw)};
    uint64_t need = header.size + (lost ? sizeof header + 16 : 0);

    if (head - tail > UB_PERF_DATA_SIZE || UB_PERF_DATA_SIZE - (head - tail) <= need) {
        ub_store(&page->lost, lost + 1);
        ub_store(&page->lost_total, ub_load(&page->lost_total) + 1);
        return ub_error(UB_ENOSPC);
    }
    if (lost) {
        head = put_lost(ring, head, lost);
        ub_store(&page->lost, 0);
    }
    ring_put(ring, head, &header, sizeof header);
    ring_put(ring, head + sizeof header, &raw, sizeof raw);
    ring_put(ring, head + sizeof header + 4, data, size);
    if (raw > ub_round_up(size, 4)) {
        uint32_t zero = 0;
        ring_put(ring, head + header.size - 4, &zero, sizeof zero);
    }
    /* release: the record is there before consumers look; a full barrier: before `waiting` is read */
    __atomic_store_n(&page->data_head, head + header.size, __ATOMIC_SEQ_CST);
    return 0;
}

UB_OUTLINE uint64_t ub_perf_output(struct ub_run *run, const struct ub_map_def *def, uint8_t *base, uint64_t flags,
                                   const void *data, uint64_t size)
{
    uint64_t index = flags & INDEX_MASK, ret;
    struct ub_perf_page *page;
    int got;

    if (flags & ~INDEX_MASK)
        return ub_error(UB_EINVAL);
    if (index == INDEX_MASK)
        index = run->cpu;
    if (index >= def->max_entries)
        return ub_error(UB_E2BIG);
    if (index >= def->n_elems)
        return ub_error(UB_ENOENT);
    if (index != run->cpu)
        return ub_error(UB_EOPNOTSUPP);
    if (size > UINT16_MAX - sizeof(struct ub_perf_record) - 12)
        return ub_error(UB_E2BIG);
    page = ub_perf_page(def, base, (uint32_t)index);
    got = ub_lock(&page->lock, ub_owner(run));
    if (got < 0)
        return (uint64_t)(int64_t)got;
    ret = output_locked(page, data, (uint32_t)size);
    ub_unlock(&page->lock);
    if (ret == 0)
        ub_wake_waiting(ub_header(base));
    return ret;
}
