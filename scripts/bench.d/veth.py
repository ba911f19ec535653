"""Ports of the kernel's (af_packet, af_xdp) over veth: what weir forwards by one in dsr, beside testpmd `mac` by the same.

In a network namespace of its own stands a veth pair. What the forwarder sends comes back from the other end, sent by the kernel with
the link-layer addresses and the TTL that it had at first; so some datagrams of several flows go round, each as soon as it can. The
kernel's part of the way is in the forwarder's thread for the most, for both alike. With two queues the near end deals them by the kernel's
hash of the 4-tuple, and both are served by one CPU.
"""

import json
import os
import subprocess
import sys
import time

import yardsticks

SPACE = f"weir-bench-{os.getpid()}"
NEAR, FAR = "02:00:00:00:01:01", "02:00:00:00:01:02"
# Datagrams that go round, all of which have room between the two ends; put in so many at once.
FLOWS, BURST = 256, 16
QUEUES = (1, 2)
# It sends by the queue that a packet came in by, where it knows one: then each would always come back to the shard that has sent it.
FORGET = """
#include <linux/bpf.h>
__attribute__((section("tc"), used)) int forget(struct __sk_buff *packet) { packet->queue_mapping = 0; return -1; }
char terms[] __attribute__((section("license"))) = "GPL";
"""
BACK = f"""
table netdev bench {{
  chain back {{
    type filter hook ingress device "far0" priority 0;
    ether type ip ether daddr set {NEAR} ether saddr set {FAR} ip ttl set 64 fwd to "far0"
  }}
}}
"""
# One host, without a probe, and no kernel that knows it.
UNIT = """
unit: {{ id: 1, name: weir-bench, state: {folder}/state }}
admin: {{ socket: {folder}/weir.sock }}
dataplane: {{ shards: {queues}, cpus: [{cpu}], classifier_cpus: [{other}], idle: spin, populate: false, memory: 128MiB, mbufs: 8192, routes: {{ ipv4: 65536, ipv6: 65536 }} }}
ports:
  - {{ name: net0, device: "{kind}:near0", queues: {queues}, addresses: [192.0.2.1/24]{twin} }}
neighbours:
  - {{ port: net0, address: 192.0.2.11, mac: "{far}" }}
hosts:
  - {{ id: 1, name: host-1, address: 192.0.2.11 }}
services:
  - {{ id: 1, name: dns, vip: 192.0.2.100, protocol: udp, ports: 53, mode: dsr, select: hash, endpoints: [{{ host: host-1 }}] }}
"""


