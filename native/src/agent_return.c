/*
 * Return probes. At the function's entry the return address is replaced by ours and kept in a table of
 * this thread, keyed by where it stood. Frames left by longjmp or exceptions leave stale entries; a new
 * frame at the same place replaces them. Nothing is dropped on a guess about stacks, because a coroutine's
 * stack may lie anywhere: when the table is full, the call is not instrumented and counted as missed.
 */
#include "agent.h"

#define NR_MMAP 9
#define PROT_READ_WRITE 3
#define MAP_PRIVATE_ANONYMOUS 0x22
#define UB_SP_CLAIMED 1ul

extern char ub_agent_ret_trampoline[] __attribute__((visibility("hidden")));

static struct ub_shadow *ub_shadow_of(uint64_t tp, int make)
{
    uint32_t home = ub_thread_home(tp) & (UB_SHADOW_SLOTS - 1);
    uint64_t key = ~tp;

    for (uint32_t i = 0; i < UB_THREAD_PROBES; i++) {
        struct ub_shadow_slot *slot = &ub_proc.shadows[(home + i) & (UB_SHADOW_SLOTS - 1)];
        uint64_t seen = __atomic_load_n(&slot->key, __ATOMIC_ACQUIRE);
        if (seen == 0) {
            if (!make)
                return 0;
            if (__atomic_compare_exchange_n(&slot->key, &seen, key, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                seen = key;
        }
        if (seen != key)
            continue;
        if (slot->table == 0 && make) {
            long p = ub_syscall6(NR_MMAP, 0, UB_SHADOW_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0);
            if (p < 0 && p > -4096)
                return 0;
            slot->table = (uint64_t)p;
        }
        return (struct ub_shadow *)slot->table;
    }
    return 0;
}

/* Takes free entries off the top. Entries that are being written below a signal handler stay. */
static void ub_shadow_trim(struct ub_shadow *s)
{
    while (s->n > 0 && s->entries[s->n - 1].sp == 0)
        s->n--;
}

/*
 * An entry whose word on the stack is no longer our trampoline is of a frame that is gone. The word of a
 * stack that was unmapped cannot be read at all: gone too.
 */
static void ub_shadow_scavenge(struct ub_shadow *s)
{
    for (uint64_t i = 0; i < s->n; i++) {
        struct ub_shadow_entry *e = &s->entries[i];
        uint64_t word = 0;
        if (e->sp <= UB_SP_CLAIMED)
            continue;
        if (!ub_read_maybe_gone(e->sp, &word, sizeof word) || word != (uint64_t)ub_agent_ret_trampoline)
            e->sp = 0;
    }
    ub_shadow_trim(s);
}

/* The hook of return probes; its own asm stub below keeps all registers and finds sp and the cell. */
__attribute__((used, visibility("hidden"))) void ub_agent_arm_c(uint64_t *sp, const struct ub_cell *cell)
{
    const uint64_t trampoline = (uint64_t)ub_agent_ret_trampoline;
    struct ub_shadow *s = ub_shadow_of(ub_thread_pointer(), 1);
    struct ub_shadow_entry *e;
    uint64_t ret = *sp;

    if (ub_unlikely(!s)) {
        __atomic_fetch_add(&ub_proc.missed_returns, 1, __ATOMIC_RELAXED);
        return;
    }
    if (ret != trampoline) {
        /* A real call stored this return address: whatever we knew about this place is of a dead frame. */
        for (uint64_t i = s->n; i-- > 0;)
            if (s->entries[i].sp == (uint64_t)sp)
                s->entries[i].sp = 0;
        ub_shadow_trim(s);
    }
    if (ub_unlikely(s->n >= UB_SHADOW_CAPACITY)) {
        ub_shadow_scavenge(s);
        if (s->n >= UB_SHADOW_CAPACITY) {
            __atomic_fetch_add(&ub_proc.missed_returns, 1, __ATOMIC_RELAXED);
            return;
        }
    }
    /* Claim first: a signal handler that comes now must use the next entry. */
    e = &s->entries[s->n];
    e->sp = UB_SP_CLAIMED;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    s->n++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    e->ret = ret;
    e->cell = (uint64_t)cell;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    e->sp = (uint64_t)sp;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *sp = trampoline;
}

static struct ub_shadow_entry *ub_shadow_find(struct ub_shadow *s, uint64_t sp)
{
    for (uint64_t i = s ? s->n : 0; i > 0; i--)
        if (s->entries[i - 1].sp == sp)
            return &s->entries[i - 1];
    return 0;
}

/*
 * A frame that entered on one thread and returns on another: a coroutine that moved. Its stack address is
 * its own in the whole process, so the entry can be taken from the other thread's table; the owner takes
 * the free entry off later.
 */
static struct ub_shadow_entry *ub_shadow_find_anywhere(uint64_t sp)
{
    for (uint32_t i = 0; i < UB_SHADOW_SLOTS; i++) {
        struct ub_shadow_entry *e = ub_shadow_find((struct ub_shadow *)ub_proc.shadows[i].table, sp);
        if (e)
            return e;
    }
    return 0;
}

typedef void (*ub_body)(struct ub_pt_regs *, const struct ub_cell *);

/*
 * The probed function has returned to ub_agent_ret_trampoline. Runs the programs of every probe that was
 * stacked on this frame, newest first (the kernel's order, handle_trampoline), and gives back the real
 * return address. There always is an entry: the trampoline's address is on a stack only while one is.
 */
__attribute__((used, visibility("hidden"))) uint64_t ub_agent_on_return(struct ub_pt_regs *regs)
{
    const uint64_t trampoline = (uint64_t)ub_agent_ret_trampoline;
    struct ub_shadow *own = ub_shadow_of(ub_thread_pointer(), 0);
    uint64_t sp = regs->rsp - 8;
    uint64_t ret = trampoline;

    while (ret == trampoline) {
        struct ub_shadow_entry *e = ub_shadow_find(own, sp);
        const struct ub_cell *cell;
        if (!e)
            e = ub_shadow_find_anywhere(sp);
        if (!e)
            __builtin_trap();
        ret = e->ret;
        cell = (const struct ub_cell *)e->cell;
        e->sp = 0;
        if (own)
            ub_shadow_trim(own);
        if (cell) {
            regs->rip = ret == trampoline ? cell->site : ret;
            ((ub_body)cell->body)(regs, cell);
        }
    }
    return ret;
}

/*
 * Somebody is about to walk this thread's stack: a C++ exception, a cancelled thread, backtrace(). An unwinder
 * that meets our address instead of the real one stops there, and an exception that is not caught ends the
 * process. So the real addresses go back, and the returns of these frames are counted as missed.
 */
__attribute__((used, visibility("hidden"))) void ub_agent_unwinding_c(void)
{
    const uint64_t trampoline = (uint64_t)ub_agent_ret_trampoline;
    struct ub_shadow *s = ub_shadow_of(ub_thread_pointer(), 0);

    for (uint64_t i = s ? s->n : 0; i > 0; i--) {
        struct ub_shadow_entry *e = &s->entries[i - 1];
        uint64_t sp = e->sp, word = 0;
        if (sp <= UB_SP_CLAIMED)
            continue;
        if (!ub_read_maybe_gone(sp, &word, sizeof word) || word != trampoline) {
            e->sp = 0;
            continue;
        }
        if (e->ret != trampoline)
            *(uint64_t *)sp = e->ret;
        __atomic_fetch_add(&ub_proc.missed_returns, 1, __ATOMIC_RELAXED);
        e->sp = 0;
    }
    if (s)
        ub_shadow_trim(s);
}

/*
 * Agent hooks. Each is called from a cell; [rsp] is the return address into the cell's code.
 *
 *   ub_agent_arm         entry of a return probe
 *   ub_agent_full_entry  function entry, whole pt_regs
 *   ub_agent_full_inner  any other instruction: the cell has skipped the red zone; flags are kept
 *
 * A pt_regs is pushed from its end: ss, sp, flags, cs, ip, orig_ax, di, si, dx, cx, ax, r8..r11, bx, bp, r12..r15.
 */
#define UB_PUSH_GENERAL                                                                                              \
    "    push %rdi\n    push %rsi\n    push %rdx\n    push %rcx\n    push %rax\n    push %r8\n    push %r9\n"         \
    "    push %r10\n    push %r11\n    push %rbx\n    push %rbp\n    push %r12\n    push %r13\n    push %r14\n"       \
    "    push %r15\n"
#define UB_POP_GENERAL                                                                                               \
    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbp\n    pop %rbx\n    pop %r11\n"              \
    "    pop %r10\n    pop %r9\n    pop %r8\n    pop %rax\n    pop %rcx\n    pop %rdx\n    pop %rsi\n    pop %rdi\n"

/* rsp points to the r15 of a pt_regs that ends at the return address into the cell; sp_extra: bytes the cell skipped */
#define UB_FULL(name, ret_off, sp_extra, drop_flags)                                                                 \
    ".p2align 4\n"                                                                                                   \
    ".globl " #name "\n" #name ":\n"                                                                                 \
    "    push $0x2b\n"                                                                                               \
    "    push %rsp\n"                                                                                                \
    "    pushfq\n"                                                                                                   \
    "    cld\n"                                                                                                      \
    "    push $0x33\n"                                                                                               \
    "    push $0\n"                                                                                                  \
    "    push $-1\n" UB_PUSH_GENERAL                                                                                 \
    "    lea 176+" #sp_extra "(%rsp), %rax\n" /* past pt_regs (168) and the return address (8) */                    \
    "    mov %rax, 152(%rsp)\n"                                                                                      \
    "    mov 168(%rsp), %rsi\n"                                                                                      \
    "    sub $" #ret_off ", %rsi\n"                                                                                  \
    "    mov 16(%rsi), %rax\n"                                                                                       \
    "    mov %rax, 128(%rsp)\n"                                                                                      \
    "    mov %rsp, %rdi\n"                                                                                           \
    "    mov %rsp, %rbx\n"                                                                                           \
    "    and $-16, %rsp\n"                                                                                           \
    "    call *8(%rsi)\n"                                                                                            \
    "    mov %rbx, %rsp\n" UB_POP_GENERAL                                                                            \
    drop_flags                                                                                                       \
    "    lea 16(%rsp), %rsp\n"                                                                                       \
    "    ret\n"

__asm__(".text\n" UB_FULL(ub_agent_full_entry, 70, 0, "    lea 32(%rsp), %rsp\n")
        UB_FULL(ub_agent_full_inner, 75, 128, "    lea 24(%rsp), %rsp\n    popfq\n")
        /* arm: only call-clobbered registers need saving around the C function */
        ".p2align 4\n"
        ".globl ub_agent_arm\n"
        "ub_agent_arm:\n"
        "    push %rdi\n    push %rsi\n    push %rdx\n    push %rcx\n    push %rax\n    push %r8\n    push %r9\n"
        "    push %r10\n    push %r11\n"
        "    mov 72(%rsp), %rsi\n"
        "    sub $70, %rsi\n"
        "    lea 80(%rsp), %rdi\n"
        "    call ub_agent_arm_c\n"
        "    pop %r11\n    pop %r10\n    pop %r9\n    pop %r8\n    pop %rax\n    pop %rcx\n    pop %rdx\n"
        "    pop %rsi\n    pop %rdi\n"
        "    ret\n"
        /* before an unwinder: called from a guard's trampoline at the function's entry */
        ".p2align 4\n"
        ".globl ub_agent_unwinding\n"
        "ub_agent_unwinding:\n"
        "    push %rdi\n    push %rsi\n    push %rdx\n    push %rcx\n    push %rax\n    push %r8\n    push %r9\n"
        "    push %r10\n    push %r11\n"
        "    call ub_agent_unwinding_c\n"
        "    pop %r11\n    pop %r10\n    pop %r9\n    pop %r8\n    pop %rax\n    pop %rcx\n    pop %rdx\n"
        "    pop %rsi\n    pop %rdi\n"
        "    ret\n"
        /*
         * The replaced return address. On entry rsp is one word above where it stood; that word becomes the
         * slot for the real one. Callers may rely on more than the return registers (inter-procedural
         * register allocation), so all are kept; vector registers are never touched.
         */
        ".p2align 4\n"
        ".globl ub_agent_ret_trampoline\n"
        "ub_agent_ret_trampoline:\n"
        "    lea -8(%rsp), %rsp\n"
        "    push $0x2b\n"
        "    push %rsp\n"
        "    pushfq\n"
        "    cld\n"
        "    push $0x33\n"
        "    push $0\n"
        "    push $-1\n" UB_PUSH_GENERAL
        "    lea 176(%rsp), %rax\n"
        "    mov %rax, 152(%rsp)\n"
        "    mov %rsp, %rdi\n"
        "    mov %rsp, %rbx\n"
        "    and $-16, %rsp\n"
        "    call ub_agent_on_return\n"
        "    mov %rbx, %rsp\n"
        "    mov %rax, 168(%rsp)\n" UB_POP_GENERAL
        "    lea 48(%rsp), %rsp\n"
        "    ret\n");
