// SPDX-License-Identifier: Apache-2.0
// Takes IPIP (RFC 2003, 2473, 4213) and GUE headers off packets to this host, in tc ingress, for kernels without ipip, ip6_tunnel and fou.
//
// A packet is changed only if it is certain what it is: to one of the host's own addresses, from an allowed source, well-formed, and with
// an inner packet to one of the host's own addresses, too. Everything else goes on to the kernel untouched.

#include <stddef.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Linux 6.3; older headers do not have them, and older kernels refuse them, which counts as `failed`.
#define ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

#define IPV4_FRAGMENT 0x3fff /* offset, or more fragments */

// UDP port of GUE in host order; 0: none. Set before loading.
const volatile __u16 gue_port = 6080;

// Addresses are in IPv6's form; IPv4's are mapped (::ffff:a.b.c.d).
struct address {
	__be32 words[4];
};

struct prefix {
	__u32 length;
	struct address address;
};

enum counter {
	IPIP_4IN4,
	IPIP_6IN4,
	IPIP_4IN6,
	IPIP_6IN6,
	GUE_4IN4,
	GUE_6IN4,
	GUE_4IN6,
	GUE_6IN6,
	FOREIGN_SOURCE,
	FOREIGN_INNER,
	MALFORMED,
	FRAGMENT,
	FAILED,
	COUNTERS,
};

// The host's own addresses. Written by user space, read here.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct address);
	__type(value, __u8);
} own SEC(".maps");

// Who may send tunnelled packets. Written by user space, read here.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct prefix);
	__type(value, __u8);
} sources SEC(".maps");

// Written here, each CPU its own; summed by user space.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct outer {
	struct address source;
	struct address destination;
	__u32 payload; /* offset from the start of the frame */
	__u32 end;     /* likewise, of the packet; behind it may be padding */
	__u8 protocol;
	__u8 is_ipv6;
};

static __always_inline int pass_and_count(__u32 which)
{
	__u64 *count = bpf_map_lookup_elem(&counters, &which);

	if (count)
		*count += 1;
	return TC_ACT_UNSPEC;
}

static __always_inline void map_ipv4(struct address *address, __be32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = bpf_htonl(0xffff);
	address->words[3] = ipv4;
}

static __always_inline void copy_ipv6(struct address *address, const struct in6_addr *ipv6)
{
	__builtin_memcpy(address->words, ipv6, sizeof(address->words));
}

static __always_inline int is_own(const struct address *address)
{
	return bpf_map_lookup_elem(&own, address) != 0;
}

static __always_inline int has_good_checksum(struct iphdr *ip)
{
	__s64 sum = bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0);

	if (sum < 0)
		return 0;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff;
}

// Reads the outer header. TC_ACT_UNSPEC ends with the packet untouched (and counted if it was meant for us); 0: goes on.
static __always_inline int read_outer(struct __sk_buff *skb, struct outer *outer)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return TC_ACT_UNSPEC;
		if (ip.protocol != IPPROTO_IPIP && ip.protocol != IPPROTO_IPV6 && ip.protocol != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
		map_ipv4(&outer->source, ip.saddr);
		map_ipv4(&outer->destination, ip.daddr);
		outer->is_ipv6 = 0;
		outer->protocol = ip.protocol;
		outer->payload = ETH_HLEN + sizeof(ip);
		outer->end = ETH_HLEN + bpf_ntohs(ip.tot_len);
		if (!is_own(&outer->destination))
			return TC_ACT_UNSPEC;
		if (ip.frag_off & bpf_htons(IPV4_FRAGMENT))
			return ip.protocol == IPPROTO_UDP ? TC_ACT_UNSPEC : pass_and_count(FRAGMENT);
		// Ordinary UDP with options is none of our business.
		if (ip.version != 4 || ip.ihl != 5 || !has_good_checksum(&ip) || outer->end > skb->len)
			return ip.protocol == IPPROTO_UDP ? TC_ACT_UNSPEC : pass_and_count(MALFORMED);
		return 0;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return TC_ACT_UNSPEC;
		if (ip.nexthdr != IPPROTO_IPIP && ip.nexthdr != IPPROTO_IPV6 && ip.nexthdr != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
		copy_ipv6(&outer->source, &ip.saddr);
		copy_ipv6(&outer->destination, &ip.daddr);
		outer->is_ipv6 = 1;
		outer->protocol = ip.nexthdr;
		outer->payload = ETH_HLEN + sizeof(ip);
		outer->end = outer->payload + bpf_ntohs(ip.payload_len);
		if (!is_own(&outer->destination))
			return TC_ACT_UNSPEC;
		if (ip.version != 6 || outer->end > skb->len)
			return ip.nexthdr == IPPROTO_UDP ? TC_ACT_UNSPEC : pass_and_count(MALFORMED);
		return 0;
	}
	return TC_ACT_UNSPEC;
}

