/*
 * userbpf.h: the contract between generated code, the native runtime and the controller.
 *
 * The runtime is built three times from the same sources:
 *   libuserbpf.so   for the controller and plugin hosts (maps seen from Python);
 *   runtime.bc      LLVM bitcode, linked into each program so that helpers and map operations inline;
 *   agent.o         the freestanding code that lives once in each target process: fault handling,
 *                   per-thread state, return probes. It is flattened into a CodeImage; no libc, no dlopen.
 *
 * Rules for every file here: C11, freestanding (only <stdint.h> <stddef.h> <stdbool.h> <stdatomic.h>),
 * general registers only, no allocation, no libc call on any path that runs in a target.
 */
#ifndef USERBPF_H
#define USERBPF_H

#include <stddef.h>
#include <stdint.h>

#define UB_INLINE static inline __attribute__((always_inline))
/* Functions that generated code calls by name. They become internal after linking; what is not called goes. */
#define UB_EXPORT __attribute__((visibility("default")))
#define UB_EXPORT_INLINE __attribute__((visibility("default"), always_inline))
#define ub_likely(x) __builtin_expect(!!(x), 1)
#define ub_unlikely(x) __builtin_expect(!!(x), 0)

/* ---- maps ----------------------------------------------------------------------------------- */

/*
 * Geometry of a map: everything about it that never changes after creation. It is derived from the
 * five numbers of bpf(2) by ub_map_geometry() and nowhere else. Code generators bake it into the
 * code as a constant, so nothing in shared memory decides where a program reads or writes:
 * a corrupted or hostile header cannot move an access.
 */
struct ub_map_def {
    uint32_t type; /* enum bpf_map_type */
    uint32_t key_size;
    uint32_t value_size;
    uint32_t max_entries;
    uint32_t flags;   /* BPF_F_* of map creation */
    uint32_t n_cpus;  /* possible CPUs: number of values per entry of per-cpu maps, of perf rings */
    uint32_t value_stride; /* round_up(value_size, 8) */
    uint32_t elem_stride;  /* bytes between two entries */
    uint32_t n_buckets;    /* hash: power of two */
    uint32_t n_elems;      /* hash: max_entries plus spares */
    uint64_t buckets_off;  /* offsets from the start of the map's memory; all are multiples of 8 */
    uint64_t elems_off;
    uint64_t data_off; /* array: first value. ring buffer: first data byte. Page aligned */
    uint64_t seed;     /* hash seed */
    uint64_t size;     /* bytes of the whole memory file */
};

struct ub_thread;
struct ub_cell;

/*
 * State of one run of one program, on the hook's stack. After inlining it dissolves into registers.
 */
struct ub_run {
    struct ub_thread *thread;   /* NULL in the controller and in test runs */
    const struct ub_cell *cell; /* the link that was hit; NULL in test runs */
    uint32_t cpu;               /* CPU slot held for this run (per-cpu maps), else current CPU */
    uint32_t flags;
};

/* ---- what is bound at load time -------------------------------------------------------------- */

/*
 * Callee keeps every register, the flags excepted: what a probed function's caller may rely on
 * (compilers that know a callee let its caller keep values even in call-clobbered registers).
 */
#if defined(__x86_64__) && (defined(UB_BITCODE) || defined(UB_AGENT))
#define UB_KEEP_REGS __attribute__((no_caller_saved_registers))
#else
#define UB_KEEP_REGS
#endif
/* The same for what is called through a pointer: all registers but r11. */
#define UB_SLOW_CALL __attribute__((preserve_most))

/*
 * Process-local data of one image, reached by instruction-relative addressing. The controller fills
 * it when it maps the image. The library has one of its own (src/env_host.c).
 */
struct ub_env {
    uint64_t abi;               /* UB_ABI */
    struct ub_threads *threads; /* per-thread state of this process, wiped on fork */
    uint64_t *hits;             /* hits[(row << hits_shift) + link] */
    uint64_t hits_shift;        /* log2 of the u64 per row */
    int64_t tid_off;            /* offset of the thread id (u32) from the thread pointer, or INT64_MIN: ask the kernel */
    uint32_t tgid;              /* process id as the process itself sees it */
    uint32_t uid, gid;          /* real ids at attach */
    uint32_t n_cpus;
    /* entry points of the agent and of the vDSO */
    struct ub_thread *(UB_SLOW_CALL *enter_slow)(struct ub_threads *threads, uint64_t tp);
    int64_t (*copy_from_user)(void *dst, const void *src, uint64_t n);    /* 0 or -EFAULT */
    int64_t (*strncpy_from_user)(void *dst, const void *src, uint64_t n); /* length with NUL, or -EFAULT */
    int (*vdso_clock_gettime)(int clock, void *timespec);
    uint32_t owner_tag; /* 20 bits that tell pid namespaces apart, in the owner words of locks (src/ub_lock.h) */
    uint32_t features;  /* UB_HAS_* of the CPU; 0 is always right */
};
#define UB_HAS_RDPID 1u
#define UB_ABI 1

#if defined(UB_BITCODE)
extern struct ub_env ub_env __attribute__((visibility("hidden")));
extern uint8_t *ub_map_bases[] __attribute__((visibility("hidden")));
#else
extern struct ub_env ub_env;
#endif

/* ---- hooks ----------------------------------------------------------------------------------- */

/*
 * A cell: one link at one site, written by the controller into trampoline pages near the site.
 * The 64 bytes are followed by code that calls `hook`. A hook finds its cell from its return
 * address: UB_CELL_RET_ENTRY (or _INNER) bytes behind the start of the cell.
 */
