/* Made by userbpf.toolchain.gen_helper_defs from the table of helpers. Do not edit. */
#ifndef __BPF_HELPER_DEFS__
#define __BPF_HELPER_DEFS__

struct __sk_buff;
struct bpf_dynptr;
struct bpf_fib_lookup;
struct bpf_perf_event_data;
struct bpf_perf_event_value;
struct bpf_pidns_info;
struct bpf_redir_neigh;
struct bpf_sock;
struct bpf_sock_addr;
struct bpf_sock_ops;
struct bpf_sock_tuple;
struct bpf_spin_lock;
struct bpf_sysctl;
struct bpf_tcp_sock;
struct bpf_timer;
struct bpf_tunnel_key;
struct bpf_xfrm_state;
struct btf_ptr;
struct cgroup;
struct file;
struct inode;
struct iphdr;
struct ipv6hdr;
struct linux_binprm;
struct mptcp_sock;
struct path;
struct pt_regs;
struct seq_file;
struct sk_msg_md;
struct sk_reuseport_md;
struct sockaddr;
struct socket;
struct task_struct;
struct tcp6_sock;
struct tcp_request_sock;
struct tcp_sock;
struct tcp_timewait_sock;
struct tcphdr;
struct udp6_sock;
struct unix_sock;
struct xdp_md;

/* Pointer to the value of key, or NULL. */
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;

/* Sets the value of key; flags BPF_ANY, BPF_NOEXIST, BPF_EXIST. 0 or a negative errno. */
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;

/* Removes key. 0, or -ENOENT when it is not there. */
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;

/* Copies size bytes from any address; 0, or -EFAULT and zeroed memory when it cannot be read. */
static long (*const bpf_probe_read)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)4;

/* Nanoseconds of CLOCK_MONOTONIC. */
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;

/* Writes a formatted line to the trace, with up to three values. Length written or a negative errno. */
static long (*const bpf_trace_printk)(const char *fmt, __u32 fmt_size, ...) = (void *)6;

/* A pseudo-random 32-bit number. */
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;

/* Number of the CPU that the program runs on. */
static __u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;

/* Linux 4.1. Not offered by userbpf. */
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len, __u64 flags) = (void *)9;

/* Linux 4.1. Not offered by userbpf. */
static long (*const bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 size) = (void *)10;

/* Linux 4.1. Not offered by userbpf. */
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) = (void *)11;

/* Linux 4.2. Not offered by userbpf. */
static long (*const bpf_tail_call)(void *ctx, void *prog_array_map, __u32 index) = (void *)12;

/* Linux 4.2. Not offered by userbpf. */
static long (*const bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) = (void *)13;

/* Process id in the upper, thread id in the lower 32 bits. */
static __u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;

/* Real group id in the upper, user id in the lower 32 bits. */
static __u64 (*const bpf_get_current_uid_gid)(void) = (void *)15;

/* Name of the current thread, NUL-padded to size. */
static long (*const bpf_get_current_comm)(void *buf, __u32 size_of_buf) = (void *)16;

/* Linux 4.3. Not offered by userbpf. */
static __u32 (*const bpf_get_cgroup_classid)(struct __sk_buff *skb) = (void *)17;

/* Linux 4.3. Not offered by userbpf. */
static long (*const bpf_skb_vlan_push)(struct __sk_buff *skb, __be16 vlan_proto, __u16 vlan_tci) = (void *)18;

/* Linux 4.3. Not offered by userbpf. */
static long (*const bpf_skb_vlan_pop)(struct __sk_buff *skb) = (void *)19;

/* Linux 4.3. Not offered by userbpf. */
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)20;

/* Linux 4.3. Not offered by userbpf. */
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)21;

/* Linux 4.3. Not offered by userbpf. */
static __u64 (*const bpf_perf_event_read)(void *map, __u64 flags) = (void *)22;

/* Linux 4.4. Not offered by userbpf. */
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;

/* Linux 4.4. Not offered by userbpf. */
static __u32 (*const bpf_get_route_realm)(struct __sk_buff *skb) = (void *)24;

