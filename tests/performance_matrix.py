#!/usr/bin/env python3
"""Prints the tables "by threads and windows" of docs/benchmarks.md from docs/performance-matrix.json.

    tests/performance_matrix.py                 # print
    tests/performance_matrix.py take RAW.json   # make docs/performance-matrix.json from raw results

Raw results have one line for each cell: a scenario, a size, a number of threads, and a window or a
prefetch. In each line librabbitmq and cony ran in turn.
"""
import json
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "docs" / "performance-matrix.json"
REFERENCE, OURS = "librabbitmq", "cony"
# The limit that a scenario has for its messages on the way.
LIMITS = {"publish": None, "publish-confirm-window": "window", "consume-noack": None,
          "consume-ack": "prefetch"}


def take(path):
    """Writes docs/performance-matrix.json: for each cell and client the messages a second and the microseconds
    of CPU time a message, and for cony the time of the slowest thread over that of the fastest."""
    cells = []
    for line in Path(path).read_text().splitlines():
        raw = json.loads(line)
        ours, reference = (raw["rounds"][0][client] for client in (OURS, REFERENCE))
        limit = LIMITS[raw["scenario"]]
        cells.append({"scenario": raw["scenario"], "size": raw["size"], "threads": raw["threads"],
                      "limit": raw[limit] if limit else None,
                      OURS: [*short(ours), round(ours["slowest"] / ours["fastest"], 2)],
                      REFERENCE: short(reference)})
    cells.sort(key=lambda cell: (place(cell), cell["threads"]))
    lines = [json.dumps(cell, separators=(",", ":")) for cell in cells]
    DATA.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def short(run):
    cpu = (run["cpu_user"] + run["cpu_sys"]) / run["messages"] * 1e6
    return [round(run["messages"] / run["seconds"]), round(cpu, 3)]


def place(cell):
    return list(LIMITS).index(cell["scenario"]), cell["size"], cell["limit"] or 0


def print_table(cells, text):
    """Prints a row for each scenario, size and limit, and a column for each number of threads."""
    columns = sorted({cell["threads"] for cell in cells})
    head = ["scenario", "bytes", "window or prefetch", *columns]
    print("| " + " | ".join(map(str, head)) + " |\n|" + "---|" * len(head))
    rows = {}
    for cell in cells:
        rows.setdefault(place(cell), {})[cell["threads"]] = cell
    for row in rows.values():
        first = row[columns[0]]
        texts = [text(row[threads], first) if threads in row else "–" for threads in columns]
        print(f'| {first["scenario"]} | {first["size"]} | {first["limit"] or "–"} | '
              + " | ".join(texts) + " |")


def against_reference(cell, _):
    rate, cpu = (cell[OURS][figure] / cell[REFERENCE][figure] for figure in (0, 1))
    return f"{rate:.2f} ({cpu:.2f})"


def against_one_thread(cell, one):
    if cell is one:
        return f"{one[OURS][0]:,}"
    rate, cpu = (cell[OURS][figure] / one[OURS][figure] for figure in (0, 1))
    return f"{rate:.2f} ({cpu:.2f}; {cell[OURS][2]:.1f})"


def main(arguments):
    if arguments[:1] == ["take"]:
        take(arguments[1])
    cells = json.loads(DATA.read_text())
    print_table(cells, against_reference)
    print()
    print_table(cells, against_one_thread)


if __name__ == "__main__":
    main(sys.argv[1:])
