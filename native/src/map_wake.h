/*
 * map_wake.h: waking consumers of ring buffers. A producer pays one load when nobody sleeps, and one
 * system call for each time that a consumer went to sleep, however many records come meanwhile.
 */
#ifndef MAP_WAKE_H
#define MAP_WAKE_H

#include "ub_base.h"

#define UB_FUTEX_WAIT 0
#define UB_FUTEX_WAKE 1

UB_INLINE void ub_wake_now(struct ub_map_header *h)
{
    ub_store(&h->waiting, 0);
    __atomic_fetch_add(&h->wake_seq, 1, __ATOMIC_SEQ_CST);
    ub_sys(UB_NR_FUTEX, (long)&h->wake_seq, UB_FUTEX_WAKE, INT32_MAX, 0);
}

/* The caller published its record with a full barrier; the consumer sets `waiting` with one, then looks. */
UB_INLINE void ub_wake_waiting(struct ub_map_header *h)
{
    if (ub_unlikely(ub_load(&h->waiting)) && __atomic_exchange_n(&h->waiting, 0, __ATOMIC_SEQ_CST))
        ub_wake_now(h);
}

#endif
