"""The yardsticks: DPDK's testpmd and l3fwd, rte_hash, and random cache lines; each per second of its own thread's CPU time."""

import contextlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = Path("/usr/share/dpdk/examples")
PAGES = Path("/proc/sys/vm/nr_hugepages")
# Pages of 2 MiB, for l3fwd's table of four million entries, most of all.
WANTED = 600
PATIENCE = 60


class HugePages:
    """Huge pages for the yardsticks while it is entered: none of them shall be slow for want of those."""

    def __enter__(self):
        self.before = int(PAGES.read_text())
        if self.before < WANTED:
            PAGES.write_text(f"{WANTED}\n")
        self.enough = int(PAGES.read_text()) >= WANTED
        if not self.enough:
            print("bench: not enough huge pages; the yardsticks do without", file=sys.stderr)
        return self

    def __exit__(self, *_):
        PAGES.write_text(f"{self.before}\n")

    def options(self):
        """What EAL is told of its memory."""
        return ["--in-memory"] if self.enough else ["--no-huge", "-m", "1100"]


def build(target):
    """Builds what no package has; a folder with the programs."""
    folder = target / "yardsticks"
    folder.mkdir(parents=True, exist_ok=True)
    flags = pkg_config("--cflags")
    libraries = pkg_config("--libs")
    compiler = ["gcc", "-O3", "-march=native"]
    command = [*compiler, "-Wall", "-Wextra", ROOT / "benches/yardsticks.c", *flags, *libraries, "-o", folder / "yardsticks"]
    subprocess.run(command, check=True)
    if not (folder / "l3fwd").exists():
        sources = folder / "source"
        shutil.rmtree(sources, ignore_errors=True)
        for name in ("l3fwd", "common"):
            shutil.copytree(EXAMPLES / name, sources / name)
        main = sources / "l3fwd/main.c"
        # Ports without hardware cannot check sums.
        main.write_text(re.sub(r".*RTE_ETH_RX_OFFLOAD_CHECKSUM.*\n", "", main.read_text()))
        # The parsers of rules are included by others.
        files = [file for file in (sources / "l3fwd").glob("*.c") if not file.name.endswith("_route_parse.c")]
        command = [*compiler, "-w", "-DALLOW_EXPERIMENTAL_API", "-I", sources / "l3fwd", "-I", sources / "common"]
        subprocess.run([*command, *flags, *files, *libraries, "-o", folder / "l3fwd"], check=True)
    return folder


def pkg_config(what):
    return subprocess.run(["pkg-config", what, "libdpdk"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def lines(folder, cpu, entries, seconds):
    """Millions of random cache lines a second."""
    return table(folder, cpu, "lines", entries, seconds, [])


def rte_hash(folder, cpu, entries, seconds, pages):
    """Millions of flows a second that rte_hash looks up in bulk."""
    eal = ["--", f"--lcores=0@{cpu}", *pages.options(), "--no-pci", "--no-telemetry", "--log-level=lib.eal:error"]
    return table(folder, cpu, "hash", entries, seconds, [*eal, f"--file-prefix=weir-bench-{os.getpid()}"])


def table(folder, cpu, which, entries, seconds, more):
    command = ["taskset", "-c", cpu, folder / "yardsticks", which, entries, round(seconds * 1000), *more]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench: yardsticks {which} failed")
    return float(done.stdout.split()[-1])


def l3fwd(folder, cpu, seconds, pages):
    """Mpps of DPDK's example router by exact match, one flow, from a capture in a loop to a port that takes everything."""
    capture = folder / "l3fwd.pcap"
    capture.write_bytes(one_flow())
    prefix = f"weir-bench-l3fwd-{os.getpid()}"
    rules = folder / "source/l3fwd"
    command = [folder / "l3fwd", f"--lcores=0@{cpu}", *pages.options(), "--no-pci", f"--file-prefix={prefix}", f"--vdev=net_pcap0,rx_pcap={capture},infinite_rx=1",
               "--vdev=net_null0", "--", "-p", "0x3", "-P", "-E", "--config", "(0,0,0)", "--rule_ipv4", rules / "em_default_v4.cfg", "--rule_ipv6", rules / "em_default_v6.cfg", "--parse-ptype"]
    log = folder / "l3fwd.log"
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log.open("w"), stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + PATIENCE
        while "entering main loop" not in log.read_text():
            if process.poll() is not None or time.monotonic() > give_up:
                sys.exit(f"bench: l3fwd does not run, see {log}")
            time.sleep(0.05)
        path = f"/var/run/dpdk/{prefix}/dpdk_telemetry.v2"
        time.sleep(0.3)
        return rate(process.pid, lambda: telemetry(path, "/ethdev/stats,1")["/ethdev/stats"]["opackets"], seconds)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def one_flow():
    """A capture of one UDP flow that l3fwd's table has, sent to its second port."""
    frame = udp_frame("02:00:00:00:00:01", "02:00:00:00:00:02", ("198.18.1.1", 9), ("198.18.1.0", 9))
    record = struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + record * 512


def udp_frame(to, by, source, destination):
    """A frame of 60 bytes from one address and port to another."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 46, 0, 0, 64, 17, 0, addresses)
    total = sum(struct.unpack("!10H", header))
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    link = bytes.fromhex(f"{to}{by}0800".replace(":", ""))
    return link + header + struct.pack("!HHHH", source[1], destination[1], 26, 0) + bytes(18)


def telemetry(path, question):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        asked.connect(path)
        asked.recv(4096)
        asked.send(question.encode())
        return json.loads(asked.recv(1 << 16))


def testpmd(cpu, seconds):
    """Mpps of testpmd that swaps addresses and ports and looks up nothing."""
    # Its output is line by line only on a terminal, unless told.
    command = ["stdbuf", "-oL", "dpdk-testpmd", "--no-huge", "-m", "1024", "--no-pci", "--no-telemetry",
               f"--file-prefix=weir-bench-{os.getpid()}",
               "--lcores", f"0@{cpu},1@{cpu}", "--vdev=net_ring0", "--log-level=lib.eal:error",
               "--", "--interactive", "--forward-mode=5tswap", "--nb-cores=1", "--burst=32", "--total-num-mbufs=16384"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def say(text):
        process.stdin.write(text + "\n")
        process.stdin.flush()

    def packets():
        say("show port stats 0")
        for line in process.stdout:
            found = re.search(r"TX-packets:\s*(\d+)", line)
            if found:
                return int(found.group(1))
        sys.exit("bench: dpdk-testpmd ended; run it by hand to see why")

    try:
        say("start tx_first 16")
        packets()
        time.sleep(0.3)
        return rate(process.pid, packets, seconds)
    finally:
        try:
            say("stop")
            say("quit")
            process.communicate(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()


def rate(pid, packets, seconds):
    """Mpps of CPU time of the one thread that never sleeps; the others hardly do anything."""
    before, cpu_before = packets(), cpu_times(pid)
    time.sleep(seconds)
    after, cpu_after = packets(), cpu_times(pid)
    spent = max(cpu_after[thread] - cpu_before.get(thread, 0) for thread in cpu_after)
    return (after - before) / spent / 1e6


def cpu_times(pid):
    """CPU time of each thread in seconds, by the scheduler's own account in nanoseconds."""
    times = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # One that ends meanwhile is not the one that never does.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            times[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return times
