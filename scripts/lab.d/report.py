"""What a run of the lab ends with: one table for people, one JSON document for programs."""


def shares(topology, load):
    """By host: (connections, share in percent, share by capacity in percent)."""
    total = sum(host["connections"] for host in load["hosts"].values())
    capacity = sum(h.capacity for h in topology.hosts)
    return {
        h.name: (
            load["hosts"][h.name]["connections"],
            100 * load["hosts"][h.name]["connections"] / total if total else 0.0,
            100 * h.capacity / capacity,
        )
        for h in topology.hosts
    }


def numbers(value, path=""):
    """Every number in a JSON document with the path to it."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, f"{path}[{index}]")


def table(topology, checks, loads, counters, retransmissions):
    """The final table."""
    out = []
    out.append(f"{'':32}{'requests':>10}{'failed':>8}{'req/s':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}  (ms)")
    out.append(f"{'pages, 10 MB up and down, UDP':32}{checks['requests']:>10}{len(checks['failures']):>8}")
    for load in loads:
        latency = load["latency_us"]
        rate = load["requests"] / (load["duration_us"] / 1e6)
        out.append(
            f"{load['what']:32}{load['requests']:>10}{load['failures']:>8}{rate:>9.0f}"
            + "".join(f"{latency[p] / 1000:>9.2f}" for p in ("p50", "p90", "p99", "p99.9"))
        )
    out.append("")
    out.append(f"{'host':32}{'connections':>12}{'share':>9}{'capacity':>10}")
    for name, (connections, share, capacity) in shares(topology, loads[0]).items():
        out.append(f"{name:32}{connections:>12}{share:>8.1f}%{capacity:>9.1f}%")
    out.append("")
    out.append(f"TCP segments sent again: client {retransmissions['client']}, hosts {retransmissions['hosts']}")
    out.append("the unit's counters that are not 0 (weirctl counters):")
    shown = {part: counters.get(part, {}) for part in ("totals", "drops", "ports")}
    out += [f"  {path:48}{value:>14,}" for path, value in numbers(shown) if value]
    failures = checks["failures"] + [
        f"{load['what']}: {count} {kind}" for load in loads for kind, count in load["failed"].items() if count
    ]
    if failures:
        out.append("")
        out += [f"FAILED: {failure}" for failure in failures]
    return "\n".join(out)