/* Appends a raw sample to the ring of the CPU that flags selects. 0 or a negative errno. */
static long (*const bpf_perf_event_output)(void *ctx, void *map, __u64 flags, void *data, __u64 size) = (void *)25;

/* Linux 4.5. Not offered by userbpf. */
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;

/* Linux 4.6. Not offered by userbpf. */
static long (*const bpf_get_stackid)(void *ctx, void *map, __u64 flags) = (void *)27;

/* Linux 4.6. Not offered by userbpf. */
static __s64 (*const bpf_csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __wsum seed) = (void *)28;

/* Linux 4.6. Not offered by userbpf. */
static long (*const bpf_skb_get_tunnel_opt)(struct __sk_buff *skb, void *opt, __u32 size) = (void *)29;

/* Linux 4.6. Not offered by userbpf. */
static long (*const bpf_skb_set_tunnel_opt)(struct __sk_buff *skb, void *opt, __u32 size) = (void *)30;

/* Linux 4.8. Not offered by userbpf. */
static long (*const bpf_skb_change_proto)(struct __sk_buff *skb, __be16 proto, __u64 flags) = (void *)31;

/* Linux 4.8. Not offered by userbpf. */
static long (*const bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)32;

/* Linux 4.8. Not offered by userbpf. */
static long (*const bpf_skb_under_cgroup)(struct __sk_buff *skb, void *map, __u32 index) = (void *)33;

/* Linux 4.8. Not offered by userbpf. */
static __u32 (*const bpf_get_hash_recalc)(struct __sk_buff *skb) = (void *)34;

/* Linux 4.8. Not offered by userbpf. */
static __u64 (*const bpf_get_current_task)(void) = (void *)35;

/* Linux 4.8. Not offered by userbpf. */
static long (*const bpf_probe_write_user)(void *dst, const void *src, __u32 len) = (void *)36;

/* Linux 4.9. Not offered by userbpf. */
static long (*const bpf_current_task_under_cgroup)(void *map, __u32 index) = (void *)37;

/* Linux 4.9. Not offered by userbpf. */
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)38;

/* Linux 4.9. Not offered by userbpf. */
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;

/* Linux 4.9. Not offered by userbpf. */
static __s64 (*const bpf_csum_update)(struct __sk_buff *skb, __wsum csum) = (void *)40;

/* Linux 4.9. Not offered by userbpf. */
static void (*const bpf_set_hash_invalid)(struct __sk_buff *skb) = (void *)41;

/* Linux 4.10. Not offered by userbpf. */
static long (*const bpf_get_numa_node_id)(void) = (void *)42;

/* Linux 4.10. Not offered by userbpf. */
static long (*const bpf_skb_change_head)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)43;

/* Linux 4.10. Not offered by userbpf. */
static long (*const bpf_xdp_adjust_head)(struct xdp_md *xdp_md, int delta) = (void *)44;

/* Copies a string of at most size bytes with its NUL; its length with NUL, or -EFAULT. */
static long (*const bpf_probe_read_str)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)45;

/* Linux 4.12. Not offered by userbpf. */
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;

/* Linux 4.12. Not offered by userbpf. */
static __u32 (*const bpf_get_socket_uid)(struct __sk_buff *skb) = (void *)47;

/* Linux 4.13. Not offered by userbpf. */
static long (*const bpf_set_hash)(struct __sk_buff *skb, __u32 hash) = (void *)48;

/* Linux 4.13. Not offered by userbpf. */
static long (*const bpf_setsockopt)(void *bpf_socket, int level, int optname, void *optval, int optlen) = (void *)49;

/* Linux 4.13. Not offered by userbpf. */
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 len_diff, __u32 mode, __u64 flags) = (void *)50;

/* Linux 4.14. Not offered by userbpf. */
static long (*const bpf_redirect_map)(void *map, __u32 key, __u64 flags) = (void *)51;

/* Linux 4.14. Not offered by userbpf. */
static long (*const bpf_sk_redirect_map)(struct __sk_buff *skb, void *map, __u32 key, __u64 flags) = (void *)52;

/* Linux 4.14. Not offered by userbpf. */
static long (*const bpf_sock_map_update)(struct bpf_sock_ops *skops, void *map, void *key, __u64 flags) = (void *)53;

