#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

struct task_struct___old {
    long state;
} __attribute__((preserve_access_index));

struct task_struct___bits {
    unsigned int in_execve : 1;
    int negative : 3;
} __attribute__((preserve_access_index));

enum made_up___flavor {
    MADE_UP = 3,
};

u64 sink;

SEC("kprobe/do_exit")
int BPF_KPROBE(leave, long code)
{
    struct task_struct *task = (void *)bpf_get_current_task();
    char comm[16];

    sink += BPF_CORE_READ(task, real_parent, group_leader, tgid);
    sink += BPF_CORE_READ(task, mm, exe_file, f_inode, i_ino);
    sink += BPF_CORE_READ_STR_INTO(&comm, task, comm);
    BPF_CORE_READ_INTO(&sink, task, start_time);
    bpf_core_read(&sink, sizeof(sink), &task->start_time);
    sink += BPF_PROBE_READ(task, group_leader, pid);
    if (bpf_core_field_exists(((struct task_struct___old *)task)->state))
        sink += BPF_CORE_READ((struct task_struct___old *)task, state);
    if (bpf_core_field_exists(struct task_struct, exit_code))
        sink += bpf_core_field_offset(struct task_struct, comm) + bpf_core_field_size(task->comm);
    if (bpf_core_type_exists(struct task_struct) && bpf_core_type_matches(struct list_head))
        sink += bpf_core_type_size(struct list_head) + bpf_core_type_id_kernel(struct file);
    sink += BPF_CORE_READ_BITFIELD_PROBED((struct task_struct___bits *)task, in_execve);
    if (bpf_core_field_exists(struct task_struct___bits, negative))
        sink += BPF_CORE_READ_BITFIELD((struct task_struct___bits *)task, negative);
    if (bpf_core_enum_value_exists(enum bpf_map_type, BPF_MAP_TYPE_RINGBUF))
        sink += bpf_core_enum_value(enum bpf_map_type, BPF_MAP_TYPE_RINGBUF);
    if (bpf_core_enum_value_exists(enum made_up___flavor, MADE_UP))
        sink++;
    return PT_REGS_PARM1_CORE(ctx) == code;
}

char LICENSE[] SEC("license") = "GPL";
