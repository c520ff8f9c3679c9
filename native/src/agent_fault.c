/*
 * Faulting reads: plain loads in a known range of instructions, and a handler for SIGSEGV and
 * SIGBUS that resumes behind the range. No system call per read, no handler swap per read. Every
 * other fault goes to the handler that the application has, as if ours were not there.
 */
#include "agent.h"

#define SIGBUS 7
#define SIGSEGV 11
#define SA_SIGINFO 0x4ul
#define SA_ONSTACK 0x08000000ul
#define SA_RESTORER 0x04000000ul
#define SA_RESETHAND 0x80000000ul
#define SIG_DFL 0ul
#define SIG_IGN 1ul
#define NR_RT_SIGACTION 13
#define NR_RT_SIGPROCMASK 14
#define NR_GETPID 39
#define NR_GETTID 186
#define NR_TGKILL 234

/*
 * int64_t ub_agent_copy_from_user(void *dst, const void *src, uint64_t n)
 * int64_t ub_agent_strncpy_from_user(void *dst, const void *src, uint64_t n)
 *
 * Only instructions between ub_fault_begin and ub_fault_end touch `src`; a fault there returns
 * -EFAULT. (A bad `dst` is a verifier's matter: it never is one.) The string copy stores the NUL,
 * also when it had to cut the string: copy_from_user_nofault's strncpy, mm/maccess.c.
 */
__asm__(".text\n"
        ".p2align 4\n"
        ".globl ub_agent_copy_from_user\n"
        "ub_agent_copy_from_user:\n"
        "ub_fault_begin:\n"
        "    mov %rdx, %rcx\n"
        "    shr $3, %rcx\n"
        "    je 2f\n"
        "1:  mov (%rsi), %rax\n"
        "    mov %rax, (%rdi)\n"
        "    add $8, %rsi\n"
        "    add $8, %rdi\n"
        "    dec %rcx\n"
        "    jne 1b\n"
        "2:  and $7, %edx\n"
        "    je 4f\n"
        "3:  movzbl (%rsi), %eax\n"
        "    mov %al, (%rdi)\n"
        "    inc %rsi\n"
        "    inc %rdi\n"
        "    dec %edx\n"
        "    jne 3b\n"
        "4:  xor %eax, %eax\n"
        "    ret\n"
        ".globl ub_agent_strncpy_from_user\n"
        "ub_agent_strncpy_from_user:\n"
        "    xor %eax, %eax\n"
        "    test %rdx, %rdx\n"
        "    je 7f\n"
        "5:  movzbl (%rsi,%rax), %ecx\n"
        "    mov %cl, (%rdi,%rax)\n"
        "    inc %rax\n"
        "    test %cl, %cl\n"
        "    je 7f\n"
        "    cmp %rdx, %rax\n"
        "    jb 5b\n"
        "    movb $0, -1(%rdi,%rax)\n"
        "7:  ret\n"
        "ub_fault_end:\n"
        "ub_fault_resume:\n"
        "    mov $-14, %rax\n"
        "    ret\n"
        /* void ub_agent_on_fault(int sig, siginfo_t *, ucontext_t *): 168 is uc_mcontext.gregs[REG_RIP] */
        ".p2align 4\n"
        ".globl ub_agent_on_fault\n"
        "ub_agent_on_fault:\n"
        "    mov 168(%rdx), %rax\n"
        "    lea ub_fault_begin(%rip), %rcx\n"
        "    cmp %rcx, %rax\n"
        "    jb 8f\n"
        "    lea ub_fault_end(%rip), %rcx\n"
        "    cmp %rcx, %rax\n"
        "    jae 8f\n"
        "    lea ub_fault_resume(%rip), %rcx\n"
        "    mov %rcx, 168(%rdx)\n"
        "    ret\n"
        "8:  jmp ub_agent_chain_fault\n"
        /* The byte sequence by which unwinders know a signal frame. */
        ".p2align 4\n"
        ".globl ub_agent_restorer\n"
        "ub_agent_restorer:\n"
        "    movq $15, %rax\n"
        "    syscall\n");

/* Taken by instruction, so that the compiler cannot put the address into a constant: there are no absolute addresses here. */
UB_INLINE uint64_t ub_on_fault_address(void)
{
    uint64_t p;
    __asm__("lea ub_agent_on_fault(%%rip), %0" : "=r"(p));
    return p;
}

UB_INLINE uint64_t ub_restorer_address(void)
{
    uint64_t p;
    __asm__("lea ub_agent_restorer(%%rip), %0" : "=r"(p));
    return p;
}

typedef void (*ub_handler)(int, void *, void *);