/* Linux 4.15. Not offered by userbpf. */
static long (*const bpf_xdp_adjust_meta)(struct xdp_md *xdp_md, int delta) = (void *)54;

/* Linux 4.15. Not offered by userbpf. */
static long (*const bpf_perf_event_read_value)(void *map, __u64 flags, struct bpf_perf_event_value *buf, __u32 buf_size) = (void *)55;

/* Linux 4.15. Not offered by userbpf. */
static long (*const bpf_perf_prog_read_value)(struct bpf_perf_event_data *ctx, struct bpf_perf_event_value *buf, __u32 buf_size) = (void *)56;

/* Linux 4.15. Not offered by userbpf. */
static long (*const bpf_getsockopt)(void *bpf_socket, int level, int optname, void *optval, int optlen) = (void *)57;

/* Linux 4.16. Not offered by userbpf. */
static long (*const bpf_override_return)(struct pt_regs *regs, __u64 rc) = (void *)58;

/* Linux 4.16. Not offered by userbpf. */
static long (*const bpf_sock_ops_cb_flags_set)(struct bpf_sock_ops *bpf_sock, int argval) = (void *)59;

/* Linux 4.17. Not offered by userbpf. */
static long (*const bpf_msg_redirect_map)(struct sk_msg_md *msg, void *map, __u32 key, __u64 flags) = (void *)60;

/* Linux 4.17. Not offered by userbpf. */
static long (*const bpf_msg_apply_bytes)(struct sk_msg_md *msg, __u32 bytes) = (void *)61;

/* Linux 4.17. Not offered by userbpf. */
static long (*const bpf_msg_cork_bytes)(struct sk_msg_md *msg, __u32 bytes) = (void *)62;

/* Linux 4.17. Not offered by userbpf. */
static long (*const bpf_msg_pull_data)(struct sk_msg_md *msg, __u32 start, __u32 end, __u64 flags) = (void *)63;

/* Linux 4.17. Not offered by userbpf. */
static long (*const bpf_bind)(struct bpf_sock_addr *ctx, struct sockaddr *addr, int addr_len) = (void *)64;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_xdp_adjust_tail)(struct xdp_md *xdp_md, int delta) = (void *)65;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_skb_get_xfrm_state)(struct __sk_buff *skb, __u32 index, struct bpf_xfrm_state *xfrm_state, __u32 size, __u64 flags) = (void *)66;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_get_stack)(void *ctx, void *buf, __u32 size, __u64 flags) = (void *)67;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_skb_load_bytes_relative)(const void *skb, __u32 offset, void *to, __u32 len, __u32 start_header) = (void *)68;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int plen, __u32 flags) = (void *)69;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_sock_hash_update)(struct bpf_sock_ops *skops, void *map, void *key, __u64 flags) = (void *)70;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_msg_redirect_hash)(struct sk_msg_md *msg, void *map, void *key, __u64 flags) = (void *)71;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_sk_redirect_hash)(struct __sk_buff *skb, void *map, void *key, __u64 flags) = (void *)72;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_lwt_push_encap)(struct __sk_buff *skb, __u32 type, void *hdr, __u32 len) = (void *)73;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_lwt_seg6_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len) = (void *)74;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_lwt_seg6_adjust_srh)(struct __sk_buff *skb, __u32 offset, __s32 delta) = (void *)75;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_lwt_seg6_action)(struct __sk_buff *skb, __u32 action, void *param, __u32 param_len) = (void *)76;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_rc_repeat)(void *ctx) = (void *)77;

/* Linux 4.18. Not offered by userbpf. */
static long (*const bpf_rc_keydown)(void *ctx, __u32 protocol, __u64 scancode, __u32 toggle) = (void *)78;

/* Linux 4.18. Not offered by userbpf. */
static __u64 (*const bpf_skb_cgroup_id)(struct __sk_buff *skb) = (void *)79;

/* Linux 4.18. Not offered by userbpf. */
static __u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;

/* Linux 4.19. Not offered by userbpf. */
static void *(*const bpf_get_local_storage)(void *map, __u64 flags) = (void *)81;

