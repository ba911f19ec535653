"""What is tried in one run of the unit, and what came of it."""

import time
from dataclasses import dataclass

from machine import SLOTS, pci
from network import HOST4, HOST6, VIPS
from processes import LabError, wait_until

CONFIG = """unit: {{ id: 1, name: qemu, state: /run/weir }}
admin: {{ socket: /run/weir.sock }}
dataplane:
  shards: {queues}
  cpus: [{cpus}]
  hugepages: true
  mbufs: 16384
  routes: {{ ipv4: 10000, ipv6: 10000 }}
ports:
  - {{ name: front, device: "{front}", twin: front0, queues: {queues}, mtu: {mtu}, side: clients, addresses: [10.80.0.1/24, "fd80::1/64"] }}
  - {{ name: farm, device: "{farm}", twin: farm0, queues: {queues}, mtu: {mtu}, side: hosts, addresses: [10.81.0.1/24, "fd81::1/64"] }}
hosts:
  - {{ id: 1, name: host-1, address: {host4} }}
services:
{services}"""
SERVICE = """  - id: {id}
    name: {mode}{family}
    vip: "{vip}"
    ports: 80
    mode: {mode}
    probe: {{ kind: http, interval: 2s, timeout: 1500ms, rise: 1, fall: 3 }}
    endpoints: [{{ host: host-1, address: "{address}" }}]
"""
SMALL = 12


@dataclass
class Result:
    """One line of the table."""

    nic: str
    mtu: str
    what: str
    outcome: str
    detail: str


class Results:
    """All lines of one kind of NIC."""

    def __init__(self, nic, say):
        self.nic, self.say, self.rows, self.mtu = nic, say, [], ""

    def add(self, what, outcome, detail):
        self.say(f"{self.nic} {self.mtu} {what}: {outcome} {detail}".rstrip())
        self.rows.append(Result(self.nic, self.mtu, what, outcome, " ".join(detail.split())[:160]))

    def note(self, what, detail=""):
        self.add(what, "passed", detail)

    def failed(self, what, detail):
        self.add(what, "FAILED", detail)

    def check(self, what, tried):
        """Runs a step that returns a detail, or raises what is wrong with it."""
        try:
            self.note(what, tried() or "")
        except LabError as error:
            self.failed(what, str(error))


def run(results, machine, farm, mtu):
    """Runs the unit with an MTU and tries everything through it."""
    results.mtu = str(mtu)
    farm.set_mtu(mtu)
    services = [
        SERVICE.format(id=number, mode=mode, family=family, vip=vip, address=HOST6 if family == 6 else HOST4)
        for number, ((mode, family), vip) in enumerate(VIPS.items(), start=1)
    ]
    queues = machine.nic.queues
    config = CONFIG.format(
        queues=queues,
        cpus=", ".join(map(str, range(queues))),
        front=pci("front"),
        farm=pci("farm"),
        mtu=mtu,
        host4=HOST4,
        services="".join(services),
    )
    machine.write("/run/weir.yaml", config)
    machine.sh("weir check /run/weir.yaml")
    machine.sh("rm -f /run/weir.log; weir run --config /run/weir.yaml >/run/weir.log 2>&1 & echo $! >/run/weir.pid")
    try:
        start(results, machine)
        serve(results, machine, farm, mtu)
        results.check("link down and up", lambda: link(machine, farm))
        results.check("IPv4 and IPv6 after the link came back", lambda: after(farm))
    finally:
        results.check("clean end, no buffer lost", lambda: stop(machine))
        (machine.folder / f"weir-{mtu}.log").write_text(machine.sh("cat /run/weir.log", check=False))


def start(results, machine):
    """Waits until the unit serves."""

    def running():
        return machine.sh("weirctl --socket /run/weir.sock --json status", check=False).startswith("{")

    try:
        wait_until("the unit's start", running, 120, alive=lambda: machine.sh("kill -0 $(cat /run/weir.pid)"))
    except LabError as error:
        raise LabError(f"{error}; its log:\n{machine.sh('tail -n 15 /run/weir.log', check=False)}") from error
    healthy = lambda: all(e["health"] == "healthy" for s in machine.weirctl("services") for e in s["endpoints"])
    results.check("probes by the twin, both families", lambda: wait_until("healthy endpoints", healthy, 180) and "")
    for port in machine.weirctl("status")["ports"]:
        rss = port["rss"]
        if machine.nic.queues > 1 and rss["state"] == "none":
            results.failed(f"RSS of {port['name']}", "none, with several queues")
        else:
            results.note(f"RSS of {port['name']}", " ".join(rss.values()))