// Whether a well-formed packet of that family is between `at` and `end`; writes to whom it is.
static __always_inline int read_inner(struct __sk_buff *skb, __u32 at, __u32 end, int is_ipv6, struct address *to)
{
	if (is_ipv6) {
		struct ipv6hdr ip;

		if (at + sizeof(ip) > end || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		copy_ipv6(to, &ip.daddr);
		return ip.version == 6 && at + sizeof(ip) + bpf_ntohs(ip.payload_len) <= end;
	}
	struct iphdr ip;

	if (at + sizeof(ip) > end || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
		return 0;
	map_ipv4(to, ip.daddr);
	return ip.version == 4 && ip.ihl >= 5 && bpf_ntohs(ip.tot_len) >= ip.ihl * 4 &&
	       at + bpf_ntohs(ip.tot_len) <= end;
}

SEC("tc")
int weir_decap(struct __sk_buff *skb)
{
	struct outer outer = {};
	struct prefix from = { .length = 128 };
	struct address to = {};
	__u32 inner, which;
	int verdict, is_gue = 0, is_ipv6;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	verdict = read_outer(skb, &outer);
	if (verdict)
		return verdict;
	inner = outer.payload;
	is_ipv6 = outer.protocol == IPPROTO_IPV6;

	if (outer.protocol == IPPROTO_UDP) {
		struct udphdr udp;
		__u8 head[4]; /* variant (2 bits), control (1), length of the options in words (5); protocol; flags */

		if (bpf_skb_load_bytes(skb, inner, &udp, sizeof(udp)))
			return TC_ACT_UNSPEC;
		if (gue_port == 0 || udp.dest != bpf_htons(gue_port))
			return TC_ACT_UNSPEC;
		if (bpf_ntohs(udp.len) < sizeof(udp) + sizeof(head) || inner + bpf_ntohs(udp.len) != outer.end)
			return pass_and_count(MALFORMED);
		inner += sizeof(udp);
		if (bpf_skb_load_bytes(skb, inner, head, sizeof(head)))
			return pass_and_count(MALFORMED);
		is_gue = 1;
		if (head[0] == 0 && head[2] == 0 && head[3] == 0) {
			// Variant 0 with data and without options.
			if (head[1] != IPPROTO_IPIP && head[1] != IPPROTO_IPV6)
				return pass_and_count(MALFORMED);
			is_ipv6 = head[1] == IPPROTO_IPV6;
			inner += sizeof(head);
		} else if (head[0] >> 4 == 4 || head[0] >> 4 == 6) {
			// Variant 1: the packet itself; its version begins with the variant.
			is_ipv6 = head[0] >> 4 == 6;
		} else {
			return pass_and_count(MALFORMED);
		}
	}

	from.address = outer.source;
	if (!bpf_map_lookup_elem(&sources, &from))
		return pass_and_count(FOREIGN_SOURCE);
	if (!read_inner(skb, inner, outer.end, is_ipv6, &to))
		return pass_and_count(MALFORMED);
	if (!is_own(&to))
		return pass_and_count(FOREIGN_INNER);

	// The helper adjusts the sum of a CHECKSUM_COMPLETE packet, and takes back CHECKSUM_UNNECESSARY: that was said of the outer one.
	// It sets skb->protocol, too, where the families differ, but not the frame's EtherType.
	if (is_ipv6 != outer.is_ipv6)
		flags |= is_ipv6 ? ADJ_ROOM_DECAP_L3_IPV6 : ADJ_ROOM_DECAP_L3_IPV4;
	if (bpf_skb_adjust_room(skb, -(__s32)(inner - ETH_HLEN), BPF_ADJ_ROOM_MAC, flags))
		return pass_and_count(FAILED);
	if (is_ipv6 != outer.is_ipv6) {
		__be16 type = is_ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);

		bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &type, sizeof(type), 0);
	}
	which = (is_gue ? GUE_4IN4 : IPIP_4IN4) + (outer.is_ipv6 ? 2 : 0) + (is_ipv6 ? 1 : 0);
	return pass_and_count(which);
}

// No helper here is for GPL programs only.
char license_of_decap[] SEC("license") = "Apache-2.0";
