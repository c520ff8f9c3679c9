#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u64);
} slots SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
    __uint(max_entries, 64);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __type(key, __u16);
    __type(value, __u64);
} ports SEC(".maps");

SEC("raw_tp/sys_enter")
int count(struct bpf_raw_tracepoint_args *ctx)
{
    __u32 key = bpf_get_smp_processor_id() & 3;
    __u16 port = bpf_htons(80);
    __u64 one = 1, *value = bpf_map_lookup_elem(&slots, &key);

    if (value)
        *value += 1;
    bpf_map_update_elem(&ports, &port, &one, BPF_ANY);
    return ctx->args[1] == bpf_ntohl(5);
}

char LICENSE[] SEC("license") = "GPL";
