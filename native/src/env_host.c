/*
 * What the library has in place of an agent: its own environment, process and thread ids that survive
 * fork, and the few functions of libc that compilers call on their own. No libc: the library loads
 * into glibc and musl processes alike.
 */
#include "ub_lock.h"

#define NR_MMAP 9
#define NR_MADVISE 28
#define NR_GETUID 102
#define NR_GETGID 104
#define NR_PROCESS_VM_READV 310
#define MADV_WIPEONFORK 18

#if !defined(UB_HOSTED) /* a program with a libc of its own: the stress tests */
void *memcpy(void *to, const void *from, size_t n)
{
    void *ret = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return ret;
}

void *memset(void *to, int byte, size_t n)
{
    void *ret = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return ret;
}

#endif

/* This process reads its own memory through the kernel, which answers a bad address with EFAULT. */
static int64_t host_copy_from_user(void *dst, const void *src, uint64_t n)
{
    struct {
        const void *at;
        uint64_t n;
    } local = {dst, n}, remote = {src, n};
    register long r10 __asm__("r10") = (long)&remote;
    register long r8 __asm__("r8") = 1;
    register long r9 __asm__("r9") = 0;
    long got;

    __asm__ volatile("syscall"
                     : "=a"(got)
                     : "a"((long)NR_PROCESS_VM_READV), "D"(ub_sys(UB_NR_GETPID, 0, 0, 0, 0)), "S"((long)&local),
                       "d"(1l), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return got == (long)n ? 0 : -UB_EFAULT;
}

static int64_t host_strncpy_from_user(void *dst, const void *src, uint64_t n)
{
    char *to = dst;
    uint64_t i = 0;

    for (; i + 1 < n; i++) {
        if (host_copy_from_user(to + i, (const char *)src + i, 1) != 0)
            return -UB_EFAULT;
        if (to[i] == 0)
            return (int64_t)i + 1;
    }
    to[i] = 0;
    return (int64_t)i + 1;
}

struct ub_env ub_env = {
    .abi = UB_ABI,
    .tid_off = INT64_MIN,
    .copy_from_user = host_copy_from_user,
    .strncpy_from_user = host_strncpy_from_user,
};

/* A page that a forked child finds empty: then the ids that are kept beside it are the parent's. */
static uint32_t *host_tgid;
static _Thread_local struct {
    uint32_t tgid, tid;
} self __attribute__((tls_model("initial-exec")));

uint32_t ub_current_tgid(void)
{
    uint32_t *page = ub_load_acquire(&host_tgid);
    uint32_t tgid = page ? ub_load(page) : 0;

    if (ub_unlikely(tgid == 0)) {
        tgid = (uint32_t)ub_sys(UB_NR_GETPID, 0, 0, 0, 0);
        if (page)
            ub_store(page, tgid);
    }
    return tgid;
}

uint32_t ub_current_tid(struct ub_run *run)
{
    uint32_t tgid = ub_current_tgid();

    (void)run;
    if (ub_unlikely(self.tgid != tgid)) {
        self.tid = (uint32_t)ub_sys(UB_NR_GETTID, 0, 0, 0, 0);
        self.tgid = ub_load_acquire(&host_tgid) ? tgid : 0; /* without the page nothing may be kept */
    }
    return self.tid;
}

static int has_rdpid(void)
{
    uint32_t a = 0, b, c, d;
    __asm__("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    if (a < 7)
        return 0;
    a = 7;
    c = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (c >> 22) & 1;
}

/* Called once after loading, before anything else; `owner_tag` is the controller's pid namespace in 20 bits. */
UB_EXPORT void ub_library_init(uint32_t owner_tag, uint32_t n_cpus)
{
    register long r10 __asm__("r10") = 0x22; /* MAP_PRIVATE | MAP_ANONYMOUS */
    register long r8 __asm__("r8") = -1;
    register long r9 __asm__("r9") = 0;
    long page;

    __asm__ volatile("syscall"
                     : "=a"(page)
                     : "a"((long)NR_MMAP), "D"(0l), "S"((long)UB_PAGE), "d"(3l), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if ((page >= 0 || page < -4095) && ub_sys(NR_MADVISE, page, UB_PAGE, MADV_WIPEONFORK, 0) == 0)
        ub_store_release(&host_tgid, (uint32_t *)page);
    ub_env.tgid = ub_current_tgid();
    ub_env.uid = (uint32_t)ub_sys(NR_GETUID, 0, 0, 0, 0);
    ub_env.gid = (uint32_t)ub_sys(NR_GETGID, 0, 0, 0, 0);
    ub_env.n_cpus = n_cpus;
    ub_env.owner_tag = owner_tag & 0xfffff;
    ub_env.features = has_rdpid() ? UB_HAS_RDPID : 0;
}

/* The library's own environment: programs that the controller runs in its own process get a copy. */
UB_EXPORT const struct ub_env *ub_library_env(void)
{
    return &ub_env;
}
