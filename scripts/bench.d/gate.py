"""Counts instructions, with limits: what costs more than it did is seen on any machine, however busy it is."""

import os
import re
import shutil
import subprocess
import sys


def run(root):
    """Runs the benches that count; what this process is to exit with."""
    wanted = re.search(r'name = "gungraun"\nversion = "([^"]+)"', (root / "Cargo.lock").read_text()).group(1)
    missing = []
    if shutil.which("valgrind") is None:
        missing.append("valgrind: scripts/setup --bench")
    runner = os.environ.get("GUNGRAUN_RUNNER") or shutil.which("gungraun-runner")
    if runner is None:
        missing.append(f"gungraun-runner: cargo install gungraun-runner --version {wanted}")
    if missing:
        print("bench: the gate needs what is not installed:", *missing, sep="\n  ", file=sys.stderr)
        return 2
    found = subprocess.run([runner, "--version"], stdout=subprocess.PIPE, text=True).stdout.split()
    if wanted not in found:
        print(f"bench: {' '.join(found)} does not fit the bench: cargo install gungraun-runner --version {wanted}", file=sys.stderr)
        return 2
    return subprocess.run(["cargo", "bench", "-p", "weir-dataplane", "--bench", "instructions"], cwd=root).returncode