/* Linux 4.19. Not offered by userbpf. */
static long (*const bpf_sk_select_reuseport)(struct sk_reuseport_md *reuse, void *map, void *key, __u64 flags) = (void *)82;

/* Linux 4.19. Not offered by userbpf. */
static __u64 (*const bpf_skb_ancestor_cgroup_id)(struct __sk_buff *skb, int ancestor_level) = (void *)83;

/* Linux 4.20. Not offered by userbpf. */
static struct bpf_sock *(*const bpf_sk_lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size, __u64 netns, __u64 flags) = (void *)84;

/* Linux 4.20. Not offered by userbpf. */
static struct bpf_sock *(*const bpf_sk_lookup_udp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size, __u64 netns, __u64 flags) = (void *)85;

/* Linux 4.20. Not offered by userbpf. */
static long (*const bpf_sk_release)(void *sock) = (void *)86;

/* Linux 4.20. Not offered by userbpf. */
static long (*const bpf_map_push_elem)(void *map, const void *value, __u64 flags) = (void *)87;

/* Linux 4.20. Not offered by userbpf. */
static long (*const bpf_map_pop_elem)(void *map, void *value) = (void *)88;

/* Linux 4.20. Not offered by userbpf. */
static long (*const bpf_map_peek_elem)(void *map, void *value) = (void *)89;

/* Linux 4.20. Not offered by userbpf. */
static long (*const bpf_msg_push_data)(struct sk_msg_md *msg, __u32 start, __u32 len, __u64 flags) = (void *)90;

/* Linux 5.0. Not offered by userbpf. */
static long (*const bpf_msg_pop_data)(struct sk_msg_md *msg, __u32 start, __u32 len, __u64 flags) = (void *)91;

/* Linux 5.0. Not offered by userbpf. */
static long (*const bpf_rc_pointer_rel)(void *ctx, __s32 rel_x, __s32 rel_y) = (void *)92;

/* Linux 5.1. Not offered by userbpf. */
static long (*const bpf_spin_lock)(struct bpf_spin_lock *lock) = (void *)93;

/* Linux 5.1. Not offered by userbpf. */
static long (*const bpf_spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;

/* Linux 5.1. Not offered by userbpf. */
static struct bpf_sock *(*const bpf_sk_fullsock)(struct bpf_sock *sk) = (void *)95;

/* Linux 5.1. Not offered by userbpf. */
static struct bpf_tcp_sock *(*const bpf_tcp_sock)(struct bpf_sock *sk) = (void *)96;

/* Linux 5.1. Not offered by userbpf. */
static long (*const bpf_skb_ecn_set_ce)(struct __sk_buff *skb) = (void *)97;

/* Linux 5.1. Not offered by userbpf. */
static struct bpf_sock *(*const bpf_get_listener_sock)(struct bpf_sock *sk) = (void *)98;

/* Linux 5.2. Not offered by userbpf. */
static struct bpf_sock *(*const bpf_skc_lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 tuple_size, __u64 netns, __u64 flags) = (void *)99;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_tcp_check_syncookie)(void *sk, void *iph, __u32 iph_len, struct tcphdr *th, __u32 th_len) = (void *)100;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_sysctl_get_name)(struct bpf_sysctl *ctx, char *buf, unsigned long buf_len, __u64 flags) = (void *)101;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_sysctl_get_current_value)(struct bpf_sysctl *ctx, char *buf, unsigned long buf_len) = (void *)102;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_sysctl_get_new_value)(struct bpf_sysctl *ctx, char *buf, unsigned long buf_len) = (void *)103;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_sysctl_set_new_value)(struct bpf_sysctl *ctx, const char *buf, unsigned long buf_len) = (void *)104;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_strtol)(const char *buf, unsigned long buf_len, __u64 flags, long *res) = (void *)105;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_strtoul)(const char *buf, unsigned long buf_len, __u64 flags, unsigned long *res) = (void *)106;

