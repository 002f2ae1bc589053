// SPDX-License-Identifier: Apache-2.0
//
// What the lab attaches to its own links by XDP; nothing of Egret's.
//
//   pass       lets everything through. On veth, what one end sends by XDP_TX or XDP_REDIRECT arrives only if the
//              other end has a program too.
//   generate   makes frames of many flows and sends them out of an interface. Run by BPF_PROG_TEST_RUN with live
//              frames: the frames are used again, with whatever the host under test has written into them, so all of
//              the headers is written each time.
//   again      writes one frame, and hands it to the program to be measured. A BPF_PROG_TEST_RUN of many runs gives each
//              what the last has left of the frame, which would be none of a flow's.
//   bare       translates those by a rule, without a table: what is left of a packet's cost is that of the way there
//              and back.
//   sink       counts and drops what has become of those; lets everything else through.
//
// A flow is a number. It has one of 32,768 internal endpoints, each of which has an address and a port of its own, so
// that a NAT with a single external address can preserve every port; and one of the remotes, 198.18.0.1 and up, of
// the range for benchmarks (RFC 2544). A forwarded flow has one of 32,768 ports of a remote, and all have the same
// internal endpoint, whose port is forwarded from the same one of the external address.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, type) type *name

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(value) __builtin_bswap16(value)
#define htonl(value) __builtin_bswap32(value)
#else
#define htons(value) (value)
#define htonl(value) (value)
#endif

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const bpf_tail_call)(void *context, void *programs, __u32 index) = (void *)BPF_FUNC_tail_call;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;

#define ENDPOINT_BITS 15
#define INTERNAL 0x0a008000 // 10.0.128.0/17
#define INTERNAL_MASK 0xffff8000
#define TARGET (INTERNAL + 1)
#define FIRST_PORT 16384
#define EXTERNAL 0x0a00000a // 10.0.0.10
#define REMOTE 0xc6120000   // 198.18.0.0/15
#define REMOTE_MASK 0xfffe0000
#define REMOTE_PORT 9
#define TCP_RST 4

// Shared with benches/fast_path/generator.rs, where it is an array of as many numbers.
struct plan {
	__u64 next;        // the number of the next frame; it only rises
	__u64 end;         // the first number that is not sent
	__u64 given_up;    // frames that are not waited for any more
	__u64 window;      // how many frames may be on their way; 0 for no limit
	__u64 due_ns;      // when the next frame may leave
	__u64 interval_ns; // from one frame to the next; 0 for none
	__u64 first_flow;
	__u64 flow_bits; // there are 1 << flow_bits flows
	__u64 interface;
	__u64 to_mac; // as it lies in memory, the last two bytes unused
	__u64 from_mac;
	__u64 backwards; // from the remote, to the external address
	__u64 length;    // of the IPv4 packet, in bytes
	__u64 tcp_flags; // 0: UDP
	__u64 sequence;
	__u64 acknowledgement;
	__u64 forwarded; // the port of forwarded flows, or 0
};

_Static_assert(sizeof(struct plan) == 17 * 8, "shared with generator.rs");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} PLAN SEC(".maps");

enum seen {
	OUT,   // from the external address to a remote
	BACK,  // from a remote to an internal endpoint
	OTHER, // neither, or a reset
	KINDS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, __u64);
} SEEN SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} MEASURED SEC(".maps");

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__be32 source;
	__be32 destination;
} __attribute__((packed));

struct udp {
	__be16 source, destination, length;
	__u16 checksum;
};

// With the timestamps that every TCP of today sends, RFC 7323.
struct tcp {
	__be16 source, destination;
	__be32 sequence, acknowledgement;
	__u8 offset, flags;
	__be16 window;
	__u16 checksum;
	__be16 urgent;
	__be32 options[3];
} __attribute__((packed));

_Static_assert(sizeof(struct ipv4) == 20, "RFC 791");
_Static_assert(sizeof(struct udp) == 8, "RFC 768");
_Static_assert(sizeof(struct tcp) == 32, "RFC 9293");

SEC("xdp")
int pass(struct xdp_md *context)
{
	(void)context;
	return XDP_PASS;
}

