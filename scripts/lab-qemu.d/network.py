"""What the guest's NICs are plugged into: a client and a host in namespaces, and a switch with a bridge for each side.

The host has a foot on both sides, so that in dsr it answers the client directly; by nat's VIP answers go back through the unit.
"""

import shutil
from pathlib import Path

from processes import LabError, State, run, wait_until

PREFIX = "weir-qemu"
CLIENT4, CLIENT6 = "10.80.0.2", "fd80::2"
HOST4, HOST6 = "10.81.0.11", "fd81::11"
VIPS = {("dsr", 4): "10.90.0.100", ("dsr", 6): "fd90::100", ("nat", 4): "10.90.0.101", ("nat", 6): "fd90::101"}
LARGE = 256 * 1024

NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    server {{
        listen 0.0.0.0:80;
        listen [::]:80 ipv6only=on;
        root {folder};
        location = / {{ return 200 'served\\n'; }}
        location /put/ {{ dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""


class Farm:
    """Client, host and switch."""

    def __init__(self, folder, queues):
        self.folder, self.queues = Path(folder), queues
        self.client, self.host, self.switch = (f"{PREFIX}-{part}" for part in ("client", "host", "switch"))
        self.state = None

    def up(self):
        """Makes the namespaces and starts nginx; what an earlier run has left goes first."""
        self._remove()
        self.state = State.create(self.folder)
        for namespace in (self.switch, self.client, self.host):
            run(["ip", "netns", "add", namespace])
            settings = ["ipv6.conf.all.accept_dad=0", "ipv6.conf.default.accept_dad=0", "ipv4.conf.all.rp_filter=0"]
            settings += ["ipv4.conf.default.rp_filter=0", "ipv4.conf.all.arp_ignore=1", "ipv4.conf.all.arp_announce=2"]
            inside(namespace, "sysctl", "-q", "-w", *(f"net.{setting}" for setting in settings))
            inside(namespace, "ip", "link", "set", "lo", "up")
        several = ["multi_queue"] if self.queues > 1 else []
        for segment in ("front", "farm"):
            bridge = f"br-{segment}"
            inside(self.switch, "ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
            inside(self.switch, "ip", "tuntap", "add", segment, "mode", "tap", "vnet_hdr", *several)
            inside(self.switch, "ip", "link", "set", segment, "master", bridge)
        for namespace, interface, segment, address4, address6 in (
            (self.client, "eth0", "front", f"{CLIENT4}/24", f"{CLIENT6}/64"),
            (self.host, "eth0", "farm", f"{HOST4}/24", f"{HOST6}/64"),
            (self.host, "eth1", "front", "10.80.0.11/24", "fd80::11/64"),
        ):
            port = f"{namespace.rpartition('-')[2]}-{interface}"
            inside(self.switch, "ip", "link", "add", port, "type", "veth", "peer", "name", interface, "netns", namespace)
            inside(self.switch, "ip", "link", "set", port, "master", f"br-{segment}")
            inside(namespace, "ethtool", "-K", interface, "tx", "off")
            # Which way the host answers follows from the address it answers from.
            quiet = ["noprefixroute"] if interface == "eth1" else []
            inside(namespace, "ip", "address", "add", address4, "dev", interface, *quiet)
            inside(namespace, "ip", "address", "add", address6, "dev", interface, "nodad", *quiet)
        self.set_mtu(1500)
        for vip in VIPS.values():
            inside(self.client, "ip", "route", "add", vip, "via", "fd80::1" if ":" in vip else "10.80.0.1")
        for family, vip, near, router in (("-4", VIPS["dsr", 4], "10.80.0.0/24", "10.81.0.1"), ("-6", VIPS["dsr", 6], "fd80::/64", "fd81::1")):
            inside(self.host, "ip", family, "address", "add", vip, "dev", "lo")
            inside(self.host, "ip", family, "rule", "add", "from", vip, "lookup", "100")
            inside(self.host, "ip", family, "route", "add", near, "dev", "eth1", "table", "100")
            inside(self.host, "ip", family, "route", "add", "default", "via", router)
        self._serve()

    def _serve(self):
        folder = self.folder
        (folder / "put").mkdir()
        (folder / "large").write_bytes(bytes(i * 2654435761 >> 24 & 255 for i in range(LARGE)))
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
        argv = ["nginx", "-e", folder / "error.log", "-p", folder, "-c", folder / "nginx.conf"]
        self.state.start("nginx", argv, folder / "nginx.log", self.host)
        answers = lambda: inside(self.host, "curl", "-sf", "--noproxy", "*", "http://127.0.0.1/", check=False).stdout
        wait_until("nginx", lambda: answers() == "served\n", 20, alive=lambda: self.state.ensure_alive("nginx"))

    def set_mtu(self, mtu):
        """On every cable."""
        for segment in ("front", "farm"):
            for interface in (segment, f"br-{segment}"):
                inside(self.switch, "ip", "link", "set", interface, "mtu", mtu, "up")
        for namespace, interface in ((self.client, "eth0"), (self.host, "eth0"), (self.host, "eth1")):
            port = f"{namespace.rpartition('-')[2]}-{interface}"
            inside(self.switch, "ip", "link", "set", port, "mtu", mtu, "up")
            inside(namespace, "ip", "link", "set", interface, "mtu", mtu, "up")

    def curl(self, vip, path="/", *more, seconds=20):
        """One request of the client on a connection of its own."""
        url = f"http://[{vip}]{path}" if ":" in vip else f"http://{vip}{path}"
        words = ["curl", "-sSf", "-g", "--noproxy", "*", "--max-time", seconds, *more, url]
        return inside(self.client, *words, check=False)

    def get_large(self, vip):
        """Whether a large file comes down as it is."""
        place = self.folder / "got"
        done = self.curl(vip, "/large", "-o", place, seconds=90)
        same = done.returncode == 0 and place.read_bytes() == (self.folder / "large").read_bytes()
        return None if same else done.stderr.strip() or "another file came"

    def put_large(self, vip):
        """Whether a large file goes up as it is."""
        place = self.folder / "put/large"
        place.unlink(missing_ok=True)
        done = self.curl(vip, "/put/large", "-T", self.folder / "large", seconds=90)
        same = done.returncode == 0 and place.exists() and place.read_bytes() == (self.folder / "large").read_bytes()
        return None if same else done.stderr.strip() or "another file came"

    def down(self):
        """Ends nginx and removes the namespaces."""
        if self.state is not None:
            self.state.stop("nginx")
        self._remove()

    def _remove(self):
        there = {line.split()[0] for line in run(["ip", "netns", "list"]).stdout.splitlines() if line.strip()}
        for namespace in (self.host, self.client, self.switch):
            if namespace in there:
                run(["ip", "netns", "delete", namespace])


def inside(namespace, *words, check=True):
    """Runs a command in a namespace."""
    return run(["ip", "netns", "exec", namespace, *words], check=check, timeout=120)