/* Linux 5.2. Not offered by userbpf. */
static void *(*const bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;

/* Linux 5.2. Not offered by userbpf. */
static long (*const bpf_sk_storage_delete)(void *map, void *sk) = (void *)108;

/* Linux 5.3. Not offered by userbpf. */
static long (*const bpf_send_signal)(__u32 sig) = (void *)109;

/* Linux 5.3. Not offered by userbpf. */
static __s64 (*const bpf_tcp_gen_syncookie)(void *sk, void *iph, __u32 iph_len, struct tcphdr *th, __u32 th_len) = (void *)110;

/* Linux 5.5. Not offered by userbpf. */
static long (*const bpf_skb_output)(void *ctx, void *map, __u64 flags, void *data, __u64 size) = (void *)111;

/* Copies size bytes from any address; 0, or -EFAULT and zeroed memory when it cannot be read. */
static long (*const bpf_probe_read_user)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)112;

/* Copies size bytes from any address; 0, or -EFAULT and zeroed memory when it cannot be read. */
static long (*const bpf_probe_read_kernel)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)113;

/* Copies a string of at most size bytes with its NUL; its length with NUL, or -EFAULT. */
static long (*const bpf_probe_read_user_str)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)114;

/* Copies a string of at most size bytes with its NUL; its length with NUL, or -EFAULT. */
static long (*const bpf_probe_read_kernel_str)(void *dst, __u32 size, const void *unsafe_ptr) = (void *)115;

/* Linux 5.6. Not offered by userbpf. */
static long (*const bpf_tcp_send_ack)(void *tp, __u32 rcv_nxt) = (void *)116;

/* Linux 5.6. Not offered by userbpf. */
static long (*const bpf_send_signal_thread)(__u32 sig) = (void *)117;

/* Linux 5.6. Not offered by userbpf. */
static __u64 (*const bpf_jiffies64)(void) = (void *)118;

/* Linux 5.6. Not offered by userbpf. */
static long (*const bpf_read_branch_records)(struct bpf_perf_event_data *ctx, void *buf, __u32 size, __u64 flags) = (void *)119;

/* Linux 5.7. Not offered by userbpf. */
static long (*const bpf_get_ns_current_pid_tgid)(__u64 dev, __u64 ino, struct bpf_pidns_info *nsdata, __u32 size) = (void *)120;

/* Linux 5.7. Not offered by userbpf. */
static long (*const bpf_xdp_output)(void *ctx, void *map, __u64 flags, void *data, __u64 size) = (void *)121;

/* Linux 5.7. Not offered by userbpf. */
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)122;

/* Linux 5.7. Not offered by userbpf. */
static __u64 (*const bpf_get_current_ancestor_cgroup_id)(int ancestor_level) = (void *)123;

/* Linux 5.7. Not offered by userbpf. */
static long (*const bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)124;

/* Nanoseconds of CLOCK_BOOTTIME: runs on during suspend. */
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;

/* Linux 5.8. Not offered by userbpf. */
static long (*const bpf_seq_printf)(struct seq_file *m, const char *fmt, __u32 fmt_size, const void *data, __u32 data_len) = (void *)126;

/* Linux 5.8. Not offered by userbpf. */
static long (*const bpf_seq_write)(struct seq_file *m, const void *data, __u32 len) = (void *)127;

/* Linux 5.8. Not offered by userbpf. */
static __u64 (*const bpf_sk_cgroup_id)(void *sk) = (void *)128;

/* Linux 5.8. Not offered by userbpf. */
static __u64 (*const bpf_sk_ancestor_cgroup_id)(void *sk, int ancestor_level) = (void *)129;

/* Copies one record into the ring. 0 or -EAGAIN when full. */
static long (*const bpf_ringbuf_output)(void *ringbuf, void *data, __u64 size, __u64 flags) = (void *)130;

/* Memory for one record, or NULL when the ring is full; must be submitted or discarded. */
static void *(*const bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;

/* Gives a reserved record to the consumer. */
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;

/* Gives a reserved record up; consumers skip it. */
static void (*const bpf_ringbuf_discard)(void *data, __u64 flags) = (void *)133;

/* A figure of the ring: BPF_RB_AVAIL_DATA, _RING_SIZE, _CONS_POS, … */
static __u64 (*const bpf_ringbuf_query)(void *ringbuf, __u64 flags) = (void *)134;

/* Linux 5.8. Not offered by userbpf. */
static long (*const bpf_csum_level)(struct __sk_buff *skb, __u64 level) = (void *)135;

/* Linux 5.9. Not offered by userbpf. */
static struct tcp6_sock *(*const bpf_skc_to_tcp6_sock)(void *sk) = (void *)136;

/* Linux 5.9. Not offered by userbpf. */
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)137;

