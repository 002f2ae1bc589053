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

static __u64 (*const bpf_jiffies64)(void) = (void *)BPF_FUNC_jiffies64;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*const bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;
static long (*const bpf_xdp_adjust_tail)(struct xdp_md *xdp, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;

#define INTERFACES 2
#define QUEUES 64
#define NEXT_HOPS 16384
#define PROBES 64

// Where a packet comes from and goes to, as it lies in it.
struct endpoints {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
};

// What a flow is found by.
struct flow_key {
	struct endpoints endpoints;
	__u8 protocol;
	__u8 zero[3];
} __attribute__((aligned(8)));

// A slot of FLOWS, one line of a processor's cache: a flow's key, what is to be done to its packets, and what it has
// carried. The worker writes a slot when it puts a flow there, and the program what is marked with a `*`.
struct flow {
	struct endpoints matches;
	__u8 protocol; // 0: there is no flow here
	__u8 roles; // of an interface that it may come in by
	__u8 direction; // enum direction
	__u8 reach; // of the slot, whatever flow is in it: see `find`
	struct endpoints becomes;
	__u16 next_hop; // in NEXT_HOP_WORDS
	__u16 window; // * the sender's last, in host byte order
	__u32 seal; // see `seal_of`
	__u32 last_use; // * CLOCK_MONOTONIC in units of 2^30 ns
	__u64 packets; // *
	__u64 bytes; // *
	__u32 end; // * how far the sender of a TCP flow has come; host byte order, as the next
	__u32 acknowledged; // *
} __attribute__((aligned(8)));

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

// What a processor has last read from the kernel's clock, and at which of its ticks.
struct clock {
	__u64 tick;
	__u32 now; // as a flow's last_use
	__u32 zero;
};

// A processor's own.
struct counters {
	__u64 packets[DIRECTIONS];
	__u64 bytes[DIRECTIONS];
	struct clock clock;
	__u64 misses[MISSES];
	__u64 passed; // to the kernel
	__u64 unserved; // NAT's, but there is no socket for the queue
};

_Static_assert(sizeof(struct flow_key) == 16, "shared with sys/shared.rs");
_Static_assert(sizeof(struct flow) == 64, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, protocol) == 12, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, reach) == 15, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, becomes) == 16, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, window) == 30, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, seal) == 32, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, packets) == 40, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct flow, acknowledged) == 60, "shared with sys/shared.rs");
_Static_assert(sizeof(struct interface) == 16, "shared with sys/shared.rs");
_Static_assert(sizeof(struct counters) == 120, "shared with sys/shared.rs");

// An open hash table in memory that the worker writes directly: see `find`. The kernel compiles a look-up in an array
// without a call.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // set by the loader: HOMES + PROBES - 1
	__type(key, __u32);
	__type(value, struct flow);
} FLOWS SEC(".maps");

// Set by the loader, and constants from then on.
const volatile __u32 HOMES = 1;
const volatile __u64 HASH_KEYS[2] = { 1, 1 }; // random, and odd

// A word each, so that a change is seen whole: the MAC address in the low 48 bits, as it lies in memory; then the
// place in OUR_INTERFACES, in one bit; then the longest IPv4 packet that may leave, 0: the MAC address is not known.
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

// Several fields at once, wherever they lie. The processors that this is for need no alignment, but clang, which knows a
// field's, would load it in pieces.
typedef __u64 __attribute__((may_alias)) word;
typedef __u32 __attribute__((may_alias)) half;

static __always_inline word *word_at(const void *field)
{
	return (word *)field;
}

static __always_inline half *half_at(const void *field)
{
	return (half *)field;
}

#define MORE_FRAGMENTS 0x2000

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

// Parts of a word, by the order in which its bytes lie in memory.
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BYTES(mask) __builtin_bswap64(mask)
// The first eight bytes of a frame: a next hop's MAC address, and the beginning of ours.
#define MACS(hop, ours) (((hop) & 0xffffffffffff) | (ours) << 48)
#else
#define BYTES(mask) (mask)
#define MACS(hop, ours) ((hop) << 16 | (ours) >> 48)
#endif

// Read once: from here on the map may say something else.
#define READ_ONCE(value) (*(const volatile __typeof__(value) *)&(value))

// Of the sum of a few words of 32 bits. Of the 17 bits that are left before the last step, not all are set: that has no
// carry.
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum + (sum >> 16);
}

// Of both halves of a word.
static __always_inline __u64 sum_of(__u64 word)
{
	return (word & 0xffffffff) + (word >> 32);
}

// RFC 1624 equation 3: the sum of what is new, and of the complements of what was there.
static __always_inline __sum16 apply(__sum16 checksum, __u64 change)
{
	return ~fold((__u16)~checksum + change);
}

// Where a key's flow is looked for first. The high bits of the first word reach only the high half of its product, which
// is therefore folded into the low one before it is multiplied again.
static __always_inline __u32 home_of(const __u64 *key)
{
	__u64 hash = key[0] * HASH_KEYS[0];
	hash = ((hash ^ hash >> 32) + key[1]) * HASH_KEYS[1];
	return (hash >> 32) * HOMES >> 32;
}

// Ties what is to be done to the key. The worker puts a flow where another one was while this program may be reading
// on another processor: what was read is believed only if all of it belongs together.
static __always_inline __u32 seal_of(__u64 a, __u64 b, __u64 c, __u64 d)
{
	return (a * 0x9e3779b97f4a7c15 + b * 0xc2b2ae3d27d4eb4f + c * 0x165667b19e3779f9 + d * 0xd6e8feb86659fd93) >> 32;
}

