#!/usr/bin/python3
"""Packets for `weir replay`, and what scapy, which shares no code with Weir, says must come out of it.

`cases.py DIR GROUP` writes for every case of the group a folder in DIR: config.yaml, PORT.in.pcap and expect.json:
{"out": {port: [{"flow", "frame"}]}, "twin": [frame], "drops": {reason: packets}, "routes": [...]}, frames in hex.
"""

import importlib
import ipaddress
import json
import logging
import struct
import sys
import pathlib

logging.getLogger("scapy").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP, Ether, IPOption_NOP, IPOption_RR  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q  # noqa: E402
from scapy.packet import Raw  # noqa: E402

PORT_MAC = {"net0": "02:00:00:00:00:01", "net1": "02:00:00:00:01:01"}
ROUTER_MAC = "02:00:00:00:00:fe"
NEAR_MAC = "02:00:00:00:00:32"
HOST_MAC = {1: "02:00:00:00:00:0b", 2: "02:00:00:00:00:0c", 3: "02:00:00:00:00:0d"}


class Family:
    """Addresses of one IP version."""

    def __init__(self, version):
        self.version = version
        v4 = version == 4
        self.client = "198.51.100.7" if v4 else "2001:db8:c::7"
        self.near = "192.0.2.50" if v4 else "2001:db8::50"
        self.vip = "203.0.113.80" if v4 else "2001:db8:f::80"
        self.onlink_vip = "192.0.2.100" if v4 else "2001:db8::100"
        self.unit = "192.0.2.1" if v4 else "2001:db8::1"
        self.hosts = {i: (f"192.0.2.{10 + i}" if v4 else f"2001:db8::{10 + i}") for i in (1, 2, 3)}
        self.far_hosts = {i: (f"10.1.0.{10 + i}" if v4 else f"fd01::{10 + i}") for i in (1, 2, 3)}

    def __str__(self):
        return f"v{self.version}"

    @property
    def other(self):
        return V6 if self.version == 4 else V4

    def ip(self, src, dst, **fields):
        """A header with fields that have to survive."""
        if self.version == 4:
            return IP(**{"src": src, "dst": dst, "tos": 0x2E, "id": 0x1234, "flags": "DF", "ttl": 61, **fields})
        return IPv6(**{"src": src, "dst": dst, "tc": 0x2E, "fl": 0xABCDE, "hlim": 61, **fields})


V4, V6 = Family(4), Family(6)
FAMILIES = (V4, V6)


def config(mode, *, hosts=1, ports=1, timeouts="", select="tokens", mtu=1500, cross=False):
    """A unit's YAML: the VIPs of both families, web on TCP 80 and a service on UDP 53; `cross`: hosts of the other family."""
    far = ports == 2
    text = ["unit: { id: 1, name: golden }"]
    text += ["dataplane:", "  shards: 4", "  classifiers: 2", "  cpus: [0]", "  seed: 7"]
    if timeouts:
        text.append(f"  timeouts: {timeouts}")
    text.append("ports:")
    text.append(
        f'  - {{ name: net0, device: "af_packet:golden0", mac: "{PORT_MAC["net0"]}", mtu: {mtu}, '
        'addresses: [192.0.2.1/24, "2001:db8::1/64"] }'
    )
    if far:
        text.append(
            f'  - {{ name: net1, device: "af_packet:golden1", mac: "{PORT_MAC["net1"]}", '
            'addresses: [10.1.0.1/24, "fd01::1/64"] }'
        )
    text.append("neighbours:")
    for family in FAMILIES:
        near = [("net0", family.near, NEAR_MAC), ("net0", V4_ROUTER if family is V4 else V6_ROUTER, ROUTER_MAC)]
        for i in range(1, hosts + 1):
            near.append(("net1" if far else "net0", (family.far_hosts if far else family.hosts)[i], HOST_MAC[i]))
        text += [f'  - {{ port: {port}, address: "{address}", mac: "{mac}" }}' for port, address, mac in near]
    text.append("routes:")
    text.append(f"  - {{ prefix: 0.0.0.0/0, via: {V4_ROUTER}, port: net0 }}")
    text.append(f'  - {{ prefix: "::/0", via: "{V6_ROUTER}", port: net0 }}')
    text.append("hosts:")
    for i in range(1, hosts + 1):
        text.append(f"  - {{ id: {i}, name: host-{i}, address: {(V4.far_hosts if far else V4.hosts)[i]} }}")
    text.append("services:")
    number = 0
    for family in FAMILIES:
        for kind, vip in (("routed", family.vip), ("onlink", family.onlink_vip)):
            for protocol, port in (("tcp", 80), ("udp", 53)):
                number += 1
                text.append(
                    f'  - id: {number}\n    name: {kind}-{protocol}-{family}\n    vip: "{vip}"\n'
                    f"    protocol: {protocol}\n    ports: {port}\n    mode: {mode}\n    select: {select}\n    endpoints:"
                )
                for i in range(1, hosts + 1):
                    outer = family.other if cross else family
                    address = (outer.far_hosts if far else outer.hosts)[i]
                    # A host serves two VIPs on one port each; nat needs to tell their replies apart.
                    other = f", port: {host_port(protocol, kind)}" if mode == "nat" else ""
                    text.append(f'      - {{ host: host-{i}, address: "{address}"{other} }}')
    return "\n".join(text) + "\n"


V4_ROUTER, V6_ROUTER = "192.0.2.254", "2001:db8::fe"


def host_port(protocol, kind="routed"):
    """Where a host serves in nat mode."""
    return {"tcp": 8080, "udp": 5353}[protocol] + (0 if kind == "routed" else 1)


