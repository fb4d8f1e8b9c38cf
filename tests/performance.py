#!/usr/bin/env python3
"""Draws docs/performance.svg from docs/performance.json, and prints two tables: the one with all
figures for docs/benchmarks.md, and the short one for docs/performance.md.

    tests/performance.py                 # draw and print
    tests/performance.py take RAW.json   # make docs/performance.json from raw results

Raw results have one line for each scenario and size. A line has several rounds, and in each round
all clients ran in turn. Ratios are taken within a round; tables and plot show their median.
"""
import json
import math
import statistics
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
DATA, PLOT = DOCS / "performance.json", DOCS / "performance.svg"
REFERENCE = "librabbitmq"
SIZES = {16: "16 bytes", 1024: "1 KiB", 65536: "64 KiB"}
SCENARIOS = ["publish", "publish-confirm-window", "publish-confirm-each", "consume-noack",
             "consume-ack", "get", "rpc"]
TITLES = {"publish-confirm-window": "publish, with a window of confirms",
          "publish-confirm-each": "publish, wait for each confirm",
          "consume-noack": "consume without acknowledgements",
          "consume-ack": "consume and acknowledge each",
          "get": "`basic_get`", "rpc": "RPC"}
# Rounds in which other processes, or the host, took a larger part of the machine are left out, if
# there are better ones.
DISTURBED = 0.15
FLOOR, PEER, OURS = "floor", "amiquip", "cony"
LEAST, MOST = 0.1, 100.0
PANEL, LEFT, TOP, ROW = 230, 192, 104, 30


def take(paths):
    """Writes docs/performance.json: for each run the messages a second, the microseconds of CPU
    time a message, and the peak memory in KiB."""
    points = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            raw = json.loads(line)
            rounds = points.setdefault((raw["scenario"], raw["size"]), ([], []))
            for one in raw["rounds"]:
                others = max((run["other"] + run["steal"] for run in one.values()), default=1)
                short_one = {client: short(run) for client, run in one.items()}
                rounds[others > DISTURBED].append(short_one)
    lines = []
    for (scenario, size), (quiet, disturbed) in sorted(points.items(), key=place_of):
        chosen = quiet or disturbed
        point = {"scenario": scenario, "size": size, "disturbed": not quiet, "rounds": chosen}
        lines.append(json.dumps(point, separators=(",", ":")))
    DATA.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def place_of(item):
    scenario, size = item[0]
    return SCENARIOS.index(scenario), size


def short(run):
    cpu = (run["cpu_user"] + run["cpu_sys"]) / run["messages"] * 1e6
    return [round(run["messages"] / run["seconds"]), round(cpu, 4), run["max_rss_kb"]]


def ratios(point, client, figure, reference=REFERENCE):
    return [one[client][figure] / one[reference][figure]
            for one in point["rounds"] if client in one and reference in one]


def median(point, client, figure):
    return statistics.median(one[client][figure] for one in point["rounds"] if client in one)


# ------------------------------------------------------------------- the tables --

