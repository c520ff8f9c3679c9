/* Byte order of packets and of this machine. The builtins are constant expressions when x is one. */
#ifndef __BPF_ENDIAN__
#define __BPF_ENDIAN__

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define __bpf_big16(x) __builtin_bswap16(x)
#define __bpf_big32(x) __builtin_bswap32(x)
#define __bpf_big64(x) __builtin_bswap64(x)
#elif __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define __bpf_big16(x) ((unsigned short)(x))
#define __bpf_big32(x) ((unsigned int)(x))
#define __bpf_big64(x) ((unsigned long long)(x))
#else
#error "the byte order of the target is not known"
#endif

#define bpf_htons(x) __bpf_big16(x)
#define bpf_ntohs(x) __bpf_big16(x)
#define bpf_htonl(x) __bpf_big32(x)
#define bpf_ntohl(x) __bpf_big32(x)
#define bpf_cpu_to_be64(x) __bpf_big64(x)
#define bpf_be64_to_cpu(x) __bpf_big64(x)

/* Programs use libbpf's inner names as well. */
#define __bpf_htons(x) bpf_htons(x)
#define __bpf_ntohs(x) bpf_ntohs(x)
#define __bpf_htonl(x) bpf_htonl(x)
#define __bpf_ntohl(x) bpf_ntohl(x)
#define __bpf_constant_htons(x) bpf_htons(x)
#define __bpf_constant_ntohs(x) bpf_ntohs(x)
#define __bpf_constant_htonl(x) bpf_htonl(x)
#define __bpf_constant_ntohl(x) bpf_ntohl(x)
#define __bpf_cpu_to_be64(x) bpf_cpu_to_be64(x)
#define __bpf_be64_to_cpu(x) bpf_be64_to_cpu(x)

#endif
