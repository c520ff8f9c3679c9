/*
 * What a BPF program in C needs from its header: sections, map definitions, annotations, printing.
 * The names and their meaning are libbpf's, so that programs written for it compile unchanged.
 * Include "vmlinux.h" or <linux/bpf.h> first.
 */
#ifndef __BPF_HELPERS__
#define __BPF_HELPERS__

#include "bpf_helper_defs.h"

/* ---- definitions of maps: a struct in .maps whose member types carry the attributes in BTF ---- */

#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define __ulong(name, val)                                                                                             \
    enum { ___bpf_concat(__unique_value, __COUNTER__) = val } name

enum libbpf_pin_type {
    LIBBPF_PIN_NONE,
    LIBBPF_PIN_BY_NAME,
};

enum libbpf_tristate {
    TRI_NO = 0,
    TRI_YES = 1,
    TRI_MODULE = 2,
};

/* A definition in SEC("maps"), from before maps had BTF. */
struct bpf_map_def {
    unsigned int type;
    unsigned int key_size;
    unsigned int value_size;
    unsigned int max_entries;
    unsigned int map_flags;
};

/* ---- placement and annotations ------------------------------------------------------------- */

#define SEC(name)                                                                                                      \
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wignored-attributes\"")                          \
        __attribute__((section(name), used)) _Pragma("GCC diagnostic pop")

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif
#ifndef __weak
#define __weak __attribute__((weak))
#endif
/* A global function that is verified with its caller's values, as a static one. */
#define __hidden __attribute__((visibility("hidden")))

#define __kconfig __attribute__((section(".kconfig")))
#define __ksym __attribute__((section(".ksyms")))

#define __kptr __attribute__((btf_type_tag("kptr")))
#define __kptr_untrusted __attribute__((btf_type_tag("kptr_untrusted")))
#define __percpu_kptr __attribute__((btf_type_tag("percpu_kptr")))
#define __uptr __attribute__((btf_type_tag("uptr")))

#define __arg_ctx __attribute__((btf_decl_tag("arg:ctx")))
#define __arg_nonnull __attribute((btf_decl_tag("arg:nonnull")))
#define __arg_nullable __attribute((btf_decl_tag("arg:nullable")))
#define __arg_trusted __attribute((btf_decl_tag("arg:trusted")))
#define __arg_untrusted __attribute((btf_decl_tag("arg:untrusted")))
#define __arg_arena __attribute((btf_decl_tag("arg:arena")))

#define bpf_ksym_exists(sym)                                                                                           \
    ({                                                                                                                 \
        _Static_assert(!__builtin_constant_p(!!(sym)), #sym " should be marked as __weak");                            \
        !!(sym);                                                                                                       \
    })

/* ---- C that the kernel's own headers offer --------------------------------------------------- */

#ifndef KERNEL_VERSION
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#endif

#ifndef offsetof
#define offsetof(type, member) ((unsigned long)&((type *)0)->member)
#endif
#undef container_of
#define container_of(ptr, type, member)                                                                                \
    ({                                                                                                                 \
        const void *__inner = (ptr);                                                                                   \
        (type *)(__inner - offsetof(type, member));                                                                    \
    })

/* The compiler may not move memory accesses across it. */
#ifndef barrier
#define barrier() __asm__ volatile("" ::: "memory")
#endif
/* The compiler forgets what it knows of var: a bounds check on it stays where it was written. */
#ifndef barrier_var
#define barrier_var(var) __asm__ volatile("" : "+r"(var))
#endif

#ifndef __bpf_unreachable
#define __bpf_unreachable() __builtin_trap()
#endif

#if __clang_major__ >= 8 && defined(__bpf__)
/* A tail call whose map and index are constants in registers, whatever the compiler does around it. */
static __always_inline void bpf_tail_call_static(void *ctx, const void *map, const __u32 slot)
{
    if (!__builtin_constant_p(slot))
        __bpf_unreachable();
    __asm__ volatile("r1 = %[ctx]\n\t"
                     "r2 = %[map]\n\t"
                     "r3 = %[slot]\n\t"
                     "call 12"
                     :
                     : [ctx] "r"(ctx), [map] "r"(map), [slot] "i"(slot)
                     : "r0", "r1", "r2", "r3", "r4", "r5");
}
#endif

/* ---- macros over argument lists --------------------------------------------------------------- */

#ifndef ___bpf_concat
#define ___bpf_concat(a, b) a##b
#endif
#ifndef ___bpf_apply
#define ___bpf_apply(fn, n) ___bpf_concat(fn, n)
#endif
#ifndef ___bpf_nth
#define ___bpf_nth(_, _1, _2, _3, _4, _5, _6, _7, _8, _9, _10, _11, _12, N, ...) N
#endif
#ifndef ___bpf_narg
#define ___bpf_narg(...) ___bpf_nth(_, ##__VA_ARGS__, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#endif

#define ___bpf_fill0(arr, at)
#define ___bpf_fill1(arr, at, x) arr[at] = (unsigned long long)(x);
#define ___bpf_fill2(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill1(arr, at + 1, rest)
#define ___bpf_fill3(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill2(arr, at + 1, rest)
#define ___bpf_fill4(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill3(arr, at + 1, rest)
#define ___bpf_fill5(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill4(arr, at + 1, rest)
#define ___bpf_fill6(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill5(arr, at + 1, rest)
#define ___bpf_fill7(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill6(arr, at + 1, rest)
#define ___bpf_fill8(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill7(arr, at + 1, rest)
#define ___bpf_fill9(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill8(arr, at + 1, rest)
#define ___bpf_fill10(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill9(arr, at + 1, rest)
#define ___bpf_fill11(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill10(arr, at + 1, rest)
#define ___bpf_fill12(arr, at, x, rest...) ___bpf_fill1(arr, at, x) ___bpf_fill11(arr, at + 1, rest)
#define ___bpf_fill(arr, args...) ___bpf_apply(___bpf_fill, ___bpf_narg(args))(arr, 0, ##args)

/* An array of the arguments as u64; one element at least, so that it can be passed when there are none. */
#define ___bpf_params(name, args...)                                                                                   \
    unsigned long long name[___bpf_narg(args) ? ___bpf_narg(args) : 1];                                                \
    _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wint-conversion\"")                              \
        ___bpf_fill(name, args) _Pragma("GCC diagnostic pop")
