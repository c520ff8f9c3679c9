#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, u32);
    __type(value, u64);
} counts SEC(".maps");

SEC("uprobe/libc.so.6:malloc")
int BPF_UPROBE(on_malloc, size_t size)
{
    u32 tid = (u32)bpf_get_current_pid_tgid();
    u64 *seen = bpf_map_lookup_elem(&counts, &tid);
    u64 first = size;

    if (seen)
        __sync_fetch_and_add(seen, size);
    else
        bpf_map_update_elem(&counts, &tid, &first, BPF_NOEXIST);
    return 0;
}

SEC("uretprobe/libc.so.6:malloc")
int BPF_URETPROBE(on_malloc_return, void *result)
{
    if (!result)
        bpf_printk("malloc failed in %d", bpf_get_current_pid_tgid() >> 32);
    return 0;
}

SEC("uprobe/libc.so.6:mmap")
int BPF_KPROBE(on_mmap, void *addr, size_t len, int prot, int flags, int fd, long off)
{
    bpf_printk("%lx %lx %x %x %d", addr, len, prot, flags, fd);
    return PT_REGS_IP(ctx) && PT_REGS_SP(ctx) && PT_REGS_FP(ctx) && off;
}

char LICENSE[] SEC("license") = "GPL";