// Finds the flow of a key, and copies what is to be done to its packets.
//
// It is in one of the PROBES slots from its home on. The home has the reach, which is how far its flows lie at most, so
// that a miss ends there, too: usually in the first line. No flow is ever moved from slot to slot.
static __always_inline struct flow *find(const struct flow_key *key, struct flow *to)
{
	const __u64 *wanted = (const __u64 *)key;
	__u64 *copy = (__u64 *)to;
	__u32 home = home_of(wanted), reach = 0;

	for (__u32 i = 0; i < PROBES && i <= reach; i++) {
		__u32 place = home + i;
		struct flow *flow = bpf_map_lookup_elem(&FLOWS, &place);
		if (!flow)
			return 0;
		const __u64 *words = (const __u64 *)flow;
		__u64 a = READ_ONCE(words[0]), b = READ_ONCE(words[1]);
		if (i == 0)
			reach = BYTES(b) & 0xff;
		if (a != wanted[0] || (b & BYTES(0xffffffffff000000)) != wanted[1])
			continue;
		__u64 c = READ_ONCE(words[2]), d = READ_ONCE(words[3]) & BYTES(0xffffffffffff0000);
		b &= BYTES(0xffffffffffffff00);
		copy[0] = a;
		copy[1] = b;
		copy[2] = c;
		copy[3] = d;
		return READ_ONCE(flow->seal) == seal_of(a, b, c, d) ? flow : 0;
	}
	return 0;
}

// The time in units of a flow's last_use, at most three ticks ago. The kernel's coarse clock stands still between ticks, so
// it is asked once a tick, and may not have been set for it yet. The tick's number is read without a call; asking takes
// several, and where calls are guarded against speculation, that is almost as much as all else that is done for a packet.
static __always_inline __u32 time_of(struct clock *clock)
{
	__u64 tick = bpf_jiffies64();

	if (clock->tick != tick) {
		clock->now = bpf_ktime_get_coarse_ns() >> 30;
		clock->tick = tick;
	}
	return clock->now;
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
	const half *words = half_at(ip);
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

	struct flow_key key = { .protocol = ip->protocol };
	__u64 old = *word_at(&ip->source);
	__u32 old_ports = *half_at(&udp->source);
	*word_at(&key.endpoints.source) = old;
	*half_at(&key.endpoints.source_port) = old_ports;
	struct flow to, *flow = find(&key, &to);
	if (!flow || !(to.roles & in->roles))
		return NO_FLOW;
	__u32 place = to.next_hop;
	__u64 *found = bpf_map_lookup_elem(&NEXT_HOP_WORDS, &place);
	if (!found)
		return NO_NEXT_HOP;
	__u64 hop = READ_ONCE(*found);
	__u32 mtu = hop >> 49;
	if (!mtu)
		return NO_NEXT_HOP;
	if (length > mtu)
		return TOO_BIG;
	*out = (hop >> 48) & (INTERFACES - 1);

	// Counted before the headers change. Not atomic, which would take a fifth of all the program's time: a flow comes by
	// one queue, and thus on one processor. Should two of them carry it for once, or the worker give the slot to another
	// flow at this moment, then counts are lost or come to the wrong one; so may TCP's marks below, by which the engine judges resets.
	flow->packets++;
	flow->bytes += length;
	__u32 now = time_of(&counters->clock);
	if (flow->last_use != now)
		flow->last_use = now;
	if (tcp)
		follow_tcp(flow, tcp, payload);
	__u32 direction = to.direction < DIRECTIONS ? to.direction : OUT;
	counters->packets[direction]++;
	counters->bytes[direction] += length;

	__u64 mac = *word_at(ours->list[*out].mac);
	*word_at(ethernet) = MACS(hop, mac);
	*half_at((void *)ethernet + sizeof(word)) = mac >> 16;
	__u64 new = *word_at(&to.becomes.source);
	__u32 new_ports = *half_at(&to.becomes.source_port);
	__u64 addresses = sum_of(~old) + sum_of(new);
	__u64 ports = (__u64)~old_ports + new_ports;
	ip->ttl--;
	// The TTL is the high byte of its word, whatever stands in it.
	ip->checksum = apply(ip->checksum, addresses + (__u16)~htons(0x0100));
	*word_at(&ip->source) = new;
	*half_at(&udp->source) = new_ports;
	if (tcp) {
		tcp->checksum = apply(tcp->checksum, addresses + ports);
	} else if (udp->checksum) { // 0 is none (RFC 768): it stays none, and none becomes it
		__sum16 checksum = apply(udp->checksum, addresses + ports);
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
	return (*word_at(ethernet) & BYTES(0xffffffffffff0000)) == *word_at(in->mac);
}

SEC("xdp")
int egret_xdp(struct xdp_md *ctx)
{
	__u32 zero = 0, out = 0;
	struct our_interfaces *ours = bpf_map_lookup_elem(&OUR_INTERFACES, &zero);
	struct counters *counters = bpf_map_lookup_elem(&COUNTERS, &zero);
	if (!ours || !counters)
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

	struct rules *rules = bpf_map_lookup_elem(&RULES, &zero);
	if (!rules || classify(ctx, rules, in->roles) != NATS) {
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