#define ___bpf_params_size(args...) (___bpf_narg(args) * sizeof(unsigned long long))

/* ---- open-coded iterators: loops that the verifier follows by kfuncs of the kernel ------------- */

struct bpf_iter_num;
extern int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end) __weak __ksym;
extern int *bpf_iter_num_next(struct bpf_iter_num *it) __weak __ksym;
extern void bpf_iter_num_destroy(struct bpf_iter_num *it) __weak __ksym;

#ifndef bpf_for_each
/* The second variable is only there so that `new` is called once, after the iterator is in scope. */
#define bpf_for_each(type, cur, args...)                                                                               \
    for (struct bpf_iter_##type __it __attribute__((aligned(8), cleanup(bpf_iter_##type##_destroy))),                  \
         *__once __attribute__((unused)) = (bpf_iter_##type##_new(&__it, ##args), (void *)0);                          \
         ((cur) = bpf_iter_##type##_next(&__it));)
#endif

#ifndef bpf_for
/* i from start to end - 1; the comparison gives the verifier the bounds of i. */
#define bpf_for(i, start, end)                                                                                         \
    for (struct bpf_iter_num __it __attribute__((aligned(8), cleanup(bpf_iter_num_destroy))),                          \
         *__once __attribute__((unused)) = (bpf_iter_num_new(&__it, (start), (end)), (void *)0);                       \
         ({                                                                                                            \
             int *__next = bpf_iter_num_next(&__it);                                                                   \
             (i) = __next ? *__next : (end);                                                                           \
             __next && (i) >= (start) && (i) < (end);                                                                  \
         });)
#endif

#ifndef bpf_repeat
#define bpf_repeat(n)                                                                                                  \
    for (struct bpf_iter_num __it __attribute__((aligned(8), cleanup(bpf_iter_num_destroy))),                          \
         *__once __attribute__((unused)) = (bpf_iter_num_new(&__it, 0, (n)), (void *)0);                               \
         bpf_iter_num_next(&__it);)
#endif

/* ---- printing ------------------------------------------------------------------------------------ */

#ifdef BPF_NO_GLOBAL_DATA
#define BPF_PRINTK_FMT_MOD
#else
#define BPF_PRINTK_FMT_MOD static const
#endif

#define __bpf_printk(fmt, ...)                                                                                         \
    ({                                                                                                                 \
        BPF_PRINTK_FMT_MOD char __text[] = fmt;                                                                        \
        bpf_trace_printk(__text, sizeof(__text), ##__VA_ARGS__);                                                       \
    })
#define __bpf_vprintk(fmt, args...)                                                                                    \
    ({                                                                                                                 \
        static const char __text[] = fmt;                                                                              \
        ___bpf_params(__values, args);                                                                                 \
        bpf_trace_vprintk(__text, sizeof(__text), __values, ___bpf_params_size(args));                                 \
    })
/* Up to three values go in registers; more of them in an array. */
#define ___bpf_printk0 __bpf_printk
#define ___bpf_printk1 __bpf_printk
#define ___bpf_printk2 __bpf_printk
#define ___bpf_printk3 __bpf_printk
#define ___bpf_printk4 __bpf_vprintk
#define ___bpf_printk5 __bpf_vprintk
#define ___bpf_printk6 __bpf_vprintk
#define ___bpf_printk7 __bpf_vprintk
#define ___bpf_printk8 __bpf_vprintk
#define ___bpf_printk9 __bpf_vprintk
#define ___bpf_printk10 __bpf_vprintk
#define ___bpf_printk11 __bpf_vprintk
#define ___bpf_printk12 __bpf_vprintk
#define bpf_printk(fmt, args...) ___bpf_apply(___bpf_printk, ___bpf_narg(args))(fmt, ##args)

#define BPF_SNPRINTF(out, out_size, fmt, args...)                                                                      \
    ({                                                                                                                 \
        static const char __text[] = fmt;                                                                              \
        ___bpf_params(__values, args);                                                                                 \
        bpf_snprintf(out, out_size, __text, __values, ___bpf_params_size(args));                                       \
    })
#define BPF_SEQ_PRINTF(seq, fmt, args...)                                                                              \
    ({                                                                                                                 \
        static const char __text[] = fmt;                                                                              \
        ___bpf_params(__values, args);                                                                                 \
        bpf_seq_printf(seq, __text, sizeof(__text), __values, ___bpf_params_size(args));                               \
    })

#endif
