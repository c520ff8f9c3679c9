/*
 * Access to the arguments of what is traced. The names are libbpf's. Registers follow the System V x86-64 ABI
 * and the AAPCS64; system calls follow the kernel's own conventions (syscall(2)).
 *
 * The machine is chosen by __TARGET_ARCH_x86 or __TARGET_ARCH_arm64, or by the compiler's own target.
 */
#ifndef __BPF_TRACING_H__
#define __BPF_TRACING_H__

#include "bpf_helpers.h"

#if defined(__TARGET_ARCH_x86)
#define __bpf_x86
#elif defined(__TARGET_ARCH_arm64)
#define __bpf_arm64
#elif defined(__x86_64__)
#define __bpf_x86
#elif defined(__aarch64__)
#define __bpf_arm64
#endif

#if defined(__bpf_x86)

#define __PT_REGS_CAST(x) (x)
#if defined(__KERNEL__) || defined(__VMLINUX_H__)
/* struct pt_regs as the kernel declares it */
#define __PT_PARM1_REG di
#define __PT_PARM2_REG si
#define __PT_PARM3_REG dx
#define __PT_PARM4_REG cx
#define __PT_PARM5_REG r8
#define __PT_PARM6_REG r9
#define __PT_PARM4_SYSCALL_REG r10
#define __PT_FP_REG bp
#define __PT_RC_REG ax
#define __PT_SP_REG sp
#define __PT_IP_REG ip
#else
/* struct pt_regs as <linux/ptrace.h> declares it */
#define __PT_PARM1_REG rdi
#define __PT_PARM2_REG rsi
#define __PT_PARM3_REG rdx
#define __PT_PARM4_REG rcx
#define __PT_PARM5_REG r8
#define __PT_PARM6_REG r9
#define __PT_PARM4_SYSCALL_REG r10
#define __PT_FP_REG rbp
#define __PT_RC_REG rax
#define __PT_SP_REG rsp
#define __PT_IP_REG rip
#endif
#define __PT_RET_REG __PT_SP_REG /* the return address is on the stack */
#define SYS_PREFIX "__x64_"

#elif defined(__bpf_arm64)

/* BPF programs see struct user_pt_regs, which is the beginning of struct pt_regs */
#define __PT_REGS_CAST(x) ((const struct user_pt_regs *)(x))
#define __PT_PARM1_REG regs[0]
#define __PT_PARM2_REG regs[1]
#define __PT_PARM3_REG regs[2]
#define __PT_PARM4_REG regs[3]
#define __PT_PARM5_REG regs[4]
#define __PT_PARM6_REG regs[5]
#define __PT_PARM7_REG regs[6]
#define __PT_PARM8_REG regs[7]
#define __PT_PARM4_SYSCALL_REG regs[3]
#define __PT_RET_REG regs[30]
#define __PT_FP_REG regs[29]
#define __PT_RC_REG regs[0]
#define __PT_SP_REG sp
#define __PT_IP_REG pc
#define SYS_PREFIX "__arm64_"

/* x0 is overwritten by the result, so the kernel keeps the first argument apart */
struct pt_regs___arm64 {
    unsigned long orig_x0;
} __attribute__((preserve_access_index));

#endif

/* ---- program signatures -------------------------------------------------------------------------------- */

/*
 * Each macro declares the program with its plain signature and defines an inlined function with the
 * arguments of the one that is traced; the body that follows the macro is the inlined function's.
 */
#define ___bpf_prog(name, ctx_type, values, args...)                                                                   \
    name(ctx_type *ctx);                                                                                               \
    static __always_inline typeof(name(0)) ____##name(ctx_type *ctx, ##args);                                          \
    typeof(name(0)) name(ctx_type *ctx)                                                                                \
    {                                                                                                                  \
        _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wint-conversion\"") return ____##name(       \
            values);                                                                                                   \
        _Pragma("GCC diagnostic pop")                                                                                  \
    }                                                                                                                  \
    static __always_inline typeof(name(0)) ____##name(ctx_type *ctx, ##args)

/* ---- registers --------------------------------------------------------------------------------------------- */

#if defined(__bpf_x86) || defined(__bpf_arm64)

struct pt_regs;

