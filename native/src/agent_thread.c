/*
 * Per-thread slots. The hook looks into the slot that the thread pointer hashes to; only when that
 * is not this thread's does it come here.
 */
#include "agent.h"

#define NR_GETTID 186
#define NR_TGKILL 234
#define ESRCH 3
#define UB_CLAIMED 1ul

static int ub_thread_lives(struct ub_threads *threads, uint32_t tid)
{
    return ub_syscall4(NR_TGKILL, threads->tgid, tid, 0, 0) != -ESRCH;
}

/*
 * True when the slot's thread is gone and no other has its thread pointer now. C libraries give the stacks of
 * dead threads to new ones, thread pointer and all; the id that stands there tells.
 */
static int ub_slot_is_dead(struct ub_threads *threads, struct ub_thread *slot, uint64_t key)
{
    uint32_t tid = 0;

    if (ub_thread_lives(threads, slot->tid))
        return 0;
    if (!ub_read_maybe_gone(~key + (uint64_t)threads->tid_off, &tid, sizeof tid))
        return 1;
    if (tid == 0 || tid == slot->tid || !ub_thread_lives(threads, tid))
        return 1;
    slot->tid = tid;
    return 0;
}

/*
 * A row that no living thread uses. The slot is claimed by compare-exchange before its row is taken, so two
 * threads never take the same one. Where nobody knows how to tell the living from the dead: the shared row.
 */
static int32_t ub_row_of_the_dead(struct ub_threads *threads)
{
    if (threads->tid_off == INT64_MIN)
        return UB_ROWS - 1;
    for (uint32_t i = 0; i < UB_THREAD_SLOTS; i++) {
        struct ub_thread *slot = &threads->slots[i];
        uint64_t key = __atomic_load_n(&slot->key, __ATOMIC_ACQUIRE);
        int32_t row;

        if (key <= UB_CLAIMED || slot->row == UB_ROWS - 1 || !ub_slot_is_dead(threads, slot, key))
            continue;
        if (!__atomic_compare_exchange_n(&slot->key, &key, UB_CLAIMED, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            continue;
        row = slot->row;
        __atomic_store_n(&slot->key, 0, __ATOMIC_RELEASE);
        return row;
    }
    return UB_ROWS - 1;
}

static int32_t ub_new_row(struct ub_threads *threads)
{
    if (__atomic_load_n(&threads->next_row, __ATOMIC_RELAXED) < UB_ROWS - 1) {
        uint32_t row = __atomic_fetch_add(&threads->next_row, 1, __ATOMIC_RELAXED);
        if (row < UB_ROWS - 1)
            return (int32_t)row;
    }
    return ub_row_of_the_dead(threads);
}

/*
 * Finds or makes the slot of the thread with pointer `tp`. Returns NULL in a forked child (its copy of
 * the area is wiped: the child was not attached to). Lock-free; a signal handler that interrupts it and
 * comes here again claims another slot, which only costs that slot.
 */
UB_SLOW_CALL struct ub_thread *ub_agent_enter_slow(struct ub_threads *threads, uint64_t tp)
{
    uint32_t home = ub_thread_home(tp);
    struct ub_thread *free_slot = 0;

    if (__atomic_load_n(&threads->tgid, __ATOMIC_RELAXED) == 0)
        return 0;
    for (uint32_t i = 0; i < UB_THREAD_PROBES; i++) {
        struct ub_thread *slot = &threads->slots[(home + i) & (UB_THREAD_SLOTS - 1)];
        uint64_t key = __atomic_load_n(&slot->key, __ATOMIC_ACQUIRE);
        if (key == ~tp)
            return slot;
        if (key == 0 && !free_slot)
            free_slot = slot;
    }
    if (free_slot) {
        uint64_t expected = 0;
        if (__atomic_compare_exchange_n(&free_slot->key, &expected, UB_CLAIMED, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED)) {
            free_slot->tid = (uint32_t)ub_syscall4(NR_GETTID, 0, 0, 0, 0);
            free_slot->row = ub_new_row(threads);
            __atomic_store_n(&free_slot->key, ~tp, __ATOMIC_RELEASE);
            return free_slot;
        }
    }
    return &threads->shared;
}
