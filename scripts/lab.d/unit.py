"""The unit under test: its YAML, its programs, its start and its end."""

import json
import os
import subprocess
from pathlib import Path

import agents
from hosts import ECHO_PORT
from processes import LabError, run, tail, wait_until

CONFIG = """# Written by scripts/lab.
unit:
  id: 1
  name: weir-lab-{name}
  state: {state}
admin:
  socket: {socket}
{agents}dataplane:
  shards: {shards}
  classifiers: 1
  cpus: {cpus}
  classifier_cpus: {classifier_cpus}
  idle: poll
  populate: false
  hugepages: false
  memory: 256MiB
  mbufs: 32768
  routes: {{ ipv4: 200000, ipv6: 200000 }}
  # The client may be the unit's router.
  twin: {{ peers: [10.80.0.2, "fd80::2"] }}
ports:
{ports}
{pools}hosts:
{hosts}
services:
{services}
"""

SERVICE = """  - id: {id}
    name: {name}
    vip: "{vip}"
    protocol: {protocol}
    ports: {port}
    mode: {mode}{pool}
    select: tokens
    take: greatest
    tokens: 100
    max_age: 1s
    no_endpoint: drop
    probe: {{ kind: http, port: {probed}, path: /, interval: 500ms, timeout: 400ms, rise: 2, fall: 3 }}
    endpoints:
{endpoints}"""


def build(repository, say):
    """Builds the release binaries, with cargo's own progress, and returns their folder."""
    say("building weir, weirctl, weir-host and weir-decap (release; minutes on a cold start)")
    try:
        built = subprocess.run(
            ["cargo", "build", "--release", "-p", "weir", "-p", "weirctl", "-p", "weir-host", "-p", "weir-host-bpf"],
            cwd=repository,
            stdin=subprocess.DEVNULL,
            stdout=2,
            check=False,
        )
        if built.returncode != 0:
            raise LabError("cargo build failed, see above")
        metadata = run(["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=repository)
    except FileNotFoundError as error:
        raise LabError("cargo is not on PATH; as root, is it another user's?") from error
    return Path(json.loads(metadata.stdout)["target_directory"]) / "release"


def write_config(state, topology, port_type, queues, spoken_for):
    """Writes the unit's YAML into the lab's folder."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    ports = []
    for index, (interface, segment, ipv4, ipv6) in enumerate(topology.unit_ports):
        ports.append(
            f"  - name: net{index}\n    device: {port_type}:{interface}\n    queues: {queues}\n    mtu: {topology.mtu_of(segment)}\n"
            f'    addresses: ["{ipv4}", "{ipv6}"]'
            + (f"\n    twin: {twin(index)}" if port_type != "af_packet" else "")
        )
    services = []
    names = [("web", "tcp", 80), ("web6", "tcp", 80), ("echo", "udp", ECHO_PORT), ("echo6", "udp", ECHO_PORT)]
    for number, (name, protocol, vip_port) in enumerate(names, start=1):
        vip = topology.vips[name.endswith("6")]
        endpoints = []
        for host in topology.hosts:
            address = host.ipv6 if name.endswith("6") != topology.across else host.ipv4
            port = f", port: {topology.host_port}" if topology.host_port != vip_port == 80 else ""
            endpoints.append(
                f'      - {{ host: {host.name}, address: "{address}"{port}, capacity: {host.capacity} }}'
            )
        services.append(
            SERVICE.format(
                id=number,
                name=name,
                vip=vip,
                protocol=protocol,
                port=vip_port,
                probed=topology.host_port,
                mode=topology.mode,
                pool=f"\n    pool: {'web6' if name.endswith('6') != topology.across else 'web'}" if topology.pools else "",
                endpoints="\n".join(endpoints),
            )
        )
    config_path(state).write_text(
        CONFIG.format(
            name=topology.name,
            socket=socket_path(state),
            state=state.folder / "state",
            shards=4,
            cpus=cpus,
            classifier_cpus=cpus[-1:],
            ports="\n".join(ports),
            pools="".join(
                ["pools:\n"] + [f'  - {{ name: {n}, addresses: ["{a}"] }}\n' for n, a in topology.pools.items()]
                if topology.pools
                else []
            ),
            agents=f"agents:\n  listen: 0.0.0.0:{agents.PORT}\n  http: 127.0.0.1:{agents.PAGES}\n  keys: {agents.unit_keys(state)}\n"
            if spoken_for
            else "",
            hosts="\n".join(
                f"  - {{ id: {h.id}, name: {h.name}, address: {h.ipv4}, agent: {str(spoken_for).lower()} }}"
                for h in topology.hosts
            ),
            services="\n".join(services),
        )
    )


def twin(index):
    return f"twin{index}"


def config_path(state):
    return state.folder / "weir.yaml"


def log_path(state):
    return state.folder / "weir.log"


def socket_path(state):
    return state.folder / "weir.sock"


def start(state, topology):
    """Starts the unit and waits until its admin socket answers."""
    binary = Path(state.data["bin_dir"]) / "weir"
    checked = run(["ip", "netns", "exec", topology.unit, binary, "check", config_path(state)], check=False)
    if checked.returncode != 0:
        raise LabError(f"weir check refuses the lab's own configuration:\n{checked.stderr or checked.stdout}")
    state.start("weir", [binary, "run", "--config", config_path(state)], log_path(state), topology.unit)
    wait_until(
        "the unit's admin socket",
        lambda: weirctl(state, "status"),
        30,
        alive=lambda: state.ensure_alive("weir"),
    )


def weirctl(state, *words):
    """One answer of the unit's admin interface."""
    done = run(
        [Path(state.data["bin_dir"]) / "weirctl", "--socket", socket_path(state), "--json", *words], timeout=10
    )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise LabError(f"weirctl {' '.join(words)} did not answer JSON: {done.stdout[:200]!r}") from error


def stop(state):
    """Ends the unit; returns what was wrong with its end, or None. A leaked packet buffer is wrong."""
    if "weir" not in state.processes:
        return None
    if not state.stop("weir"):
        return f"the unit did not leave by itself; the end of its log:\n{tail(log_path(state))}"
    text = log_path(state).read_text(errors="replace")
    if "mbufs_in_use=0" not in text.replace("\x1b[0m", "").replace("\x1b[3m", "").replace("\x1b[2m", ""):
        return f"the unit's log does not end with mbufs_in_use=0:\n{tail(log_path(state))}"
    return None
