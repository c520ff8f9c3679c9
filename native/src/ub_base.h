/*
 * ub_base.h: what every file of the runtime stands on: errors, system calls, copies, who we are.
 */
#ifndef UB_BASE_H
#define UB_BASE_H

#include "userbpf.h"
#include "userbpf_map.h"

#if !defined(__x86_64__)
#error "the runtime knows x86-64 only: add the system calls and the CPU number of this machine here"
#endif

/* Out of line, and the caller keeps its registers: a hook pays for it only when it is called. */
#define UB_OUTLINE UB_EXPORT UB_KEEP_REGS __attribute__((noinline))

#define UB_EPERM 1
#define UB_ENOENT 2
#define UB_ESRCH 3
#define UB_EINTR 4
#define UB_E2BIG 7
#define UB_EAGAIN 11
#define UB_ENOMEM 12
#define UB_EFAULT 14
#define UB_EBUSY 16
#define UB_EEXIST 17
#define UB_EINVAL 22
#define UB_ENOSPC 28
#define UB_EOPNOTSUPP 95
#define UB_ETIMEDOUT 110
#define UB_ENOTSUPP 524 /* include/linux/errno.h: what the kernel's map operations return inside programs */

#define UB_NR_SCHED_YIELD 24
#define UB_NR_NANOSLEEP 35
#define UB_NR_GETPID 39
#define UB_NR_PRCTL 157
#define UB_NR_GETTID 186
#define UB_NR_FUTEX 202
#define UB_NR_CLOCK_GETTIME 228
#define UB_NR_TGKILL 234

#define ub_load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define ub_load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define ub_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define ub_store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define ub_min(a, b) ((a) < (b) ? (a) : (b))

UB_INLINE uint64_t ub_error(int errno_value)
{
    return (uint64_t)(int64_t)-errno_value;
}

UB_INLINE uint64_t ub_round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) & ~(to - 1);
}

UB_INLINE long ub_sys(long nr, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long ret;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

UB_INLINE void ub_pause(void)
{
    __builtin_ia32_pause();
}

UB_INLINE uint64_t ub_cycles(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

/*
 * Number of the CPU we run on; stale as soon as it is read. Where there is no rdpid: the limit of the
 * segment that the kernel keeps for this purpose (arch/x86/include/asm/segment.h, vdso_read_cpunode).
 */
UB_EXPORT_INLINE uint32_t ub_current_cpu(void)
{
    uint64_t node_cpu;
    if (ub_likely(ub_env.features & UB_HAS_RDPID))
        __asm__ volatile("rdpid %0" : "=r"(node_cpu));
    else
        __asm__ volatile("lsl %k1, %k0" : "=r"(node_cpu) : "r"(0x7bul) : "cc");
    return (uint32_t)node_cpu & 0xfff;
}

/* ---- copies ------------------------------------------------------------------------------------
 *
 * One side of each is shared memory, 8-aligned, and is read or written by whole words with relaxed
 * atomics: a concurrent reader sees old or new words, and no compiler turns the loop into a call of
 * memcpy, which does not exist here. The other side is the program's own and may lie anywhere.
 */
typedef uint64_t ub_any64 __attribute__((aligned(1), may_alias));
typedef uint32_t ub_any32 __attribute__((aligned(1), may_alias));
typedef uint16_t ub_any16 __attribute__((aligned(1), may_alias));

UB_INLINE void ub_copy_in(void *shared, const void *own, uint32_t n)
{
    uint8_t *to = shared;
    const uint8_t *from = own;
    uint32_t i = 0;

    for (; i + 8 <= n; i += 8)
        ub_store((uint64_t *)(to + i), *(const ub_any64 *)(from + i));
    if (n & 4) {
        ub_store((uint32_t *)(to + i), *(const ub_any32 *)(from + i));
        i += 4;
    }
    if (n & 2) {
        ub_store((uint16_t *)(to + i), *(const ub_any16 *)(from + i));
        i += 2;
    }
    if (n & 1)
        ub_store(to + i, from[i]);
}

UB_INLINE void ub_copy_out(void *own, const void *shared, uint32_t n)
{
    uint8_t *to = own;
    const uint8_t *from = shared;
    uint32_t i = 0;

    for (; i + 8 <= n; i += 8)
        *(ub_any64 *)(to + i) = ub_load((const uint64_t *)(from + i));
    if (n & 4) {
        *(ub_any32 *)(to + i) = ub_load((const uint32_t *)(from + i));
        i += 4;
    }
    if (n & 2) {
        *(ub_any16 *)(to + i) = ub_load((const uint16_t *)(from + i));
        i += 2;
    }
    if (n & 1)
        to[i] = ub_load(from + i);
}

UB_INLINE void ub_clear(void *shared, uint32_t n)
{
    uint8_t *to = shared;
    uint32_t i = 0;

    for (; i + 8 <= n; i += 8)
        ub_store((uint64_t *)(to + i), 0);
    for (; i < n; i++)
        ub_store(to + i, 0);
}

/* Zeroes the program's own memory. */
UB_INLINE void ub_clear_own(void *own, uint64_t n)
{
    __asm__ volatile("rep stosb" : "+D"(own), "+c"(n) : "a"(0) : "memory");
}

/* ---- header ------------------------------------------------------------------------------------ */

UB_INLINE struct ub_map_header *ub_header(uint8_t *base)
{
    return (struct ub_map_header *)base;
}

UB_INLINE uint64_t *ub_hold(uint8_t *base, uint32_t cpu)
{
    return (uint64_t *)(base + UB_HOLD_OFF + (uint64_t)cpu * UB_HOLD_STRIDE);
}

/* Per-cpu maps: bytes between two CPUs' values of one entry. Each CPU's values lie together. */
UB_INLINE uint64_t ub_cpu_stride(const struct ub_map_def *def)
{
    return ub_round_up((uint64_t)def->n_elems * def->value_stride, UB_CACHE_LINE);
}

/* Value of entry `index` of CPU slot `cpu`; both are the caller's to bound. */
UB_INLINE uint8_t *ub_percpu_value(const struct ub_map_def *def, uint8_t *base, uint64_t index, uint32_t cpu)
{
    return base + def->data_off + cpu * ub_cpu_stride(def) + index * def->value_stride;
}

/* ub_run.cpu in the controller: a value is the values of all CPUs, value_stride apart, as in bpf(2). */
#define UB_ALL_CPUS UINT32_MAX

UB_INLINE void ub_percpu_copy_in(const struct ub_map_def *def, uint8_t *base, uint64_t index, const void *value,
                                 uint32_t cpu)
{
    if (cpu != UB_ALL_CPUS) {
        ub_copy_in(ub_percpu_value(def, base, index, cpu), value, def->value_size);
        return;
    }
    for (uint32_t i = 0; i < def->n_cpus; i++)
        ub_copy_in(ub_percpu_value(def, base, index, i), (const uint8_t *)value + (uint64_t)i * def->value_stride,
                   def->value_size);
}

#endif
