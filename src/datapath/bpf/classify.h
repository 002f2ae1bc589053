// SPDX-License-Identifier: Apache-2.0
//
// Which packets are NAT's, and which are the kernel's: one question, asked in several places.
//
// Whoever includes this says what a packet is before: `CONTEXT`, the type that its programs are given, and
// `load_bytes`, the helper that copies bytes of the frame to the stack. Frames begin with their Ethernet header;
// headers are copied, since that works in every program type and reads whatever lies in fragments of an skb: one call
// for the usual packet.
//
// The structs are shared with `src/datapath/sys/shared.rs`; sizes and offsets are asserted on both sides.

#ifndef EGRET_CLASSIFY_H
#define EGRET_CLASSIFY_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/types.h>

// The kernel's headers make it a hint.
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

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
#define ntohs htons
#define ntohl htonl

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;

#define INTERNAL_PREFIXES 32
#define BYPASS_PREFIXES 64
#define ADDRESSES 1024
#define FIRST_ADDRESSES 4

#define ROLE_INTERNAL 1
#define ROLE_EXTERNAL 2

#define ADDRESS_HOST 1
#define ADDRESS_EXTERNAL 2

// An IPv4 prefix, both in network byte order: an address is in it if (address & mask) == this.address.
struct prefix {
	__be32 address;
	__be32 mask;
};

// Read as one word: the worker may be writing the next one there.
struct address {
	__be32 address;
	__u32 kind; // ADDRESS_*; 0: none
} __attribute__((aligned(8)));

struct rules {
	__u32 roles; // ROLE_*, of this interface
	__u32 internal_count;
	__u32 bypass_count;
	__u32 shared_only; // at tc, look only for what is BOTHS: the rest comes another way
	struct prefix internal[INTERNAL_PREFIXES];
	struct prefix bypass[BYPASS_PREFIXES];
	struct address first[FIRST_ADDRESSES]; // of all in ADDRESS_KINDS
	__u32 all_first; // there are no others
	__u32 zero;
};

// A bit for each port that belongs to NAT; port 0 is the lowest bit of the first word.
struct ports {
	__u64 tcp[1024];
	__u64 udp[1024];
};

_Static_assert(sizeof(struct prefix) == 8, "shared with sys/shared.rs");
_Static_assert(sizeof(struct address) == 8, "shared with sys/shared.rs");
_Static_assert(sizeof(struct rules) == 824, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct rules, internal) == 16, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct rules, bypass) == 272, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct rules, first) == 784, "shared with sys/shared.rs");
_Static_assert(sizeof(struct ports) == 16384, "shared with sys/shared.rs");
_Static_assert(__builtin_offsetof(struct ports, udp) == 8192, "shared with sys/shared.rs");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rules);
} RULES SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ports);
} PORTS SEC(".maps");

// IPv4 address in network byte order -> ADDRESS_* of it.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ADDRESSES);
	__type(key, __be32);
	__type(value, __u32);
} ADDRESS_KINDS SEC(".maps");

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_length;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__be32 source;
	__be32 destination;
};

_Static_assert(sizeof(struct ipv4) == 20, "RFC 791");

// The begin of a packet: its header, if that has no options, and what follows it.
struct begin {
	struct ipv4 ip;
	union {
		struct {
			__be16 source, destination;
		} port;
		struct {
			__u8 type, code;
		} icmp;
	};
};

_Static_assert(sizeof(struct begin) == 24, "without a gap");

#define FRAGMENT_OFFSET 0x1fff

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_TIMESTAMP_REPLY 14
#define ICMP_INFORMATION_REPLY 16
#define ICMP_ADDRESS_MASK_REPLY 18
#define ICMP_DOMAIN_NAME_REPLY 38
#define ICMP_EXTENDED_ECHO_REPLY 43

enum owner {
	KERNELS, // untouched
	NATS,
	BOTHS, // the kernel ignores what it does not know; the engine likewise
};

// Whether a router may pass on a packet to this address: RFC 1812 5.3.7 (0/8, 127/8, multicast and reserved), RFC
// 3927 2.7 (link-local: on EC2 the metadata service, which must not take a client for this host).
static __always_inline int routable(__be32 address)
{
	return (address & htonl(0xff000000)) != 0 && (address & htonl(0xff000000)) != htonl(0x7f000000) &&
	       (address & htonl(0xe0000000)) != htonl(0xe0000000) &&
	       (address & htonl(0xffff0000)) != htonl(0xa9fe0000);
}

static __always_inline int is_internal(const struct rules *rules, __be32 address)
{
	for (__u32 i = 0; i < INTERNAL_PREFIXES; i++) {
		if (i >= rules->internal_count)
			break;
		if ((address & rules->internal[i].mask) == rules->internal[i].address)
			return 1;
	}
	return 0;
}

