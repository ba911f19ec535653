"""The second opinion of translated ICMP errors: scapy makes each error twice, as it comes and as it has to leave.

`make` prints one line per error: a name and the frame in hex. `judge` reads lines of a name and the translated frame in hex and
prints what is wrong, if anything. Both frames are built from addresses alone: every checksum is scapy's.
"""

import sys

from scapy.config import conf

conf.use_pcap = False
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

HERE = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
ENDS = {
    4: dict(client=("198.51.100.7", 40001), vip=("10.80.0.100", 80), host=("10.1.2.3", 8080),
            pool=("10.80.0.200", 61234), router=("203.0.113.9", 0)),
    6: dict(client=("2001:db8::7", 40001), vip=("fd80::100", 80), host=("fd01::2:3", 8080),
            pool=("fd80::200", 61234), router=("2001:db8:ffff::9", 0)),
}

# Direction: as it comes (quoted source, quoted destination), as it leaves, and what its own sender becomes.
WAYS = {
    "endpoint": (("vip", "client"), ("host", "client"), {}),
    "client": (("client", "host"), ("client", "vip"), {"host": "vip"}),
    "fullendpoint": (("vip", "client"), ("host", "pool"), {"client": "pool"}),
    "fullclient": (("pool", "host"), ("client", "vip"), {"host": "vip"}),
}

GET = b"GET / HTTP/1.0\r\n\r\n"


def tcp(sport, dport):
    return TCP(sport=sport, dport=dport, flags="PA", seq=123456, ack=99, options=[("MSS", 1460)]) / Raw(GET)


def udp(sport, dport):
    return UDP(sport=sport, dport=dport) / Raw(b"an odd payload!")


def blank(sport, dport):
    return UDP(sport=sport, dport=dport, chksum=0) / Raw(b"no checksum")


def pad(layer):
    return layer(options=[PadN(optdata=b"\0" * 4)])


FRAGMENTATION, UNREACHABLE, TIME, PARAMETER = (
    ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=3, code=1), ICMP(type=11, code=0), ICMP(type=12, code=0, ptr=9))
BIG6, UNREACHABLE6, TIME6, PARAMETER6 = (
    ICMPv6PacketTooBig(mtu=1280), ICMPv6DestUnreach(code=4), ICMPv6TimeExceeded(), ICMPv6ParamProblem(ptr=6))


class Shape:
    """An error without its addresses."""

    def __init__(self, family, error, upper, limit=None, sender="router", link=HERE, between=None, options=(), tail=b""):
        self.family, self.error, self.upper, self.limit, self.sender = family, error, upper, limit, sender
        self.link, self.between, self.options, self.tail = link, between, list(options), tail

    def build(self, sender, receiver, source, destination):
        ends = ENDS[self.family]
        (source, sport), (destination, dport) = ends[source], ends[destination]
        upper = self.upper(sport, dport)
        if self.family == 4:
            quoted = IP(src=source, dst=destination, ttl=3, id=777, flags="DF", options=self.options) / upper
            outer = IP(src=ends[sender][0], dst=ends[receiver][0], ttl=60, id=5)
        else:
            quoted = IPv6(src=source, dst=destination, hlim=3)
            quoted = quoted / (self.between.copy() / upper if self.between else upper)
            outer = IPv6(src=ends[sender][0], dst=ends[receiver][0], hlim=60)
        quote = bytes(quoted)[: self.limit]
        if self.tail:
            quote = quote.ljust(128, b"\0") + self.tail
        return bytes(self.link.copy() / outer / self.error.copy() / Raw(quote))


SHAPES = {
    "unreachable4-udp": Shape(4, UNREACHABLE, udp),
    "fragmentation4-tcp": Shape(4, FRAGMENTATION, tcp),
    "time4-tcp-eight": Shape(4, TIME, tcp, limit=28),
    "time4-tcp-odd": Shape(4, TIME, tcp, limit=20 + 13),
    "time4-tcp-checksum": Shape(4, TIME, tcp, limit=20 + 18),
    "parameter4-options": Shape(4, PARAMETER, tcp, options=[IPOption_NOP()] * 5),
    "unreachable4-blank": Shape(4, UNREACHABLE, blank),
    "unreachable4-far": Shape(4, ICMP(type=3, code=3), udp, sender="far"),
    "unreachable4-vlan": Shape(4, UNREACHABLE, udp, link=HERE / Dot1AD(vlan=7) / Dot1Q(vlan=80)),
    "time4-extended": Shape(4, ICMP(type=11, code=0, length=32), udp, tail=bytes.fromhex("20001234000801010000a101")),
    "toobig6-tcp": Shape(6, BIG6, tcp),
    "unreachable6-udp": Shape(6, UNREACHABLE6, udp),
    "unreachable6-far": Shape(6, UNREACHABLE6, udp, sender="far"),
    "time6-eight": Shape(6, TIME6, tcp, limit=48),
    "time6-odd": Shape(6, TIME6, tcp, limit=40 + 13),
    "parameter6-options": Shape(6, PARAMETER6, tcp, between=pad(IPv6ExtHdrHopByHop) / pad(IPv6ExtHdrDestOpt)),
    "unreachable6-first": Shape(6, UNREACHABLE6, udp, between=IPv6ExtHdrFragment(offset=0, m=1, id=9)),
    "toobig6-vlan": Shape(6, BIG6, tcp, link=HERE / Dot1Q(vlan=80, prio=3)),
}


def frames():
    """Yields name, frame as it comes, frame as it has to leave."""
    for way, (before, after, senders) in WAYS.items():
        for name, shape in SHAPES.items():
            sender = before[1] if shape.sender == "far" else "router"
            comes = shape.build(sender, before[0], *before)
            leaves = shape.build(senders.get(sender, sender), after[0], *after)
            yield f"{way}-{name}", comes, leaves


def main():
    if sys.argv[1] == "make":
        for name, comes, _ in frames():
            print(name, comes.hex())
        return 0
    answers = dict(line.split() for line in sys.stdin)
    wrong = 0
    for name, _, leaves in frames():
        answer = answers.pop(name, "nothing")
        if answer != leaves.hex():
            print(f"{name}: is {answer}, scapy makes {leaves.hex()}")
            wrong += 1
    print(f"{sum(1 for _ in frames())} errors judged, {wrong + len(answers)} complaints")
    return int(wrong + len(answers) != 0)


sys.exit(main())