def measure(weir, cpu, other, folder, rounds, seconds):
    """Millions of datagrams a second of the forwarder's CPU time: for each driver and number of queues the runs of both, and all took
    turns. `folder` is for their files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "forget.c").write_text(FORGET)
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(["clang-14", "-O2", "-target", "bpf", "-I", include, "-c", folder / "forget.c", "-o", folder / "forget.o"], check=True)
    for kind in ("af_packet", "af_xdp"):
        runs = {queues: {"weir": [], "testpmd": []} for queues in QUEUES}
        for _ in range(rounds):
            for queues in QUEUES:
                runs[queues]["testpmd"].append(by_testpmd(kind, queues, cpu, other, folder, seconds))
                runs[queues]["weir"].append(by_weir(weir, kind, queues, cpu, other, folder, seconds))
        for queues in QUEUES:
            yield kind, queues, runs[queues]


def by_weir(weir, kind, queues, cpu, other, folder, seconds):
    twin = ", twin: twin0" if kind == "af_xdp" else ""
    unit = UNIT.format(folder=folder, cpu=cpu, other=other, kind=kind, queues=queues, twin=twin, far=FAR)
    (folder / "veth.yaml").write_text(unit)
    return circulate([weir, "run", "--config", folder / "veth.yaml"], queues, folder, folder / "weir.log", seconds)


def by_testpmd(kind, queues, cpu, other, folder, seconds):
    # The arguments that weir gives the drivers.
    devices = {
        "af_packet": [f"net_af_packet0,iface=near0,qpairs={queues},framesz=2048,framecnt=4096,blocksz=8192,qdisc_bypass=1"],
        # A port for each queue: of veth the driver sees no more than one.
        "af_xdp": [f"net_af_xdp{queue},iface=near0,start_queue={queue},queue_count=1" for queue in range(queues)],
    }[kind]
    each = queues // len(devices)
    command = ["dpdk-testpmd", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry", f"--file-prefix={SPACE}", "--lcores", f"0@{other},1@{cpu}",
               *(f"--vdev={device}" for device in devices), "--", "--forward-mode=mac", "--nb-cores=1", f"--rxq={each}", f"--txq={each}",
               "--burst=32", "--total-num-mbufs=16384", "--port-topology=loop", *(f"--eth-peer={port},{FAR}" for port in range(len(devices))),
               "--auto-start"]
    return circulate(command, queues, folder, folder / "testpmd.log", seconds)


def circulate(command, queues, folder, log, seconds):
    """Starts a forwarder on so many queues, gives it datagrams, and counts how many it sends."""
    process = None
    ip("netns", "add", SPACE)
    try:
        pairs = ["numrxqueues", str(queues), "numtxqueues", str(queues)]
        ip("-n", SPACE, "link", "add", "near0", "address", NEAR, *pairs, "type", "veth", "peer", "name", "far0", "address", FAR, *pairs)
        for words in (["qdisc", "add", "dev", "far0", "clsact"], ["filter", "add", "dev", "far0", "ingress", "bpf", "da", "obj", folder / "forget.o", "sec", "tc"]):
            subprocess.run(["tc", "-n", SPACE, *words], check=True)
        subprocess.run(["ip", "netns", "exec", SPACE, "nft", "-f", "-"], input=BACK, text=True, check=True)
        for end in ("near0", "far0"):
            subprocess.run(["ip", "netns", "exec", SPACE, "ethtool", "-K", end, "tx", "off"], check=True, stdout=subprocess.DEVNULL)
            ip("-n", SPACE, "link", "set", end, "up")
        with log.open("w") as out:
            inside = ["ip", "netns", "exec", SPACE, *map(str, command)]
            process = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
        return rate(process, log, seconds)
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        ip("netns", "del", SPACE)


def rate(process, log, seconds):
    """Mpps that come round. Each datagram that is put in goes round until the forwarder loses it."""
    sent = lambda: json.loads(ip("-n", SPACE, "-s", "-j", "link", "show", "near0"))[0]["stats64"]["tx"]["packets"]
    give_up = time.monotonic() + yardsticks.PATIENCE
    rounds = 0
    # The first one comes round as soon as the forwarder is ready.
    while rounds < 100:
        if process.poll() is not None or time.monotonic() > give_up:
            sys.exit(f"bench: no datagrams go round, see {log}")
        before = sent()
        put(range(1))
        time.sleep(0.1)
        rounds = sent() - before
    for first in range(1, FLOWS, BURST):
        put(range(first, first + BURST))
        time.sleep(0.01)
    time.sleep(0.3)
    return yardsticks.rate(process.pid, sent, seconds)


def put(flows):
    """Sends a datagram of each flow from the far end to the near one."""
    frames = [yardsticks.udp_frame(NEAR, FAR, ("192.0.2.9", 1024 + flow), ("192.0.2.100", 53)).hex() for flow in flows]
    subprocess.run(["ip", "netns", "exec", SPACE, sys.executable, "-c", SEND, *frames], check=True)


def ip(*words):
    return subprocess.run(["ip", *words], check=True, stdout=subprocess.PIPE, text=True).stdout


# What sends frames, given in hexadecimal digits.
SEND = """
import socket, sys
port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
port.bind(("far0", 0))
for frame in sys.argv[1:]:
    port.send(bytes.fromhex(frame))
"""