/* Linux 5.9. Not offered by userbpf. */
static struct tcp_timewait_sock *(*const bpf_skc_to_tcp_timewait_sock)(void *sk) = (void *)138;

/* Linux 5.9. Not offered by userbpf. */
static struct tcp_request_sock *(*const bpf_skc_to_tcp_request_sock)(void *sk) = (void *)139;

/* Linux 5.9. Not offered by userbpf. */
static struct udp6_sock *(*const bpf_skc_to_udp6_sock)(void *sk) = (void *)140;

/* Linux 5.9. Not offered by userbpf. */
static long (*const bpf_get_task_stack)(struct task_struct *task, void *buf, __u32 size, __u64 flags) = (void *)141;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_load_hdr_opt)(struct bpf_sock_ops *skops, void *searchby_res, __u32 len, __u64 flags) = (void *)142;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_store_hdr_opt)(struct bpf_sock_ops *skops, const void *from, __u32 len, __u64 flags) = (void *)143;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_reserve_hdr_opt)(struct bpf_sock_ops *skops, __u32 len, __u64 flags) = (void *)144;

/* Linux 5.10. Not offered by userbpf. */
static void *(*const bpf_inode_storage_get)(void *map, void *inode, void *value, __u64 flags) = (void *)145;

/* Linux 5.10. Not offered by userbpf. */
static int (*const bpf_inode_storage_delete)(void *map, void *inode) = (void *)146;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_d_path)(struct path *path, char *buf, __u32 sz) = (void *)147;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_copy_from_user)(void *dst, __u32 size, const void *user_ptr) = (void *)148;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_snprintf_btf)(char *str, __u32 str_size, struct btf_ptr *ptr, __u32 btf_ptr_size, __u64 flags) = (void *)149;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_seq_printf_btf)(struct seq_file *m, struct btf_ptr *ptr, __u32 ptr_size, __u64 flags) = (void *)150;

/* Linux 5.10. Not offered by userbpf. */
static __u64 (*const bpf_skb_cgroup_classid)(struct __sk_buff *skb) = (void *)151;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) = (void *)152;

/* Linux 5.10. Not offered by userbpf. */
static void *(*const bpf_per_cpu_ptr)(const void *percpu_ptr, __u32 cpu) = (void *)153;

/* Linux 5.10. Not offered by userbpf. */
static void *(*const bpf_this_cpu_ptr)(const void *percpu_ptr) = (void *)154;

/* Linux 5.10. Not offered by userbpf. */
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;

/* Linux 5.11. Not offered by userbpf. */
static void *(*const bpf_task_storage_get)(void *map, struct task_struct *task, void *value, __u64 flags) = (void *)156;

/* Linux 5.11. Not offered by userbpf. */
static long (*const bpf_task_storage_delete)(void *map, struct task_struct *task) = (void *)157;

/* Linux 5.11. Not offered by userbpf. */
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;

/* Linux 5.11. Not offered by userbpf. */
static long (*const bpf_bprm_opts_set)(struct linux_binprm *bprm, __u64 flags) = (void *)159;

/* Nanoseconds of CLOCK_MONOTONIC_COARSE: cheaper, a tick's precision. */
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

/* Linux 5.11. Not offered by userbpf. */
static long (*const bpf_ima_inode_hash)(struct inode *inode, void *dst, __u32 size) = (void *)161;

/* Linux 5.11. Not offered by userbpf. */
static struct socket *(*const bpf_sock_from_file)(struct file *file) = (void *)162;

/* Linux 5.12. Not offered by userbpf. */
static long (*const bpf_check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu_len, __s32 len_diff, __u64 flags) = (void *)163;

/* Linux 5.13. Not offered by userbpf. */
static long (*const bpf_for_each_map_elem)(void *map, void *callback_fn, void *callback_ctx, __u64 flags) = (void *)164;

