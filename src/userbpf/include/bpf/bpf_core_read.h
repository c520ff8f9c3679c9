/*
 * CO-RE: reads and questions that are settled against the types of the machine where the program is loaded.
 * The names are libbpf's; the numbers are those of the relocations that clang records for the builtins
 * (include/uapi/linux/bpf.h, enum bpf_core_relo_kind).
 */
#ifndef __BPF_CORE_READ_H__
#define __BPF_CORE_READ_H__

#include "bpf_helpers.h"

enum bpf_field_info_kind {
    BPF_FIELD_BYTE_OFFSET = 0,
    BPF_FIELD_BYTE_SIZE = 1,
    BPF_FIELD_EXISTS = 2,
    BPF_FIELD_SIGNED = 3,
    BPF_FIELD_LSHIFT_U64 = 4,
    BPF_FIELD_RSHIFT_U64 = 5,
};

enum bpf_type_id_kind {
    BPF_TYPE_ID_LOCAL = 0,
    BPF_TYPE_ID_TARGET = 1,
};

enum bpf_type_info_kind {
    BPF_TYPE_EXISTS = 0,
    BPF_TYPE_SIZE = 1,
    BPF_TYPE_MATCHES = 2,
};

enum bpf_enum_value_kind {
    BPF_ENUMVAL_EXISTS = 0,
    BPF_ENUMVAL_VALUE = 1,
};

/* ---- questions about fields: by value (s->f), or by type and name --------------------------------- */

#define ___bpf_field_ref1(field) (field)
#define ___bpf_field_ref2(type, field) (((typeof(type) *)0)->field)
#define ___bpf_field_ref(args...) ___bpf_apply(___bpf_field_ref, ___bpf_narg(args))(args)

#define bpf_core_field_exists(field...) __builtin_preserve_field_info(___bpf_field_ref(field), BPF_FIELD_EXISTS)
#define bpf_core_field_size(field...) __builtin_preserve_field_info(___bpf_field_ref(field), BPF_FIELD_BYTE_SIZE)
#define bpf_core_field_offset(field...) __builtin_preserve_field_info(___bpf_field_ref(field), BPF_FIELD_BYTE_OFFSET)

/* ---- questions about types and enumerators --------------------------------------------------------- */

#define ___bpf_typeof(type) (*(typeof(type) *)0)

#define bpf_core_type_id_local(type) __builtin_btf_type_id(___bpf_typeof(type), BPF_TYPE_ID_LOCAL)
#define bpf_core_type_id_kernel(type) __builtin_btf_type_id(___bpf_typeof(type), BPF_TYPE_ID_TARGET)
#define bpf_core_type_exists(type) __builtin_preserve_type_info(___bpf_typeof(type), BPF_TYPE_EXISTS)
#define bpf_core_type_matches(type) __builtin_preserve_type_info(___bpf_typeof(type), BPF_TYPE_MATCHES)
#define bpf_core_type_size(type) __builtin_preserve_type_info(___bpf_typeof(type), BPF_TYPE_SIZE)
#define bpf_core_enum_value_exists(type, name)                                                                         \
    __builtin_preserve_enum_value(*(typeof(type) *)name, BPF_ENUMVAL_EXISTS)
#define bpf_core_enum_value(type, name) __builtin_preserve_enum_value(*(typeof(type) *)name, BPF_ENUMVAL_VALUE)

/* ---- one read --------------------------------------------------------------------------------------- */

#define bpf_core_read(dst, size, src) bpf_probe_read_kernel(dst, size, (const void *)__builtin_preserve_access_index(src))
#define bpf_core_read_user(dst, size, src) bpf_probe_read_user(dst, size, (const void *)__builtin_preserve_access_index(src))
#define bpf_core_read_str(dst, size, src)                                                                              \
    bpf_probe_read_kernel_str(dst, size, (const void *)__builtin_preserve_access_index(src))
#define bpf_core_read_user_str(dst, size, src)                                                                         \
    bpf_probe_read_user_str(dst, size, (const void *)__builtin_preserve_access_index(src))

/* ---- bit-fields: load the bytes that hold it, shift it to the top and down again ------------------------- */

#define ___bpf_bits_info(s, field, kind) __builtin_preserve_field_info((s)->field, kind)
#define ___bpf_bits_extract(s, field, raw)                                                                             \
    ({                                                                                                                 \
        unsigned long long __raw = (raw) << ___bpf_bits_info(s, field, BPF_FIELD_LSHIFT_U64);                          \
        if (___bpf_bits_info(s, field, BPF_FIELD_SIGNED))                                                              \
            __raw = (long long)__raw >> ___bpf_bits_info(s, field, BPF_FIELD_RSHIFT_U64);                              \
        else                                                                                                           \
            __raw = __raw >> ___bpf_bits_info(s, field, BPF_FIELD_RSHIFT_U64);                                         \
        __raw;                                                                                                         \
    })

/* Little-endian: the low bytes of the 64-bit variable receive the field's bytes. */
#define BPF_CORE_READ_BITFIELD_PROBED(s, field)                                                                        \
    ({                                                                                                                 \
        unsigned long long __value = 0;                                                                                \
        bpf_probe_read_kernel(&__value, ___bpf_bits_info(s, field, BPF_FIELD_BYTE_SIZE),                               \
                              (const void *)(s) + ___bpf_bits_info(s, field, BPF_FIELD_BYTE_OFFSET));                  \
        ___bpf_bits_extract(s, field, __value);                                                                        \
    })