#define ___pt_reg(x, reg) (__PT_REGS_CAST(x)->reg)
#define ___pt_reg_core(x, reg) BPF_CORE_READ(__PT_REGS_CAST(x), reg)

#define PT_REGS_PARM1(x) ___pt_reg(x, __PT_PARM1_REG)
#define PT_REGS_PARM2(x) ___pt_reg(x, __PT_PARM2_REG)
#define PT_REGS_PARM3(x) ___pt_reg(x, __PT_PARM3_REG)
#define PT_REGS_PARM4(x) ___pt_reg(x, __PT_PARM4_REG)
#define PT_REGS_PARM5(x) ___pt_reg(x, __PT_PARM5_REG)
#define PT_REGS_PARM6(x) ___pt_reg(x, __PT_PARM6_REG)
#define PT_REGS_RET(x) ___pt_reg(x, __PT_RET_REG)
#define PT_REGS_FP(x) ___pt_reg(x, __PT_FP_REG)
#define PT_REGS_RC(x) ___pt_reg(x, __PT_RC_REG)
#define PT_REGS_SP(x) ___pt_reg(x, __PT_SP_REG)
#define PT_REGS_IP(x) ___pt_reg(x, __PT_IP_REG)

#define PT_REGS_PARM1_CORE(x) ___pt_reg_core(x, __PT_PARM1_REG)
#define PT_REGS_PARM2_CORE(x) ___pt_reg_core(x, __PT_PARM2_REG)
#define PT_REGS_PARM3_CORE(x) ___pt_reg_core(x, __PT_PARM3_REG)
#define PT_REGS_PARM4_CORE(x) ___pt_reg_core(x, __PT_PARM4_REG)
#define PT_REGS_PARM5_CORE(x) ___pt_reg_core(x, __PT_PARM5_REG)
#define PT_REGS_PARM6_CORE(x) ___pt_reg_core(x, __PT_PARM6_REG)
#define PT_REGS_RET_CORE(x) ___pt_reg_core(x, __PT_RET_REG)
#define PT_REGS_FP_CORE(x) ___pt_reg_core(x, __PT_FP_REG)
#define PT_REGS_RC_CORE(x) ___pt_reg_core(x, __PT_RC_REG)
#define PT_REGS_SP_CORE(x) ___pt_reg_core(x, __PT_SP_REG)
#define PT_REGS_IP_CORE(x) ___pt_reg_core(x, __PT_IP_REG)

#ifdef __PT_PARM7_REG
#define PT_REGS_PARM7(x) ___pt_reg(x, __PT_PARM7_REG)
#define PT_REGS_PARM8(x) ___pt_reg(x, __PT_PARM8_REG)
#define PT_REGS_PARM7_CORE(x) ___pt_reg_core(x, __PT_PARM7_REG)
#define PT_REGS_PARM8_CORE(x) ___pt_reg_core(x, __PT_PARM8_REG)
#else
#define ___pt_no_reg ({ _Pragma("GCC error \"on this machine arguments 7 and 8 are on the stack\"") 0l; })
#define PT_REGS_PARM7(x) ___pt_no_reg
#define PT_REGS_PARM8(x) ___pt_no_reg
#define PT_REGS_PARM7_CORE(x) ___pt_no_reg
#define PT_REGS_PARM8_CORE(x) ___pt_no_reg
#endif

#ifdef __bpf_arm64
#define PT_REGS_PARM1_SYSCALL(x) PT_REGS_PARM1_CORE_SYSCALL(x)
#define PT_REGS_PARM1_CORE_SYSCALL(x) BPF_CORE_READ((const struct pt_regs___arm64 *)(x), orig_x0)
#else
#define PT_REGS_PARM1_SYSCALL(x) PT_REGS_PARM1(x)
#define PT_REGS_PARM1_CORE_SYSCALL(x) PT_REGS_PARM1_CORE(x)
#endif
#define PT_REGS_PARM2_SYSCALL(x) PT_REGS_PARM2(x)
#define PT_REGS_PARM3_SYSCALL(x) PT_REGS_PARM3(x)
#define PT_REGS_PARM4_SYSCALL(x) ___pt_reg(x, __PT_PARM4_SYSCALL_REG)
#define PT_REGS_PARM5_SYSCALL(x) PT_REGS_PARM5(x)
#define PT_REGS_PARM6_SYSCALL(x) PT_REGS_PARM6(x)
#define PT_REGS_PARM2_CORE_SYSCALL(x) PT_REGS_PARM2_CORE(x)
#define PT_REGS_PARM3_CORE_SYSCALL(x) PT_REGS_PARM3_CORE(x)
#define PT_REGS_PARM4_CORE_SYSCALL(x) ___pt_reg_core(x, __PT_PARM4_SYSCALL_REG)
#define PT_REGS_PARM5_CORE_SYSCALL(x) PT_REGS_PARM5_CORE(x)
#define PT_REGS_PARM6_CORE_SYSCALL(x) PT_REGS_PARM6_CORE(x)

