/* The programs of tests/session; each test loads those it names and says where they go. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 4096);
    __type(key, __u32);
    __type(value, __u64);
} by_thread SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u64);
} per_cpu SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 16);
    __type(key, __u32);
    __type(value, __s64);
} out SEC(".maps");

struct event {
    __u64 x;
    __u32 tid;
    char text[12];
};
const struct event *unused __attribute__((unused));

struct {
    __uint(type, BPF_MAP_TYPE_RINGBUF);
    __uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(key_size, 4);
    __uint(value_size, 4);
} perf SEC(".maps");

__u64 returned;
__u64 returns;

static void put(__u32 slot, __s64 value)
{
    __s64 *at = bpf_map_lookup_elem(&out, &slot);
    if (at)
        *at = value;
}

SEC("uprobe")
int nothing(struct pt_regs *ctx)
{
    return 0;
}

SEC("uprobe")
int count(struct pt_regs *ctx)
{
    __u32 tid = bpf_get_current_pid_tgid();
    __u64 one = 1, *seen = bpf_map_lookup_elem(&by_thread, &tid);
    if (seen)
        __sync_fetch_and_add(seen, 1);
    else
        bpf_map_update_elem(&by_thread, &tid, &one, BPF_NOEXIST);
    return 0;
}

SEC("uprobe")
int count_per_cpu(struct pt_regs *ctx)
{
    __u32 zero = 0;
    __u64 *seen = bpf_map_lookup_elem(&per_cpu, &zero);
    if (seen)
        (*seen)++;
    return 0;
}

SEC("uprobe")
int BPF_UPROBE(stream, __u64 x, const char *text)
{
    struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
    struct event copy = {.x = x, .tid = (__u32)bpf_get_current_pid_tgid()};
    if (event) {
        *event = copy;
        bpf_probe_read_user_str(event->text, sizeof(event->text), text);
        bpf_ringbuf_submit(event, 0);
    }
    bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &copy, sizeof(copy));
    if (x < 3)
        bpf_printk("x is %llu in %s", x, text);
    return 0;
}

SEC("uretprobe")
int BPF_URETPROBE(on_return, __u64 value)
{
    __sync_fetch_and_add(&returned, value);
    __sync_fetch_and_add(&returns, 1);
    return 0;
}

SEC("uprobe")
int read_badly(struct pt_regs *ctx)
{
    char text[16] = "untouched";
    __u64 word = 7;
    put(0, bpf_probe_read_user(&word, sizeof(word), (void *)0));
    put(1, word);
    put(2, bpf_probe_read_user(&word, sizeof(word), (void *)0xffff800000000000));
    put(3, bpf_probe_read_user_str(text, sizeof(text), (void *)16));
    put(4, text[0]);
    put(5, bpf_probe_read_user_str(text, sizeof(text), (void *)PT_REGS_PARM2(ctx)));
    put(6, bpf_probe_read_user_str(text, 3, (void *)PT_REGS_PARM2(ctx)));
    put(7, text[2]);
    put(8, bpf_probe_read_user(&word, 8, (void *)PT_REGS_SP(ctx)));
    return 0;
}

SEC("uprobe")
int all_registers(struct pt_regs *ctx)
{
    put(0, PT_REGS_PARM1(ctx));
    put(1, PT_REGS_PARM2(ctx));
    put(2, PT_REGS_PARM3(ctx));
    put(3, PT_REGS_PARM4(ctx));
    put(4, PT_REGS_PARM5(ctx));
    put(5, ctx->r9);
    put(6, ctx->bx);
    put(7, ctx->r12);
    put(8, ctx->r15);
    put(9, PT_REGS_IP(ctx));
    put(10, PT_REGS_SP(ctx));
    put(11, bpf_get_func_ip(ctx));
    put(12, ctx->cs);
    return 0;
}

SEC("uprobe")
int arguments(struct pt_regs *ctx)
{
    __u64 value = 0, stacked[2] = {};
    for (int i = 0; i < 6; i++) {
        bpf_get_func_arg(ctx, i, &value);
        put(i, value);
    }
    bpf_probe_read_user(stacked, sizeof(stacked), (void *)(PT_REGS_SP(ctx) + 8));
    put(6, stacked[0]);
    put(7, stacked[1]);
    put(8, bpf_get_func_arg(ctx, 6, &value));
    put(9, bpf_get_func_ret(ctx, &value));
    return 0;
}
