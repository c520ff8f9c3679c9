#include <stddef.h>
#include <stdint.h>
#include <linux/bpf.h>
#include <linux/version.h>
#include <bpf/bpf_helpers.h>

struct bpf_map_def SEC("maps") old_map = {
    .type = BPF_MAP_TYPE_ARRAY,
    .key_size = sizeof(uint32_t),
    .value_size = sizeof(uint64_t),
    .max_entries = 16,
};

SEC("uprobe/old")
int old_style(void *ctx)
{
    uint32_t key = 3;
    uint64_t *value = bpf_map_lookup_elem(&old_map, &key);

    if (value)
        (*value)++;
    return 0;
}

char _license[] SEC("license") = "GPL";
uint32_t _version SEC("version") = LINUX_VERSION_CODE;
