#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

extern int LINUX_KERNEL_VERSION __kconfig;
extern enum libbpf_tristate CONFIG_BPF_SYSCALL __kconfig __weak;
extern const void bpf_prog_fops __ksym __weak;

SEC("ksyscall/kill")
int BPF_KSYSCALL(on_kill, pid_t pid, int sig)
{
    if (LINUX_KERNEL_VERSION < KERNEL_VERSION(5, 8, 0) || CONFIG_BPF_SYSCALL != TRI_YES)
        return 0;
    bpf_printk("kill %d %d", pid, sig);
    return sig;
}

char LICENSE[] SEC("license") = "GPL";