class Case:
    """Packets in, in order, each with what must become of it."""

    def __init__(self, name, config_text):
        self.name = name
        self.config = config_text
        self.inputs = []  # (microsecond, port, frame)
        self.clock = 0
        self.last = None
        self.out = {}
        self.twin = []
        self.drops = {}
        self.routes = []

    def arrives(self, packet, port, kind=""):
        """Packets of one kind arrive within a millisecond, which makes bursts of them; another kind, such as the answers to
        them, comes in a later one."""
        full = self.clock % 1000 == 999
        self.clock = (self.clock // 1000 + 1) * 1000 if full or self.last not in (None, kind) else self.clock + 1
        self.last = kind
        self.inputs.append((self.clock, port, bytes(packet)))

    def sends(self, packet, expected, flow="", port="net0", out_port="net0"):
        """`packet` comes in by `port` and leaves as `expected`; the flow's name begins with its kind."""
        self.arrives(packet, port, flow.split(" ")[0])
        self.out.setdefault(out_port, []).append({"flow": flow, "frame": bytes(expected).hex()})

    def waits(self, packet, kind="", port="net0"):
        """`packet` comes in; what becomes of it is said elsewhere."""
        self.arrives(packet, port, kind)

    def later(self, seconds):
        """Time passes before what comes next."""
        self.clock = (self.clock // 1000 + 1) * 1000 + seconds * 1_000_000

    def drop(self, packet, reason, port="net0"):
        """`packet` is dropped and counted."""
        self.arrives(packet, port)
        self.drops[reason] = self.drops.get(reason, 0) + 1

    def to_twin(self, packet, port="net0"):
        """`packet` goes to the kernel as it is."""
        self.arrives(packet, port)
        self.twin.append(bytes(packet).hex())

    def write(self, folder):
        folder = folder / self.name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(self.config)
        ports = sorted({port for _, port, _ in self.inputs})
        for port in ports:
            with open(folder / f"{port}.in.pcap", "wb") as pcap:
                pcap.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
                for clock, at, frame in self.inputs:
                    if at == port:
                        seconds, micros = divmod(clock, 1_000_000)
                        pcap.write(struct.pack("<IIII", 1_700_000_000 + seconds, micros, len(frame), len(frame)))
                        pcap.write(frame)
        expect = {
            "packets_in": len(self.inputs),
            "out": self.out,
            "twin": self.twin,
            "drops": self.drops,
            "routes": self.routes,
        }
        (folder / "expect.json").write_text(json.dumps(expect))


def ether(src=ROUTER_MAC, dst=PORT_MAC["net0"], tags=()):
    """Ethernet with VLAN tags, the outer of two an S-tag."""
    packet = Ether(src=src, dst=dst)
    for index, tag in enumerate(tags):
        packet = packet / (Dot1AD if index == 0 and len(tags) == 2 else Dot1Q)(vlan=tag, prio=3)
    return packet


def forwarded(packet, *, src_mac, dst_mac, **rewrite):
    """What a router with this next hop sends: hop limit less one, addresses and ports as told, fresh checksums."""
    packet = Ether(bytes(packet))
    packet.src, packet.dst = src_mac, dst_mac
    ip = packet[IP] if IP in packet else packet[IPv6]
    if IP in packet:
        ip.ttl -= 1
        del ip.chksum
    else:
        ip.hlim -= 1
    ip.src = rewrite.get("src", ip.src)
    ip.dst = rewrite.get("dst", ip.dst)
    l4 = packet[TCP] if TCP in packet else packet[UDP]
    l4.sport = rewrite.get("sport", l4.sport)
    l4.dport = rewrite.get("dport", l4.dport)
    if rewrite and not (UDP in packet and l4.chksum == 0):  # 0: the sender made none
        del l4.chksum
    return packet


class Path:
    """How the packets of one mode travel between a client and host 1."""

    def __init__(self, mode, family, protocol, *, ports=1, kind="routed", client_mac=ROUTER_MAC, tags=(), cross=False):
        self.outer = family.other if cross else family
        self.mode, self.family, self.protocol, self.tags = mode, family, protocol, tags
        self.kind, self.client_mac = kind, client_mac
        self.vip = family.vip if kind == "routed" else family.onlink_vip
        self.vip_port = 80 if protocol == "tcp" else 53
        self.host_side = "net1" if ports == 2 else "net0"
        self.host = (self.outer.far_hosts if ports == 2 else self.outer.hosts)[1]
        self.client = family.near if client_mac == NEAR_MAC else family.client

    def l4(self, **fields):
        return TCP(**{"window": 64240, **fields}) if self.protocol == "tcp" else UDP(**fields)

    def request(self, case, payload=b"", *, sport=40000, ip=None, extension=None, **fields):
        """A packet from the client, and how the host gets it."""
        packet = ether(src=self.client_mac, tags=self.tags) / self.family.ip(self.client, self.vip, **(ip or {}))
        if extension is not None:
            packet = packet / extension
        packet = packet / self.l4(sport=sport, dport=self.vip_port, **fields)
        if payload:
            packet = packet / Raw(payload)
        case.sends(packet, self.at_host(packet), f"request {sport}", out_port=self.host_side)

    def at_host(self, packet):
        if self.mode in ("ipip", "gue"):
            return self.tunnelled(packet)
        rewrite = {"dst": self.host, "dport": host_port(self.protocol, self.kind)} if self.mode == "nat" else {}
        return forwarded(packet, src_mac=PORT_MAC[self.host_side], dst_mac=HOST_MAC[1], **rewrite)

    def tunnelled(self, packet):
        """RFC 2003 and 2473, or GUE over UDP: the packet as a router passes it on, in a header from the unit to the host."""
        inner = forwarded(packet, src_mac=PORT_MAC[self.host_side], dst_mac=HOST_MAC[1])
        ip = inner[IP] if IP in inner else inner[IPv6]
        kind = 4 if IP in inner else 41
        ports = bytes(packet[TCP] if TCP in packet else packet[UDP])[:4]
        return self.encapsulated(packet, bytes(ip), kind, ip.tos if IP in inner else ip.tc, ports)

    def encapsulated(self, packet, inner, kind, traffic_class, ports):
        entropy = flow_entropy(self.client, ports)
        if self.mode == "gue":
            gue = bytes([0, kind, 0, 0])
            inner = struct.pack("!4H", entropy, 6080, 8 + 4 + len(inner), 0) + gue + inner
            kind = 17
        if self.outer is V4:
            outer = IP(src=V4.unit, dst=self.host, ttl=64, flags="DF", id=0, tos=traffic_class, proto=kind)
        else:
            outer = IPv6(src=V6.unit, dst=self.host, hlim=64, tc=traffic_class, fl=entropy, nh=kind)
        link = ether(src=PORT_MAC[self.host_side], dst=HOST_MAC[1], tags=self.tags)
        return link / outer / Raw(inner)

    def reply(self, case, payload=b"", *, dport=40000, **fields):
        """A packet from the host, where it comes back through the unit, and how the client gets it."""
        if self.mode != "nat":
            return
        packet = (
            ether(src=HOST_MAC[1], dst=PORT_MAC[self.host_side], tags=self.tags)
            / self.family.ip(self.host, self.client)
            / self.l4(sport=host_port(self.protocol, self.kind), dport=dport, **fields)
        )
        if payload:
            packet = packet / Raw(payload)
        expected = forwarded(
            packet, src_mac=PORT_MAC["net0"], dst_mac=self.client_mac, src=self.vip, sport=self.vip_port
        )
        case.sends(packet, expected, f"reply {dport}", port=self.host_side)

    def route(self, case, sport=40000):
        """The route that must be there at the end."""

        def endpoint(address, port):
            return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

        case.routes.append(
            {
                "client": endpoint(self.client, sport),
                "vip": endpoint(self.vip, self.vip_port),
                "protocol": self.protocol,
                "address": endpoint(
                    self.host, host_port(self.protocol, self.kind) if self.mode == "nat" else self.vip_port
                ),
            }
        )


def flow_entropy(client, ports):
    """What spreads the flows of one tunnel: a mix of the client's ports and the first four bytes of its address."""
    address = ipaddress.ip_address(client).packed[:4]
    if ":" in client:
        address = ipaddress.ip_address(client).packed[12:]
    words = int.from_bytes(ports, "little") << 32 | int.from_bytes(address, "little")
    mixed = (words ^ words >> 29) * 0x9E3779B97F4A7C15 % (1 << 64)
    return mixed >> 48 | 0xC000


SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1000, 0)), ("NOP", None), ("WScale", 7)]


def conversation(path, case, sports=(40000,)):
    """Connections from their first packet to their last, side by side, of all sizes; for UDP some datagrams."""
    for step in STEPS[path.protocol]:
        for sport in sports:
            step(path, case, sport)
    for sport in sports:
        path.route(case, sport)


def request(size=0, **fields):
    return lambda path, case, sport: path.request(case, pattern(size), sport=sport, **fields)


def reply(size=0, **fields):
    return lambda path, case, sport: path.reply(case, pattern(size), dport=sport, **fields)


def pattern(size):
    return bytes(i % 251 for i in range(size))


STEPS = {
    "udp": [request(1), reply(2), request(512), reply(513), request(1400), reply(1401)],
    "tcp": [
        request(flags="S", seq=100, options=SYN_OPTIONS),
        reply(flags="SA", seq=900, ack=101, options=SYN_OPTIONS),
        request(flags="A", seq=101, ack=901),
        request(1, flags="PA", seq=101, ack=901),
        request(1400, flags="PA", seq=102, ack=901),
        reply(1440, flags="PA", seq=901, ack=1502),
        request(flags="A", seq=1502, ack=2341),
        reply(flags="FA", seq=2341, ack=1502),
        request(flags="FA", seq=1502, ack=2342),
        reply(flags="A", seq=2342, ack=1503),
        request(flags="R", seq=1503),
    ],
}


