"""What the guest boots: Debian's kernel from its package, and an initramfs of busybox, weir and what DPDK needs for its NICs."""

import gzip
import re
import shutil
import subprocess
from pathlib import Path

from processes import LabError, run

DRIVERS = ["bus_pci", "bus_vdev", "mempool_ring", "net_tap", "net_virtio", "net_e1000", "net_vmxnet3"]
# In the order of their dependencies.
MODULES = ["irqbypass", "vfio", "vfio_virqfd", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "tun"]

INIT = """#!/bin/sh
# The guest's only script: mounts, modules, and a shell behind the second serial port.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/hugepages /dev/net /run /tmp /var
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ln -s /run /var/run
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
# DPDK loads no driver from below a folder that anybody may write to.
chmod 755 /
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo ready >&3
while read -r line <&3; do
  sh -c "$line" </dev/null >/tmp/out 2>&1
  status=$?
  cat /tmp/out >&3
  printf '\\n--end %s--\\n' "$status" >&3
done
"""


def make(folder, bin_dir, kept):
    """Writes kernel and initramfs into the folder and returns their paths; `kept` keeps Debian's package for the next time."""
    package = kernel_package(folder, kept)
    root = folder / "root"
    for part in ("bin", "dev", "proc", "sys", "modules", "usr/lib", "usr/lib64"):
        (root / part).mkdir(parents=True)
    for part in ("lib", "lib64"):
        (root / part).symlink_to(f"usr/{part}")
    shutil.copy(package / "boot" / next((package / "boot").glob("vmlinuz-*")).name, folder / "vmlinuz")
    for module in MODULES:
        found = list((package / "lib/modules").rglob(f"{module}.ko"))
        if not found:
            raise LabError(f"Debian's kernel package has no module {module}")
        shutil.copy(found[0], root / "modules")
    shutil.copy("/bin/busybox", root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    files = [bin_dir / "weir", bin_dir / "weirctl"]
    for program in files:
        if not program.exists():
            raise LabError(f"no {program.name} in {bin_dir}")
        # Debug lines are most of a binary, and all of it is memory in the guest.
        run(["objcopy", "--strip-debug", program, root / "bin" / program.name])
    plugins = next(Path("/usr/lib/x86_64-linux-gnu/dpdk").glob("pmds-*"), None)
    if plugins is None:
        raise LabError("DPDK's drivers are not installed; run scripts/setup as root")
    for driver in DRIVERS:
        for name in plugins.glob(f"librte_{driver}.so*"):
            copy(name, root)
            files.append(name)
    for library in sorted({library for file in files for library in libraries(file)}):
        copy(Path(library), root)
    archive = folder / "initramfs.gz"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    made = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), capture_output=True, check=False
    )
    if made.returncode != 0:
        raise LabError(f"cpio: {made.stderr.decode(errors='replace')}")
    archive.write_bytes(gzip.compress(made.stdout, 1))
    return folder / "vmlinuz", archive


def kernel_package(folder, kept):
    """Debian's current kernel, unpacked: this machine need not run it."""
    depends = run(["apt-cache", "depends", "linux-image-amd64"]).stdout
    name = re.search(r"Depends: (linux-image-\S+)", depends)
    if name is None:
        raise LabError("apt knows no linux-image-amd64: apt-get update, as root")
    kept.mkdir(parents=True, exist_ok=True)
    if not list(kept.glob(f"{name[1]}_*.deb")):
        run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name[1]], cwd=kept, timeout=600)
    run(["dpkg-deb", "-x", next(kept.glob(f"{name[1]}_*.deb")), folder / "kernel"])
    return folder / "kernel"


def libraries(file):
    """The shared libraries that a program or library needs, all the way down."""
    return re.findall(r"(/\S+) \(0x", run(["ldd", file]).stdout)


def copy(path, root):
    """Copies a file to the same place under the guest's root; a link as a link, or DPDK would load a driver twice."""
    path = path.parent.resolve() / path.name
    place = root / path.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.exists():
        return
    if path.is_symlink():
        place.symlink_to(path.readlink())
        copy(path.parent / path.readlink(), root)
    else:
        shutil.copy(path, place)
