// SPDX-License-Identifier: Apache-2.0
//
// The fast path: translates plain data of the flows that it was given, and leaves everything else to the engine.
//
// A frame's way: `translate` looks its five-tuple up; on a hit it rewrites the headers, and the frame leaves without
// ever becoming an skb. On a miss the classifier says whose it is: NAT's goes to the worker by the AF_XDP socket of
// its queue, the rest is the kernel's. Nothing here creates or deletes state.
//
// The structs are shared with `src/datapath/sys/shared.rs`; sizes and offsets are asserted on both sides.

#include <linux/bpf.h>
#include <linux/types.h>

#define CONTEXT struct xdp_md

static long (*const load_bytes)(struct xdp_md *xdp, __u32 offset, void *to, __u32 len) = (void *)BPF_FUNC_xdp_load_bytes;

#include "classify.h"

static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
static long (*const bpf_xdp_adjust_tail)(struct xdp_md *xdp, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;

#define INTERFACES 2
#define QUEUES 64
#define NEXT_HOPS 16384

// What a flow is found by: the endpoints as they are in the packet.
struct flow_key {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 zero[3];
};

// What is to be done to a flow's packets, written once, when the flow is installed; and what it has carried. With what
// the kernel adds, an entry of FLOWS fills two cache lines of 64 bytes: eight bytes more would make it three.
struct flow {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__sum16 address_change; // to the IPv4 checksum: addresses and TTL
	__sum16 endpoint_change; // to that of TCP or UDP: addresses and ports
	__u16 next_hop; // in NEXT_HOPS
	__u16 mtu; // longest IPv4 packet
	__u8 roles; // of an interface that it may come in by
	__u8 direction; // enum direction
	__u16 window; // the sender's last, in host byte order; not sealed, as all that follows the seal
	__u32 seal; // see `seal_of`
	__u32 last_use; // CLOCK_MONOTONIC in units of 2^30 ns
	__u64 packets;
	__u64 bytes;
	__u32 end; // how far the sender of a TCP flow has come; host byte order, as the next
	__u32 acknowledged;
};

// One of our interfaces.
struct interface {
	__u32 index; // the kernel's; 0: none
	__u32 roles; // ROLE_*
	__u8 mac[6];
	__u8 zero[2];
};

enum direction {
	OUT, // to the external side
	BACK, // to the internal side
	HAIRPIN,
	DIRECTIONS,
};

// Why a packet is left to the engine.
enum miss {
	NO_FLOW,
	UNUSUAL,
	TCP_FLAGS,
	TOO_BIG,
	NO_NEXT_HOP,
	MISSES,
	HIT = MISSES,
};

struct counters {
	__u64 packets[DIRECTIONS];
	__u64 bytes[DIRECTIONS];
	__u64 misses[MISSES];
	__u64 passed; // to the kernel
	__u64 unserved; // NAT's, but there is no socket for the queue
};

_Static_assert(sizeof(struct flow_key) == 16, "shared with sys/shared.rs");
_Static_assert(sizeof(struct flow) == 56, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, seal) == 24, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, acknowledged) == 52, "shared with sys/shared.rs");
_Static_assert(sizeof(struct interface) == 16, "shared with sys/shared.rs");
_Static_assert(sizeof(struct counters) == 104, "shared with sys/shared.rs");

// Filled by the engine alone: never LRU, which would evict behind its back. Memory only for flows that there are.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); // set by the loader
	__type(key, struct flow_key);
	__type(value, struct flow);
} FLOWS SEC(".maps");

// A word each, so that a change is seen whole: the MAC address in the low 48 bits, as it lies in memory; then the
// place in OUR_INTERFACES, and whether it is known (1 << 56).
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEXT_HOPS);
	__type(key, __u32);
	__type(value, __u64);
} NEXT_HOP_WORDS SEC(".maps");

struct our_interfaces {
	struct interface list[INTERFACES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct our_interfaces);
} OUR_INTERFACES SEC(".maps");

// By place in OUR_INTERFACES.
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} DEVICES SEC(".maps");

// By place in OUR_INTERFACES * QUEUES + receive queue.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, INTERFACES *QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} SOCKETS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} COUNTERS SEC(".maps");

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__be16 type;
};

