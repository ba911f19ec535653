"""The second opinion on tunnels and translation: makes packets, and makes what they must have become, with scapy.

`make` prints one line per case: a name and the frame in hex. `judge` reads lines of a name and the frame that came out, in
hex, and prints every byte for byte difference from scapy's own frame. A name is what is done to the packet, then the packet:
`ipip4-vlan-tcp6` is an IPv6 segment with a tag in an IPv4 tunnel, `nat6-udp4` an IPv4 datagram translated to IPv6.
"""

import sys

from scapy.config import conf

conf.use_pcap = False
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Raw  # noqa: E402

LINKS = {
    "plain": lambda: Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02"),
    "vlan": lambda: Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / Dot1Q(vlan=80, prio=5),
    "qinq": lambda: Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / Dot1AD(vlan=7) / Dot1Q(vlan=80),
}
FROM4, TO4, FROM6, TO6 = "10.80.0.1", "10.80.0.11", "fd80::1", "fd80::11"
ENTROPY = 0xC0DE


def network(version, **fields):
    if version == 4:
        return IP(src="10.0.0.2", dst="10.9.0.1", ttl=63, tos=0xB9, id=77, flags="DF", **fields)
    return IPv6(src="2001:db8::2", dst="2001:db8::1", hlim=63, tc=0xB9, fl=0x12345)


def upper(kind, ports, **fields):
    if kind == "tcp":
        options = [("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]
        return TCP(sport=ports[0], dport=ports[1], flags="S", seq=4294967295, options=options, **fields)
    if kind == "bare":
        return UDP(sport=ports[0], dport=ports[1], chksum=0, **fields) / Raw(b"no checksum")
    return UDP(sport=ports[0], dport=ports[1], **fields) / Raw(b"odd")


def question(link, packet):
    kind, version = packet[:-1], int(packet[-1])
    fields = {"options": [IPOption_NOP()] * 4} if kind == "optioned" else {}
    frame = bytes(LINKS[link]() / network(version, **fields) / upper(kind.replace("optioned", "tcp"), (40000, 80)))
    return frame + b"\xee" * max(0, 60 - len(frame))


def expected(what, link, packet):
    kind, version, outer = packet[:-1], int(packet[-1]), int(what[-1])
    if what.startswith("nat"):
        if outer == 4:
            same = {"id": 77} if version == 4 else {"id": 0}
            head = IP(src=FROM4, dst=TO4, ttl=63, tos=0xB9, flags="DF", **same)
        else:
            head = IPv6(src=FROM6, dst=TO6, hlim=63, tc=0xB9, fl=0x12345 if version == 6 else 0)
        body = upper(kind.replace("optioned", "tcp"), (30000, 8080))
        if kind == "bare" and (version, outer) == (4, 6):
            del body.chksum
        frame = bytes(LINKS[link]() / head / body)
        # Within a family the packet is not moved, and the padding stays.
        length = max(60, len(frame)) if version == outer else len(frame)
        return frame + b"\xee" * (length - len(frame))
    inner = network(version) / upper(kind, (40000, 80))
    gue = what.startswith("gue")
    protocol = 4 if version == 4 else 41
    if outer == 4:
        head = IP(src=FROM4, dst=TO4, ttl=64, tos=0xB9, id=0, flags="DF", proto=17 if gue else protocol)
    else:
        head = IPv6(src=FROM6, dst=TO6, hlim=64, tc=0xB9, fl=ENTROPY, nh=17 if gue else protocol)
    if gue:
        head = head / UDP(sport=ENTROPY, dport=6080, chksum=0, len=12 + len(inner)) / Raw(bytes([0, protocol, 0, 0]))
    return bytes(LINKS[link]() / head / Raw(bytes(inner)))


CASES = [(what, link, packet)
         for what, link in (("ipip4", "plain"), ("ipip6", "vlan"), ("gue4", "qinq"), ("gue6", "plain"))
         for packet in ("tcp4", "udp4", "tcp6", "udp6")]
CASES += [(what, link, packet)
          for what, link in (("nat4", "plain"), ("nat6", "vlan"), ("nat4", "qinq"), ("nat6", "plain"))
          for packet in ("tcp4", "udp4", "bare4", "tcp6", "udp6")]
CASES += [("nat6", "plain", "optioned4")]

if sys.argv[1] == "make":
    for case in CASES:
        print("-".join(case), question(case[1], case[2]).hex())
else:
    complaints = judged = 0
    for line in sys.stdin:
        name, got = line.split()
        judged += 1
        want = expected(*name.split("-")).hex()
        if got != want:
            complaints += 1
            at = next((i for i, pair in enumerate(zip(got, want)) if pair[0] != pair[1]), min(len(got), len(want))) // 2
            print(f"{name}: byte {at} differs: {got[at * 2:at * 2 + 40]} instead of {want[at * 2:at * 2 + 40]}")
    print(f"{judged} packets judged, {complaints} complaints")
    sys.exit(complaints != 0)
