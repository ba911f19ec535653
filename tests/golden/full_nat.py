"""Cases for full-nat, within the families and between them: one pool port, so that scapy knows it as well."""

import re

from scapy.layers.inet import ICMP, IP, TCP, UDP, Ether
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Raw

import cases
from cases import FAMILIES, HOST_MAC, PORT_MAC, ROUTER_MAC, V4, V6, Case, Path, ether

POOL = {V4: "192.0.2.200", V6: "2001:db8::200"}
POOL_PORT = 30000
ROUTER = {V4: "198.51.100.1", V6: "2001:db8:c::1"}


def config(across=False, ports=1):
    """A unit of one shard whose pool has one port on one address of each family; `across`: hosts of the other family."""
    text = cases.config("nat", ports=ports).replace("shards: 4", "shards: 1")
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

    def reply(self, case, payload=b"", *, dport=40000, ip=None, **fields):
        packet = ether(src=HOST_MAC[1], dst=PORT_MAC[self.host_side], tags=self.tags)
        packet = packet / self.hosts.ip(self.host, self.pool, **(ip or {}))
        packet = packet / self.l4(sport=self.host_port, dport=POOL_PORT, **fields)
        if payload:
            packet = packet / Raw(payload)
        expected = self.translated(
            packet, PORT_MAC["net0"], self.client_mac, (self.vip, self.vip_port), (self.client, dport)
        )
        case.sends(packet, expected, f"reply {dport}", port=self.host_side)

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
            yield errors(family, across)

    case = Case("pool-on-link", config())
    near, port = cases.NEAR_MAC, PORT_MAC["net0"]
    asks = ether(src=near, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=near, psrc=V4.near, pdst=POOL[V4])
    answer = ether(src=port, dst=near) / ARP(op=2, hwsrc=port, psrc=POOL[V4], hwdst=near, pdst=V4.near)
    case.sends(asks, answer, "arp")
    yield case


def errors(family, across):
    """Errors about both directions of a connection, from routers on either side, go back to where they are understood."""
    path = FullNat(family, "tcp", across)
    case = Case(f"errors-{family}-{path.hosts}", config(across))
    path.request(case, flags="S", seq=1)
    path.request(case, flags="A", seq=2, ack=1)
    client, vip = (path.client, 40000), (path.vip, 80)
    pool, host = (path.pool, POOL_PORT), (path.host, path.host_port)
    # From whose side, what it quotes, and what its receiver has sent; the receiver's link.
    for side, other, seen, sent, mac in (
        (family, path.hosts, (vip, client), (host, pool), HOST_MAC[1]),
        (path.hosts, family, (pool, host), (client, vip), ROUTER_MAC),
    ):
        quotation, expected = bytes(segment(side, *seen)), bytes(segment(other, *sent))
        if across:
            expected = bytes(other_header(segment(side, *seen), sent[0][0], sent[1][0], 0) / segment(other, *sent)[TCP])
        router = sent[1][0] if across else ROUTER[side]
        header = 20 if side is V4 else 40
        for length in (header + 8, len(quotation)):
            for error in ("too-big", "port"):
                packet = ether() / side.ip(ROUTER[side], seen[0][0]) / icmp(side, error, 1400) / Raw(quotation[:length])
                outer = side.ip(ROUTER[side], seen[0][0])
                outer = (
                    other_header(outer, router, sent[0][0], 1)
                    if across
                    else other.ip(router, sent[0][0], **{"ttl" if other is V4 else "hlim": 60})
                )
                mtu = 1400 + (0 if not across else 20 if side is V4 else -20)
                expected_length = length + (0 if not across else 20 if side is V4 else -20)
                result = ether(src=PORT_MAC["net0"], dst=mac) / outer / icmp(other, error, mtu)
                case.sends(packet, result / Raw(expected[:expected_length]), "errors")
    return case


def segment(family, source, destination):
    """What an error is about."""
    packet = family.ip(source[0], destination[0], **{"ttl" if family is V4 else "hlim": 50})
    packet = packet / TCP(sport=source[1], dport=destination[1], flags="A", seq=7) / Raw(b"x" * 40)
    return (IP if family is V4 else IPv6)(bytes(packet))


def icmp(family, error, mtu):
    if family is V4:
        return ICMP(type=3, code=4, nexthopmtu=mtu) if error == "too-big" else ICMP(type=3, code=3)
    return ICMPv6PacketTooBig(mtu=mtu) if error == "too-big" else ICMPv6DestUnreach(code=4)
