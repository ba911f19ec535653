"""The guest: qemu with two NICs of one kind behind an emulated IOMMU, and a shell in it by a serial port."""

import json
import re
import select
import socket
import subprocess
import time
from dataclasses import dataclass

from processes import LabError, tail, wait_until


@dataclass(frozen=True)
class Kind:
    """A NIC as qemu emulates it."""

    device: str
    queues: int
    # The largest MTU whose frames its driver puts into one buffer.
    largest: int = 9000


# DPDK's e1000e driver and qemu's vmxnet3 have one queue. The former cuts buffers down to powers of two: 8192 of 9216 bytes.
KINDS = {
    "virtio": Kind(
        "virtio-net-pci,mq=on,vectors=6,rss=on,hash=on,disable-legacy=on,iommu_platform=on,host_mtu=9000,"
        "rx_queue_size=1024",
        2,
    ),
    "e1000e": Kind("e1000e", 1, 8192 - 26),
    "vmxnet3": Kind("vmxnet3", 1),
}
SLOTS = {"front": 4, "farm": 5}


class Machine:
    """A guest of one kind of NIC."""

    def __init__(self, folder, kernel, initramfs, kind, farm):
        self.folder, self.kind, self.nic = folder, kind, KINDS[kind]
        self.kernel, self.initramfs, self.farm = kernel, initramfs, farm
        # How devices are kept apart, once they are bound.
        self.isolation = ""
        folder.mkdir()
        self.process = self.shell = self.monitor = None

    def boot(self):
        """Starts the guest and binds its NICs."""
        argv = ["ip", "netns", "exec", self.farm.switch, "qemu-system-x86_64", "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-no-reboot", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1200"]
        argv += ["-device", "intel-iommu,intremap=on,caching-mode=on"]
        argv += ["-kernel", self.kernel, "-initrd", self.initramfs]
        argv += ["-append", "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on hugepagesz=2M hugepages=160"]
        argv += ["-serial", f"file:{self.folder}/console.log"]
        for name in ("shell", "monitor"):
            argv += ["-chardev", f"socket,id={name},path={self.folder}/{name},server=on,wait=off"]
        argv += ["-device", "isa-serial,chardev=shell", "-mon", "chardev=monitor,mode=control"]
        for name, slot in SLOTS.items():
            queues = f",queues={self.nic.queues}" if self.nic.queues > 1 else ""
            argv += ["-netdev", f"tap,id={name},ifname={name},script=no,downscript=no,vhost=off{queues}"]
            argv += ["-device", f"{self.nic.device},netdev={name},id=nic-{name},mac={mac(name)},bus=pcie.0,addr={slot}"]
        with open(self.folder / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.shell = self._connect("shell")
        self.monitor = self._connect("monitor")
        self._qmp("qmp_capabilities")
        self._read_shell(r"ready\s", 600)
        self._bind()

    def _bind(self):
        for module in ("irqbypass", "vfio"):
            self.sh(f"insmod /modules/{module}.ko")
        groups = self.sh("ls /sys/kernel/iommu_groups").split()
        if groups:
            self.isolation = f"emulated IOMMU, {len(groups)} groups"
        else:
            self.isolation = "vfio without IOMMU: the emulated one gave no groups"
            self.sh("echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
        for module in ("vfio_virqfd", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "tun"):
            self.sh(f"insmod /modules/{module}.ko")
        for name in SLOTS:
            device = f"/sys/bus/pci/devices/{pci(name)}"
            self.sh(f"echo vfio-pci > {device}/driver_override && echo {pci(name)} > /sys/bus/pci/drivers_probe")
            self.sh(f"readlink {device}/driver | grep vfio-pci")

    def sh(self, command, check=True, timeout=120):
        """What a command prints in the guest."""
        self.alive()
        self.shell.sendall(command.encode() + b"\n")
        text, status = self._read_shell(r"\n--end (\d+)--\r?\n", timeout)
        if check and status != "0":
            raise LabError(f"in the guest: {command}: exit {status}: {text.strip()}")
        return text

    def write(self, path, text):
        """Writes a file in the guest."""
        self.sh(f": > {path}")
        for line in text.splitlines():
            quoted = line.replace("'", "'\\''")
            self.sh(f"echo '{quoted}' >> {path}")

    def weirctl(self, *words):
        """One answer of the unit, as JSON."""
        answer = self.sh(f"weirctl --socket /run/weir.sock --json {' '.join(words)}")
        try:
            return json.loads(answer)
        except json.JSONDecodeError as error:
            raise LabError(f"weirctl {' '.join(words)} did not answer JSON: {answer[:200]!r}") from error

    def set_link(self, name, up):
        """Plugs a NIC's cable in or out."""
        self._qmp("set_link", name=name, up=up)

    def alive(self):
        """An error, with the console's end, if qemu has ended."""
        if self.process.poll() is not None:
            raise LabError(f"qemu has ended:\n{tail(self.folder / 'qemu.log')}\n{tail(self.folder / 'console.log')}")

    def off(self):
        """Pulls the plug."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for end in (self.shell, self.monitor):
            if end is not None:
                end.close()

    def _connect(self, name):
        def connect():
            end = socket.socket(socket.AF_UNIX)
            try:
                end.connect(str(self.folder / name))
            except OSError:
                end.close()
                return None
            return end

        return wait_until(f"qemu's {name}", connect, 30, alive=self.alive)

    def _read_shell(self, pattern, timeout):
        """What comes from the guest up to a pattern, and what the pattern's group matched."""
        deadline, text = time.monotonic() + timeout, ""
        while (match := re.search(pattern, text)) is None:
            self.alive()
            if time.monotonic() > deadline:
                raise LabError(f"no answer from the guest within {timeout} s; it said {text[-300:]!r}")
            if select.select([self.shell], [], [], 1)[0]:
                text += self.shell.recv(65536).decode(errors="replace")
        return text[: match.start()].replace("\r", ""), match[1] if match.groups() else ""

    def _qmp(self, command, **arguments):
        """One command of qemu's monitor; events on the way are skipped."""
        self.monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        reader = self.monitor.makefile("r")
        while True:
            answer = json.loads(reader.readline())
            if "error" in answer:
                raise LabError(f"qemu's monitor: {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]


def mac(name):
    return f"02:00:00:00:0{SLOTS[name]}:01"


def pci(name):
    return f"0000:00:{SLOTS[name]:02x}.0"