// One's complement sum of 16-bit words (RFC 1071).
static __always_inline __u64 sum(const void *data, __u32 length)
{
	const __u8 *bytes = data;
	__u64 total = 0;
#pragma unroll
	for (__u32 i = 0; i < length; i += 2) {
		__u16 word;
		__builtin_memcpy(&word, bytes + i, sizeof(word));
		total += word;
	}
	return total;
}

static __always_inline __u16 checksum(__u64 total)
{
	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	total = (total & 0xffff) + (total >> 16);
	return ~total;
}

// Numbers in an order without order: each of 1 << bits once.
static __always_inline __u64 scatter(__u64 number, __u32 bits)
{
	__u64 mask = (1ull << (bits & 31)) - 1;
	__u32 half = ((bits & 31) + 1) / 2;
	number &= mask;
	number ^= number >> half;
	number = (number * 0x9e3779b1) & mask;
	number ^= number >> half;
	number = (number * 0x85ebca6b) & mask;
	return number ^ (number >> half);
}

// Whether one more may leave now.
static __always_inline int may_send(struct plan *plan)
{
	__u32 out = OUT, back = BACK;

	if (plan->next >= plan->end)
		return 0;
	if (plan->window) {
		__u64 *came_out = bpf_map_lookup_elem(&SEEN, &out), *came_back = bpf_map_lookup_elem(&SEEN, &back);
		if (!came_out || !came_back)
			return 0;
		__s64 under_way = plan->next - plan->given_up - *came_out - *came_back;
		if (under_way >= (__s64)plan->window)
			return 0;
	}
	if (plan->interval_ns) {
		__u64 now = bpf_ktime_get_ns();
		if (now < plan->due_ns)
			return 0;
		// What was missed is missed: no burst makes up for it.
		plan->due_ns = now - plan->due_ns > 16 * plan->interval_ns ? now : plan->due_ns + plan->interval_ns;
	}
	return 1;
}

// Writes the headers of the next frame of the plan; gives whether there was room for them.
static __always_inline int write_frame(struct xdp_md *context, const struct plan *plan)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct ipv4 *ip = data + ETH_HLEN;

	if ((void *)(ip + 1) > end)
		return 0;
	__u64 flow = plan->first_flow + scatter(plan->next, plan->flow_bits);
	__u32 endpoint = flow & ((1 << ENDPOINT_BITS) - 1);
	__u32 internal = plan->forwarded ? TARGET : INTERNAL + endpoint;
	__be32 inside = htonl(plan->backwards ? EXTERNAL : internal);
	__be32 outside = htonl(REMOTE + 1 + (__u32)(flow >> ENDPOINT_BITS));
	__be16 many = htons(FIRST_PORT + endpoint);
	__be16 inside_port = plan->forwarded ? htons((__u16)plan->forwarded) : many;
	__be16 outside_port = plan->forwarded ? many : htons(REMOTE_PORT);
	__be16 source_port = plan->backwards ? outside_port : inside_port;
	__be16 destination_port = plan->backwards ? inside_port : outside_port;
	struct ipv4 header = {
		.version_ihl = 0x45,
		.total_length = htons((__u16)plan->length),
		.id = htons((__u16)plan->next),
		.fragment = htons(0x4000), // do not fragment
		.ttl = 64,
		.protocol = plan->tcp_flags ? IPPROTO_TCP : IPPROTO_UDP,
		.source = plan->backwards ? outside : inside,
		.destination = plan->backwards ? inside : outside,
	};
	header.checksum = checksum(sum(&header, sizeof(header)));
	__builtin_memcpy(ethernet->h_dest, &plan->to_mac, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, &plan->from_mac, ETH_ALEN);
	ethernet->h_proto = htons(ETH_P_IP);
	*ip = header;

	// The payload is all zeroes, and adds nothing.
	__u16 length = plan->length - sizeof(header);
	__u64 pseudo = sum(&header.source, 8) + htons(header.protocol) + htons(length);
	if (plan->tcp_flags) {
		struct tcp *tcp = (void *)(ip + 1);
		struct tcp segment = {
			.source = source_port,
			.destination = destination_port,
			.sequence = htonl((__u32)plan->sequence),
			.acknowledgement = htonl((__u32)plan->acknowledgement),
			.offset = sizeof(struct tcp) / 4 << 4,
			.flags = plan->tcp_flags,
			.window = htons(65535),
			.options = { htonl(0x0101080a), htonl(1), htonl(1) },
		};
		segment.checksum = checksum(pseudo + sum(&segment, sizeof(segment)));
		if ((void *)(tcp + 1) > end)
			return 0;
		*tcp = segment;
	} else {
		struct udp *udp = (void *)(ip + 1);
		struct udp datagram = {
			.source = source_port,
			.destination = destination_port,
			.length = htons(length),
		};
		datagram.checksum = checksum(pseudo + sum(&datagram, sizeof(datagram)));
		if (!datagram.checksum)
			datagram.checksum = 0xffff;
		if ((void *)(udp + 1) > end)
			return 0;
		*udp = datagram;
	}
	return 1;
}

