#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct point {
    __u64 x, y;
};

static __noinline __u64 static_sum(struct point *p)
{
    return p->x + p->y;
}

__noinline int global_max(int a, int b)
{
    return a > b ? a : b;
}

__hidden __noinline int global_hidden(int a)
{
    return global_max(a, 7) * 3;
}

static __always_inline int inlined(int a)
{
    return a + 1;
}

SEC("uprobe")
int first(void *ctx)
{
    struct point p = { bpf_ktime_get_ns(), bpf_get_prandom_u32() };

    return static_sum(&p) + global_max(inlined(p.y), 3);
}

SEC("uprobe")
int second(void *ctx)
{
    return global_hidden(bpf_get_prandom_u32());
}

char LICENSE[] SEC("license") = "GPL";