/* Linux 5.13. Not offered by userbpf. */
static long (*const bpf_snprintf)(char *str, __u32 str_size, const char *fmt, __u64 *data, __u32 data_len) = (void *)165;

/* Linux 5.14. Not offered by userbpf. */
static long (*const bpf_sys_bpf)(__u32 cmd, void *attr, __u32 attr_size) = (void *)166;

/* Linux 5.14. Not offered by userbpf. */
static long (*const bpf_btf_find_by_name_kind)(char *name, int name_sz, __u32 kind, int flags) = (void *)167;

/* Linux 5.14. Not offered by userbpf. */
static long (*const bpf_sys_close)(__u32 fd) = (void *)168;

/* Linux 5.15. Not offered by userbpf. */
static long (*const bpf_timer_init)(struct bpf_timer *timer, void *map, __u64 flags) = (void *)169;

/* Linux 5.15. Not offered by userbpf. */
static long (*const bpf_timer_set_callback)(struct bpf_timer *timer, void *callback_fn) = (void *)170;

/* Linux 5.15. Not offered by userbpf. */
static long (*const bpf_timer_start)(struct bpf_timer *timer, __u64 nsecs, __u64 flags) = (void *)171;

/* Linux 5.15. Not offered by userbpf. */
static long (*const bpf_timer_cancel)(struct bpf_timer *timer) = (void *)172;

/* Address of the probed function. */
static __u64 (*const bpf_get_func_ip)(void *ctx) = (void *)173;

/* The number given at attach. */
static __u64 (*const bpf_get_attach_cookie)(void *ctx) = (void *)174;

/* Linux 5.15. Not offered by userbpf. */
static long (*const bpf_task_pt_regs)(struct task_struct *task) = (void *)175;

/* Linux 5.16. Not offered by userbpf. */
static long (*const bpf_get_branch_snapshot)(void *entries, __u32 size, __u64 flags) = (void *)176;

/* As trace_printk, with an array of u64 values. Length written or a negative errno. */
static long (*const bpf_trace_vprintk)(const char *fmt, __u32 fmt_size, const void *data, __u32 data_len) = (void *)177;

/* Linux 5.16. Not offered by userbpf. */
static struct unix_sock *(*const bpf_skc_to_unix_sock)(void *sk) = (void *)178;

/* Linux 5.16. Not offered by userbpf. */
static long (*const bpf_kallsyms_lookup_name)(const char *name, int name_sz, int flags, __u64 *res) = (void *)179;

/* Linux 5.17. Not offered by userbpf. */
static long (*const bpf_find_vma)(struct task_struct *task, __u64 addr, void *callback_fn, void *callback_ctx, __u64 flags) = (void *)180;

/* Linux 5.17. Not offered by userbpf. */
static long (*const bpf_loop)(__u32 nr_loops, void *callback_fn, void *callback_ctx, __u64 flags) = (void *)181;

/* Linux 5.17. Not offered by userbpf. */
static long (*const bpf_strncmp)(const char *s1, __u32 s1_sz, const char *s2) = (void *)182;

/* The n-th argument of the function. */
static long (*const bpf_get_func_arg)(void *ctx, __u32 n, __u64 *value) = (void *)183;

/* The returned value; -EOPNOTSUPP at entry. */
static long (*const bpf_get_func_ret)(void *ctx, __u64 *value) = (void *)184;

/* How many arguments get_func_arg can give. */
static long (*const bpf_get_func_arg_cnt)(void *ctx) = (void *)185;

/* Linux 5.18. Not offered by userbpf. */
static int (*const bpf_get_retval)(void) = (void *)186;

/* Linux 5.18. Not offered by userbpf. */
static int (*const bpf_set_retval)(int retval) = (void *)187;

/* Linux 5.18. Not offered by userbpf. */
static __u64 (*const bpf_xdp_get_buff_len)(struct xdp_md *xdp_md) = (void *)188;

/* Linux 5.18. Not offered by userbpf. */
static long (*const bpf_xdp_load_bytes)(struct xdp_md *xdp_md, __u32 offset, void *buf, __u32 len) = (void *)189;

/* Linux 5.18. Not offered by userbpf. */
static long (*const bpf_xdp_store_bytes)(struct xdp_md *xdp_md, __u32 offset, void *buf, __u32 len) = (void *)190;

