/*
 * Helpers about time, the task and its memory. kernel/bpf/helpers.c, kernel/trace/bpf_trace.c
 */
#include "ub_lock.h"
#include "helper.h"
#include "map_hash.h"

#define CLOCK_MONOTONIC 1
#define CLOCK_MONOTONIC_COARSE 6
#define CLOCK_BOOTTIME 7
#define PR_GET_NAME 16

UB_OUTLINE uint64_t ub_clock(int clock)
{
    int64_t ts[2] = {0, 0};
    if (!ub_env.vdso_clock_gettime || ub_env.vdso_clock_gettime(clock, ts) != 0)
        ub_sys(UB_NR_CLOCK_GETTIME, clock, (long)ts, 0, 0);
    return (uint64_t)ts[0] * 1000000000u + (uint64_t)ts[1];
}

UB_EXPORT_INLINE uint64_t ub_helper_ktime_get_ns(struct ub_run *run)
{
    (void)run;
    return ub_clock(CLOCK_MONOTONIC);
}

UB_EXPORT_INLINE uint64_t ub_helper_ktime_get_boot_ns(struct ub_run *run)
{
    (void)run;
    return ub_clock(CLOCK_BOOTTIME);
}

UB_EXPORT_INLINE uint64_t ub_helper_ktime_get_coarse_ns(struct ub_run *run)
{
    (void)run;
    return ub_clock(CLOCK_MONOTONIC_COARSE);
}

/* The cycle counter differs at every call and the thread's address between threads: no state to share. */
UB_EXPORT_INLINE uint64_t ub_helper_get_prandom_u32(struct ub_run *run)
{
    uint64_t x = ub_mix(ub_cycles() ^ 0x8bb84b93962eacc9ull, (uint64_t)run ^ 0x2d358dccaa6c78a5ull);
    return (uint32_t)ub_mix(x, x ^ 0x4b33a62ed433d4a3ull);
}

UB_EXPORT_INLINE uint64_t ub_helper_get_smp_processor_id(struct ub_run *run)
{
    return run->cpu;
}

UB_EXPORT_INLINE uint64_t ub_helper_get_current_pid_tgid(struct ub_run *run)
{
    return (uint64_t)ub_current_tgid() << 32 | ub_current_tid(run);
}

UB_EXPORT_INLINE uint64_t ub_helper_get_current_uid_gid(struct ub_run *run)
{
    (void)run;
    return (uint64_t)ub_env.gid << 32 | ub_env.uid;
}

/* bpf_get_current_comm: strscpy_pad into what may be less, or more, than the 16 bytes that a name has. */
UB_OUTLINE uint64_t ub_helper_get_current_comm(struct ub_run *run, void *buf, uint64_t size)
{
    uint64_t name[2] = {0, 0};
    uint64_t i = 0;

    (void)run;
    ub_sys(UB_NR_PRCTL, PR_GET_NAME, (long)name, 0, 0);
    for (; i + 1 < size && i < 15 && ((uint8_t *)name)[i]; i++)
        ((volatile uint8_t *)buf)[i] = ((uint8_t *)name)[i];
    ub_clear_own((uint8_t *)buf + i, size - i);
    return 0;
}

/* ---- memory: in user space the kernel's reads and the user's are of the same address space ---------- */

UB_INLINE uint64_t ub_read(void *dst, uint64_t size, const void *src)
{
    if (ub_likely(size == 0 || ub_env.copy_from_user(dst, src, size) == 0))
        return 0;
    ub_clear_own(dst, size); /* bpf_probe_read_*_common: never leaves what it could not read */
    return ub_error(UB_EFAULT);
}

UB_INLINE uint64_t ub_read_str(void *dst, uint64_t size, const void *src)
{
    int64_t n = size ? ub_env.strncpy_from_user(dst, src, size) : 0;

    if (ub_likely(n >= 0))
        return (uint64_t)n;
    ub_clear_own(dst, size);
    return ub_error(UB_EFAULT);
}

#define READ_HELPER(name, read)                                                                                       \
    UB_EXPORT_INLINE uint64_t ub_helper_##name(struct ub_run *run, void *dst, uint64_t size, uint64_t src)             \
    {                                                                                                                  \
        (void)run;                                                                                                     \
        return read(dst, (uint32_t)size, (const void *)src);                                                           \
    }

READ_HELPER(probe_read, ub_read)
READ_HELPER(probe_read_user, ub_read)
READ_HELPER(probe_read_kernel, ub_read)
READ_HELPER(probe_read_str, ub_read_str)
READ_HELPER(probe_read_user_str, ub_read_str)
READ_HELPER(probe_read_kernel_str, ub_read_str)
