// SPDX-License-Identifier: Apache-2.0
//
// The classifier before packet sockets, at tc ingress. It hands NAT's packets over to the worker, and nothing else meets
// the worker's socket, nor waits for it.
//
// A socket that takes all packets of an interface would have each of the host's own shown to it, which costs more than
// this program; one that takes IPv4's would have each of them copied for the kernel. So NAT's packets are made ones of a
// type that nobody else takes: with a VLAN tag in front of IPv4 and one more around, which names no VLAN there can be.
// The kernel takes the outer one off when it finds no such VLAN, and so the frame comes to the socket with the inner one.
// The network may send such frames, too; what it cannot send is a mark.
//
// The constants are those of `src/datapath/sys/packet_socket.rs`.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define CONTEXT struct __sk_buff

static long (*const load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;
static long (*const push_vlan)(struct __sk_buff *skb, __be16 proto, __u16 tci) = (void *)BPF_FUNC_skb_vlan_push;
static long (*const pop_vlan)(struct __sk_buff *skb) = (void *)BPF_FUNC_skb_vlan_pop;
static long (*const clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) =
	(void *)BPF_FUNC_clone_redirect;

#include "classify.h"

// IEEE 802.1Q 9.6: reserved, no VLAN has it.
#define NO_VLAN 4095
#define HANDED_OVER 0x45475254

static __always_inline enum owner owner_of(struct __sk_buff *skb, const struct rules *rules)
{
	// Broadcast, multicast, other hosts' and outgoing frames; those of VLANs.
	if (skb->pkt_type != 0 || skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return KERNELS;
	return classify(skb, rules, rules->roles);
}

// Gives whether it could be done; without memory for it there is no way on for the packet.
static __always_inline int tag(struct __sk_buff *skb)
{
	skb->mark = HANDED_OVER;
	return !push_vlan(skb, htons(ETH_P_8021AD), NO_VLAN) && !push_vlan(skb, htons(ETH_P_8021AD), NO_VLAN);
}

SEC("classifier")
int egret_divert(struct __sk_buff *skb)
{
	__u32 zero = 0, mark = skb->mark;
	struct rules *rules = bpf_map_lookup_elem(&RULES, &zero);
	if (!rules)
		return TC_ACT_UNSPEC;
	// Our copy, see below.
	if (skb->protocol == htons(ETH_P_8021AD))
		return mark == HANDED_OVER ? TC_ACT_OK : TC_ACT_UNSPEC;
	switch (owner_of(skb, rules)) {
	case NATS:
		if (rules->shared_only)
			return TC_ACT_UNSPEC;
		return tag(skb) ? TC_ACT_OK : TC_ACT_SHOT;
	case BOTHS:
		// The copy comes in by the same interface again. If there is no room for it, NAT has lost it, as on a full link.
		if (!tag(skb))
			return TC_ACT_SHOT;
		clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
		if (pop_vlan(skb) || pop_vlan(skb))
			return TC_ACT_SHOT;
		skb->mark = mark;
		// To the kernel as UNSPEC: on to whoever is next.
		return TC_ACT_PIPE;
	default:
		return TC_ACT_UNSPEC;
	}
}

// The helpers used need no GPL.
char LICENSE[] SEC("license") = "Apache-2.0";
