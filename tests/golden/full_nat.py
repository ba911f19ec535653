"""Cases for full-nat, within the families and between them: one pool port, so that scapy knows it as well."""

import re

from scapy.layers.inet import ICMP, IP, TCP, UDP, Ether
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import ARP
from scapy.packet import Raw

import cases
from cases import FAMILIES, HOST_MAC, ORDERS, PORT_MAC, ROUTER_MAC, V4, V6, Case, Path, ether, in_pieces, pattern, pieces

POOL = {V4: "192.0.2.200", V6: "2001:db8::200"}
POOL_PORT = 30000
ROUTER = {V4: "198.51.100.1", V6: "2001:db8:c::1"}


def config(across=False, ports=1, mtu=1500):
    """A unit of one shard whose pool has one port on one address of each family; `across`: hosts of the other family."""
    text = cases.config("nat", ports=ports, mtu=mtu).replace("shards: 4", "shards: 1")
    text = text.replace("mode: nat", "mode: full-nat\n    pool: sources")
    addresses = ", ".join(f'"{address}"' for address in POOL.values())
    pool = f'  - {{ name: sources, addresses: [{addresses}], port_range: "{POOL_PORT}-{POOL_PORT}" }}\n'
    text = text.replace("\nhosts:\n", f"\npools:\n{pool}hosts:\n")
    if across:
        far = ports == 2
        v4, v6 = ((family.far_hosts if far else family.hosts)[1] for family in FAMILIES)
        swap = {v4: v6, v6: v4}
        text = re.sub(r'(- { host: host-1, address: )"([^"]*)"', lambda m: f'{m[1]}"{swap[m[2]]}"', text)
    return text


class FullNat(Path):
    """How packets travel between a client and host 1, which knows nothing but the pool."""

    def __init__(self, family, protocol, across=False, ports=1, **more):
        super().__init__("nat", family, protocol, ports=ports, **more)
        self.across = across
        self.hosts = {V4: V6, V6: V4}[family] if across else family
        self.host = (self.hosts.far_hosts if ports == 2 else self.hosts.hosts)[1]
        self.host_port = cases.host_port(protocol, self.kind)
        self.pool = POOL[self.hosts]

    def at_host(self, packet):
        return self.translated(
            packet, PORT_MAC[self.host_side], HOST_MAC[1], (self.pool, POOL_PORT), (self.host, self.host_port)
        )

    def reply(self, case, payload=b"", *, dport=40000, **more):
        packet, expected = self.answer(payload, dport=dport, **more)
        case.sends(packet, expected, f"reply {dport}", port=self.host_side)

    def answer(self, payload=b"", *, dport=40000, ip=None, **fields):
        """A packet from the host, and how the client gets it."""
        packet = ether(src=HOST_MAC[1], dst=PORT_MAC[self.host_side], tags=self.tags)
        packet = packet / self.hosts.ip(self.host, self.pool, **(ip or {}))
        packet = packet / self.l4(sport=self.host_port, dport=POOL_PORT, **fields)
        if payload:
            packet = packet / Raw(payload)
        return packet, self.translated(
            packet, PORT_MAC["net0"], self.client_mac, (self.vip, self.vip_port), (self.client, dport)
        )

    def translated(self, packet, src_mac, dst_mac, source, destination):
        """RFC 7915 where the family changes; else a router that rewrites."""
        packet = Ether(bytes(packet))
        if not self.across:
            (src, sport), (dst, dport) = source, destination
            return cases.forwarded(
                packet, src_mac=src_mac, dst_mac=dst_mac, src=src, sport=sport, dst=dst, dport=dport
            )
        l4 = (packet[TCP] if TCP in packet else packet[UDP]).copy()
        l4.sport, l4.dport = source[1], destination[1]
        del l4.chksum
        ip = other_header(packet[IP] if IP in packet else packet[IPv6], source[0], destination[0], 1)
        return ether(src=src_mac, dst=dst_mac, tags=self.tags) / ip / l4

    def route(self, case, sport=40000):
        if not self.across:
            super().route(case, sport)


