/*
 * ub_lock.h: locks in shared memory that outlive their holders.
 *
 * A lock is a 64-bit owner word, 0 when free: 20 bits for the pid namespace, 22 for the process, 22 for
 * the thread (PID_MAX_LIMIT is 2^22). Who waits long enough asks the kernel whether the owner lives and
 * takes the lock over from the dead; what the dead left half done is for the caller to repair. An owner of
 * another namespace cannot be asked for, so it counts as alive.
 */
#ifndef UB_LOCK_H
#define UB_LOCK_H

#include "ub_base.h"

#define UB_PID_BITS 22
#define UB_PID_MASK ((1u << UB_PID_BITS) - 1)

#define UB_LOCK_OK 0
#define UB_LOCK_RECOVERED 1 /* taken from a dead owner */

UB_INLINE uint64_t ub_owner_word(uint32_t tag, uint32_t tgid, uint32_t tid)
{
    return (uint64_t)tag << (2 * UB_PID_BITS) | (uint64_t)(tgid & UB_PID_MASK) << UB_PID_BITS | (tid & UB_PID_MASK);
}

#if defined(UB_BITCODE)
/*
 * Read where the C library keeps it: a new thread often gets a dead one's thread pointer, so nothing that is
 * remembered by thread pointer can be trusted. The slot's key is the thread pointer that the hook found.
 */
UB_INLINE uint32_t ub_current_tid(struct ub_run *run)
{
    if (ub_likely(ub_env.tid_off != INT64_MIN)) {
        uint64_t tp = run && run->thread && run->thread->key > 1 ? ~run->thread->key : ub_thread_pointer();
        return *(const volatile uint32_t *)(tp + (uint64_t)ub_env.tid_off);
    }
    return (uint32_t)ub_sys(UB_NR_GETTID, 0, 0, 0, 0);
}

UB_INLINE uint32_t ub_current_tgid(void)
{
    return ub_env.tgid;
}
#else
/* env_host.c: the library lives in processes that fork as they like */
uint32_t ub_current_tid(struct ub_run *run);
uint32_t ub_current_tgid(void);
#endif

UB_INLINE uint64_t ub_owner(struct ub_run *run)
{
    return ub_owner_word(ub_env.owner_tag, ub_current_tgid(), ub_current_tid(run));
}

/* tgkill(2) with signal 0. EPERM means that it lives. */
UB_INLINE int ub_owner_is_dead(uint64_t owner)
{
    uint32_t tgid = (uint32_t)(owner >> UB_PID_BITS) & UB_PID_MASK;
    uint32_t tid = (uint32_t)owner & UB_PID_MASK;

    if (owner >> (2 * UB_PID_BITS) != ub_env.owner_tag)
        return 0;
    return ub_sys(UB_NR_TGKILL, (long)tgid, (long)tid, 0, 0) == -UB_ESRCH || !tgid || !tid;
}

/* 0, UB_LOCK_RECOVERED, or -EBUSY: held by this very thread below us, or by one that does not run. */
int ub_lock_slow(uint64_t *lock, uint64_t me) UB_KEEP_REGS;

UB_INLINE int ub_lock(uint64_t *lock, uint64_t me)
{
    uint64_t seen = 0;
    /* acquire: against the release in ub_unlock, so that we see what the last holder wrote */
    if (ub_likely(__atomic_compare_exchange_n(lock, &seen, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)))
        return UB_LOCK_OK;
    return ub_lock_slow(lock, me);
}

UB_INLINE void ub_unlock(uint64_t *lock)
{
    ub_store_release(lock, 0);
}

#endif
