#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

const volatile pid_t target_pid = 0;
const volatile bool verbose = false;
u64 hits = 0;
u64 weights[4] = { 1, 2, 3, 4 };
static u64 hidden_total;
char message[] = "hello";

SEC("uprobe")
int tally(void *ctx)
{
    pid_t pid = bpf_get_current_pid_tgid() >> 32;

    if (target_pid && pid != target_pid)
        return 0;
    __sync_fetch_and_add(&hits, 1);
    hidden_total += weights[hits & 3];
    if (verbose)
        bpf_printk("%s %d %lu %lu", message, pid, hits, hidden_total);
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
