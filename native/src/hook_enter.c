/* What every hook does first: find its thread, count the hit. Inlined into each generated hook. */
#include "userbpf.h"

#if defined(UB_BITCODE)

/*
 * Returns the thread's slot, or NULL when programs must not run here (a forked child). One thread owns a
 * row of hits, so its count needs no lock; the one instruction cannot be torn by a signal either.
 */
UB_EXPORT_INLINE struct ub_thread *ub_hook_enter(const struct ub_cell *cell)
{
    struct ub_threads *threads = ub_env.threads;
    uint64_t tp = ub_thread_pointer();
    struct ub_thread *thread = &threads->slots[ub_thread_home(tp)];
    uint64_t *hit;

    if (ub_unlikely(thread->key != ~tp)) {
        thread = ub_env.enter_slow(threads, tp);
        if (!thread)
            return 0;
    }
    hit = &ub_env.hits[((uint64_t)(uint32_t)thread->row << ub_env.hits_shift) + cell->link];
    if (ub_likely(thread->row != UB_ROWS - 1))
        __asm__ volatile("incq %0" : "+m"(*hit) : : "cc");
    else
        __asm__ volatile("lock incq %0" : "+m"(*hit) : : "cc");
    return thread;
}

/* LLVM may turn loops into calls of these; they are the only library functions that generated code can need. */
UB_EXPORT void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
    void *ret = dst;
    __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
    return ret;
}

UB_EXPORT void *memset(void *dst, int byte, size_t n)
{
    void *ret = dst;
    __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(byte) : "memory");
    return ret;
}

UB_EXPORT void *memmove(void *dst, const void *src, size_t n)
{
    unsigned char *d = dst;
    const unsigned char *s = src;
    if ((uintptr_t)d - (uintptr_t)s >= n)
        return memcpy(dst, src, n);
    while (n-- > 0)
        __asm__ volatile("movb %1, %%al\n movb %%al, %0" : "=m"(d[n]) : "m"(s[n]) : "al");
    return dst;
}

UB_EXPORT int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++) {
        if (x[i] != y[i])
            return x[i] - y[i];
        __asm__ volatile("" : : : "memory");
    }
    return 0;
}

UB_EXPORT int bcmp(const void *a, const void *b, size_t n)
{
    return memcmp(a, b, n);
}

#endif