SEC("xdp")
int generate(struct xdp_md *context)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&PLAN, &zero);

	if (!plan || !may_send(plan) || !write_frame(context, plan))
		return XDP_DROP;
	plan->next++;
	return bpf_redirect(plan->interface, 0);
}

SEC("xdp")
int again(struct xdp_md *context)
{
	__u32 zero = 0;
	struct plan *plan = bpf_map_lookup_elem(&PLAN, &zero);

	if (plan && write_frame(context, plan))
		bpf_tail_call(context, &MEASURED, 0);
	return XDP_ABORTED;
}

// RFC 1624 equation 3.
static __always_inline __u16 updated(__u16 checksum, __be32 old, __be32 new)
{
	__u32 total = (__u16)~checksum + (__u16)~old + (__u16)(~old >> 16) + (__u16)new + (new >> 16);
	total = (total & 0xffff) + (total >> 16);
	return ~((total & 0xffff) + (total >> 16));
}

SEC("xdp")
int bare(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	struct ethhdr *ethernet = data;
	struct ipv4 *ip = data + ETH_HLEN;
	struct udp *udp = (void *)(ip + 1);
	__u8 mac[ETH_ALEN];

	if ((void *)(udp + 1) > end || ethernet->h_proto != htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	int out = (ip->source & htonl(INTERNAL_MASK)) == htonl(INTERNAL);
	__be32 old = out ? ip->source : ip->destination;
	__be32 new = htonl(out ? EXTERNAL : INTERNAL + htons(udp->destination) - FIRST_PORT);

	if (out)
		ip->source = new;
	else
		ip->destination = new;
	ip->checksum = updated(ip->checksum, old, new);
	udp->checksum = updated(udp->checksum, old, new);
	__builtin_memcpy(mac, ethernet->h_dest, sizeof(mac));
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, sizeof(mac));
	__builtin_memcpy(ethernet->h_source, mac, sizeof(mac));
	return XDP_TX;
}

static __always_inline enum seen kind(const struct ipv4 *ip, const void *end)
{
	if (ip->protocol == IPPROTO_TCP) {
		const struct tcp *tcp = (const void *)(ip + 1);
		if ((const void *)&tcp->window > end || (tcp->flags & TCP_RST))
			return OTHER;
	} else if (ip->protocol != IPPROTO_UDP) {
		return OTHER;
	}
	if (ip->source == htonl(EXTERNAL))
		return OUT;
	return (ip->destination & htonl(INTERNAL_MASK)) == htonl(INTERNAL) ? BACK : OTHER;
}

SEC("xdp")
int sink(struct xdp_md *context)
{
	void *data = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	const struct ethhdr *ethernet = data;
	const struct ipv4 *ip = data + ETH_HLEN;
	__be32 mask = htonl(REMOTE_MASK), remote = htonl(REMOTE);

	if ((const void *)(ip + 1) > end || ethernet->h_proto != htons(ETH_P_IP))
		return XDP_PASS;
	if ((ip->source & mask) != remote && (ip->destination & mask) != remote)
		return XDP_PASS;
	__u32 of = kind(ip, end);
	__u64 *count = bpf_map_lookup_elem(&SEEN, &of);
	if (count)
		__sync_fetch_and_add(count, 1);
	return XDP_DROP;
}

// The helpers used need no GPL.
char LICENSE[] SEC("license") = "Apache-2.0";