static __always_inline int is_bypassed(const struct rules *rules, __be32 address)
{
	for (__u32 i = 0; i < BYPASS_PREFIXES; i++) {
		if (i >= rules->bypass_count)
			break;
		if ((address & rules->bypass[i].mask) == rules->bypass[i].address)
			return 1;
	}
	return 0;
}

// Most hosts have few addresses, and no look-up is as cheap as none.
static __always_inline __u32 address_kind(const struct rules *rules, __be32 address)
{
	for (__u32 i = 0; i < FIRST_ADDRESSES; i++) {
		union {
			__u64 word;
			struct address known;
		} first = { .word = *(const volatile __u64 *)&rules->first[i] };
		if (first.known.address == address)
			return first.known.kind;
	}
	if (*(const volatile __u32 *)&rules->all_first)
		return 0;
	__u32 *kind = bpf_map_lookup_elem(&ADDRESS_KINDS, &address);
	return kind ? *kind : 0;
}

static __always_inline int is_nats_port(__u8 protocol, __be16 port)
{
	__u32 zero = 0;
	struct ports *ports = bpf_map_lookup_elem(&PORTS, &zero);
	if (!ports)
		return 0;
	__u32 number = ntohs(port);
	__u64 word = protocol == IPPROTO_TCP ? ports->tcp[(number >> 6) & 1023] : ports->udp[(number >> 6) & 1023];
	return (word >> (number & 63)) & 1;
}

// Whose an ICMP error to an external address is: that of the packet that it is about, which one of us has sent.
static __always_inline enum owner classify_icmp_error(CONTEXT *ctx, const struct rules *rules, __u32 at)
{
	struct ipv4 about;
	__be16 port;

	if (load_bytes(ctx, at, &about, sizeof(about)))
		return KERNELS;
	if ((about.version_ihl >> 4) != 4 || !(address_kind(rules, about.source) & ADDRESS_EXTERNAL))
		return KERNELS;
	if (about.protocol == IPPROTO_ICMP || (about.fragment & htons(FRAGMENT_OFFSET)))
		return BOTHS;
	if (about.protocol != IPPROTO_TCP && about.protocol != IPPROTO_UDP)
		return NATS;
	if (load_bytes(ctx, at + (about.version_ihl & 15) * 4, &port, sizeof(port)))
		return KERNELS;
	return is_nats_port(about.protocol, port) ? NATS : KERNELS;
}

// Whose a packet to an external address is. `whole`: what follows its header is there as well.
static __always_inline enum owner classify_external(CONTEXT *ctx, const struct rules *rules, struct begin *begin, int whole)
{
	const struct ipv4 *ip = &begin->ip;
	__u32 at = ETH_HLEN + (ip->version_ihl & 15) * 4;

	// Only the engine knows which datagram a later fragment belongs to; the kernel, if it lacks the first one,
	// forgets it silently.
	if (ip->fragment & htons(FRAGMENT_OFFSET))
		return BOTHS;
	if (ip->protocol == IPPROTO_IGMP)
		return KERNELS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ICMP)
		return NATS;
	if (!(whole && ip->version_ihl == 0x45) && load_bytes(ctx, at, &begin->port, sizeof(begin->port)))
		return KERNELS;
	if (ip->protocol != IPPROTO_ICMP)
		return is_nats_port(ip->protocol, begin->port.destination) ? NATS : KERNELS;
	switch (begin->icmp.type) {
	case ICMP_ECHO_REPLY:
	case ICMP_TIMESTAMP_REPLY:
	case ICMP_INFORMATION_REPLY:
	case ICMP_ADDRESS_MASK_REPLY:
	case ICMP_DOMAIN_NAME_REPLY:
	case ICMP_EXTENDED_ECHO_REPLY:
		return BOTHS;
	case ICMP_UNREACHABLE:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return classify_icmp_error(ctx, rules, at + 8);
	default:
		return KERNELS;
	}
}

// Whose a packet is that was sent to this host's link-layer address. `roles` are those of the interface it came in by.
static __always_inline enum owner classify(CONTEXT *ctx, const struct rules *rules, __u32 roles)
{
	struct begin begin;
	const struct ipv4 *ip = &begin.ip;

	int whole = !load_bytes(ctx, ETH_HLEN, &begin, sizeof(begin));
	if (!whole && load_bytes(ctx, ETH_HLEN, &begin.ip, sizeof(begin.ip)))
		return KERNELS;
	if ((ip->version_ihl >> 4) != 4 || !routable(ip->destination))
		return KERNELS;

	__u32 kind = address_kind(rules, ip->destination);
	if (kind & ADDRESS_EXTERNAL) {
		if ((roles & ROLE_EXTERNAL) || is_internal(rules, ip->source))
			return classify_external(ctx, rules, &begin, whole);
		return KERNELS;
	}
	if (kind & ADDRESS_HOST)
		return KERNELS;
	if (!(roles & ROLE_INTERNAL) || !is_internal(rules, ip->source))
		return KERNELS;
	return is_bypassed(rules, ip->destination) ? KERNELS : NATS;
}

#endif