def other_header(ip, src, dst, hops):
    """The header in the other family, by `hops` less to live."""
    if isinstance(ip, IP):
        return IPv6(src=src, dst=dst, tc=ip.tos, fl=0, hlim=ip.ttl - hops)
    return IP(src=src, dst=dst, tos=ip.tc, id=0, flags="DF", ttl=ip.hlim - hops)


def paths(**more):
    """A path of each kind there is, with its configuration and name."""
    for family in FAMILIES:
        for across in (False, True):
            for protocol in ("tcp", "udp"):
                hosts = {V4: V6, V6: V4}[family] if across else family
                yield f"{family}-{hosts}-{protocol}", FullNat(family, protocol, across, **more), across


def full_nat_cases():
    """Whole conversations, unusual headers, what is refused, errors."""
    for name, path, across in paths():
        case = Case(name, config(across))
        cases.conversation(path, case)
        yield case

        case = Case(f"{name}-checksum-edges", config(across))
        for want in (0x0000, 0xFFFF, 0x0001):
            payload = cases.payload_for_checksum(path, want)
            if payload is not None:
                path.request(case, payload, **cases.first_fields(path.protocol))
        yield case

        case = Case(f"{name}-corruption-stays", config(across))
        good = ether() / path.family.ip(path.client, path.vip)
        good = good / path.l4(sport=40000, dport=path.vip_port, **cases.first_fields(path.protocol)) / Raw(b"payload")
        good = Ether(bytes(good))
        layer = TCP if path.protocol == "tcp" else UDP
        expected = Ether(bytes(path.at_host(good)))
        broken = Ether(bytes(good))
        broken[Raw].load = expected[Raw].load = b"pAyload"
        broken[layer].chksum = good[layer].chksum
        case.sends(broken, expected)
        yield case

        case = Case(f"{name}-refused", config(across))
        path.request(case, **cases.first_fields(path.protocol))
        # Its port is the only one.
        second = ether() / path.family.ip(path.client, path.vip)
        case.drop(second / path.l4(sport=40001, dport=path.vip_port, **cases.first_fields(path.protocol)), "pool_exhausted")
        # An answer of no connection.
        fields = {"flags": "A"} if path.protocol == "tcp" else {}
        stray = ether(src=HOST_MAC[1]) / path.hosts.ip(path.host, path.pool)
        case.drop(stray / path.l4(sport=path.host_port, dport=POOL_PORT + 1, **fields), "no_route")
        yield case

    for name, path, across in paths(tags=(100, 7)):
        case = Case(f"{name}-vlans", config(across))
        cases.conversation(path, case)
        yield case
    for name, path, across in paths(ports=2):
        case = Case(f"{name}-two-ports", config(across, ports=2))
        cases.conversation(path, case)
        yield case
    for name, path, across in paths(kind="onlink", client_mac=cases.NEAR_MAC):
        case = Case(f"{name}-client-on-link", config(across))
        cases.conversation(path, case)
        yield case

    for across in (False, True):
        case = Case(f"udp-without-checksum-{'across' if across else 'within'}", config(across))
        path = FullNat(V4, "udp", across)
        packet = ether() / V4.ip(path.client, path.vip) / UDP(sport=40000, dport=53, chksum=0) / Raw(b"no checksum")
        case.sends(packet, path.at_host(packet))
        yield case
        for family in FAMILIES:
            for fragment in (False, True):
                yield errors(family, across, fragment)

    case = Case("pool-on-link", config())
    near, port = cases.NEAR_MAC, PORT_MAC["net0"]
    asks = ether(src=near, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=near, psrc=V4.near, pdst=POOL[V4])
    answer = ether(src=port, dst=near) / ARP(op=2, hwsrc=port, psrc=POOL[V4], hwdst=near, pdst=V4.near)
    case.sends(asks, answer, "arp")
    yield case