struct udp {
	__be16 source;
	__be16 destination;
	__be16 length;
	__sum16 checksum;
};

struct tcp {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 data_offset; // high four bits, in words
	__u8 flags;
	__be16 window;
	__sum16 checksum;
	__be16 urgent;
};

#define MORE_FRAGMENTS 0x2000

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define KNOWN (1ULL << 56)

// Read once: from here on the map may say something else.
#define READ_ONCE(value) (*(const volatile __typeof__(value) *)&(value))

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// RFC 1624 equation 3, the change summed up beforehand.
static __always_inline __sum16 apply(__sum16 checksum, __sum16 change)
{
	__u32 sum = (__u16)~checksum + change;
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// Ties a translation to its key. The kernel uses the memory of a deleted flow again at once, while this program may
// still be reading it on another processor: what was read is believed only if all of it belongs together.
static __always_inline __u32 seal_of(const __u64 *key, __u64 a, __u64 b, __u64 c)
{
	return (key[0] * 0x9e3779b97f4a7c15 + key[1] * 0xc2b2ae3d27d4eb4f + a * 0x165667b19e3779f9 +
		b * 0xd6e8feb86659fd93 + c * 0xff51afd7ed558ccd) >> 32;
}

// Copies what is to be done; gives whether it is for this key.
static __always_inline int read_sealed(const struct flow *flow, const struct flow_key *key, struct flow *to)
{
	__u64 a = READ_ONCE(*(const __u64 *)&flow->source), b = READ_ONCE(*(const __u64 *)&flow->source_port);
	__u32 c = READ_ONCE(*(const __u32 *)&flow->next_hop);
	__u16 d = READ_ONCE(*(const __u16 *)&flow->roles);
	__u32 seal = READ_ONCE(flow->seal);

	*(__u64 *)&to->source = a;
	*(__u64 *)&to->source_port = b;
	*(__u32 *)&to->next_hop = c;
	*(__u16 *)&to->roles = d;
	return seal == seal_of((const __u64 *)key, a, b, (__u64)d << 32 | c);
}

static __always_inline int is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline void follow_tcp(struct flow *flow, const struct tcp *tcp, __u32 payload)
{
	__u32 end = ntohl(tcp->sequence) + payload, acknowledged = ntohl(tcp->acknowledgement);

	if (is_after(end, flow->end))
		flow->end = end;
	if (!is_after(flow->acknowledged, acknowledged)) {
		flow->acknowledged = acknowledged;
		flow->window = ntohs(tcp->window);
	}
}

// Translates the packet in place if it is plain data of a known flow. On a hit `*out` is where it leaves.
static __always_inline enum miss translate(struct xdp_md *ctx, const struct our_interfaces *ours,
					   const struct interface *in, struct counters *counters, __u32 *out)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethernet *ethernet = data;
	struct ipv4 *ip = data + sizeof(*ethernet);
	struct udp *udp = (void *)(ip + 1);
	struct tcp *tcp = 0; // if it is one

	if ((void *)(udp + 1) > end)
		return UNUSUAL;
	const __u32 *words = (const __u32 *)ip;
	__u64 sum = (__u64)words[0] + words[1] + words[2] + words[3] + words[4];
	if (ip->version_ihl != 0x45 || (ip->fragment & htons(MORE_FRAGMENTS | FRAGMENT_OFFSET)) || ip->ttl <= 1 ||
	    fold(sum) != 0xffff)
		return UNUSUAL;
	__u32 length = ntohs(ip->total_length), received = end - data - sizeof(*ethernet), payload;
	if (length > received || length < sizeof(*ip) + sizeof(*udp))
		return UNUSUAL;

	if (ip->protocol == IPPROTO_TCP) {
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end)
			return UNUSUAL;
		__u32 headers = sizeof(*ip) + (tcp->data_offset >> 4) * 4;
		if (headers < sizeof(*ip) + sizeof(*tcp) || headers > length)
			return UNUSUAL;
		if ((tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK)
			return TCP_FLAGS;
		payload = length - headers;
	} else if (ip->protocol == IPPROTO_UDP) {
		payload = ntohs(udp->length);
		if (payload < sizeof(*udp) || payload > length - sizeof(*ip))
			return UNUSUAL;
	} else {
		return UNUSUAL;
	}

	struct flow_key key = {
		.source = ip->source,
		.destination = ip->destination,
		.source_port = udp->source,
		.destination_port = udp->destination,
		.protocol = ip->protocol,
	};
	struct flow *flow = bpf_map_lookup_elem(&FLOWS, &key);
	struct flow to;
	if (!flow || !read_sealed(flow, &key, &to) || !(to.roles & in->roles))
		return NO_FLOW;
	if (length > to.mtu)
		return TOO_BIG;
	__u32 place = to.next_hop;
	__u64 *hop = bpf_map_lookup_elem(&NEXT_HOP_WORDS, &place);
	if (!hop)
		return NO_NEXT_HOP;
	__u64 word = READ_ONCE(*hop);
	if (!(word & KNOWN))
		return NO_NEXT_HOP;
	*out = (word >> 48) & (INTERFACES - 1);

	// Counted before the headers change. Several processors may carry one flow, so that these two are atomic.
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, length);
	__u32 now = bpf_ktime_get_coarse_ns() >> 30;
	if (flow->last_use != now)
		flow->last_use = now;
	if (tcp)
		follow_tcp(flow, tcp, payload);
	__u32 direction = to.direction < DIRECTIONS ? to.direction : OUT;
	counters->packets[direction]++;
	counters->bytes[direction] += length;

	__builtin_memcpy(ethernet->destination, &word, sizeof(ethernet->destination));
	__builtin_memcpy(ethernet->source, ours->list[*out].mac, sizeof(ethernet->source));
	ip->ttl--;
	ip->source = to.source;
	ip->destination = to.destination;
	ip->checksum = apply(ip->checksum, to.address_change);
	udp->source = to.source_port;
	udp->destination = to.destination_port;
	if (tcp) {
		tcp->checksum = apply(tcp->checksum, to.endpoint_change);
	} else if (udp->checksum) { // 0 is none (RFC 768): it stays none, and none becomes it
		__sum16 checksum = apply(udp->checksum, to.endpoint_change);
		udp->checksum = checksum ? checksum : 0xffff;
	}
	// What Ethernet has padded is not part of the packet.
	if (received > length)
		bpf_xdp_adjust_tail(ctx, (int)length - (int)received);
	return HIT;
}

