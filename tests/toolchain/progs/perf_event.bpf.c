#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct opening {
    u64 at;
    char name[32];
};

struct {
    __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
    __uint(key_size, sizeof(int));
    __uint(value_size, sizeof(u32));
} samples SEC(".maps");

SEC("tracepoint/syscalls/sys_enter_openat")
int opened(struct trace_event_raw_sys_enter *ctx)
{
    struct opening s = { .at = bpf_ktime_get_boot_ns() };

    bpf_probe_read_user_str(s.name, sizeof(s.name), (const char *)ctx->args[1]);
    bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &s, sizeof(s));
    return 0;
}

SEC("fentry/do_unlinkat")
int BPF_PROG(unlinked, int dfd, struct filename *name)
{
    return dfd;
}

char LICENSE[] SEC("license") = "GPL";