struct ub_cell {
    uint64_t hook;   /* called when the site is reached: a specialised hook, or one of the agent's */
    uint64_t body;   /* void body(struct ub_pt_regs *, const struct ub_cell *): called by the agent's hooks, else 0 */
    uint64_t site;   /* address of the probed instruction: pt_regs.ip */
    uint64_t func;   /* address of the probed function's entry: bpf_get_func_ip */
    uint64_t cookie; /* bpf_get_attach_cookie */
    uint32_t link;   /* index into a row of hits */
    uint32_t flags;
    uint64_t reserved[2];
};
#define UB_CELL_SIZE 64
#define UB_CELL_RET_ENTRY 70 /* call *hook(%rip)                       */
#define UB_CELL_RET_INNER 75 /* lea -128(%rsp),%rsp; call *hook(%rip)  */

/* Per-thread state: one slot per live thread, found by thread pointer. */
struct ub_thread {
    uint64_t key; /* ~thread pointer; 0: free, 1: being claimed */
    uint32_t tid; /* of the thread that claimed the slot; its thread pointer may be another thread's by now */
    int32_t row; /* row of hits that only this thread writes; UB_ROWS - 1: shared, use atomics */
};
#define UB_THREAD_SLOTS 2048
#define UB_THREAD_PROBES 32
#define UB_ROWS 128

/* MADV_WIPEONFORK: a forked child sees tgid 0 and runs no program. */
struct ub_threads {
    uint32_t tgid;
    uint32_t next_row;
    int64_t tid_off; /* as in struct ub_env */
    uint64_t reserved[4];
    struct ub_thread shared; /* for threads that got no slot: row is UB_ROWS - 1 */
    struct ub_thread slots[UB_THREAD_SLOTS];
};

UB_INLINE uint32_t ub_thread_home(uint64_t tp)
{
    return (uint32_t)((tp >> 6) ^ (tp >> 16)) & (UB_THREAD_SLOTS - 1);
}

/*
 * Where the C library keeps the thread pointer at its own address (glibc, musl) it is one plain load; reading the
 * register itself costs 5 ns in the midst of other code. Generated code knows which one its process needs.
 */
UB_INLINE uint64_t ub_thread_pointer_register(void)
{
    uint64_t tp;
    __asm__ volatile("rdfsbase %0" : "=r"(tp));
    return tp;
}

UB_INLINE uint64_t ub_thread_pointer_self(void)
{
    uint64_t tp;
    __asm__ volatile("mov %%fs:0, %0" : "=r"(tp));
    return tp;
}

#if defined(UB_BITCODE)
extern const uint32_t ub_tp_self __attribute__((visibility("hidden"))); /* a constant of the program's module */
UB_INLINE uint64_t ub_thread_pointer(void)
{
    return ub_tp_self ? ub_thread_pointer_self() : ub_thread_pointer_register();
}
#endif

/* ---- the agent: once per process, shared by all images in it ----------------------------------- */

/* Return addresses that were replaced; one table per thread, found by thread pointer; copied on fork. */
struct ub_shadow_entry {
    uint64_t sp;   /* where the return address stood; 0: free, 1: being written */
    uint64_t ret;  /* the real return address (or the trampoline's, for two probes on one frame) */
    uint64_t cell; /* struct ub_cell of the return probe; 0 once detached */
    uint64_t reserved;
};
struct ub_shadow {
    uint64_t n;
    uint64_t reserved[3];
    struct ub_shadow_entry entries[];
};
#define UB_SHADOW_BYTES 16384
#define UB_SHADOW_CAPACITY ((UB_SHADOW_BYTES - sizeof(struct ub_shadow)) / sizeof(struct ub_shadow_entry))
#define UB_SHADOW_SLOTS 1024

struct ub_shadow_slot {
    uint64_t key; /* ~thread pointer; 0: free */
    uint64_t table; /* struct ub_shadow *, 0 until mapped */
};

/* struct kernel_sigaction, x86-64 */
struct ub_sigaction {
    uint64_t handler, flags, restorer, mask;
};

/* A function of a library that the agent stands before; what its undoing needs. */
struct ub_guard {
    uint64_t site;       /* 0: none */
    uint64_t trampoline; /* the pages with its moved instructions */
    uint64_t size;       /* of those pages */
    uint8_t original[32];
    uint32_t length; /* bytes of the moved instructions: that much of `original` is meant */
    uint32_t kind;   /* index of the guard in the controller's table */
};
#define UB_GUARDS 16

/* Data area of the agent's image: private memory, copied on fork. */
struct ub_proc {
    uint64_t abi;
    struct ub_sigaction old[2]; /* what the application has (or believes it has) for SIGSEGV, SIGBUS */
    uint64_t missed_returns;    /* return probes not armed: the thread's table was full */
    struct ub_threads *threads; /* the one area of this process */
    uint32_t sessions;          /* how many attachments use the agent; changed only while all threads are stopped */
    uint32_t faults;            /* 1: our handler is installed for SIGSEGV and SIGBUS */
    uint64_t tp_self;           /* 1: every thread's pointer stands at its own address */
    uint64_t reserved[4];       /* also the controller's scratch for system calls */
    uint64_t restorer;          /* the C library's own return from signal handlers, 0: not found */
    struct ub_guard guards[UB_GUARDS];
    struct ub_shadow_slot shadows[UB_SHADOW_SLOTS];
};

/* x86-64 struct pt_regs, arch/x86/include/uapi/asm/ptrace.h order */
struct ub_pt_regs {
    uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    uint64_t orig_rax, rip, cs, eflags, rsp, ss;
};

#endif
