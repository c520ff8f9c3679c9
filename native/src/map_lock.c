/*
 * Waiting for a lock: first on the CPU, then by giving it up, then by short sleeps; about 20 ms in all.
 * A holder's critical section is well under a microsecond, so a longer wait means that it is stopped
 * (job control, a debugger), and a probe must not stop the program that it observes with it.
 */
#include "ub_lock.h"

#define SPINS 128
#define YIELDS 64
#define SLEEPS 160
#define SLEEP_NS 60000

UB_OUTLINE int ub_lock_slow(uint64_t *lock, uint64_t me)
{
    for (uint32_t i = 0; i < SPINS + YIELDS + SLEEPS; i++) {
        uint64_t seen = ub_load(lock);

        if (seen == me)
            return -UB_EBUSY;
        if (seen == 0) {
            if (__atomic_compare_exchange_n(lock, &seen, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
                return UB_LOCK_OK;
            continue;
        }
        if (i < SPINS) {
            ub_pause();
            continue;
        }
        if (ub_owner_is_dead(seen)) {
            if (__atomic_compare_exchange_n(lock, &seen, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
                return UB_LOCK_RECOVERED;
            continue;
        }
        if (i < SPINS + YIELDS) {
            ub_sys(UB_NR_SCHED_YIELD, 0, 0, 0, 0);
        } else {
            int64_t pause[2] = {0, SLEEP_NS};
            ub_sys(UB_NR_NANOSLEEP, (long)pause, 0, 0, 0);
        }
    }
    return -UB_EBUSY;
}