/* The caller's registers within a system call's wrapper function. */
#define PT_REGS_SYSCALL_REGS(ctx) ((struct pt_regs *)PT_REGS_PARM1(ctx))

#define ___bpf_regs0() ctx
#define ___bpf_regs1(x) ctx, (void *)PT_REGS_PARM1(ctx)
#define ___bpf_regs2(x, rest...) ___bpf_regs1(x), (void *)PT_REGS_PARM2(ctx)
#define ___bpf_regs3(x, rest...) ___bpf_regs2(x, rest), (void *)PT_REGS_PARM3(ctx)
#define ___bpf_regs4(x, rest...) ___bpf_regs3(x, rest), (void *)PT_REGS_PARM4(ctx)
#define ___bpf_regs5(x, rest...) ___bpf_regs4(x, rest), (void *)PT_REGS_PARM5(ctx)
#define ___bpf_regs6(x, rest...) ___bpf_regs5(x, rest), (void *)PT_REGS_PARM6(ctx)
#define ___bpf_regs7(x, rest...) ___bpf_regs6(x, rest), (void *)PT_REGS_PARM7(ctx)
#define ___bpf_regs8(x, rest...) ___bpf_regs7(x, rest), (void *)PT_REGS_PARM8(ctx)
#define ___bpf_regs(args...) ___bpf_apply(___bpf_regs, ___bpf_narg(args))(args)

/* SEC("kprobe/…"), SEC("uprobe/…"): the arguments of the probed function */
#define BPF_KPROBE(name, args...) ___bpf_prog(name, struct pt_regs, ___bpf_regs(args), ##args)
#define BPF_UPROBE(name, args...) BPF_KPROBE(name, ##args)

#define ___bpf_rets0() ctx
#define ___bpf_rets1(x) ctx, (void *)PT_REGS_RC(ctx)
#define ___bpf_rets(args...) ___bpf_apply(___bpf_rets, ___bpf_narg(args))(args)

/* SEC("kretprobe/…"), SEC("uretprobe/…"): the returned value, at most */
#define BPF_KRETPROBE(name, args...) ___bpf_prog(name, struct pt_regs, ___bpf_rets(args), ##args)
#define BPF_URETPROBE(name, args...) BPF_KRETPROBE(name, ##args)

#define ___bpf_sysargs0() ctx
#define ___bpf_sysargs1(x) ctx, (void *)PT_REGS_PARM1_SYSCALL(regs)
#define ___bpf_sysargs2(x, rest...) ___bpf_sysargs1(x), (void *)PT_REGS_PARM2_SYSCALL(regs)
#define ___bpf_sysargs3(x, rest...) ___bpf_sysargs2(x, rest), (void *)PT_REGS_PARM3_SYSCALL(regs)
#define ___bpf_sysargs4(x, rest...) ___bpf_sysargs3(x, rest), (void *)PT_REGS_PARM4_SYSCALL(regs)
#define ___bpf_sysargs5(x, rest...) ___bpf_sysargs4(x, rest), (void *)PT_REGS_PARM5_SYSCALL(regs)
#define ___bpf_sysargs6(x, rest...) ___bpf_sysargs5(x, rest), (void *)PT_REGS_PARM6_SYSCALL(regs)
#define ___bpf_sysargs(args...) ___bpf_apply(___bpf_sysargs, ___bpf_narg(args))(args)