def mode_cases(mode):
    """Whole conversations of a mode, and headers with something unusual in them."""
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            for tags in ((), (7,), (100, 7)):
                case = Case(f"{family}-{protocol}" + "".join(f"-vlan{t}" for t in tags), config(mode))
                conversation(Path(mode, family, protocol, tags=tags), case)
                yield case

            case = Case(f"{family}-{protocol}-client-on-link", config(mode))
            conversation(Path(mode, family, protocol, kind="onlink", client_mac=NEAR_MAC), case)
            yield case

            case = Case(f"{family}-{protocol}-many", config(mode))
            conversation(Path(mode, family, protocol), case, range(20000, 20040))
            yield case

        case = Case(f"{family}-checksum-edges", config(mode))
        for protocol in ("tcp", "udp"):
            path = Path(mode, family, protocol)
            for want in (0x0000, 0xFFFF, 0x0001):
                payload = payload_for_checksum(path, want)
                if payload is not None:
                    path.request(case, payload, **first_fields(protocol))
        yield case

        yield corrupted(mode, family)

    # Two ports, one for the clients and one for the hosts.
    if mode == "nat":
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                case = Case(f"{family}-{protocol}-two-ports", config(mode, ports=2))
                conversation(Path(mode, family, protocol, ports=2), case)
                yield case

    case = Case("v4-header-checksum-edges", config(mode))
    path = Path(mode, V4, "udp")
    for ident in idents_for_header_checksums(path):
        path.request(case, b"edge", ip={"id": ident})
    yield case

    case = Case("v4-udp-without-checksum", config(mode))
    path = Path(mode, V4, "udp")
    path.request(case, b"no checksum", chksum=0)
    yield case

    case = Case("v4-options", config(mode))
    path = Path(mode, V4, "tcp")
    path.request(case, ip={"options": [IPOption_NOP(), IPOption_RR(pointer=4, routers=["0.0.0.0"])]}, flags="S")
    yield case

    case = Case("v6-destination-options", config(mode))
    path = Path(mode, V6, "tcp")
    path.request(case, extension=IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")]), flags="S")
    yield case

    case = Case("v4-padding", config(mode))
    path = Path(mode, V4, "tcp")
    packet = ether() / V4.ip(V4.client, V4.vip) / TCP(sport=40000, dport=80, flags="S")
    padded = bytes(packet).ljust(60, b"\0")
    case.sends(padded, bytes(path.at_host(packet)).ljust(60, b"\0"))
    yield case

    case = Case("ttl-2-is-the-last", config(mode))
    for family in FAMILIES:
        Path(mode, family, "tcp").request(case, ip={("ttl" if family is V4 else "hlim"): 2}, flags="S")
    yield case


def first_fields(protocol):
    return {"flags": "S"} if protocol == "tcp" else {}


def payload_for_checksum(path, want):
    """A payload of two bytes with which the rewritten packet's checksum is `want`, if there is one."""
    probe = ether() / path.family.ip(path.client, path.vip)
    probe = probe / path.l4(sport=40000, dport=path.vip_port, **first_fields(path.protocol)) / Raw(b"\0\0")
    host = Ether(bytes(path.at_host(probe)))
    have = (host[TCP] if path.protocol == "tcp" else host[UDP]).chksum
    # The checksum is the complement of a one's complement sum: the payload has to add what is missing.
    missing = ((~want & 0xFFFF) - (~have & 0xFFFF)) % 0xFFFF
    payload = struct.pack("!H", missing)
    probe[Raw].load = payload
    host = Ether(bytes(path.at_host(Ether(bytes(probe)))))
    reached = (host[TCP] if path.protocol == "tcp" else host[UDP]).chksum
    return payload if reached == want else None


def idents_for_header_checksums(path):
    """IPv4 identifications with which the rewritten header's checksum is at an edge."""
    wanted, found = {0x0000, 0x0001, 0xFFFE, 0xFF00, 0x00FF}, []
    base = IP(bytes(path.family.ip(path.client, path.vip, proto=17, len=32)))
    base.ttl -= 1
    if path.mode == "nat":
        base.dst = path.host
    words = list(struct.unpack("!10H", bytes(base)[:20]))
    words[2] = words[5] = 0
    for ident in range(0x10000):
        total = sum(words) + ident
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~total & 0xFFFF
        if checksum in wanted:
            wanted.remove(checksum)
            found.append(ident)
    return found


def corrupted(mode, family):
    """A TCP segment broken on its way: the unit must not make its checksum right."""
    case = Case(f"{family}-corruption-stays", config(mode))
    path = Path(mode, family, "tcp")
    good = ether() / family.ip(path.client, path.vip) / TCP(sport=40000, dport=80, flags="S", seq=5) / Raw(b"payload")
    good = Ether(bytes(good))
    expected = Ether(bytes(path.at_host(good)))
    broken = Ether(bytes(good))
    broken[Raw].load = b"pAyload"
    broken[TCP].chksum = good[TCP].chksum
    expected[Raw].load = b"pAyload"
    expected[TCP].chksum = expected[TCP].chksum
    case.sends(broken, expected)
    return case


def icmp_cases():
    """An ICMP error about a connection goes to the host that has it, in that host's words."""
    for mode in ("dsr", "nat", "ipip", "gue"):
        for family in FAMILIES:
            yield icmp_errors(mode, family)


def icmp_errors(mode, family):
    """Errors of a router and of the client itself, with as much quoted as they have to and more."""
    v4 = family is V4
    case = Case(f"{mode}-{family}", config(mode))
    path = Path(mode, family, "tcp")
    path.request(case, flags="S", seq=1)
    path.request(case, flags="A", seq=2, ack=1)
    nat = mode == "nat"
    host_ip, host_tcp = (path.host, host_port("tcp")) if nat else (family.vip, 80)
    body, hops = b"x" * 40, "ttl" if v4 else "hlim"

    def quoted(source, port):
        packet = family.ip(source, family.client, **{hops: 60}) / TCP(sport=port, dport=40000, flags="A", seq=7) / Raw(body)
        return bytes((IP if v4 else IPv6)(bytes(packet)))

    sent, seen = quoted(host_ip, host_tcp), quoted(family.vip, 80)
    if v4:
        errors = [ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=3, code=1), ICMP(type=3, code=13)]
        errors += [ICMP(type=11, code=0), ICMP(type=12, code=0)]
    else:
        errors = [ICMPv6PacketTooBig(mtu=1400), ICMPv6DestUnreach(code=3), ICMPv6TimeExceeded(), ICMPv6ParamProblem()]
    for length in ((28, 60, 80) if v4 else (48, 80, 100)):
        for router in ("198.51.100.1" if v4 else "2001:db8:c::1", family.client):
            for error in errors:
                packet = ether() / family.ip(router, family.vip) / error / Raw(seen[:length])
                inner = family.ip(router, host_ip, **{hops: 60}) / error / Raw(sent[:length])
                if mode in ("ipip", "gue"):
                    path.client = router  # whose entropy it has
                    expected = path.encapsulated(None, bytes(inner), 4 if v4 else 41, 0x2E, bytes(4))
                else:
                    expected = ether(src=PORT_MAC["net0"], dst=HOST_MAC[1]) / inner
                case.sends(packet, expected, "errors")
    return case


def wrong_cases():
    """What must not get through in any mode, each with the name of its reason."""
    for mode in ("dsr", "nat", "ipip", "gue"):
        yield from wrong_in(mode, config(mode))
    yield from wrong_in("full-nat", importlib.import_module("full_nat").config())


def wrong_in(mode, text):
    """One mode's, whose configuration is `text`."""
    for case in wrong_packets(text):
        case.name = f"{mode}-{case.name}"
        yield case


