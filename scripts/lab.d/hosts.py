"""The hosts' real nginx: a page that names its host, a large file, and a place that takes uploads."""

import hashlib
import os
import shutil
from pathlib import Path

from processes import LabError, run, wait_until

LARGE = 10 * 1024 * 1024
ECHO_PORT = 7

NGINX = """
daemon off;
user www-data;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    # connection, request in it, method, path, status, bytes
    log_format lab '$connection $connection_requests $request_method $uri $status $body_bytes_sent';
    access_log {folder}/access.log lab;
    client_body_temp_path {folder}/tmp/body;
    proxy_temp_path {folder}/tmp/proxy;
    fastcgi_temp_path {folder}/tmp/fastcgi;
    uwsgi_temp_path {folder}/tmp/uwsgi;
    scgi_temp_path {folder}/tmp/scgi;
    client_max_body_size 64m;
    keepalive_requests 10000000;
    sendfile on;
    tcp_nodelay on;
    server {{
        listen 0.0.0.0:{port} backlog=4096;
        listen [::]:{port} ipv6only=on backlog=4096;
        root {folder}/www;
        location /upload/ {{ dav_methods PUT; }}
    }}
}}
"""


def folder_of(state, host):
    return state.folder / host.name


def prepare(state, topology):
    """Writes what the hosts serve."""
    large = state.folder / "large.bin"
    large.write_bytes(os.urandom(LARGE))
    large.chmod(0o644)
    for host in topology.hosts:
        folder = folder_of(state, host)
        for part in ("www/upload", "tmp"):
            (folder / part).mkdir(parents=True)
        shutil.chown(folder / "tmp", "www-data")
        shutil.chown(folder / "www/upload", "www-data")
        (folder / "www/index.html").write_text(host.name + "\n")
        os.link(large, folder / "www/large.bin")
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=topology.host_port))


def attach_decap(state, topology, host):
    """Lets the host take off what the unit puts around its packets."""
    sources = [word for _, _, *nets in topology.unit_ports for net in nets for word in ("--source", net.split("/")[0])]
    decap = Path(state.data["bin_dir"]) / "weir-decap"
    run(["ip", "netns", "exec", host.namespace, decap, "attach", "eth0", *sources])


def start(state, topology, host):
    """Starts one host's nginx and waits until it answers in its own namespace."""
    folder = folder_of(state, host)
    state.start(
        host.name,
        ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"],
        folder / "nginx.log",
        host.namespace,
    )
    url = f"http://127.0.0.1:{topology.host_port}/"
    wait_until(
        f"nginx of {host.name}",
        lambda: run(["ip", "netns", "exec", host.namespace, "curl", "-sf", "--noproxy", "*", url], check=False).stdout
        == host.name + "\n",
        10,
        alive=lambda: state.ensure_alive(host.name),
    )


def start_echo(state, host):
    """Starts one host's UDP echo."""
    log = folder_of(state, host) / "echo.log"
    program = Path(__file__).with_name("echo.py")
    state.start(f"{host.name}-echo", ["/usr/bin/python3", program, "serve", ECHO_PORT, log], log, host.namespace)


def kill(state, topology, host):
    """Takes a host off the network at once, as a power cut does."""
    run(["ip", "-n", host.namespace, "link", "set", "eth0", "down"])
    state.stop(host.name)


def revive(state, topology, host):
    """Brings a killed host back."""
    run(["ip", "-n", host.namespace, "link", "set", "eth0", "up"])
    run(["ip", "-n", host.namespace, "address", "replace", f"{host.ipv6}/64", "dev", "eth0", "nodad"])
    topology.host_routes(host)
    start(state, topology, host)


def find(topology, name):
    for host in topology.hosts:
        if name in (host.name, str(host.id)):
            return host
    raise LabError(f"no host {name}; there are {', '.join(h.name for h in topology.hosts)}")


class AccessLogs:
    """What the hosts have served since this was made, from nginx's own logs."""

    def __init__(self, state, topology):
        self.hosts = topology.hosts
        self.paths = {h.id: folder_of(state, h) / "access.log" for h in topology.hosts}
        self.offsets = {i: path.stat().st_size if path.exists() else 0 for i, path in self.paths.items()}

    def read(self):
        """By host: (connections that began here, requests)."""
        result = {}
        for host in self.hosts:
            connections, requests = set(), 0
            if self.paths[host.id].exists():
                with open(self.paths[host.id], encoding="ascii", errors="replace") as log:
                    log.seek(self.offsets[host.id])
                    for line in log:
                        fields = line.split()
                        if len(fields) == 6:
                            connections.add(fields[0])
                            requests += 1
            result[host.id] = (len(connections), requests)
        return result


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