/* Not ours: do what would have happened without us. */
__attribute__((used, visibility("hidden"))) void ub_agent_chain_fault(int sig, void *info, void *context)
{
    struct ub_sigaction *old = &ub_proc.old[sig == SIGBUS];
    uint64_t handler = __atomic_load_n(&old->handler, __ATOMIC_RELAXED);
    /* siginfo.si_code: > 0 when the kernel raised the signal for a fault, <= 0 when somebody sent it */
    int code = ((const int *)info)[2];

    if (handler == SIG_IGN && code <= 0)
        return;
    if (handler == SIG_DFL || handler == SIG_IGN) {
        /* Restore the default and let it happen again: same signal, same instruction, same core dump. */
        struct ub_sigaction dfl = {SIG_DFL, SA_RESTORER, ub_restorer_address(), 0};
        ub_syscall4(NR_RT_SIGACTION, sig, (long)&dfl, 0, 8);
        if (code <= 0)
            ub_syscall4(NR_TGKILL, ub_syscall4(NR_GETPID, 0, 0, 0, 0), ub_syscall4(NR_GETTID, 0, 0, 0, 0), sig, 0);
        return;
    }
    if (old->flags & SA_RESETHAND) /* ours stays for the next faulting read, the application's was for once */
        __atomic_store_n(&old->handler, SIG_DFL, __ATOMIC_RELAXED);
    ((ub_handler)handler)(sig, info, context);
}

/* What the kernel must have so that we see the signal first and the application's handler runs as it asked. */
static struct ub_sigaction ub_shown_to_kernel(const struct ub_sigaction *app)
{
    struct ub_sigaction k = *app;
    k.handler = ub_on_fault_address();
    if (app->handler == SIG_DFL || app->handler == SIG_IGN) {
        k.flags = SA_ONSTACK;
        k.mask = 0;
    }
    k.flags = (k.flags | SA_SIGINFO) & ~SA_RESETHAND;
    if (!(k.flags & SA_RESTORER)) {
        k.flags |= SA_RESTORER;
        k.restorer = ub_restorer_address();
    }
    return k;
}

/* sigaction(2) as C libraries lay it out on x86-64 (glibc, musl): the mask before the flags. */
struct ub_libc_sigaction {
    uint64_t handler;
    uint64_t mask[16];
    int32_t flags;
    uint64_t restorer;
};

static int ub_is_target(void)
{
    struct ub_threads *threads = ub_proc.threads;
    return threads->tgid != 0 && (uint32_t)ub_syscall4(NR_GETPID, 0, 0, 0, 0) == threads->tgid;
}

static void ub_answer(struct ub_libc_sigaction *out, const struct ub_sigaction *in)
{
    for (int i = 0; i < 16; i++)
        out->mask[i] = 0;
    out->handler = in->handler;
    out->mask[0] = in->mask;
    out->flags = (int32_t)in->flags;
    out->restorer = in->restorer;
}

/*
 * Stands before the C library's sigaction() for SIGSEGV and SIGBUS (the trampoline sends only those here):
 * keeps our handler in place and the application's in our table, and answers as the kernel would. In a forked
 * or vforked child no program runs, so there the kernel gets what the application wants. Neither call can fail.
 */
int ub_agent_sigaction(int sig, const struct ub_libc_sigaction *act, struct ub_libc_sigaction *oldact)
{
    struct ub_sigaction *slot = &ub_proc.old[sig == SIGBUS];
    struct ub_sigaction before = *slot, app, k;

    if (act) {
        app = (struct ub_sigaction){act->handler, (uint32_t)act->flags, act->restorer, act->mask[0]};
        if (!(app.flags & SA_RESTORER)) { /* as the C library does: what it registers returns through its own code */
            app.flags |= SA_RESTORER;
            app.restorer = ub_proc.restorer ? ub_proc.restorer : ub_restorer_address();
        }
    }
    if (!ub_is_target()) {
        ub_syscall4(NR_RT_SIGACTION, sig, act ? (long)&app : 0, (long)&before, 8);
        if (before.handler == ub_on_fault_address())
            before = *slot;
    } else if (act) {
        k = ub_shown_to_kernel(&app);
        if (ub_syscall4(NR_RT_SIGACTION, sig, (long)&k, 0, 8) == 0)
            *slot = app;
    }
    if (oldact)
        ub_answer(oldact, &before);
    return 0;
}

/*
 * Stands before pthread_sigmask(): a thread that blocks SIGSEGV would be killed by a fault that we can mend, so
 * these two are never blocked. As in the C library, its own two signals are not, either. Returns an errno or 0.
 */
int ub_agent_sigmask(int how, const uint64_t *set, uint64_t *oldset)
{
    uint64_t wanted, before = 0;
    long result;

    if (set) {
        wanted = *set & ~(3ull << 31); /* SIGCANCEL, SIGSETXID: 32 and 33 */
        if (how != 1 /* SIG_UNBLOCK */)
            wanted &= ~(1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1));
    }
    result = ub_syscall4(NR_RT_SIGPROCMASK, how, set ? (long)&wanted : 0, (long)&before, 8);
    if (result != 0)
        return (int)-result;
    if (oldset)
        *oldset = before;
    return 0;
}
