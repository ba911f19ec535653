"""The lab's network: one client, one unit and the hosts, each in a namespace of its own, and a switch between them.

dsr: one segment. The VIP is on-link, every host carries it on its loopback and stays silent about it.
nat: the unit stands between the clients' segment and the hosts'. The VIP is behind the unit's address, the hosts' way
back leads through the unit.
full-nat: as nat, but the hosts know no way to the clients: they answer the unit's pool addresses on their own segment.
ipip, gue: as dsr, but the unit's packets come to the hosts in tunnels, which weir-decap takes off; the hosts advertise an MSS
that leaves room for the tunnel's header.
"""

from dataclasses import dataclass, field

from processes import LabError, run

PREFIX = "weir-lab"
CAPACITIES = [50, 30, 20]


@dataclass
class Host:
    """A server behind the unit."""

    id: int
    capacity: int
    namespace: str
    ipv4: str
    ipv6: str

    @property
    def name(self):
        return f"host-{self.id}"


@dataclass
class Topology:
    """Names and addresses of one lab, all derived from its options."""

    name: str
    mode: str
    host_count: int
    capacities: list = field(default_factory=lambda: list(CAPACITIES))
    # Whether the kernel keeps the unit's interfaces, and their addresses on them; else both are with a twin.
    shared_ports: bool = True
    queues: int = 2
    # Of the hosts' segment and, where that is another one, of the client's.
    mtu: int = 1500
    client_mtu: int = 1500
    # Whether a VIP's endpoints are of the other family.
    across: bool = False

    def __post_init__(self):
        if not 1 <= self.host_count <= 64:
            raise LabError(f"--hosts {self.host_count}: between 1 and 64")
        if not 1 <= self.queues <= 4:
            raise LabError(f"--queues {self.queues}: between 1 and 4")
        for mtu in (self.mtu, self.client_mtu):
            if not 1280 <= mtu <= 1500:
                raise LabError(f"--mtu {mtu}: between 1280 and 1500")
        if self.across and self.mode != "full-nat":
            raise LabError(f"--across: with --mode full-nat, not {self.mode}")
        side = 80 if self.two_sided is False else 81
        self.hosts = [
            Host(
                id=i,
                capacity=self.capacities[(i - 1) % len(self.capacities)],
                namespace=self.namespace(f"host{i}"),
                ipv4=f"10.{side}.0.{10 + i}",
                ipv6=f"fd{side}::{10 + i}",
            )
            for i in range(1, self.host_count + 1)
        ]

    def namespace(self, part):
        return f"{PREFIX}-{self.name}-{part}"

    @property
    def two_sided(self):
        """Whether the unit has a port of its own for the hosts."""
        return self.mode in ("nat", "full-nat")

    @property
    def tunnelled(self):
        """Whether the hosts get packets in tunnels."""
        return self.mode in ("ipip", "gue")

    @property
    def pools(self):
        """Source addresses for the hosts' side, by the services' names."""
        return {"web": "10.81.0.200/30", "web6": "fd81::200/126"} if self.mode == "full-nat" else {}

    @property
    def client(self):
        return self.namespace("client")

    @property
    def unit(self):
        return self.namespace("unit")

    @property
    def switch(self):
        return self.namespace("switch")

    @property
    def namespaces(self):
        return [self.switch, self.client, self.unit, *(h.namespace for h in self.hosts)]

    @property
    def vips(self):
        return ("10.90.0.100", "fd90::100") if self.two_sided else ("10.80.0.100", "fd80::100")

    @property
    def host_port(self):
        """Where the hosts listen: only a mode that rewrites addresses can change it."""
        return 8080 if self.two_sided else 80

    @property
    def unit_ports(self):
        """Interface, segment and addresses of the unit's ports."""
        ports = [("weir0", "clients", "10.80.0.1/24", "fd80::1/64")]
        if self.two_sided:
            ports.append(("weir1", "hosts", "10.81.0.1/24", "fd81::1/64"))
        return ports

    def url(self, ipv6, path="/"):
        return f"http://[{self.vips[1]}]{path}" if ipv6 else f"http://{self.vips[0]}{path}"

    def up(self):
        """Makes the namespaces and wires them."""
        for namespace in self.namespaces:
            run(["ip", "netns", "add", namespace])
            sysctl(
                namespace,
                # An address is usable at once, and nothing but what the lab does is on the wire.
                "net.ipv6.conf.all.accept_dad=0",
                "net.ipv6.conf.default.accept_dad=0",
                "net.ipv6.conf.default.accept_ra=0",
                "net.ipv6.conf.default.router_solicitations=0",
                "net.ipv4.conf.all.rp_filter=0",
                "net.ipv4.conf.default.rp_filter=0",
                "net.ipv4.ip_forward=0",
                "net.ipv6.conf.all.forwarding=0",
            )
            ip(namespace, "link set lo up")
        self._switch_up()
        self._client_up()
        self._unit_up()
        for host in self.hosts:
            self._host_up(host)

    def _switch_up(self):
        sysctl(self.switch, "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        for segment in ("clients", "hosts") if self.two_sided else ("clients",):
            ip(
                self.switch,
                f"link add {segment} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
                f"link set {segment} up",
            )

    def plug(self, namespace, interface, segment, ipv4, ipv6, port):
        """A cable between a namespace and the switch."""
        self._cable(namespace, interface, segment, port, 1)
        ip(namespace, f"address add {ipv4} dev {interface}", f"address add {ipv6} dev {interface} nodad")

    def mtu_of(self, segment):
        """The MTU of a segment by its name."""
        return self.client_mtu if self.two_sided and segment == "clients" else self.mtu

    def _cable(self, namespace, interface, segment, port, queues):
        count = f"numtxqueues {queues} numrxqueues {queues}"
        ip(
            self.switch,
            f"link add {port} {count} type veth peer name {interface} {count} netns {namespace}",
            f"link set {port} master {segment} up",
        )
        ip(namespace, f"link set {interface} mtu {self.mtu_of(segment)} up")

    def _client_up(self):
        self.plug(self.client, "eth0", "clients", "10.80.0.2/24", "fd80::2/64", "client")
        checksums_in_software(self.client, "eth0")
        if self.two_sided:
            ip(self.client, f"route add {self.vips[0]}/32 via 10.80.0.1", f"route add {self.vips[1]}/128 via fd80::1")
        # Many short connections from one address: all its ports, and those in TIME_WAIT again after a second.
        sysctl(self.client, "net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1")

    def _unit_up(self):
        for interface, segment, ipv4, ipv6 in self.unit_ports:
            if self.shared_ports:
                self.plug(self.unit, interface, segment, ipv4, ipv6, f"unit-{interface}")
            else:
                self._cable(self.unit, interface, segment, f"unit-{interface}", self.queues)
        # The kernel sees a copy of every packet and must not answer for a VIP that it does not own.
        ip(self.unit, f"route add blackhole {self.vips[0]}/32", f"route add blackhole {self.vips[1]}/128")

    def _host_up(self, host):
        segment = "hosts" if self.two_sided else "clients"
        self.plug(host.namespace, "eth0", segment, f"{host.ipv4}/24", f"{host.ipv6}/64", f"host{host.id}")
        checksums_in_software(host.namespace, "eth0")
        self.host_routes(host)
        if not self.two_sided:
            sysctl(host.namespace, "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2")
            ip(
                host.namespace,
                f"address add {self.vips[0]}/32 dev lo",
                f"address add {self.vips[1]}/128 dev lo nodad",
            )

    def host_routes(self, host):
        """A host's routes, which it loses with its link."""
        if self.mode == "nat":
            ip(host.namespace, "route replace default via 10.81.0.1", "route replace default via fd81::1")
        elif self.tunnelled:
            # The SYN-ACK goes straight to the client: only the host can leave room for the tunnel's header.
            ip(
                host.namespace,
                f"route replace 10.80.0.0/24 dev eth0 proto kernel scope link src {host.ipv4} advmss {self.room(False) - 40}",
                f"route replace fd80::/64 dev eth0 proto kernel metric 256 advmss {self.room(True) - 60}",
            )

    def room(self, ipv6):
        """The longest packet that fits through a tunnel, whose outer header is of the inner one's family."""
        return self.mtu - (40 if ipv6 else 20) - (12 if self.mode == "gue" else 0)

    def down(self):
        """Removes the namespaces that exist; the wires go with them."""
        existing = {line.split()[0] for line in run(["ip", "netns", "list"]).stdout.splitlines() if line.strip()}
        for namespace in reversed(self.namespaces):
            if namespace in existing:
                run(["ip", "netns", "delete", namespace])


def ip(namespace, *lines):
    """Commands of ip(8) inside a namespace, in one batch."""
    run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")


def sysctl(namespace, *settings):
    """Kernel settings inside a namespace."""
    run(["ip", "netns", "exec", namespace, "sysctl", "-q", "-w", *settings])


def checksums_in_software(namespace, interface):
    """A veth's sender leaves checksums to hardware that is not there; the unit would read wrong ones."""
    run(["ip", "netns", "exec", namespace, "ethtool", "-K", interface, "tx", "off"])