/* Linux 5.18. Not offered by userbpf. */
static long (*const bpf_copy_from_user_task)(void *dst, __u32 size, const void *user_ptr, struct task_struct *tsk, __u64 flags) = (void *)191;

/* Linux 5.18. Not offered by userbpf. */
static long (*const bpf_skb_set_tstamp)(struct __sk_buff *skb, __u64 tstamp, __u32 tstamp_type) = (void *)192;

/* Linux 5.18. Not offered by userbpf. */
static long (*const bpf_ima_file_hash)(struct file *file, void *dst, __u32 size) = (void *)193;

/* Linux 5.19. Not offered by userbpf. */
static void *(*const bpf_kptr_xchg)(void *map_value, void *ptr) = (void *)194;

/* Linux 5.19. Not offered by userbpf. */
static void *(*const bpf_map_lookup_percpu_elem)(void *map, const void *key, __u32 cpu) = (void *)195;

/* Linux 5.19. Not offered by userbpf. */
static struct mptcp_sock *(*const bpf_skc_to_mptcp_sock)(void *sk) = (void *)196;

/* Linux 5.19. Not offered by userbpf. */
static long (*const bpf_dynptr_from_mem)(void *data, __u32 size, __u64 flags, struct bpf_dynptr *ptr) = (void *)197;

/* Linux 5.19. Not offered by userbpf. */
static long (*const bpf_ringbuf_reserve_dynptr)(void *ringbuf, __u32 size, __u64 flags, struct bpf_dynptr *ptr) = (void *)198;

/* Linux 5.19. Not offered by userbpf. */
static void (*const bpf_ringbuf_submit_dynptr)(struct bpf_dynptr *ptr, __u64 flags) = (void *)199;

/* Linux 5.19. Not offered by userbpf. */
static void (*const bpf_ringbuf_discard_dynptr)(struct bpf_dynptr *ptr, __u64 flags) = (void *)200;

/* Linux 5.19. Not offered by userbpf. */
static long (*const bpf_dynptr_read)(void *dst, __u32 len, struct bpf_dynptr *src, __u32 offset, __u64 flags) = (void *)201;

/* Linux 5.19. Not offered by userbpf. */
static long (*const bpf_dynptr_write)(struct bpf_dynptr *dst, __u32 offset, void *src, __u32 len, __u64 flags) = (void *)202;

/* Linux 5.19. Not offered by userbpf. */
static void *(*const bpf_dynptr_data)(struct bpf_dynptr *ptr, __u32 offset, __u32 len) = (void *)203;

/* Linux 6.0. Not offered by userbpf. */
static __s64 (*const bpf_tcp_raw_gen_syncookie_ipv4)(struct iphdr *iph, struct tcphdr *th, __u32 th_len) = (void *)204;

/* Linux 6.0. Not offered by userbpf. */
static __s64 (*const bpf_tcp_raw_gen_syncookie_ipv6)(struct ipv6hdr *iph, struct tcphdr *th, __u32 th_len) = (void *)205;

/* Linux 6.0. Not offered by userbpf. */
static long (*const bpf_tcp_raw_check_syncookie_ipv4)(struct iphdr *iph, struct tcphdr *th) = (void *)206;

/* Linux 6.0. Not offered by userbpf. */
static long (*const bpf_tcp_raw_check_syncookie_ipv6)(struct ipv6hdr *iph, struct tcphdr *th) = (void *)207;

/* Linux 6.1. Not offered by userbpf. */
static __u64 (*const bpf_ktime_get_tai_ns)(void) = (void *)208;

/* Linux 6.1. Not offered by userbpf. */
static long (*const bpf_user_ringbuf_drain)(void *map, void *callback_fn, void *ctx, __u64 flags) = (void *)209;

/* Linux 6.2. Not offered by userbpf. */
static void *(*const bpf_cgrp_storage_get)(void *map, struct cgroup *cgroup, void *value, __u64 flags) = (void *)210;

/* Linux 6.2. Not offered by userbpf. */
static long (*const bpf_cgrp_storage_delete)(void *map, struct cgroup *cgroup) = (void *)211;

#endif
