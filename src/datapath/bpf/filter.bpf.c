// SPDX-License-Identifier: Apache-2.0
//
// The classifier before packet sockets. It stands in two places on the same interface:
//
//   capture   on the AF_PACKET socket: lets NAT's packets through to the worker, so that the host's own traffic
//             never wakes it.
//   divert    at tc ingress, which comes after the tap: drops what belongs to NAT alone, so that the kernel does
//             not answer it as well. Not attached where XDP takes NAT's packets before the tap.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define CONTEXT struct __sk_buff

static long (*const load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)BPF_FUNC_skb_load_bytes;

#include "classify.h"

static __always_inline enum owner owner_of(struct __sk_buff *skb, const struct rules *rules)
{
	// Broadcast, multicast, other hosts' and outgoing frames; those of VLANs.
	if (skb->pkt_type != 0 || skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return KERNELS;
	return classify(skb, rules, rules->roles);
}

SEC("socket")
int egret_capture(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct rules *rules = bpf_map_lookup_elem(&RULES, &zero);
	if (!rules)
		return 0;
	enum owner owner = owner_of(skb, rules);
	return owner == BOTHS || (owner == NATS && !rules->shared_only) ? (int)0x7fffffff : 0;
}

SEC("classifier")
int egret_divert(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct rules *rules = bpf_map_lookup_elem(&RULES, &zero);
	return rules && owner_of(skb, rules) == NATS ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

// The helpers used need no GPL.
char LICENSE[] SEC("license") = "Apache-2.0";
