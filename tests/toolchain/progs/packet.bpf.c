#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 128);
    __type(key, __be32);
    __type(value, __u64);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} sources SEC(".maps");

static bool parse(void *data, void *end, __be32 *source)
{
    struct ethhdr *eth = data;
    struct iphdr *ip = (void *)(eth + 1);

    if ((void *)(ip + 1) > end)
        return false;
    switch (eth->h_proto) {
    case bpf_htons(ETH_P_IP):
        *source = ip->saddr;
        return ip->protocol == IPPROTO_TCP;
    case __bpf_constant_htons(ETH_P_IPV6):
    default:
        return false;
    }
}

SEC("xdp")
int filter(struct xdp_md *ctx)
{
    __be32 source;
    __u64 one = 1;
    int i, sum = 0;

    if (!parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &source))
        return XDP_PASS;
    bpf_for(i, 0, 10)
        sum += i;
    bpf_repeat(3)
        sum++;
    bpf_map_update_elem(&sources, &source, &one, BPF_ANY);
    return sum ? XDP_DROP : XDP_PASS;
}

SEC("tc")
int classify(struct __sk_buff *skb)
{
    __u16 proto;

    bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &proto, sizeof(proto));
    return __bpf_ntohs(proto) == ETH_P_ARP ? TC_ACT_SHOT : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