#define BPF_CORE_READ_BITFIELD(s, field)                                                                               \
    ({                                                                                                                 \
        const void *__at = (const void *)(s) + ___bpf_bits_info(s, field, BPF_FIELD_BYTE_OFFSET);                      \
        unsigned long long __value = 0;                                                                                \
        barrier_var(__at);                                                                                             \
        switch (___bpf_bits_info(s, field, BPF_FIELD_BYTE_SIZE)) {                                                     \
        case 1: __value = *(const unsigned char *)__at; break;                                                         \
        case 2: __value = *(const unsigned short *)__at; break;                                                        \
        case 4: __value = *(const unsigned int *)__at; break;                                                          \
        case 8: __value = *(const unsigned long long *)__at; break;                                                    \
        }                                                                                                              \
        ___bpf_bits_extract(s, field, __value);                                                                        \
    })

/*
 * ---- chains: BPF_CORE_READ(task, mm, exe_file, f_inode) reads task->mm->exe_file->f_inode --------------
 *
 * ___bpf_chainN(read, last, dst, p, a, b, …) has N names after p. Every pointer but the last value is read into
 * __step by `read`; the last one is read into *dst by `last`, whose value is the chain's.
 */
#define ___bpf_chain1(read, last, dst, p, a) last((void *)(dst), sizeof(*(dst)), &(p)->a)
#define ___bpf_chain2(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain1(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain3(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain2(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain4(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain3(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain5(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain4(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain6(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain5(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain7(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain6(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain8(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain7(read, last, dst, ((typeof((p)->a))__step), rest)
#define ___bpf_chain9(read, last, dst, p, a, rest...)                                                                  \
    read(&__step, sizeof(__step), &(p)->a);                                                                            \
    ___bpf_chain8(read, last, dst, ((typeof((p)->a))__step), rest)

#define ___bpf_chain(read, last, dst, p, names...)                                                                     \
    ({                                                                                                                 \
        const void *__step __attribute__((unused));                                                                    \
        ___bpf_apply(___bpf_chain, ___bpf_narg(names))(read, last, dst, p, names);                                     \
    })

/* The lvalue p->a->b->…, for its type alone. */
#define ___bpf_arrow1(p, a) (p)->a
#define ___bpf_arrow2(p, a, rest...) ___bpf_arrow1((p)->a, rest)
#define ___bpf_arrow3(p, a, rest...) ___bpf_arrow2((p)->a, rest)
#define ___bpf_arrow4(p, a, rest...) ___bpf_arrow3((p)->a, rest)
#define ___bpf_arrow5(p, a, rest...) ___bpf_arrow4((p)->a, rest)
#define ___bpf_arrow6(p, a, rest...) ___bpf_arrow5((p)->a, rest)
#define ___bpf_arrow7(p, a, rest...) ___bpf_arrow6((p)->a, rest)
#define ___bpf_arrow8(p, a, rest...) ___bpf_arrow7((p)->a, rest)
#define ___bpf_arrow9(p, a, rest...) ___bpf_arrow8((p)->a, rest)
#define ___bpf_arrow(p, names...) ___bpf_apply(___bpf_arrow, ___bpf_narg(names))(p, names)

#define ___bpf_chain_value(into, p, names...)                                                                          \
    ({                                                                                                                 \
        typeof(___bpf_arrow(p, names)) __result;                                                                       \
        into(&__result, p, names);                                                                                     \
        __result;                                                                                                      \
    })

#define BPF_CORE_READ_INTO(dst, src, names...) ___bpf_chain(bpf_core_read, bpf_core_read, dst, src, names)
#define BPF_CORE_READ_USER_INTO(dst, src, names...) ___bpf_chain(bpf_core_read_user, bpf_core_read_user, dst, src, names)
#define BPF_CORE_READ_STR_INTO(dst, src, names...) ___bpf_chain(bpf_core_read, bpf_core_read_str, dst, src, names)
#define BPF_CORE_READ_USER_STR_INTO(dst, src, names...)                                                                \
    ___bpf_chain(bpf_core_read_user, bpf_core_read_user_str, dst, src, names)
#define BPF_CORE_READ(src, names...) ___bpf_chain_value(BPF_CORE_READ_INTO, src, names)
#define BPF_CORE_READ_USER(src, names...) ___bpf_chain_value(BPF_CORE_READ_USER_INTO, src, names)

/* The same without CO-RE: offsets are those of the program's own types. */
#define BPF_PROBE_READ_INTO(dst, src, names...)                                                                        \
    ___bpf_chain(bpf_probe_read_kernel, bpf_probe_read_kernel, dst, src, names)
#define BPF_PROBE_READ_USER_INTO(dst, src, names...)                                                                   \
    ___bpf_chain(bpf_probe_read_user, bpf_probe_read_user, dst, src, names)
#define BPF_PROBE_READ_STR_INTO(dst, src, names...)                                                                    \
    ___bpf_chain(bpf_probe_read_kernel, bpf_probe_read_kernel_str, dst, src, names)
#define BPF_PROBE_READ_USER_STR_INTO(dst, src, names...)                                                               \
    ___bpf_chain(bpf_probe_read_user, bpf_probe_read_user_str, dst, src, names)
#define BPF_PROBE_READ(src, names...) ___bpf_chain_value(BPF_PROBE_READ_INTO, src, names)
#define BPF_PROBE_READ_USER(src, names...) ___bpf_chain_value(BPF_PROBE_READ_USER_INTO, src, names)

#endif
