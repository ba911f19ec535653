"""The second opinion of the wire formats: makes questions and judges answers with scapy.

`make` prints one line per question: a name and the frame in hex. `judge` reads lines of a name and the answer's frame in hex
("none" where there is no answer) and prints what is wrong, if anything.
"""

import sys

from scapy.config import conf

conf.use_pcap = False
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop, PadN,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

UNIT, CLIENT, ALL = "02:00:00:00:00:01", "02:00:00:00:00:02", "33:33:00:00:00:01"
VIP, PEER = "10.80.0.100", "10.80.0.2"
VIP6, PEER6, GROUP = "fd80::100", "fd80::2", "ff02::1:ff00:100"
HERE = Ether(dst=UNIT, src=CLIENT)
FOUR, SIX = IP(src=PEER, dst=VIP, ttl=7), IPv6(src=PEER6, dst=VIP6, hlim=7)
NEAR = IPv6(src=PEER6, dst=VIP6, hlim=255)
SYN = TCP(sport=40000, dport=80, flags="S", seq=4294967295, options=[("MSS", 1460), ("WScale", 7)])
DATA = TCP(sport=40000, dport=80, flags="PA", seq=9, ack=77) / Raw(b"GET / HTTP/1.0\r\n\r\n")
QUERY = UDP(sport=5000, dport=53) / Raw(b"odd")
LONG = UDP(sport=5000, dport=53) / Raw(bytes(range(256)) * 5 + b"!")
NS = ICMPv6ND_NS(tgt=VIP6)

QUESTIONS = {
    "arp": Ether(dst="ff:ff:ff:ff:ff:ff", src=CLIENT) / ARP(op=1, hwsrc=CLIENT, psrc=PEER, pdst=VIP),
    "arp-vlan": HERE / Dot1Q(vlan=80, prio=5) / ARP(op=1, hwsrc=CLIENT, psrc=PEER, pdst=VIP),
    "arp-other": HERE / ARP(op=1, hwsrc=CLIENT, psrc=PEER, pdst="10.80.0.9"),
    "ns": Ether(dst="33:33:ff:00:01:00", src=CLIENT) / IPv6(src=PEER6, dst=GROUP, hlim=255) / NS
    / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT),
    "ns-unicast": HERE / Dot1Q(vlan=80) / NEAR / NS,
    "ns-dad": Ether(dst="33:33:ff:00:01:00", src=CLIENT) / IPv6(src="::", dst=GROUP, hlim=255) / NS,
    "ns-routed": HERE / IPv6(src=PEER6, dst=VIP6, hlim=254) / NS,
    "ns-broken": HERE / NEAR / ICMPv6ND_NS(tgt=VIP6, cksum=0x1234),
    "ping4": HERE / FOUR / ICMP(type=8, id=7, seq=3) / Raw(b"some odd data"),
    "ping4-qinq": HERE / Dot1AD(vlan=7) / Dot1Q(vlan=80) / FOUR / ICMP(type=8, id=7, seq=3) / Raw(b"data"),
    "ping4-options": HERE / IP(src=PEER, dst=VIP, options=[IPOption_RR(length=7, pointer=4, routers=["0.0.0.0"]),
                                                            IPOption_NOP()]) / ICMP(type=8) / Raw(b"x"),
    "ping4-fragment": HERE / IP(src=PEER, dst=VIP, flags="MF") / ICMP(type=8) / Raw(b"12345678"),
    "ping6": HERE / SIX / ICMPv6EchoRequest(id=7, seq=3, data=b"some odd data"),
    "reset4-syn": HERE / FOUR / SYN,
    "reset4-data": HERE / Dot1Q(vlan=80) / FOUR / DATA,
    "reset4-rst": HERE / FOUR / TCP(sport=40000, dport=80, flags="R"),
    "reset6-syn": HERE / Dot1Q(vlan=80) / SIX / SYN,
    "reset6-data": HERE / SIX / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / DATA,
    "port4": HERE / FOUR / QUERY,
    "port4-long": HERE / FOUR / LONG,
    "port6": HERE / SIX / QUERY,
    "port6-long": HERE / Dot1Q(vlan=80) / SIX / LONG,
    "port6-later": HERE / SIX / IPv6ExtHdrFragment(nh=17, offset=100, m=0, id=5) / Raw(b"12345678"),
    "big4": HERE / FOUR / LONG,
    "big6": HERE / SIX / LONG,
    "time4": HERE / FOUR / SYN,
    "time6": HERE / SIX / SYN,
}

UNANSWERED = {"arp-other", "ns-routed", "ns-broken", "ping4-fragment", "reset4-rst", "port6-later"}


def wire(packet):
    """The packet as bytes, and again as what those bytes mean."""
    return packet.__class__(bytes(packet))


def rebuilt(packet):
    """The same packet with every checksum and length computed by scapy."""
    copy = packet.copy()
    layer = copy
    while layer and not isinstance(layer, Raw):
        if layer.name in ("IP in ICMP", "IPv6 in ICMPv6"):
            break  # a quotation is as it was
        for field in ("chksum", "cksum", "len", "plen"):
            if field in layer.fields:
                layer.delfieldval(field)  # which also drops the bytes that scapy has cached
        layer = layer.payload
    return bytes(copy)


