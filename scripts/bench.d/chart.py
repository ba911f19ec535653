"""The bars of target/bench.svg: one group for each case of ours, one bar for each number of flows, and lines where the yardsticks are."""

from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 420, 60, 40, 70
COLOURS = ["#1f6f8b", "#e08e45", "#7a9e5b", "#8c5e8c", "#b0413e"]
STYLE = "text{font:13px sans-serif;fill:#222}.small{font-size:11px}"


def draw(rows):
    """The picture as text."""
    ours = [row for row in rows if row["name"].startswith("weir ") and row["mode"] != "connections"]
    marks = [row for row in rows if row["packet_bytes"] and not row["name"].startswith("weir ")]
    cases = list(dict.fromkeys(row["name"] for row in ours))
    flows = sorted({row["flows"] for row in ours})
    top = max([row["best"] for row in ours + marks], default=1) * 1.05
    high = HEIGHT - TOP - BOTTOM

    def y(rate):
        return TOP + high * (1 - rate / top)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{STYLE}</style>']
    out.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="22">Mpps per core of CPU time: median (bar) and best (tick)</text>')
    for step in range(5):
        rate = top * step / 4
        out.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#ddd"/><text class="small" x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:.0f}</text>')
    group = (WIDTH - LEFT - 20) / max(len(cases), 1)
    bar = group * 0.8 / max(len(flows), 1)
    for row in ours:
        x = LEFT + group * (cases.index(row["name"]) + 0.1) + bar * flows.index(row["flows"])
        rate, middle = row["mpps_per_core"], x + bar / 2
        out.append(f'<rect x="{x:.1f}" y="{y(rate):.1f}" width="{bar - 3:.1f}" height="{y(0) - y(rate):.1f}" fill="{colour(flows.index(row["flows"]))}"/>')
        out.append(f'<line x1="{x:.1f}" x2="{x + bar - 3:.1f}" y1="{y(row["best"]):.1f}" y2="{y(row["best"]):.1f}" stroke="#222"/>')
        out.append(f'<text class="small" x="{middle:.1f}" y="{y(row["best"]) - 4:.1f}" text-anchor="middle">{rate:.1f}</text>')
    for number, case in enumerate(cases):
        out.append(f'<text x="{LEFT + group * (number + 0.5):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{escape(case.removeprefix("weir "))}</text>')
    for row in marks:
        rate = row["mpps_per_core"]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#b00" stroke-dasharray="6 4"/>')
        out.append(f'<text class="small" x="{WIDTH - 6}" y="{y(rate) - 4:.1f}" text-anchor="end">{escape(row["name"])} {rate:.1f}</text>')
    for number, count in enumerate(flows):
        x = LEFT + number * 150
        out.append(f'<rect x="{x}" y="{HEIGHT - 32}" width="12" height="12" fill="{colour(number)}"/><text x="{x + 18}" y="{HEIGHT - 22}">{count:,} flows</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def colour(number):
    return COLOURS[number % len(COLOURS)]
