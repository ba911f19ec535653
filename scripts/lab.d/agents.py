"""The hosts' agents: keys from an authority of the lab's own, and one `weir-host` in each host's namespace."""

import shutil
import signal
from pathlib import Path

from processes import run

PORT = 7300
PAGES = 7302
GROUP = "rack"
GROUP_PORT = 7301

CONFIG = """# Written by scripts/lab.
host: {id}
keys: {folder}/keys
units: {{ 1: "{unit}:{port}" }}
socket: {folder}/agent.sock
drain: 500ms
{group}applications:
{applications}
"""

WEB = '  - {{ application: {id}, capacity: {capacity}, endpoint: "127.0.0.1:{port}", probe: {{ http: /, interval: 250ms, fall: 2 }} }}'


def unit_address(topology):
    """The unit's own address on the hosts' segment."""
    return topology.unit_ports[-1][2].split("/")[0]


def unit_keys(state):
    return state.folder / "pki/nodes/unit-1"


def prepare(state, topology, grouped):
    """Makes the authority and everybody's keys, and writes the agents' configurations."""
    ids = [host.id for host in topology.hosts]
    member = ["--group", GROUP, "--members", f"{min(ids)}-{max(ids)}"] if grouped else []
    listen = ", ".join(f'{host.id}: "{host.ipv4}:{GROUP_PORT}"' for host in topology.hosts)
    group = f"group: {{ name: {GROUP}, members: {{ {listen} }} }}\n" if grouped else ""
    pki = [Path(state.data["bin_dir"]) / "weirctl", "pki", "--dir", state.folder / "pki"]
    run([*pki, "init"])
    run([*pki, "unit", 1])
    for host in topology.hosts:
        run([*pki, "host", host.id, *member])
        folder = state.folder / host.name
        shutil.copytree(state.folder / f"pki/nodes/host-{host.id}", folder / "keys")
        # The UDP echo is there when nginx is: its rows are looked after by the same probe.
        applications = [WEB.format(id=i, capacity=host.capacity, port=topology.host_port) for i in (1, 2, 3, 4)]
        (folder / "agent.yaml").write_text(
            CONFIG.format(
                id=host.id,
                folder=folder,
                unit=unit_address(topology),
                port=PORT,
                group=group,
                applications="\n".join(applications),
            )
        )


def start(state, host):
    """Starts one host's agent; it links to the unit once that is there."""
    folder = state.folder / host.name
    program = Path(state.data["bin_dir"]) / "weir-host"
    argv = [program, "--socket", folder / "agent.sock", "run", "--config", folder / "agent.yaml"]
    state.start(f"{host.name}-agent", argv, folder / "agent.log", host.namespace)


def stop(state):
    """Ends the agents at once: without a drain and a goodbye that nobody waits for."""
    for name in [name for name in state.processes if name.endswith("-agent")]:
        state.stop(name, timeout=5, number=signal.SIGUSR2)