def quote(frame, question, limit, headers):
    """Complains unless the error quotes as much of the question as the limit allows."""
    network = IP if IP in question else IPv6
    sent, whole = bytes(question[network]), bytes(frame[network])
    want = sent[: limit - headers]
    if whole[headers:] != want:
        yield f"quotes {len(whole) - headers} bytes, not the {len(want)} that were sent"


def complaints(name, frame, question):
    """Yields what is wrong with an answer."""
    if bytes(frame) != rebuilt(frame):
        yield f"scapy computes {rebuilt(frame).hex()}"
    kind = name.split("-")[0]
    to = ALL if name == "ns-dad" else CLIENT
    if (frame.src, frame.dst) != (UNIT, to):
        yield f"goes from {frame.src} to {frame.dst}"
    tags = lambda packet: [(type(tag), tag.vlan, tag.prio) for tag in (packet.getlayer(i) for i in range(1, 3))
                           if isinstance(tag, (Dot1Q, Dot1AD))]
    if tags(frame) != tags(question):
        yield f"tags {tags(frame)} became of {tags(question)}"
    network = frame.getlayer(IP) or frame.getlayer(IPv6)
    if network:
        back = "ff02::1" if name == "ns-dad" else PEER6 if IPv6 in frame else PEER
        if (network.src, network.dst) != (VIP6 if IPv6 in frame else VIP, back):
            yield f"is from {network.src} to {network.dst}"
        hops = network.hlim if IPv6 in frame else network.ttl
        if hops != (255 if kind == "ns" else 64):
            yield f"has hop limit {hops}"
    expect = EXPECT[kind]
    yield from expect(frame, question)


def expect_arp(frame, question):
    arp = frame[ARP]
    if (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) != (2, UNIT, VIP, CLIENT, PEER):
        yield f"says {arp.summary()}"


def expect_ns(frame, question):
    na, link = frame[ICMPv6ND_NA], frame[ICMPv6NDOptDstLLAddr]
    solicited = int(question[IPv6].src != "::")
    if (na.R, na.S, na.O, na.tgt, link.lladdr) != (0, solicited, 1, VIP6, UNIT):
        yield f"says {na.show(dump=True)}"


def expect_ping4(frame, question):
    here, there = frame[ICMP], question[ICMP]
    if (here.type, here.code, here.id, here.seq) != (0, 0, there.id, there.seq) or here[Raw] != there[Raw]:
        yield f"says {here.show(dump=True)}"


def expect_ping6(frame, question):
    here, there = frame[ICMPv6EchoReply], question[ICMPv6EchoRequest]
    if (here.id, here.seq, here.data) != (there.id, there.seq, there.data):
        yield f"says {here.show(dump=True)}"


def expect_reset(frame, question):
    here, there = frame[TCP], question[TCP]
    want = ("R", there.ack, 0) if there.flags.A else ("RA", 0, (there.seq + 1) % 2**32)
    if (str(here.flags), here.seq, here.ack) != want or (here.sport, here.dport) != (there.dport, there.sport):
        yield f"says {here.summary()} seq {here.seq} ack {here.ack}"
    if Raw in frame:
        yield "carries data"


def expect_error4(kind, code, mtu):
    def expect(frame, question):
        error = frame[ICMP]
        if (error.type, error.code, error.nexthopmtu if mtu else 0) != (kind, code, mtu):
            yield f"says {error.show(dump=True)}"
        yield from quote(frame, question, 576, 28)
    return expect


def expect_error6(layer, **fields):
    def expect(frame, question):
        error = frame[layer]
        for field, value in fields.items():
            if getattr(error, field) != value:
                yield f"has {field} {getattr(error, field)}"
        yield from quote(frame, question, 1280, 48)
    return expect


EXPECT = {
    "arp": expect_arp, "ns": expect_ns, "ping4": expect_ping4, "ping6": expect_ping6,
    "reset4": expect_reset, "reset6": expect_reset,
    "port4": expect_error4(3, 3, 0), "big4": expect_error4(3, 4, 1400), "time4": expect_error4(11, 0, 0),
    "port6": expect_error6(ICMPv6DestUnreach, code=4), "big6": expect_error6(ICMPv6PacketTooBig, code=0, mtu=1400),
    "time6": expect_error6(ICMPv6TimeExceeded, code=0),
}


def main():
    if sys.argv[1] == "make":
        for name, packet in QUESTIONS.items():
            print(name, bytes(packet).hex())
        return 0
    answered, wrong = set(), 0
    for line in sys.stdin:
        name, answer = line.split()
        answered.add(name)
        if (answer == "none") != (name in UNANSWERED):
            found = [f"answered with {answer}"]
        elif answer == "none":
            found = []
        else:
            found = list(complaints(name, Ether(bytes.fromhex(answer)), wire(QUESTIONS[name])))
        wrong += len(found)
        for complaint in found:
            print(f"{name}: {complaint}")
    for name in QUESTIONS.keys() - answered:
        print(f"{name}: was not judged")
        wrong += 1
    print(f"{len(answered)} answers judged, {wrong} complaints")
    return int(wrong != 0)


sys.exit(main())
