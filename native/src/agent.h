/* The agent: freestanding code that lives once in each target process. */
#ifndef UB_AGENT_H
#define UB_AGENT_H
#define UB_AGENT 1
#include "userbpf.h"

extern struct ub_proc ub_proc __attribute__((visibility("hidden")));

UB_INLINE uint64_t ub_thread_pointer(void)
{
    return ub_proc.tp_self ? ub_thread_pointer_self() : ub_thread_pointer_register();
}

int64_t ub_agent_copy_from_user(void *dst, const void *src, uint64_t n);
int64_t ub_agent_strncpy_from_user(void *dst, const void *src, uint64_t n);

UB_INLINE long ub_syscall4(long nr, long a, long b, long c, long d)
{
    long ret;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return ret;
}

UB_INLINE long ub_syscall6(long nr, long a, long b, long c, long d, long e, long f)
{
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

/*
 * Reads memory that may be gone, where our fault handler may not be installed: process_vm_readv(2) on ourselves.
 * For rare paths only. Returns 1 when all was read.
 */
UB_INLINE int ub_read_maybe_gone(uint64_t addr, void *dst, uint64_t n)
{
    uint64_t local[2] = {(uint64_t)dst, n}, remote[2] = {addr, n};
    long pid = ub_syscall4(39 /* getpid */, 0, 0, 0, 0);

    return ub_syscall6(310 /* process_vm_readv */, pid, (long)local, 1, (long)remote, 1, 0) == (long)n;
}

#endif