def fragment_cases():
    """Fragments in all four pairs of families and in any order; what becomes too long, and what cannot become anything."""
    for name, path, across in paths():
        for order_name, order in ORDERS.items():
            case = Case(f"{name}-{order_name}", config(across))
            fragmented(path, case, order)
            yield case
    for name, path, across in paths(tags=(100, 7)):
        case = Case(f"{name}-vlans", config(across))
        fragmented(path, case, ORDERS["backwards"])
        yield case
    for name, path, across in paths(ports=2):
        case = Case(f"{name}-two-ports", config(across, ports=2))
        fragmented(path, case, ORDERS["first-in-the-middle"])
        yield case

    # An IPv4 packet that its sender allows to be taken to pieces: for a link of 1500 bytes to a host, of 1280 to any client.
    case = Case("v4-v6-split", config(True))
    split(case, FullNat(V4, "udp", True), True, (1500 - 28 - 20) // 8 * 8)
    yield case
    case = Case("v6-v4-split-replies", config(True))
    split(case, FullNat(V6, "udp", True), False, (1280 - 28 - 20) // 8 * 8)
    yield case
    # With DF its sender is told, in a fragment for the longer header that it gets.
    case = Case("v4-v6-dont-fragment", config(True))
    path = FullNat(V4, "udp", True)
    path.request(case, b"first")
    told(case, path, ether() / V4.ip(V4.client, V4.vip) / UDP(sport=40000, dport=53) / Raw(pattern(1453)), 1480)
    first = pieces(ether() / V4.ip(V4.client, V4.vip) / UDP(sport=40000, dport=53) / Raw(pattern(3000)), (1480,), 5)[0]
    first[IP].flags = "MF+DF"
    told(case, path, first, 1472)
    yield case

    # IPv6 fragments too long for the IPv4 link become smaller ones; an atomic one may, too, and another packet may not.
    case = Case("v6-v4-narrow", config(True, mtu=1280))
    path = FullNat(V6, "udp", True)
    path.request(case, b"first")
    most = (1280 - 20) // 8 * 8
    for ident, size, bounds in ((0x5A5A0031, 3000, [1440, 2880]), (0x5A5A0032, 1400, [])):
        whole = ether() / V6.ip(V6.client, V6.vip) / UDP(sport=40000, dport=53) / Raw(pattern(size))
        for packet in pieces(whole, bounds, ident):
            case.waits(packet, "split")
        smaller = sorted({*bounds, *(start + most for start in (0, *bounds) if start + most < size + 8)})
        for piece in pieces(path.at_host(whole), smaller, ident & 0xFFFF):
            case.out.setdefault("net0", []).append({"flow": f"split {ident}", "frame": bytes(piece).hex()})
    told(case, path, ether() / V6.ip(V6.client, V6.vip) / UDP(sport=40000, dport=53) / Raw(pattern(1253)), 1300)
    yield case

    # A whole packet behind a fragment header may be taken to pieces by IPv4's routers; other headers are left out.
    pad = [PadN(optdata=b"\0\0\0\0")]
    for name, path, across in paths():
        if path.family is V6 and across:
            case = Case(f"{name}-extension-headers", config(across))
            fields = cases.first_fields(path.protocol)
            plain = ether() / V6.ip(V6.client, V6.vip) / path.l4(sport=40000, dport=path.vip_port, **fields)
            for extension in (IPv6ExtHdrHopByHop(options=pad), IPv6ExtHdrDestOpt(options=pad) / IPv6ExtHdrDestOpt(options=pad)):
                path_through = V6.ip(V6.client, V6.vip) / extension / path.l4(sport=40000, dport=path.vip_port, **fields)
                case.sends(ether() / path_through, path.at_host(plain), "request 40000")
            for extension in (IPv6ExtHdrFragment(id=0xABCD1234), IPv6ExtHdrDestOpt(options=pad) / IPv6ExtHdrFragment(id=0xABCD1234)):
                expected = Ether(bytes(path.at_host(plain)))
                expected[IP].id, expected[IP].flags = 0x1234, 0
                del expected[IP].chksum
                path_through = V6.ip(V6.client, V6.vip) / extension / path.l4(sport=40000, dport=path.vip_port, **fields)
                case.sends(ether() / path_through, expected, "request 40000")
            behind = IPv6ExtHdrFragment(id=7) / IPv6ExtHdrDestOpt(options=pad)
            case.drop(ether() / V6.ip(V6.client, V6.vip) / behind / path.l4(sport=40000, dport=path.vip_port, **fields), "extension_header")
            yield case

    for across in (False, True):
        case = Case(f"no-checksum-{'across' if across else 'within'}", config(across))
        path = FullNat(V4, "udp", across)
        whole = ether() / V4.ip(V4.client, V4.vip, flags=0) / UDP(sport=40000, dport=53, chksum=0) / Raw(pattern(2000))
        before, after = pieces(whole, (1200,), 3), pieces(path.at_host(whole), (1200,), 3)
        if across:
            case.drop(before[0], "no_checksum")
        else:
            case.sends(before[0], after[0], "request")
        case.sends(before[1], after[1], "request")
        yield case


def fragmented(path, case, order):
    """A connection (or the first datagram), then packets of 3000 bytes in pieces and their answers."""
    fields = {}
    if path.protocol == "tcp":
        path.request(case, flags="S", seq=1)
        path.request(case, flags="A", seq=2, ack=1)
        fields = {"flags": "PA", "seq": 2, "ack": 1}
    for number in (0x77, 0x78):
        # Within IPv6 all of the identification stays.
        ident = {side: 0xABCD0000 | number if side is V6 else number for side in FAMILIES}
        kept = 0xFFFF if path.across else 0xFFFFFFFF
        whole = ether(src=path.client_mac, tags=path.tags) / path.family.ip(path.client, path.vip, **unset_df(path.family))
        whole = whole / path.l4(sport=40000, dport=path.vip_port, **fields) / Raw(pattern(3000))
        there = path.at_host(whole)
        in_pieces(
            path, case, whole, lambda bounds, there=there, ident=ident: pieces(there, bounds, ident[path.family] & kept),
            ident[path.family], order, "request", "net0", path.host_side,
        )
        back, here = path.answer(pattern(2999), ip=unset_df(path.hosts), **fields)
        in_pieces(
            path, case, back, lambda bounds, here=here, ident=ident: pieces(here, bounds, ident[path.hosts] & kept),
            ident[path.hosts], order, "reply", path.host_side, "net0",
        )


def unset_df(family):
    return {"flags": 0} if family is V4 else {}


def split(case, path, to_host, most):
    """IPv4 packets without DF, and fragments, with and without a checksum, are taken to pieces of `most` bytes."""
    path.request(case, b"first")
    for ident, size, chksum in ((0x31, 1472, None), (0x32, 1472, 0), (0x33, 3000, None)):
        summed = {} if chksum is None else {"chksum": chksum}
        if to_host:
            whole = ether() / V4.ip(V4.client, V4.vip, flags=0, id=ident) / UDP(sport=40000, dport=53, **summed)
            whole = whole / Raw(pattern(size))
            passed = path.at_host(whole)
        else:
            whole, passed = path.answer(pattern(size), ip={"flags": 0, "id": ident}, **summed)
        bounds = list(range(1480, size + 8, 1480))
        for packet in pieces(whole, bounds, ident):
            case.waits(packet, "split", "net0" if to_host else path.host_side)
        smaller = sorted({*bounds, *(start + most for start in (0, *bounds) if start + most < size + 8)})
        for piece in pieces(passed, smaller, ident):
            case.out.setdefault("net0", []).append({"flow": f"split {ident}", "frame": bytes(piece).hex()})


def told(case, path, packet, mtu):
    """`packet` is too long: the VIP tells its sender."""
    quoted = bytes(Ether(bytes(packet)).payload)
    answer = ether(src=PORT_MAC["net0"], dst=ROUTER_MAC)
    if path.family is V4:
        answer = answer / IP(src=path.vip, dst=path.client, tos=0xC0, ttl=64, flags="DF", id=0)
        answer = answer / icmp(V4, "too-big", mtu) / Raw(quoted[:548])
    else:
        answer = answer / IPv6(src=path.vip, dst=path.client, hlim=64) / icmp(V6, "too-big", mtu) / Raw(quoted[: 1280 - 48])
    case.sends(packet, answer, "too-big")
    case.drops["too_big"] = case.drops.get("too_big", 0) + 1


def errors(family, across, fragment):
    """Errors about both directions of a connection, from routers on either side, go back to where they are understood; about a
    whole packet, or about the first fragment of one."""
    path = FullNat(family, "tcp", across)
    case = Case(f"errors-{family}-{path.hosts}" + ("-fragment" if fragment else ""), config(across))
    path.request(case, flags="S", seq=1)
    path.request(case, flags="A", seq=2, ack=1)
    client, vip = (path.client, 40000), (path.vip, 80)
    pool, host = (path.pool, POOL_PORT), (path.host, path.host_port)
    # From whose side, what it quotes, and what its receiver has sent; the receiver's link.
    for side, other, seen, sent, mac in (
        (family, path.hosts, (vip, client), (host, pool), HOST_MAC[1]),
        (path.hosts, family, (pool, host), (client, vip), ROUTER_MAC),
    ):
        quotation, expected = segment(side, *seen), segment(other, *sent)
        if across:
            expected = other_header(quotation, sent[0][0], sent[1][0], 0) / expected[TCP]
        if fragment:
            quotation, expected = first_fragment(quotation), first_fragment(expected)
        quotation, expected = bytes(quotation), bytes(expected)
        router = sent[1][0] if across else ROUTER[side]
        header = 20 if side is V4 else 48 if fragment else 40
        shift = (28 if fragment else 20) * (0 if not across else 1 if side is V4 else -1)
        for length in (header + 8, len(quotation)):
            for error in ("too-big", "port"):
                packet = ether() / side.ip(ROUTER[side], seen[0][0]) / icmp(side, error, 1400) / Raw(quotation[:length])
                outer = side.ip(ROUTER[side], seen[0][0])
                outer = (
                    other_header(outer, router, sent[0][0], 1)
                    if across
                    else other.ip(router, sent[0][0], **{"ttl" if other is V4 else "hlim": 60})
                )
                result = ether(src=PORT_MAC["net0"], dst=mac) / outer / icmp(other, error, 1400 + shift)
                case.sends(packet, result / Raw(expected[: length + shift]), "errors")
    return case


def segment(family, source, destination):
    """What an error is about."""
    packet = family.ip(source[0], destination[0], **{"ttl" if family is V4 else "hlim": 50})
    packet = packet / TCP(sport=source[1], dport=destination[1], flags="A", seq=7) / Raw(b"x" * 40)
    return (IP if family is V4 else IPv6)(bytes(packet))


def first_fragment(packet):
    """The same segment as the first fragment of a longer one."""
    upper = Raw(bytes(packet[TCP]))
    if IP in packet:
        ip = packet[IP]
        return IP(src=ip.src, dst=ip.dst, tos=ip.tos, ttl=ip.ttl, proto=6, id=0x77, flags="MF") / upper
    ip = packet[IPv6]
    header = IPv6(src=ip.src, dst=ip.dst, tc=ip.tc, fl=ip.fl, hlim=ip.hlim, nh=44)
    return header / IPv6ExtHdrFragment(nh=6, m=1, id=0x77) / upper


def icmp(family, error, mtu):
    if family is V4:
        return ICMP(type=3, code=4, nexthopmtu=mtu) if error == "too-big" else ICMP(type=3, code=3)
    return ICMPv6PacketTooBig(mtu=mtu) if error == "too-big" else ICMPv6DestUnreach(code=4)
