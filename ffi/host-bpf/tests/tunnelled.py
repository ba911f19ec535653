"""Both ends of decap.rs: `serve` is a host's ordinary sockets on the VIP, `send` a unit and a client in one, made with scapy."""

import logging
import selectors
import socket
import sys

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

VIPS = {4: "10.90.0.100", 6: "fd90::100"}
CLIENTS = {4: "10.91.0.7", 6: "fd91::7"}  # behind the unit: nobody's address
UNITS = {4: "10.80.0.1", 6: "fd80::1"}
STRANGERS = {4: "10.80.0.66", 6: "fd80::66"}
HOSTS = {4: "10.80.0.11", 6: "fd80::11"}
PORT = 7000


def serve():
    """One line for each datagram and each connection's first data."""
    selector = selectors.DefaultSelector()
    for family, kind in ((f, k) for f in VIPS for k in ("udp", "tcp")):
        address_family = socket.AF_INET if family == 4 else socket.AF_INET6
        server = socket.socket(address_family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        server.bind((VIPS[family], PORT))
        if kind == "tcp":
            server.listen(64)
        selector.register(server, selectors.EVENT_READ, kind)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data == "tcp":
                connection, peer = key.fileobj.accept()
                selector.register(connection, selectors.EVENT_READ, f"data {peer[0]}")
            elif key.data == "udp":
                data, peer = key.fileobj.recvfrom(2048)
                print(f"udp {peer[0]} {data.decode()}", flush=True)
            else:
                data = key.fileobj.recv(2048)
                if data:
                    print(f"tcp {key.data.split()[1]} {data.decode()}", flush=True)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


def send(interface, host_mac):
    from scapy.all import IP, TCP, UDP, Ether, IPv6, Raw, conf, fragment

    conf.verb = 0
    wire = conf.L2socket(iface=interface)
    l3 = {4: IP, 6: IPv6}

    def inner(family, l4, to=None):
        return l3[family](src=CLIENTS[family], dst=to or VIPS[family]) / l4

    def gue(packet, variant=0, head=None):
        protocol = 4 if packet.version == 4 else 41
        head = head if head is not None else bytes([0, protocol, 0, 0]) if variant == 0 else b""
        return UDP(sport=50000, dport=6080) / Raw(head + bytes(packet))

    def outer(family, payload, source=None, **fields):
        return l3[family](src=(source or UNITS)[family], dst=HOSTS[family], **fields) / payload

    def put(packet):
        # As bytes: scapy fills in lengths and checksums, and what was cut or spoilt stays so.
        wire.send(Ether(dst=host_mac, type=0x0800 if bytes(packet)[0] >> 4 == 4 else 0x86DD) / Raw(bytes(packet)))

    def tunnel(kind, outside, packet, **fields):
        put(outer(outside, packet if kind == "ipip" else gue(packet, variant=int(kind == "gue1")), **fields))

    def udp(text):
        return UDP(sport=5000, dport=PORT) / Raw(text.encode())

    def tcp(kind, outside, inside, sport, text):
        """A handshake: the client's half in the tunnel, the host's straight back, and data with the last segment."""
        begin = TCP(sport=sport, dport=PORT, flags="S", seq=1000, options=[("MSS", 1400)])
        tunnel(kind, outside, inner(inside, begin))
        reply = None
        wire.ins.settimeout(10)
        while reply is None:
            packet = wire.recv()
            if packet and TCP in packet and packet[TCP].dport == sport and packet[TCP].flags == "SA":
                reply = packet[TCP]
        segment = TCP(sport=sport, dport=PORT, flags="PA", seq=1001, ack=reply.seq + 1) / Raw(text.encode())
        tunnel(kind, outside, inner(inside, segment))

    sport = 20000
    for kind in ("ipip", "gue", "gue1"):
        for outside in (4, 6):
            for inside in (4, 6):
                name = f"{kind}-{inside}in{outside}"
                tunnel(kind, outside, inner(inside, udp(name)))
                sport += 1
                tcp(kind, outside, inside, sport, name)

    # None of these may come out.
    for kind in ("ipip", "gue"):
        for outside in (4, 6):
            tunnel(kind, outside, inner(4, udp("stranger")), source=STRANGERS)
            tunnel(kind, outside, inner(4, udp("elsewhere"), to="10.91.0.9"))
    whole = bytes(inner(4, udp("truncated" * 4)))
    put(outer(4, Raw(whole[:-5]), proto=4))
    put(outer(6, Raw(whole[:-5]), nh=4))
    put(outer(4, Raw(whole[:12]), proto=4))
    put(bytes(outer(4, inner(4, udp("truncated"))))[:-6])  # the outer packet itself is cut
    put(outer(4, UDP(sport=50000, dport=6080) / Raw(b"\0\4")))
    put(outer(4, gue(inner(4, udp("options")), head=bytes([1, 4, 0, 0, 0, 0, 0, 0]))))
    put(outer(4, gue(inner(4, udp("control")), head=bytes([0x20, 4, 0, 0]))))
    put(outer(4, inner(4, udp("badsum")), chksum=0x1234))
    for piece in fragment(outer(4, inner(4, udp("fragmented" * 20))), fragsize=120):
        put(piece)
    # After all of them, so that whoever has read this has seen what came before.
    tunnel("ipip", 4, inner(4, udp("last")))


if sys.argv[1] == "serve":
    serve()
else:
    send(*sys.argv[2:])
