#!/usr/bin/env python3
"""A UDP echo that answers from the address it was asked at, and a client of it that asks until all sizes have come back whole.

`echo.py serve PORT LOG`, and `echo.py ask ADDRESS PORT SIZE…`, which prints a line per size that failed.
"""

import os
import selectors
import socket
import struct
import sys

PKTINFO_V4, PKTINFO_V6, RECEIVE_PKTINFO_V6 = 8, 50, 49
# A first datagram that is too big for a tunnel is lost; its sender hears what fits.
TRIES = 4


def serve(port):
    """Echoes for ever, over both families."""
    waiting = selectors.DefaultSelector()
    for family, level, name in (
        (socket.AF_INET, socket.IPPROTO_IP, PKTINFO_V4),
        (socket.AF_INET6, socket.IPPROTO_IPV6, RECEIVE_PKTINFO_V6),
    ):
        server = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.setsockopt(level, name, 1)
        server.bind(("", port))
        waiting.register(server, selectors.EVENT_READ, family)
    while True:
        for key, _ in waiting.select():
            data, said, _, peer = key.fileobj.recvmsg(1 << 16, 256)
            for level, kind, info in said:
                if key.data == socket.AF_INET and kind == PKTINFO_V4:
                    said = [(level, kind, struct.pack("I4s4s", 0, info[8:12], b""))]
                elif kind == PKTINFO_V6:
                    said = [(level, kind, info[:16] + bytes(4))]
            key.fileobj.sendmsg([data], said, 0, peer)


def ask(address, port, sizes):
    """Asks with each size; true if all came back as they were."""
    good = True
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.settimeout(1)
        for size in sizes:
            if not any(asked(client, os.urandom(size)) for _ in range(TRIES)):
                print(f"{size} bytes to {address} did not come back", flush=True)
                good = False
    return good


def asked(client, body):
    try:
        client.send(body)
        while client.recv(1 << 16) != body:
            pass
        return True
    except OSError:
        return False


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    sys.exit(0 if ask(sys.argv[2], int(sys.argv[3]), map(int, sys.argv[4:])) else 1)
