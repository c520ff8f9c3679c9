/*
 * CPU slots. Programs change per-cpu values with plain loads and stores, so a slot has one writer at a
 * time: a run holds it from its first to its last instruction. In the kernel a program cannot move to
 * another CPU; here it can, and then goes on with the slot that it holds.
 */
#include "ub_lock.h"

#define ROUNDS 64 /* over all slots, each with a yield: then the run is skipped and counted */

static int try_hold(uint64_t *word, uint64_t me, int take_over)
{
    uint64_t seen = ub_load(word);

    if (seen != 0 && (seen == me || !take_over || !ub_owner_is_dead(seen)))
        return 0;
    /* acquire: against ub_percpu_exit of the last holder */
    return __atomic_compare_exchange_n(word, &seen, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* The slot in all maps, or in none. */
static int try_slot(uint8_t *const bases[], uint32_t n, uint32_t cpu, uint64_t me, int take_over)
{
    for (uint32_t i = 0; i < n; i++) {
        if (try_hold(ub_hold(bases[i], cpu), me, take_over))
            continue;
        while (i-- > 0)
            ub_store_release(ub_hold(bases[i], cpu), 0);
        return 0;
    }
    return 1;
}

/* A slot that an outer run of this very thread holds in all maps. */
static int is_ours(uint8_t *const bases[], uint32_t n, uint32_t cpu, uint64_t me)
{
    for (uint32_t i = 0; i < n; i++)
        if (ub_load(ub_hold(bases[i], cpu)) != me)
            return 0;
    return 1;
}

UB_OUTLINE uint32_t ub_percpu_enter_slow(struct ub_run *run, const struct ub_map_def *const defs[],
                                         uint8_t *const bases[], uint32_t n)
{
    uint32_t n_cpus = defs[0]->n_cpus, first = ub_current_cpu();
    uint64_t me = ub_owner(run);

    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < n_cpus; i++) {
            uint32_t cpu = (first + i) % n_cpus;
            if (try_slot(bases, n, cpu, me, round > 0))
                return cpu;
        }
        /* Nested, and nothing else is free: waiting could be for ever, so use what the outer run holds. */
        for (uint32_t cpu = 0; cpu < n_cpus && round > 0; cpu++) {
            if (is_ours(bases, n, cpu, me)) {
                run->flags |= UB_RUN_SHARES_SLOT;
                return cpu;
            }
        }
        ub_sys(UB_NR_SCHED_YIELD, 0, 0, 0, 0);
    }
    __atomic_fetch_add(&ub_header(bases[0])->skipped, 1, __ATOMIC_RELAXED);
    return UINT32_MAX;
}

/*
 * Holds one CPU slot in each of the n per-cpu maps (all made for the same number of CPUs), beginning with
 * the current CPU's. Returns its number, which belongs into run->cpu, or UINT32_MAX: skip this run.
 */
UB_EXPORT_INLINE uint32_t ub_percpu_enter(struct ub_run *run, const struct ub_map_def *const defs[],
                                          uint8_t *const bases[], uint32_t n)
{
    uint32_t cpu = ub_current_cpu();
    uint64_t nobody = 0;

    if (ub_likely(n == 1 && cpu < defs[0]->n_cpus) &&
        ub_likely(__atomic_compare_exchange_n(ub_hold(bases[0], cpu), &nobody, ub_owner(run), 0, __ATOMIC_ACQUIRE,
                                              __ATOMIC_RELAXED)))
        return cpu;
    return ub_percpu_enter_slow(run, defs, bases, n);
}

UB_EXPORT_INLINE void ub_percpu_exit(struct ub_run *run, const struct ub_map_def *const defs[],
                                     uint8_t *const bases[], uint32_t n)
{
    (void)defs;
    if (ub_unlikely(run->flags & UB_RUN_SHARES_SLOT))
        return;
    for (uint32_t i = 0; i < n; i++) /* release: our values before the next holder's */
        ub_store_release(ub_hold(bases[i], run->cpu), 0);
}