static __always_inline int is_ours(struct xdp_md *ctx, const struct interface *in)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct ethernet *ethernet = data;

	if ((void *)(ethernet + 1) > end || ethernet->type != htons(ETH_P_IP))
		return 0;
	return *(const __u32 *)ethernet->destination == *(const __u32 *)in->mac &&
	       *(const __u16 *)(ethernet->destination + 4) == *(const __u16 *)(in->mac + 4);
}

SEC("xdp")
int egret_xdp(struct xdp_md *ctx)
{
	__u32 zero = 0, out = 0;
	struct our_interfaces *ours = bpf_map_lookup_elem(&OUR_INTERFACES, &zero);
	struct counters *counters = bpf_map_lookup_elem(&COUNTERS, &zero);
	struct rules *rules = bpf_map_lookup_elem(&RULES, &zero);
	if (!ours || !counters || !rules)
		return XDP_PASS;
	__u32 place = ctx->ingress_ifindex != ours->list[0].index;
	const struct interface *in = &ours->list[place];
	if (!is_ours(ctx, in)) {
		counters->passed++;
		return XDP_PASS;
	}

	enum miss miss = translate(ctx, ours, in, counters, &out);
	if (miss == HIT)
		return out == place ? XDP_TX : bpf_redirect_map(&DEVICES, out, XDP_DROP);

	if (classify(ctx, rules, in->roles) != NATS) {
		counters->passed++;
		return XDP_PASS;
	}
	counters->misses[miss]++;
	long action = XDP_DROP;
	if (ctx->rx_queue_index < QUEUES)
		action = bpf_redirect_map(&SOCKETS, place * QUEUES + ctx->rx_queue_index, XDP_DROP);
	if (action != XDP_REDIRECT)
		counters->unserved++;
	return action;
}

// The helpers used need no GPL.
char LICENSE[] SEC("license") = "Apache-2.0";