#define ___bpf_syswrap0() ctx
#define ___bpf_syswrap1(x) ctx, (void *)PT_REGS_PARM1_CORE_SYSCALL(regs)
#define ___bpf_syswrap2(x, rest...) ___bpf_syswrap1(x), (void *)PT_REGS_PARM2_CORE_SYSCALL(regs)
#define ___bpf_syswrap3(x, rest...) ___bpf_syswrap2(x, rest), (void *)PT_REGS_PARM3_CORE_SYSCALL(regs)
#define ___bpf_syswrap4(x, rest...) ___bpf_syswrap3(x, rest), (void *)PT_REGS_PARM4_CORE_SYSCALL(regs)
#define ___bpf_syswrap5(x, rest...) ___bpf_syswrap4(x, rest), (void *)PT_REGS_PARM5_CORE_SYSCALL(regs)
#define ___bpf_syswrap6(x, rest...) ___bpf_syswrap5(x, rest), (void *)PT_REGS_PARM6_CORE_SYSCALL(regs)
#define ___bpf_syswrap(args...) ___bpf_apply(___bpf_syswrap, ___bpf_narg(args))(args)

/*
 * SEC("ksyscall/…"): the arguments of a system call. Where the kernel wraps system calls, the caller's registers
 * are behind the first argument of the wrapper. The variable is filled in when the program is loaded.
 */
#define BPF_KSYSCALL(name, args...)                                                                                    \
    name(struct pt_regs *ctx);                                                                                         \
    extern _Bool LINUX_HAS_SYSCALL_WRAPPER __kconfig;                                                                  \
    static __always_inline typeof(name(0)) ____##name(struct pt_regs *ctx, ##args);                                    \
    typeof(name(0)) name(struct pt_regs *ctx)                                                                          \
    {                                                                                                                  \
        struct pt_regs *regs __attribute__((unused)) =                                                                 \
            LINUX_HAS_SYSCALL_WRAPPER ? PT_REGS_SYSCALL_REGS(ctx) : ctx;                                               \
        _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wint-conversion\"")                          \
        if (LINUX_HAS_SYSCALL_WRAPPER)                                                                                 \
            return ____##name(___bpf_syswrap(args));                                                                   \
        return ____##name(___bpf_sysargs(args));                                                                       \
        _Pragma("GCC diagnostic pop")                                                                                  \
    }                                                                                                                  \
    static __always_inline typeof(name(0)) ____##name(struct pt_regs *ctx, ##args)
#define BPF_KPROBE_SYSCALL BPF_KSYSCALL

#endif

#define ___bpf_words0() ctx
#define ___bpf_words1(x) ___bpf_words0(), (void *)ctx[0]
#define ___bpf_words2(x, rest...) ___bpf_words1(x), (void *)ctx[1]
#define ___bpf_words3(x, rest...) ___bpf_words2(x, rest), (void *)ctx[2]
#define ___bpf_words4(x, rest...) ___bpf_words3(x, rest), (void *)ctx[3]
#define ___bpf_words5(x, rest...) ___bpf_words4(x, rest), (void *)ctx[4]
#define ___bpf_words6(x, rest...) ___bpf_words5(x, rest), (void *)ctx[5]
#define ___bpf_words7(x, rest...) ___bpf_words6(x, rest), (void *)ctx[6]
#define ___bpf_words8(x, rest...) ___bpf_words7(x, rest), (void *)ctx[7]
#define ___bpf_words9(x, rest...) ___bpf_words8(x, rest), (void *)ctx[8]
#define ___bpf_words10(x, rest...) ___bpf_words9(x, rest), (void *)ctx[9]
#define ___bpf_words11(x, rest...) ___bpf_words10(x, rest), (void *)ctx[10]
#define ___bpf_words12(x, rest...) ___bpf_words11(x, rest), (void *)ctx[11]
#define ___bpf_words(args...) ___bpf_apply(___bpf_words, ___bpf_narg(args))(args)

/* fentry, fexit, raw_tp, tp_btf, lsm, struct_ops: the context is an array of 64-bit words */
#define BPF_PROG(name, args...) ___bpf_prog(name, unsigned long long, ___bpf_words(args), ##args)

#endif