def serve(results, machine, farm, mtu):
    """HTTP in every mode and family."""
    for (mode, family), vip in VIPS.items():
        name = f"{mode}, IPv{family}"

        def small(vip=vip):
            wait_until("a first answer", lambda: farm.curl(vip).returncode == 0, 60)
            wrong = [done.stderr for done in (farm.curl(vip) for _ in range(SMALL)) if done.stdout != "served\n"]
            if wrong:
                raise LabError(f"{len(wrong)} of {SMALL} requests failed: {wrong[0].strip()}")
            return f"{SMALL} requests"

        def large(vip=vip):
            before = port(machine, "front")["rx"]
            for wrong in (farm.get_large(vip), farm.put_large(vip)):
                if wrong:
                    raise LabError(wrong)
            after = port(machine, "front")["rx"]
            packets = after["packets"] - before["packets"]
            each = (after["bytes"] - before["bytes"]) // max(packets, 1)
            if mtu > 1500 and each <= 1514:
                raise LabError(f"{each} bytes a packet on average: no large frames came")
            return f"{each} bytes a packet"

        results.check(name, small)
        results.check(f"{name}, a large file down and up", large)
    results.check("no frame in pieces, none broken", lambda: whole(machine))
    if machine.nic.queues > 1:
        results.check("each queue has received", lambda: queues(machine))


def whole(machine):
    """Whether every frame came in one buffer."""
    ports = machine.weirctl("counters")["ports"]
    wrong = {name: value for name in SLOTS for name, value in ports[name].items() if value and name in ("rx_multi_segment", "rx_errors", "tx_errors")}
    if wrong:
        raise LabError(str(wrong))


def queues(machine):
    """Whether every shard got packets by a queue of its own."""
    shards = machine.weirctl("counters")["shards"]
    received = {shard: counters.get("received", 0) for shard, counters in shards.items()}
    if not all(received.values()):
        raise LabError(f"by shard: {received}")
    return f"by shard: {received}"


def port(machine, name):
    """One port's status."""
    return next(port for port in machine.weirctl("status")["ports"] if port["name"] == name)


def link(machine, farm):
    """The hosts' link goes and comes back: seen by the unit, shown by the twin."""
    machine.set_link("farm", False)
    began = time.monotonic()
    wait_until("a dead link in the status", lambda: not port(machine, "farm")["link_up"], 30)
    seen = time.monotonic() - began
    wait_until("the twin without a carrier", lambda: "NO-CARRIER" in machine.sh("ip link show farm0"), 30)
    if farm.curl(VIPS["nat", 4], seconds=3).returncode == 0:
        raise LabError("an answer came over a dead link")
    machine.set_link("farm", True)
    wait_until("the link in the status", lambda: port(machine, "farm")["link_up"], 60)
    wait_until("the twin's carrier", lambda: "LOWER_UP" in machine.sh("ip link show farm0"), 30)
    return f"seen after {seen:.1f} s"


def after(farm):
    """Whether all is as before."""
    for vip in VIPS.values():
        wait_until(f"an answer of {vip}", lambda vip=vip: farm.curl(vip).returncode == 0, 90)


def stop(machine):
    """Ends the unit."""
    machine.sh("kill $(cat /run/weir.pid)")
    gone = lambda: machine.sh("kill -0 $(cat /run/weir.pid) 2>/dev/null || echo gone", check=False).strip() == "gone"
    wait_until("the unit's end", gone, 60)
    end = machine.sh(r"sed 's/\x1b\[[0-9;]*m//g' /run/weir.log | tail -n 5", check=False)
    if "mbufs_in_use=0" not in end:
        raise LabError(f"the log ends with {end[-400:]}")
