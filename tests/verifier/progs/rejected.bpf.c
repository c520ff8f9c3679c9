/* Programs with the mistakes that people make. The comment behind a line is the rejection that it must get. */
#include "common.h"

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16);
    __type(key, u64);
    __type(value, u64);
} counts SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 4096);
} ring SEC(".maps");

struct padded {
    u8 kind;
    u64 id;
};

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 16);
    __type(key, struct padded);
    __type(value, u64);
} by_struct SEC(".maps");

u64 table[32];
const volatile u32 limit = 4;

SEC("uprobe")
int no_null_check(struct pt_regs *ctx)
{
    u64 key = 1, *value = bpf_map_lookup_elem(&counts, &key);

    *value += 1; // null-deref
    return 0;
}

SEC("uprobe")
int index_too_large(struct pt_regs *ctx)
{
    u64 i = PT_REGS_PARM1(ctx);

    if (i > 32)
        return 0;
    table[i] = 1; // mem-out-of-bounds
    return 0;
}

SEC("uprobe")
int follows_an_address(struct pt_regs *ctx)
{
    u64 *address = (u64 *)PT_REGS_PARM1(ctx);

    return *address; // bad-pointer
}

SEC("uprobe")
int forgets_a_record(struct pt_regs *ctx)
{
    u64 *record = bpf_ringbuf_reserve(&ring, 8, 0);

    if (!record)
        return 0;
    *record = PT_REGS_PARM1(ctx);
    if (*record == 7)
        return 1;
    bpf_ringbuf_submit(record, 0);
    return 0; // unreleased-ref
}

SEC("uprobe")
int key_with_padding(struct pt_regs *ctx)
{
    struct padded key;
    u64 one = 1;

    key.kind = 1;
    key.id = PT_REGS_PARM1(ctx);
    bpf_map_update_elem(&by_struct, &key, &one, 0); // uninit-stack
    return 0;
}

SEC("uprobe")
int unbounded_size(struct pt_regs *ctx)
{
    bpf_probe_read_user(table, PT_REGS_PARM2(ctx), (void *)PT_REGS_PARM1(ctx)); // helper-size
    return 0;
}

SEC("uprobe")
int writes_the_context(struct pt_regs *ctx)
{
    ctx->rax = 1; // ctx-write
    return 0;
}

SEC("uprobe")
int unbounded_loop(struct pt_regs *ctx)
{
    u64 n = PT_REGS_PARM1(ctx);

    for (u64 i = 0; i < n; i++) // too-complex
        __sync_fetch_and_add(&table[0], i);
    return 0;
}

SEC("uprobe")
int calls_a_kernel_helper(struct pt_regs *ctx)
{
    return bpf_get_current_task() != 0; // helper-unsupported
}