def wrong_packets(text):
    for family in FAMILIES:
        ip = family.ip
        base = ether() / ip(family.client, family.vip)
        syn = base / TCP(sport=40000, dport=80, flags="S")
        datagram = base / UDP(sport=40000, dport=53) / Raw(b"question")

        case = Case(f"{family}-truncated", text)
        error = (ICMP(type=3, code=4, nexthopmtu=1400) if family is V4 else ICMPv6PacketTooBig(mtu=1400)) / Raw(
            bytes(family.ip(family.vip, family.client) / TCP(sport=80, dport=40000, flags="A"))
        )
        echo = ICMP(type=8, id=9) if family is V4 else ICMPv6EchoRequest(id=9, data=b"ping")
        fragmented = ether() / ip(family.client, family.vip, **({"flags": 0} if family is V4 else {}))
        fragmented = fragmented / UDP(sport=40000, dport=53) / Raw(pattern(100))
        wholes = [syn / Raw(b"data"), datagram, base / error, base / echo, *pieces(fragmented, (48,), 7)]
        if family is V6:
            pad = [PadN(optdata=b"\0\0\0\0")]
            chain = IPv6ExtHdrHopByHop(options=pad) / IPv6ExtHdrDestOpt(options=pad)
            wholes.append(base / chain / UDP(sport=40000, dport=53) / Raw(b"question"))
        for whole in wholes:
            whole = bytes(whole)
            for length in range(1, len(whole)):
                case.drop(whole[:length], "truncated")
        yield case

        case = Case(f"{family}-icmp", text)
        for bit in range(16):
            # An error with a wrong checksum is about no flow, and an echo with one gets no answer.
            for message in (error, echo):
                broken = bytearray(bytes(base / message))
                at = 14 + (20 if family is V4 else 40) + 2
                broken[at + bit // 8] ^= 1 << bit % 8
                case.drop(bytes(broken), "icmp")
        unknown = ICMP(type=15) if family is V4 else Raw(b"\xc8\0\0\0" + bytes(8))
        case.drop(ether() / ip(family.client, family.vip, **({} if family is V4 else {"nh": 58})) / unknown, "icmp")
        yield case

        case = Case(f"{family}-ttl", text)
        for hops in (0, 1):
            fields = {"ttl" if family is V4 else "hlim": hops}
            case.drop(ether() / ip(family.client, family.vip, **fields) / TCP(sport=1, dport=80, flags="S"), "ttl")
        yield case

        case = Case(f"{family}-no-service", text)
        case.drop(base / TCP(sport=40000, dport=81, flags="S"), "no_service")
        case.drop(base / TCP(sport=40000, dport=53, flags="S"), "no_service")
        case.drop(base / UDP(sport=40000, dport=80), "no_service")
        yield case

        case = Case(f"{family}-flags", text)
        for flags in ("SF", "SR", "SFRPAU", "", "P", "U"):
            case.drop(base / TCP(sport=40000, dport=80, flags=flags), "bad_flags")
        yield case

        case = Case(f"{family}-tcp-header", text)
        case.drop(base / TCP(sport=40000, dport=80, flags="S", dataofs=4), "bad_header")
        case.drop(base / TCP(sport=40000, dport=80, flags="S", dataofs=15), "truncated")
        yield case

        case = Case(f"{family}-udp-length", text)
        for length in (0, 7, 17, 65535):
            case.drop(base / UDP(sport=40000, dport=53, len=length) / Raw(b"question"), "bad_length")
        yield case

        case = Case(f"{family}-macs", text)
        case.drop(ether(dst="02:00:00:00:00:99") / syn.payload, "foreign_mac")
        case.drop(ether(src=PORT_MAC["net0"]) / syn.payload, "own_mac")
        yield case

        case = Case(f"{family}-sources", text)
        bad = ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0") if family is V4 else ("::1", "ff02::1", "::")
        for source in (*bad, family.vip):
            case.drop(ether() / ip(source, family.vip) / TCP(sport=40000, dport=80, flags="S"), "bad_source")
        yield case

    case = Case("v4-header", text)
    syn = ether() / V4.ip(V4.client, V4.vip) / TCP(sport=40000, dport=80, flags="S")
    case.drop(ether() / V4.ip(V4.client, V4.vip, version=5) / TCP(dport=80, flags="S"), "bad_header")
    for ihl in range(5):
        case.drop(ether() / V4.ip(V4.client, V4.vip, ihl=ihl) / TCP(dport=80, flags="S"), "bad_header")
    for length in (0, 19):
        case.drop(ether() / V4.ip(V4.client, V4.vip, len=length) / TCP(dport=80, flags="S"), "bad_length")
    case.drop(ether() / V4.ip(V4.client, V4.vip, len=41) / TCP(dport=80, flags="S"), "truncated")
    yield case

    case = Case("v4-header-checksum", text)
    right = Ether(bytes(syn))[IP].chksum
    for bit in range(16):
        broken = Ether(bytes(syn))
        broken[IP].chksum = right ^ (1 << bit)
        case.drop(broken, "bad_checksum")
    yield case

    case = Case("v6-chains", text)
    pad = [PadN(optdata=b"\0\0\0\0")]
    upper = UDP(sport=40000, dport=53)
    for headers in (9, 10, 100):
        chain = IPv6ExtHdrDestOpt(options=pad)
        for _ in range(headers - 1):
            chain = IPv6ExtHdrDestOpt(options=pad) / chain
        case.drop(ether() / V6.ip(V6.client, V6.vip) / chain / upper, "extension_header")
        case.drop(ether() / V6.ip(V6.client, V6.vip) / chain / IPv6ExtHdrFragment(m=1, id=5) / upper, "extension_header")
    for extension in (
        IPv6ExtHdrRouting(type=0, segleft=1, addresses=["2001:db8::1"]),
        IPv6ExtHdrDestOpt(options=pad) / IPv6ExtHdrHopByHop(options=pad),
        IPv6ExtHdrHopByHop(options=pad) / IPv6ExtHdrHopByHop(options=pad),
        IPv6ExtHdrFragment(offset=0, m=0, id=5) / IPv6ExtHdrFragment(offset=0, m=0, id=6),
    ):
        case.drop(ether() / V6.ip(V6.client, V6.vip) / extension / upper, "extension_header")
    # A header of a length that leads behind the packet's end.
    for length in (1, 31, 255):
        case.drop(ether() / V6.ip(V6.client, V6.vip) / IPv6ExtHdrDestOpt(len=length, options=pad) / upper, "truncated")
    yield case

    case = Case("v6-lengths", text)
    whole = ether() / V6.ip(V6.client, V6.vip, plen=9) / upper
    case.drop(whole, "truncated")
    for length in (0, 1, 7):
        case.drop(ether() / V6.ip(V6.client, V6.vip, plen=length) / upper, "truncated")
    yield case

    case = Case("protocol", text)
    case.drop(ether() / V4.ip(V4.client, V4.vip, proto=47) / Raw(bytes(24)), "protocol")
    case.drop(ether() / V6.ip(V6.client, V6.vip, nh=47) / Raw(bytes(24)), "protocol")
    yield case


def pieces(packet, bounds, ident):
    """A whole packet's fragments with these bounds (multiples of 8, in bytes of its payload), in order."""
    packet = Ether(bytes(packet))
    v4 = IP in packet
    ip = packet[IP] if v4 else packet[IPv6]
    protocol, payload = (ip.proto if v4 else ip.nh), bytes(ip.payload)
    link = Ether(bytes(packet)[: bytes(packet).index(bytes(ip))])
    bounds = [0, *bounds, len(payload)]
    result = []
    for start, end in zip(bounds, bounds[1:]):
        more = end < len(payload)
        if v4:
            header = IP(
                src=ip.src, dst=ip.dst, tos=ip.tos, ttl=ip.ttl, proto=protocol, id=ident,
                flags="MF" if more else 0, frag=start // 8,
            )
        else:
            header = IPv6(src=ip.src, dst=ip.dst, tc=ip.tc, fl=ip.fl, hlim=ip.hlim, nh=44)
            header = header / IPv6ExtHdrFragment(nh=protocol, offset=start // 8, m=int(more), id=ident)
        result.append(link / header / Raw(payload[start:end]))
    return result


ORDERS = {"in-order": (0, 1, 2), "backwards": (2, 1, 0), "first-in-the-middle": (1, 0, 2)}


def in_pieces(path, case, whole, expected, ident, order, kind, port, out_port):
    """A packet comes in by pieces, and leaves by the same: the first one goes before those that have waited for it."""
    bounds = (1200, 2400)
    before, after = pieces(whole, bounds, ident), [bytes(p) for p in expected(bounds)]
    for at in order:
        case.waits(before[at], kind, port)
    first = order.index(0)
    for at in (0, *order[:first], *order[first + 1 :]):
        case.out.setdefault(out_port, []).append({"flow": f"{kind} {ident}", "frame": after[at].hex()})


def fragment_cases():
    """Fragments follow their flow in every mode, both ways; what is wrong with them is dropped."""
    for mode in ("dsr", "nat", "ipip", "gue"):
        for family in FAMILIES:
            for protocol in ("udp", "tcp"):
                for name, order in ORDERS.items():
                    case = Case(f"{mode}-{family}-{protocol}-{name}", config(mode))
                    fragmented_conversation(Path(mode, family, protocol), case, order)
                    yield case
            case = Case(f"{mode}-{family}-vlan", config(mode))
            fragmented_conversation(Path(mode, family, "udp", tags=(7,)), case, ORDERS["backwards"])
            yield case
    for family in FAMILIES:
        yield from wrong_fragments(family)


def fragmented_conversation(path, case, order):
    """A connection (or the first datagram), then packets of 3000 bytes in pieces, and their answers where they come back."""
    if path.protocol == "tcp":
        path.request(case, flags="S", seq=1)
        path.request(case, flags="A", seq=2, ack=1)
    for ident in (0x77, 0x78):
        fields = {"flags": "PA", "seq": 2, "ack": 1} if path.protocol == "tcp" else {}
        ip = {"flags": 0} if path.family is V4 else {}
        whole = ether(src=path.client_mac, tags=path.tags) / path.family.ip(path.client, path.vip, **ip)
        whole = whole / path.l4(sport=40000, dport=path.vip_port, **fields) / Raw(pattern(3000))

        def at_host(bounds, whole=whole, ident=ident):
            if path.mode not in ("ipip", "gue"):
                return pieces(path.at_host(whole), bounds, ident)
            ports = bytes(Ether(bytes(whole))[TCP if path.protocol == "tcp" else UDP])[:4]
            kind = 4 if path.family is V4 else 41
            inner = pieces(forwarded(whole, src_mac=PORT_MAC["net0"], dst_mac=HOST_MAC[1]), bounds, ident)
            layer = IP if path.family is V4 else IPv6
            return [path.encapsulated(None, bytes(Ether(bytes(p))[layer]), kind, 0x2E, ports) for p in inner]

        in_pieces(path, case, whole, at_host, ident, order, "request", "net0", path.host_side)
        if path.mode == "nat":
            back = ether(src=HOST_MAC[1], dst=PORT_MAC[path.host_side], tags=path.tags)
            back = back / path.family.ip(path.host, path.client, **ip)
            back = back / path.l4(sport=host_port(path.protocol, path.kind), dport=40000, **fields) / Raw(pattern(2999))
            there = forwarded(back, src_mac=PORT_MAC["net0"], dst_mac=path.client_mac, src=path.vip, sport=path.vip_port)
            in_pieces(
                path, case, back, lambda bounds, there=there, ident=ident: pieces(there, bounds, ident), ident, order,
                "reply", path.host_side, "net0",
            )
    path.route(case)


def wrong_fragments(family):
    """Overlaps, tiny ones, floods, and those whose first never comes."""
    mode = "nat"
    path = Path(mode, family, "udp")
    whole = ether() / family.ip(family.client, family.vip, **({"flags": 0} if family is V4 else {}))
    datagram = whole / UDP(sport=40000, dport=53) / Raw(pattern(3000))
    segment = whole / TCP(sport=40000, dport=80, flags="A") / Raw(pattern(100))

    case = Case(f"{family}-overlap", config(mode))
    coarse, fine = pieces(datagram, (1200, 2400), 9), pieces(datagram, (800, 1600, 2400), 9)
    for packet in (coarse[1], fine[1], coarse[0], coarse[2], fine[3]):
        case.drop(packet, "bad_fragment")
    # One that says that the datagram ends before what has been seen of it, and one behind the end.
    short = pieces(datagram, (1200, 2400), 10)
    end = pieces(whole / UDP(sport=40000, dport=53) / Raw(pattern(1800)), (1200,), 10)
    for packet in (short[2], end[1], short[0]):
        case.drop(packet, "bad_fragment")
    yield case

    case = Case(f"{family}-tiny", config(mode))
    case.drop(pieces(segment, (8,), 1)[0], "bad_fragment")
    case.drop(pieces(segment, (16,), 2)[0], "bad_fragment")
    case.drop(pieces(segment, (8,), 3)[1], "bad_fragment")  # would bring the flags
    options = whole / TCP(sport=40000, dport=80, flags="A", options=SYN_OPTIONS) / Raw(pattern(100))
    case.drop(pieces(options, (24,), 4)[0], "bad_fragment")  # the header goes on in the next
    case.drop(pieces(whole / TCP(sport=40000, dport=80, flags="S") / Raw(pattern(100)), (48,), 5)[0], "bad_fragment")
    case.drop(pieces(whole / TCP(sport=40000, dport=80, flags="SF") / Raw(pattern(100)), (48,), 6)[0], "bad_fragment")
    case.drop(pieces(whole / TCP(sport=40000, dport=80, flags="") / Raw(pattern(100)), (48,), 7)[0], "bad_flags")
    yield case

    case = Case(f"{family}-lengths", config(mode))
    odd = Ether(bytes(pieces(datagram, (1200,), 1)[0]))
    odd[Raw].load = odd[Raw].load[:-4]
    for layer in (IP, IPv6):
        if layer in odd:
            for name in ("len", "chksum", "plen"):
                if name in odd[layer].fields:
                    delattr(odd[layer], name)
    case.drop(odd, "bad_fragment")
    last = 0x1FFF * 8
    if family is V4:
        beyond = ether() / V4.ip(V4.client, V4.vip, proto=17, flags=0, frag=last // 8) / Raw(pattern(100))
    else:
        beyond = ether() / V6.ip(V6.client, V6.vip) / IPv6ExtHdrFragment(nh=17, offset=last // 8, id=1) / Raw(pattern(100))
    case.drop(beyond, "bad_fragment")
    yield case

    # A third of them waits until the time is over, for the datagram whose first one is missing has no flow.
    case = Case(f"{family}-never-whole", config(mode))
    for ident in range(20):
        case.waits(pieces(datagram, (1200, 2400), ident)[1 + ident % 2])
    case.later(61)
    path.request(case, b"later")
    case.drops["fragment"] = 20
    yield case

    # 1024 buffers may wait, a quarter of them in each of the four shards; all of a client's are in one.
    case = Case(f"{family}-flood", config(mode))
    for ident in range(1000):
        case.waits(pieces(datagram, (1200, 2400), ident)[1 + ident % 2])
    case.drops["fragment_table"] = 1000 - 256
    in_order = Path(mode, family, "udp")
    fragmented_conversation(in_order, case, ORDERS["in-order"])
    yield case

    # Pings in pieces, and other protocols: nothing says which flow they are of.
    case = Case(f"{family}-other-protocols", config(mode))
    for protocol in (1 if family is V4 else 58, 47):
        for frag, more in ((0, 1), (6, 0)):
            if family is V4:
                packet = ether() / V4.ip(V4.client, V4.vip, proto=protocol, flags=more, frag=frag) / Raw(pattern(48))
            else:
                header = IPv6ExtHdrFragment(nh=protocol, offset=frag, m=more, id=protocol)
                packet = ether() / V6.ip(V6.client, V6.vip) / header / Raw(pattern(48))
            case.drop(packet, "protocol" if protocol == 47 else "fragment")
    yield case


def tunnel_cases():
    """Conversations in tunnels, the outer family the inner one's and the other; what is too big for them, to the byte."""
    for mode in ("ipip", "gue"):
        for cross in (False, True):
            name = f"{mode}-cross" if cross else mode
            for family in FAMILIES:
                for protocol in ("tcp", "udp"):
                    for tags in ((), (7,), (100, 7)):
                        case = Case(f"{name}-{family}-{protocol}" + "".join(f"-vlan{t}" for t in tags), config(mode, cross=cross, mtu=2000))
                        conversation(Path(mode, family, protocol, tags=tags, cross=cross), case, (40000, 40001, 40002))
                        yield case
                for mtu in (1500, 1280, 1400, 9000):
                    case = Case(f"{name}-{family}-mtu{mtu}", config(mode, cross=cross, mtu=mtu))
                    too_big(Path(mode, family, "tcp", cross=cross), case, mtu)
                    yield case
            case = Case(f"{name}-split", config(mode, cross=cross))
            split(Path(mode, V4, "udp", cross=cross), case)
            yield case
        case = Case(f"{mode}-v4-options", config(mode))
        options = {"options": [IPOption_NOP(), IPOption_RR(pointer=4, routers=["0.0.0.0"])]}
        Path(mode, V4, "tcp").request(case, ip=options, flags="S")
        yield case
        case = Case(f"{mode}-v6-destination-options", config(mode))
        extension = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
        Path(mode, V6, "tcp").request(case, extension=extension, flags="S")
        yield case
        case = Case(f"{mode}-padding", config(mode))
        packet = ether() / V4.ip(V4.client, V4.vip) / TCP(sport=40000, dport=80, flags="S")
        case.sends(bytes(packet).ljust(60, b"\0"), Path(mode, V4, "tcp").at_host(packet))
        yield case


def overhead(path):
    return (20 if path.outer is V4 else 40) + (12 if path.mode == "gue" else 0)


def too_big(path, case, mtu):
    """The largest packet that fits, and one byte more; told in the VIP's name, with as much of the packet as is allowed."""
    family = path.family
    path.request(case, flags="S", seq=1)
    path.request(case, flags="A", seq=2, ack=1)
    room = mtu - overhead(path)
    headers = (20 if family is V4 else 40) + 20
    path.request(case, pattern(room - headers), flags="A", seq=2, ack=1)
    # IPv6 packets of up to 1280 bytes get through in pieces.
    for more in (1, 2, 20) if family is V4 or room >= 1280 else (1281 - room, 1300 - room):
        packet = ether() / family.ip(path.client, path.vip) / path.l4(sport=40000, dport=80, flags="A", seq=2, ack=1)
        packet = packet / Raw(pattern(room - headers + more))
        quoted = bytes(Ether(bytes(packet)).payload)
        answer = ether(src=PORT_MAC["net0"], dst=ROUTER_MAC)
        if family is V4:
            error = ICMP(type=3, code=4, nexthopmtu=room)
            answer = answer / IP(src=path.vip, dst=path.client, tos=0xC0, ttl=64, flags="DF", id=0) / error / Raw(quoted[:548])
        else:
            # No sender believes less than 1280.
            error = ICMPv6PacketTooBig(mtu=max(room, 1280))
            answer = answer / IPv6(src=path.vip, dst=path.client, hlim=64) / error / Raw(quoted[: 1280 - 48])
        case.sends(packet, answer, "too-big")
        case.drops["too_big"] = case.drops.get("too_big", 0) + 1


def split(path, case):
    """IPv4 packets whose sender allows it go on in pieces; a fragment, too."""
    path.request(case, b"first")
    room = 1500 - overhead(path)
    most = (room - 20) // 8 * 8
    ports = struct.pack("!2H", 40000, path.vip_port)
    for ident, size in ((0x31, 1472), (0x32, 1473 - overhead(path)), (0x33, 3000)):
        whole = ether() / V4.ip(V4.client, V4.vip, flags=0, id=ident) / UDP(sport=40000, dport=53) / Raw(pattern(size))
        length = size + 8
        client_bounds = list(range(1480, length, 1480))
        for packet in pieces(whole, client_bounds, ident):
            case.waits(packet, "split")
        passed = forwarded(whole, src_mac=PORT_MAC["net0"], dst_mac=HOST_MAC[1])
        bounds = sorted({*client_bounds, *(start + most for start in (0, *client_bounds) if start + most < length)})
        bounds = [b for b in bounds if b < length]
        for piece in pieces(passed, bounds, ident):
            inner = bytes(Ether(bytes(piece))[IP])
            expected = path.encapsulated(None, inner, 4, 0x2E, ports)
            case.out.setdefault("net0", []).append({"flow": f"split {ident}", "frame": bytes(expected).hex()})


def tunnel_error_cases():
    """Errors about the unit's own tunnel packets: a narrow path is remembered, and the VIP tells who sends too much."""
    for mode in ("ipip", "gue"):
        for cross in (False, True):
            for family in FAMILIES:
                case = Case(f"{mode}{'-cross' if cross else ''}-{family}", config(mode, cross=cross))
                tunnel_errors(Path(mode, family, "tcp", cross=cross), case)
                yield case


def tunnel_errors(path, case):
    family, v4 = path.family, path.outer is V4
    path.request(case, flags="S", seq=1)
    path.request(case, flags="A", seq=2, ack=1)
    headers = (20 if family is V4 else 40) + 20
    large = ether() / family.ip(path.client, path.vip) / path.l4(sport=40000, dport=80, flags="A", seq=2, ack=1)
    large = large / Raw(pattern(1380))
    case.sends(large, path.at_host(large), "request 40000")
    quoted = bytes(Ether(bytes(path.at_host(large))).payload)[: 28 if v4 else 1232]
    router = "192.0.2.99" if v4 else "2001:db8::99"
    too_big = ICMP(type=3, code=4, nexthopmtu=1400) if v4 else ICMPv6PacketTooBig(mtu=1400)
    others = [ICMP(type=11, code=0), ICMP(type=3, code=1)] if v4 else [ICMPv6TimeExceeded(), ICMPv6DestUnreach(code=0)]
    outer = path.outer.ip(router, path.outer.unit)
    # Somebody else's, or a forged one, is the kernel's.
    stranger = bytearray(quoted)
    stranger[19 if v4 else 39] ^= 0x40
    if v4:
        stranger[10:12] = bytes(2)
    case.to_twin(ether(src=HOST_MAC[2]) / outer / too_big / Raw(bytes(stranger)))
    broken = Ether(bytes(ether(src=HOST_MAC[2]) / outer / too_big / Raw(quoted)))
    (broken[ICMP] if v4 else broken[ICMPv6PacketTooBig]).__setattr__("chksum" if v4 else "cksum", 0x1234)
    case.to_twin(broken)
    for error in (*others, too_big):
        case.drop(ether(src=HOST_MAC[2]) / outer / error / Raw(quoted), "tunnel_error")
    case.later(1)  # all shards have heard of it
    room = 1400 - overhead(path)
    fits = ether() / family.ip(path.client, path.vip) / path.l4(sport=40000, dport=80, flags="A", seq=2, ack=1)
    fits = fits / Raw(pattern(room - headers))
    case.sends(fits, path.at_host(fits), "narrow")
    packet = ether() / family.ip(path.client, path.vip) / path.l4(sport=40000, dport=80, flags="A", seq=2, ack=1)
    packet = packet / Raw(pattern(room - headers + 1))
    quoted = bytes(Ether(bytes(packet)).payload)
    answer = ether(src=PORT_MAC["net0"], dst=ROUTER_MAC)
    if family is V4:
        answer = answer / IP(src=path.vip, dst=path.client, tos=0xC0, ttl=64, flags="DF", id=0)
        answer = answer / ICMP(type=3, code=4, nexthopmtu=room) / Raw(quoted[:548])
    else:
        answer = answer / IPv6(src=path.vip, dst=path.client, hlim=64) / ICMPv6PacketTooBig(mtu=room)
        answer = answer / Raw(quoted[: 1280 - 48])
    case.sends(packet, answer, "narrow")
    case.drops["too_big"] = 1
    path.route(case)


def on_the_unit_cases():
    """Endpoints on the unit itself: its kernel gets what a half-NAT host would get, at the unit's own address."""
    text = config("nat").replace('device: "af_packet:golden0"', 'device: "af_xdp:golden0", twin: twin0')
    for family in FAMILIES:
        text = text.replace(f'host: host-1, address: "{family.hosts[1]}"', f'host: host-1, address: "{family.unit}"')
        text = text.replace(f'  - {{ port: net0, address: "{family.hosts[1]}", mac: "{HOST_MAC[1]}" }}\n', "")
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            case = Case(f"{family}-{protocol}", text)
            path = Path("nat", family, protocol)
            path.host = family.unit
            for size in (0, 1, 1400):
                fields = {"flags": "PA" if size else "S"} if protocol == "tcp" else {}
                packet = ether() / family.ip(path.client, path.vip) / path.l4(sport=40000, dport=path.vip_port, **fields)
                packet = packet / Raw(pattern(size))
                expected = forwarded(
                    packet, src_mac=ROUTER_MAC, dst_mac=PORT_MAC["net0"], dst=family.unit, dport=host_port(protocol)
                )
                ip = expected[IP] if family is V4 else expected[IPv6]
                if family is V4:
                    ip.ttl += 1
                else:
                    ip.hlim += 1
                case.waits(packet, "request")
                case.twin.append(bytes(expected).hex())
            # The kernel's own services are not the VIP's.
            case.to_twin(ether() / family.ip(path.client, family.unit) / path.l4(sport=40000, dport=22))
            path.route(case)
            yield case


GATEWAYS = {
    "192.0.2.201": "02:00:00:00:00:c9", "192.0.2.202": "02:00:00:00:00:ca", "192.0.2.203": "02:00:00:00:00:cb",
    "2001:db8::201": "02:00:00:00:00:c9", "2001:db8::202": "02:00:00:00:00:ca", "2001:db8::203": "02:00:00:00:00:cb",
}


def route_cases():
    """Answers go by the longest prefix: several gateways, host routes, on-link clients; who is not resolved is waited for in vain."""
    for family, nets in (
        (V4, [("198.51.100.0/24", "192.0.2.201"), ("198.51.100.128/25", "192.0.2.202"), ("198.51.100.200/32", "192.0.2.203")]),
        (V6, [("2001:db8:c::/48", "2001:db8::201"), ("2001:db8:c:8000::/49", "2001:db8::202"), ("2001:db8:c:8000::c8/128", "2001:db8::203")]),
    ):
        v4 = family is V4
        text = config("nat").replace("routes:\n", "routes:\n" + "".join(
            f'  - {{ prefix: "{net}", via: "{via}", port: net0 }}\n' for net, via in nets
        ))
        text = text.replace("neighbours:\n", "neighbours:\n" + "".join(
            f'  - {{ port: net0, address: "{address}", mac: "{mac}" }}\n' for address, mac in GATEWAYS.items()
        ))
        case = Case(f"{family}-longest-prefix", text)
        at = "198.51.100.{}" if v4 else "2001:db8:c{}"
        clients = [
            (at.format("7" if v4 else "::7"), nets[0][1]),
            (at.format("127" if v4 else ":7fff::1"), nets[0][1]),
            (at.format("128" if v4 else ":8000::1"), nets[1][1]),
            (at.format("199" if v4 else ":8000::c7"), nets[1][1]),
            (at.format("200" if v4 else ":8000::c8"), nets[2][1]),
            ("203.0.113.9" if v4 else "2001:db8:d::9", V4_ROUTER if v4 else V6_ROUTER),
            (family.near, family.near),
        ]
        macs = {**GATEWAYS, V4_ROUTER: ROUTER_MAC, V6_ROUTER: ROUTER_MAC, family.near: NEAR_MAC}
        for client, via in clients:
            for protocol in ("tcp", "udp"):
                path = Path("nat", family, protocol, client_mac=macs[via])
                path.client = client
                conversation(path, case)
        yield case

        # A client on link whom nobody knows: its connection reaches the host, the answers wait for it, and not for ever.
        case = Case(f"{family}-unresolved", config("nat"))
        path = Path("nat", family, "udp")
        path.client = "192.0.2.77" if v4 else "2001:db8::77"
        path.request(case, b"question")
        answer = ether(src=HOST_MAC[1]) / family.ip(path.host, path.client)
        answer = answer / UDP(sport=host_port("udp"), dport=40000) / Raw(b"answer")
        for _ in range(20):
            case.waits(answer, "answers")
        case.later(4)
        path.client = family.client
        path.request(case, b"another client")
        case.drops["unresolved"] = 20
        yield case


VLANS = """  - { name: red, device: "vlan:net0.100", mtu: 1400, addresses: [10.100.0.1/24, "fd10::1/64"] }
  - { name: blue, device: "vlan:net0.200", addresses: [10.200.0.1/24, "fd20::1/64"] }
"""


def vlan_config(mode):
    """Clients untagged and in VLAN 100, hosts in VLAN 200; a VIP on link in VLAN 100."""
    text = config(mode).replace("neighbours:\n", VLANS + "neighbours:\n")
    for family in FAMILIES:
        host, near = ("10.200.0.11", "10.100.0.50") if family is V4 else ("fd20::11", "fd10::50")
        text = text.replace(f'port: net0, address: "{family.hosts[1]}"', f'port: blue, address: "{host}"')
        text = text.replace(f'address: "{family.hosts[1]}"', f'address: "{host}"')
        text = text.replace("neighbours:\n", f'neighbours:\n  - {{ port: red, address: "{near}", mac: "{NEAR_MAC}" }}\n')
        text = text.replace(f'vip: "{family.onlink_vip}"', f'vip: "{"10.100.0.100" if family is V4 else "fd10::100"}"')
    return text.replace(f"address: {V4.hosts[1]} ", "address: 10.200.0.11 ")


def tag(packet, vlan, prio=0):
    """The frame in a VLAN, with a tag as the unit puts it on."""
    frame = bytes(packet)
    return frame[:12] + struct.pack("!HH", 0x8100, prio << 13 | vlan) + frame[12:]


def vlan_cases():
    """VLANs as ports of their own: whoever is in which, every frame leaves with the tag of its way."""
    for mode in ("dsr", "nat", "ipip"):
        for family in FAMILIES:
            v4 = family is V4
            host = "10.200.0.11" if v4 else "fd20::11"
            for name, client, vip, client_mac, client_vlan in (
                ("untagged-client", family.client, family.vip, ROUTER_MAC, None),
                ("tagged-client", "10.100.0.50" if v4 else "fd10::50", "10.100.0.100" if v4 else "fd10::100", NEAR_MAC, 100),
            ):
                case = Case(f"{mode}-{family}-{name}", vlan_config(mode))
                path = Path(mode, family, "tcp", client_mac=client_mac, kind="onlink" if client_vlan else "routed")
                path.client, path.vip, path.host = client, vip, host
                unit = ("10.200.0.1" if v4 else "fd20::1")
                for flags, size in (("S", 0), ("A", 0), ("PA", 1000), ("FA", 0)):
                    packet = ether(src=client_mac) / family.ip(client, vip)
                    packet = packet / path.l4(sport=40000, dport=80, flags=flags) / Raw(pattern(size))
                    expected = path.at_host(packet)
                    if mode == "ipip":
                        expected[IP if v4 else IPv6].src = unit
                        if v4:
                            del expected[IP].chksum
                    if client_vlan:
                        packet = tag(packet, client_vlan, prio=5)
                    case.sends(packet, tag(expected, 200), "request")
                    if mode == "nat":
                        back = ether(src=HOST_MAC[1]) / family.ip(host, client)
                        back = back / path.l4(sport=host_port("tcp", path.kind), dport=40000, flags="A") / Raw(pattern(size))
                        there = forwarded(back, src_mac=PORT_MAC["net0"], dst_mac=client_mac, src=vip, sport=80)
                        case.sends(tag(back, 200), tag(there, client_vlan) if client_vlan else there, "answer")
                yield case

    case = Case("questions", vlan_config("dsr"))
    port = PORT_MAC["net0"]
    asks = ether(src=NEAR_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=NEAR_MAC, psrc="10.100.0.50", pdst="10.100.0.100")
    answer = ether(src=port, dst=NEAR_MAC) / ARP(op=2, hwsrc=port, psrc="10.100.0.100", hwdst=NEAR_MAC, pdst="10.100.0.50")
    case.sends(tag(asks, 100, prio=7), tag(answer, 100), "arp")
    case.to_twin(asks)  # not its link
    case.later(1)  # between VLANs there is no order
    case.arrives(tag(asks, 200), "net0")
    case.twin.append(tag(asks, 200).hex())
    packet = ether(src=NEAR_MAC) / V4.ip("10.100.0.50", "10.100.0.100") / ICMP(type=8, id=9, seq=1) / Raw(b"ping")
    echo = ether(src=port, dst=NEAR_MAC) / V4.ip("10.100.0.100", "10.100.0.50", ttl=64) / ICMP(type=0, id=9, seq=1) / Raw(b"ping")
    case.sends(tag(packet, 100), tag(echo, 100), "echo")
    # The kernel gets what is not the dataplane's with the tag it had; so does a VLAN that is no port of ours.
    for vlan in (100, 300):
        case.later(1)
        case.to_twin(tag(ether() / V4.ip("10.100.0.50", "10.100.0.1") / TCP(sport=5, dport=22, flags="S"), vlan))
    # A priority alone is no VLAN.
    packet = ether() / V4.ip(V4.client, V4.vip) / TCP(sport=40000, dport=80, flags="S")
    expected = forwarded(packet, src_mac=port, dst_mac=HOST_MAC[1])
    case.sends(tag(packet, 0, prio=3), tag(expected, 200), "priority")
    yield case

    # A smaller MTU in the client's VLAN: the host is told.
    case = Case("mtu", vlan_config("nat"))
    path = Path("nat", V4, "tcp", kind="onlink")
    packet = ether(src=NEAR_MAC) / V4.ip("10.100.0.50", "10.100.0.100") / TCP(sport=40000, dport=80, flags="S")
    path.vip, path.host = "10.100.0.100", "10.200.0.11"
    case.sends(tag(packet, 100), tag(path.at_host(packet), 200), "request")
    back = ether(src=HOST_MAC[1]) / V4.ip("10.200.0.11", "10.100.0.50")
    back = back / TCP(sport=host_port("tcp", "onlink"), dport=40000, flags="A") / Raw(pattern(1361))
    quoted = bytes(Ether(bytes(back)).payload)
    told = ether(src=port, dst=HOST_MAC[1]) / IP(src="10.100.0.50", dst="10.200.0.11", tos=0xC0, ttl=64, flags="DF", id=0)
    told = told / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(quoted[:548])
    case.sends(tag(back, 200), tag(told, 200), "answer")
    case.drops["too_big"] = 1
    yield case


def header_cases():
    """IPv4 options, IPv6 extension headers and jumbo frames, by the stated policy."""
    for mode in ("dsr", "nat"):
        path4, path6 = Path(mode, V4, "udp"), Path(mode, V6, "udp")
        case = Case(f"{mode}-v4-options", config(mode))
        timestamp = b"\x44\x08\x05\x00\0\0\0\0"
        alert, security = b"\x94\x04\0\0", b"\x82\x0b" + bytes(9) + b"\x01"
        for options in (b"\x01\x01\x01\x00", timestamp, alert, security, b"\x07\x07\x04\0\0\0\0\0", b"\x01" * 40):
            path4.request(case, b"options", ip={"options": [Raw(options)], "flags": 0})
        for options in (
            b"\x83\x07\x04\xc0\x00\x02\x09\x00", b"\x89\x07\x04\xc0\x00\x02\x09\x00",  # source routes
            b"\x01\x01\x83\x03\x04\x00\x00\x00", b"\x07\x00\x00\x00", b"\x07\x01\x00\x00", b"\x07\x05\x00\x00",
            b"\x01\x01\x01\x07",
        ):
            packet = ether() / V4.ip(V4.client, V4.vip, options=[Raw(options)]) / UDP(sport=40000, dport=53)
            case.drop(packet, "ip_option")
        yield case

        case = Case(f"{mode}-v6-extension-headers", config(mode))
        pad = [PadN(optdata=b"\0\0\0\0")]
        spent = IPv6ExtHdrRouting(type=0, segleft=0, addresses=["2001:db8::1"])
        for extension in (
            IPv6ExtHdrHopByHop(options=pad),
            IPv6ExtHdrDestOpt(options=pad),
            IPv6ExtHdrHopByHop(options=pad) / IPv6ExtHdrDestOpt(options=pad),
            spent,
            IPv6ExtHdrFragment(offset=0, m=0, id=5),  # an atomic fragment
            IPv6ExtHdrHopByHop(options=pad) / IPv6ExtHdrDestOpt(options=pad) / spent / IPv6ExtHdrDestOpt(options=pad),
        ):
            path6.request(case, b"extension", extension=extension)
        bad = [
            IPv6ExtHdrRouting(type=0, segleft=1, addresses=["2001:db8::1"]),
            IPv6ExtHdrRouting(type=4, segleft=1, addresses=["2001:db8::1"]),
            IPv6ExtHdrDestOpt(options=pad) / IPv6ExtHdrHopByHop(options=pad),
            IPv6ExtHdrFragment(offset=0, m=0, id=5) / IPv6ExtHdrFragment(offset=0, m=0, id=6),
        ]
        chain = IPv6ExtHdrDestOpt(options=pad)
        for _ in range(9):
            chain = IPv6ExtHdrDestOpt(options=pad) / chain
        for extension in (*bad, chain):
            case.drop(ether() / V6.ip(V6.client, V6.vip) / extension / UDP(sport=40000, dport=53), "extension_header")
        # The chain ends before its header does.
        whole = bytes(ether() / V6.ip(V6.client, V6.vip, plen=8) / IPv6ExtHdrDestOpt(len=3, options=pad))
        case.drop(whole, "truncated")
        yield case

        case = Case(f"{mode}-jumbo", config(mode, mtu=9000))
        for family in FAMILIES:
            path = Path(mode, family, "udp")
            for size in (1473, 4000, 9000 - 28 if family is V4 else 9000 - 48):
                path.request(case, pattern(size))
                path.reply(case, pattern(size))
        yield case


def portless_cases():
    """ESP and GRE, which have no ports: by address alone, whole and in fragments, and nothing in them is touched."""
    for mode in ("dsr", "nat", "ipip", "gue"):
        text = config(mode)
        for number, (family, protocol) in enumerate(((f, p) for f in FAMILIES for p in ("esp", "gre")), start=20):
            text += (
                f'  - id: {number}\n    name: {protocol}-{family}\n    vip: "{family.vip}"\n    protocol: {protocol}\n'
                f'    mode: {mode}\n    endpoints:\n      - {{ host: host-1, address: "{family.hosts[1]}" }}\n'
            )
        for family in FAMILIES:
            for number in (47, 50):
                case = Case(f"{mode}-{family}-{'esp' if number == 50 else 'gre'}", text)
                portless_conversation(Path(mode, family, "udp"), case, number)
                yield case


def portless_conversation(path, case, number):
    family, mode = path.family, path.mode
    v4 = family is V4
    layer = IP if v4 else IPv6

    def passed(packet, src_mac, dst_mac, **rewrite):
        packet = Ether(bytes(packet))
        packet.src, packet.dst = src_mac, dst_mac
        ip = packet[layer]
        if v4:
            ip.ttl -= 1
            del ip.chksum
        else:
            ip.hlim -= 1
        ip.src, ip.dst = rewrite.get("src", ip.src), rewrite.get("dst", ip.dst)
        return packet

    def at_host(packet):
        there = passed(packet, PORT_MAC["net0"], HOST_MAC[1], **({"dst": path.host} if mode == "nat" else {}))
        if mode in ("dsr", "nat"):
            return there
        return path.encapsulated(None, bytes(there[layer]), 4 if v4 else 41, 0x2E, bytes(4))

    proto = {"proto": number} if v4 else {"nh": number}
    for size in (8, 9, 1000, 1400):
        packet = ether() / family.ip(path.client, path.vip, **proto) / Raw(pattern(size))
        case.sends(packet, at_host(packet), "request")
        if mode == "nat":
            back = ether(src=HOST_MAC[1]) / family.ip(path.host, path.client, **proto) / Raw(pattern(size))
            case.sends(back, passed(back, PORT_MAC["net0"], ROUTER_MAC, src=path.vip), "answer")
    # Its fragments need not wait for the first one.
    whole = ether() / family.ip(path.client, path.vip, **proto, **({"flags": 0} if v4 else {})) / Raw(pattern(3000))
    for piece in reversed(pieces(whole, (1200, 2400), 5)):
        case.sends(piece, at_host(piece), "pieces")


def local_cases():
    """What the unit answers itself, and what is the kernel's."""
    mode = "dsr"
    everyone = "ff:ff:ff:ff:ff:ff"
    port = PORT_MAC["net0"]

    def asks(address, tags=()):
        return ether(src=NEAR_MAC, dst=everyone, tags=tags) / ARP(hwsrc=NEAR_MAC, psrc=V4.near, pdst=address)

    case = Case("arp", config(mode))
    for tags in ((), (7,)):
        answer = ether(src=port, dst=NEAR_MAC, tags=tags) / ARP(
            op=2, hwsrc=port, psrc=V4.onlink_vip, hwdst=NEAR_MAC, pdst=V4.near
        )
        case.sends(asks(V4.onlink_vip, tags), answer, "arp")
    case.to_twin(asks(V4.unit))
    case.to_twin(asks("192.0.2.77"))
    case.to_twin(asks(V4.vip))  # not on this link: nobody should ask here
    case.to_twin(ether(src=NEAR_MAC) / ARP(op=2, hwsrc=NEAR_MAC, psrc=V4.near, hwdst=port, pdst=V4.unit))
    yield case

    def solicits(target):
        group = bytes.fromhex(f"ff0200000000000000000001ff{low_bits(target)}")
        mac = "33:33:ff:" + ":".join(f"{b:02x}" for b in group[13:])
        return (
            ether(src=NEAR_MAC, dst=mac)
            / IPv6(src=V6.near, dst=address_text(group), hlim=255)
            / ICMPv6ND_NS(tgt=target)
            / ICMPv6NDOptSrcLLAddr(lladdr=NEAR_MAC)
        )

    case = Case("neighbour-solicitation", config(mode))
    answer = (
        ether(src=port, dst=NEAR_MAC)
        / IPv6(src=V6.onlink_vip, dst=V6.near, hlim=255)
        / ICMPv6ND_NA(tgt=V6.onlink_vip, R=0, S=1, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=port)
    )
    case.sends(solicits(V6.onlink_vip), answer, "nd")
    case.to_twin(solicits(V6.unit))
    case.to_twin(solicits("2001:db8::77"))
    yield case

    case = Case("echo", config(mode))
    for size in (0, 1, 56, 1400):
        body = Raw(bytes(i % 256 for i in range(size)))
        for client, mac in ((V4.client, ROUTER_MAC), (V4.near, NEAR_MAC)):
            packet = ether(src=mac) / V4.ip(client, V4.vip) / ICMP(type=8, id=9, seq=size) / body
            answer = ether(src=port, dst=mac) / V4.ip(V4.vip, client, ttl=64) / ICMP(type=0, id=9, seq=size) / body
            case.sends(packet, answer, "v4")
        for client, mac in ((V6.client, ROUTER_MAC), (V6.near, NEAR_MAC)):
            data = bytes(body)
            packet = ether(src=mac) / V6.ip(client, V6.vip) / ICMPv6EchoRequest(id=9, seq=size, data=data)
            answer = ether(src=port, dst=mac) / V6.ip(V6.vip, client, hlim=64)
            case.sends(packet, answer / ICMPv6EchoReply(id=9, seq=size, data=data), "v6")
    yield case

    case = Case("kernel", config(mode))
    for family in FAMILIES:
        case.to_twin(ether() / family.ip(family.client, family.unit) / TCP(sport=5, dport=22, flags="S"))
        case.to_twin(ether() / family.ip(family.client, family.unit) / UDP(sport=5, dport=53) / Raw(b"x"))
    case.to_twin(ether() / V4.ip(V4.client, V4.unit) / ICMP(type=8))
    case.to_twin(ether() / V6.ip(V6.client, V6.unit) / ICMPv6EchoRequest())
    case.to_twin(ether(dst="01:80:c2:00:00:0e") / Raw(b"\x88\xcc" + bytes(46)))  # some link layer protocol
    case.to_twin(ether(dst="01:00:5e:00:00:05") / V4.ip("192.0.2.254", "224.0.0.5", proto=89, ttl=1) / Raw(bytes(44)))
    yield case


def low_bits(address):
    return ipaddress.IPv6Address(address).packed[13:].hex()


def address_text(packed):
    return str(ipaddress.IPv6Address(packed))


def burst_cases():
    """Many flows at once over three hosts, for comparison between burst sizes; so nothing is said of what comes out.

    Chosen by hash: tokens go by the order in which the classifiers hear of the connections, and bursts may change that.
    """
    for mode in ("dsr", "nat"):
        case = Case(mode, config(mode, hosts=3, select="hash"))
        for step in range(5):
            for port in range(30000, 30100):
                for family in FAMILIES:
                    packet = ether() / family.ip(family.client, family.vip, **({"id": port} if family is V4 else {"fl": port}))
                    flags = "S" if step == 0 else "A"
                    case.arrives(packet / TCP(sport=port, dport=80, flags=flags, seq=step), "net0", step)
        yield case


GROUPS = {
    "dsr": lambda: mode_cases("dsr"),
    "nat": lambda: mode_cases("nat"),
    "fragments": fragment_cases,
    "tunnels": tunnel_cases,
    "routes": route_cases,
    "vlans": vlan_cases,
    "portless": portless_cases,
    "headers": header_cases,
    "tunnel-errors": tunnel_error_cases,
    "on-the-unit": on_the_unit_cases,
    "wrong": wrong_cases,
    "local": local_cases,
    "icmp": icmp_cases,
    "full-nat": lambda: importlib.import_module("full_nat").full_nat_cases(),
    "full-nat-fragments": lambda: importlib.import_module("full_nat").fragment_cases(),
    "burst": burst_cases,
}


def main():
    folder, group = pathlib.Path(sys.argv[1]), sys.argv[2]
    for case in GROUPS[group]():
        case.write(folder)


if __name__ == "__main__":
    main()
