"""Real HTTP through the unit: curl for what must be right, wrk for how it holds under load."""

import json
import subprocess
import sys
import time
from pathlib import Path

from hosts import ECHO_PORT, LARGE, AccessLogs, folder_of, sha256
from processes import LabError, run

# wrk's own summary, as one line that a program can read.
WRK_SCRIPT = """
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'SUMMARY {"requests":%d,"duration_us":%d,"bytes":%d,"failed":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d},' ..
    '"latency_us":{"p50":%d,"p90":%d,"p99":%d,"p99.9":%d,"max":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
end
"""


def curl(topology, *arguments, timeout=20):
    """One curl in the client's namespace."""
    return run(
        ["ip", "netns", "exec", topology.client, "curl", "-sS", "-f", "--noproxy", "*", "--max-time", timeout, *arguments],
        check=False,
        timeout=timeout + 10,
    )


def answers(topology, ipv6):
    """Whether a request through the unit is answered by one of its hosts."""
    done = curl(topology, topology.url(ipv6), timeout=3)
    return done.returncode == 0 and done.stdout.strip() in {h.name for h in topology.hosts}


def check_transfers(state, topology, ipv6):
    """A page, and a large file both ways, compared by checksum. Returns (requests, what went wrong)."""
    family = "IPv6" if ipv6 else "IPv4"
    wrong = []
    page = curl(topology, topology.url(ipv6))
    if page.stdout.strip() not in {h.name for h in topology.hosts}:
        wrong.append(f"{family} GET /: {page.stderr.strip() or repr(page.stdout[:80])}")

    large = state.folder / "large.bin"
    fetched = state.folder / "fetched.bin"
    done = curl(topology, "-o", fetched, topology.url(ipv6, "/large.bin"), timeout=60)
    if done.returncode != 0 or sha256(fetched) != sha256(large):
        wrong.append(f"{family} GET of {LARGE} bytes: {done.stderr.strip() or 'another checksum'}")

    name = f"{family.lower()}-{time.monotonic_ns()}"
    done = curl(topology, "-T", large, topology.url(ipv6, f"/upload/{name}"), timeout=60)
    stored = [folder_of(state, h) / "www/upload" / name for h in topology.hosts]
    stored = [path for path in stored if path.exists()]
    if done.returncode != 0 or len(stored) != 1 or sha256(stored[0]) != sha256(large):
        wrong.append(f"{family} PUT of {LARGE} bytes: {done.stderr.strip() or 'another checksum'}")
    for path in [*stored, fetched]:
        path.unlink(missing_ok=True)
    return 3, wrong


def check_datagrams(state, topology, ipv6):
    """UDP datagrams of all sizes there and back. Returns (requests, what went wrong)."""
    sizes = [1, 512, 1200, topology.mtu_of("clients") - 28 - 20 * ipv6]
    # A packet socket's fanout puts fragments together before the unit sees them.
    sizes += [] if topology.shared_ports else [1473, 4000, 9000]
    if topology.tunnelled and ipv6 and topology.room(ipv6) < 1280:
        # No IPv6 sender can be told to send less than 1280 bytes: what fits.
        sizes = [1, 512, topology.room(ipv6) - 48]
    program = Path(__file__).with_name("echo.py")
    arguments = ["/usr/bin/python3", program, "ask", topology.vips[ipv6], ECHO_PORT, *sizes]
    done = run(["ip", "netns", "exec", topology.client, *arguments], check=False, timeout=60)
    return len(sizes), [f"UDP: {line}" for line in done.stdout.splitlines() or done.stderr.splitlines()]


def check_mss(state, topology, ipv6):
    """In tunnels: whether what the hosts advertise leaves room for the outer header. Returns (requests, what went wrong)."""
    if not topology.tunnelled:
        return 0, []
    most = topology.room(ipv6) - (60 if ipv6 else 40)
    ask = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80), 10);"
        "print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))"
    )
    argv = ["ip", "netns", "exec", topology.client, "/usr/bin/python3", "-c", ask, topology.vips[ipv6]]
    done = run(argv, check=False, timeout=20)
    # The client's own options go off it.
    if done.returncode == 0 and most - 40 <= int(done.stdout) <= most:
        return 1, []
    said = done.stdout.strip() or done.stderr.strip()
    return 1, [f"the hosts' advertised MSS over {'IPv6' if ipv6 else 'IPv4'}: {said}, but {most} fits: set advmss on their routes"]


def load(state, topology, *, ipv6, close, seconds, connections, progress):
    """wrk for a while; with `close`, every request is a connection of its own."""
    script = state.folder / "wrk.lua"
    script.write_text(WRK_SCRIPT)
    argv = ["ip", "netns", "exec", topology.client, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s"]
    argv += ["-s", str(script)]
    if close:
        argv += ["-H", "Connection: close"]
    argv.append(topology.url(ipv6))
    logs = AccessLogs(state, topology)
    what = f"{'IPv6' if ipv6 else 'IPv4'}, {'a connection per request' if close else 'keep-alive'}"
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as wrk:
        state.adopt(f"wrk-{wrk.pid}", wrk.pid, script)
        try:
            output = _follow(wrk, what, seconds, progress)
        finally:
            if wrk.poll() is None:
                wrk.kill()
            state.forget(f"wrk-{wrk.pid}")
    lines = [line for line in output.splitlines() if line.startswith("SUMMARY ")]
    if wrk.returncode != 0 or not lines:
        raise LabError(f"wrk, {what}: exit {wrk.returncode}: {output.strip()[-500:]}")
    result = json.loads(lines[-1].removeprefix("SUMMARY "))
    result["what"] = what
    result["failures"] = sum(result["failed"].values())
    result["hosts"] = {
        h.name: dict(zip(("connections", "requests"), counts))
        for h, counts in zip(topology.hosts, logs.read().values())
    }
    return result


def _follow(wrk, what, seconds, progress):
    """Shows once a second how far wrk is; returns all it wrote."""
    begun = time.monotonic()
    while True:
        try:
            out, err = wrk.communicate(timeout=1)
            return out + err
        except subprocess.TimeoutExpired:
            elapsed = time.monotonic() - begun
            progress(f"load, {what}: {min(int(elapsed), seconds)}/{seconds} s")
            if elapsed > seconds + 30:
                wrk.kill()


def retransmissions(topology):
    """TCP segments sent again, by the client and by all hosts: what the unit may have lost."""
    count = {}
    for who, namespaces in (("client", [topology.client]), ("hosts", [h.namespace for h in topology.hosts])):
        count[who] = 0
        for namespace in namespaces:
            text = run(["ip", "netns", "exec", namespace, "cat", "/proc/net/snmp"]).stdout
            names, values = [line.split()[1:] for line in text.splitlines() if line.startswith("Tcp:")]
            count[who] += int(dict(zip(names, values))["RetransSegs"])
    return count


class Progress:
    """One status line that moves on a terminal; elsewhere one line every few seconds."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.next = 0.0

    def __call__(self, text):
        if self.terminal:
            print(f"\r\x1b[Klab: {text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() >= self.next:
            self.next = time.monotonic() + 5
            print(f"lab: {text}", file=sys.stderr, flush=True)

    def done(self):
        if self.terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