def rounded(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def found(values):
    return rounded(statistics.median(values)) if values else "–"


def ranged(values):
    return f"{rounded(statistics.median(values))} ({rounded(min(values))} to {rounded(max(values))})"


def briefly(rate):
    """A rate with three digits that count."""
    if rate >= 1e6:
        return f"{rate / 1e6:#.3g} million"
    return f"{float(f'{rate:.3g}'):,.0f}"


def print_summary(points):
    print("| scenario | " + " | ".join(SIZES.values()) + " |\n|" + "---|" * (1 + len(SIZES)))
    for scenario in SCENARIOS:
        cells = dict.fromkeys(SIZES, "–")
        for point in points:
            if point["scenario"] == scenario:
                times = statistics.median(ratios(point, OURS, 0))
                # A scenario without a body stands in the first column.
                size = point["size"] or min(SIZES)
                cells[size] = f"{briefly(median(point, OURS, 0))} ({float(f'{times:.3g}'):.1f}×)"
        print("| " + " | ".join([TITLES.get(scenario, scenario), *cells.values()]) + " |")


def print_table(points):
    head = ["scenario", "bytes", "rounds", "messages/s", "x librabbitmq", "x amiquip", "x floor",
            "CPU µs", "x CPU of librabbitmq", "peak MiB"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for point in points:
        rounds = f'{len(point["rounds"])}{" disturbed" if point["disturbed"] else ""}'
        cells = [point["scenario"], point["size"] or "none", rounds,
                 rounded(median(point, OURS, 0)),
                 ranged(ratios(point, OURS, 0)),
                 found(ratios(point, OURS, 0, PEER)),
                 found(ratios(point, OURS, 0, FLOOR)),
                 rounded(median(point, OURS, 1)),
                 found(ratios(point, OURS, 1)),
                 rounded(max(one[OURS][2] for one in point["rounds"] if OURS in one) / 1024)]
        print("| " + " | ".join(map(str, cells)) + " |")


# --------------------------------------------------------------------- the plot --

STYLE = """
.card{fill:#ffffff;stroke:#c8ccd2}.text{fill:#1f2328}.dim{fill:#59636e}.grid{stroke:#e1e4e8}
.one{stroke:#59636e;stroke-dasharray:4 3}.cony{fill:#0b63ce;stroke:#0b63ce}
.amiquip{fill:#c2410c}.floor{fill:none;stroke:#59636e;stroke-width:1.5}
@media (prefers-color-scheme:dark){
.card{fill:#0d1117;stroke:#3d444d}.text{fill:#e6edf3}.dim{fill:#9aa4af}.grid{stroke:#262c34}
.one{stroke:#9aa4af}.cony{fill:#58a6ff;stroke:#58a6ff}.amiquip{fill:#ff9b5e}.floor{stroke:#9aa4af}}
text{font:13px sans-serif}.small{font-size:11px}.bold{font-weight:bold}
"""


def place(value):
    """Returns the position of a value in its panel, on a logarithmic axis."""
    inside = min(max(value, LEAST), MOST)
    return math.log(inside / LEAST) / math.log(MOST / LEAST) * (PANEL - 44)


def text(x, y, content, kind="text", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{content}</text>'


def mark(client, x, y):
    if client == OURS:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="cony"/>'
    if client == PEER:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" class="amiquip"/>'
    return f'<path d="M{x - 5:.1f} {y}l5 -5l5 5l-5 5z" class="floor"/>'


def panel_frame(left, title, bottom):
    yield text(left, TOP - 26, title, "text bold")
    for tick in (0.1, 1, 10, 100):
        x = left + place(tick)
        kind = "one" if tick == 1 else "grid"
        yield f'<path d="M{x:.1f} {TOP - 8}V{bottom}" class="{kind}"/>'
        yield text(x, bottom + 16, f"{tick:g}×", "dim small", "middle")


def row(point, left, y):
    for client in (FLOOR, PEER):
        theirs = ratios(point, client, 0)
        if theirs:
            yield mark(client, left + place(statistics.median(theirs)), y)
    ours = ratios(point, OURS, 0)
    low, high = left + place(min(ours)), left + place(max(ours))
    yield f'<path d="M{low:.1f} {y}H{high:.1f}" class="cony" stroke-width="2"/>'
    yield mark(OURS, left + place(statistics.median(ours)), y)


def legend(y):
    x = LEFT
    for client, label in ((OURS, "cony, and its range"), (PEER, "amiquip"),
                          (FLOOR, "floor: prepared bytes, no client")):
        yield mark(client, x, y - 4)
        yield text(x + 11, y, label)
        x += 40 + 7 * len(label)


def draw(points):
    scenarios = list(dict.fromkeys(point["scenario"] for point in points))
    bottom = TOP + ROW * len(scenarios)
    width, height = LEFT + PANEL * len(SIZES) + 10, bottom + 48
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'width="{width}" height="{height}" role="img" '
             'aria-label="Messages per second of cony, amiquip and the floor, over those of librabbitmq">',
             f"<style>{STYLE}</style>",
             f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" class="card"/>',
             text(16, 28, "Messages per second, over those of librabbitmq", "text bold"),
             *legend(52)]
    for number, (size, title) in enumerate(SIZES.items()):
        parts += panel_frame(LEFT + PANEL * number, title, bottom)
    for number, scenario in enumerate(scenarios):
        y = TOP + ROW * number + ROW / 2
        parts.append(text(16, y + 4, scenario))
        for point in points:
            # A scenario without a body has only one size.
            size = point["size"] or min(SIZES)
            if point["scenario"] == scenario and size in SIZES:
                parts += row(point, LEFT + PANEL * list(SIZES).index(size), y)
    parts.append(text(16, bottom + 38, "Logarithmic; further right is faster; "
                      "the dashed line is librabbitmq.", "dim small"))
    PLOT.write_text("\n".join(parts) + "\n</svg>\n")


def main(arguments):
    if arguments[:1] == ["take"]:
        take(arguments[1:])
    points = json.loads(DATA.read_text())
    draw(points)
    print_table(points)
    print()
    print_summary(points)


if __name__ == "__main__":
    main(sys.argv[1:])
