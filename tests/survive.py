#!/usr/bin/env python3
"""Runs the two programs of examples/survive.rs through faults of a cluster, and counts.

    cargo build --example survive
    tests/with-cluster tests/survive.py target/debug/examples/survive RESULT.json
    tests/survive.py draw RESULT.json PICTURE.svg

The faults are 10 kills, 3 freezes of the node that the publisher is connected to and one drain of
all nodes in turn; CONY_SURVIVE_FAULTS="kill freeze roll" are others. The status is 1 if a confirmed
message has not been received, if a second copy has no mark, or if no message is confirmed or
received any more after a fault."""
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

FAULTS = ["kill"] * 10 + ["freeze"] * 3 + ["roll"]
# Between the end of a fault and the next one.
QUIET_SECONDS = 4
# A frozen node is let go on after its clients must have left it: the default heartbeat of 10
# seconds gives it up after at most 20.
FROZEN_SECONDS = 30
# Longer than the 65 seconds for which a frozen leader can leave a publish unconfirmed.
STUCK_SECONDS = 90


class Program:
    """One of the two, with the moment of each line that it writes."""

    def __init__(self, path, role, urls):
        self.role, self.began = role, time.monotonic()
        # A publish that failed is no progress, and ends no gap.
        self.lines, self.failed = [], []
        self.process = subprocess.Popen([path, role, *urls], stdout=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            number, outcome = line.strip().split(maxsplit=1)
            if outcome in ("Some(Ok(()))", "true", "false"):
                self.lines.append((time.monotonic(), int(number), outcome))
            else:
                self.failed.append(outcome)

    def await_progress(self):
        """Waits for a line that is written from now on."""
        count, deadline = len(self.lines), time.monotonic() + STUCK_SECONDS
        while len(self.lines) == count:
            if self.process.poll() is not None:
                sys.exit(f"{self.role} has ended with status {self.process.returncode}")
            if time.monotonic() > deadline:
                sys.exit(f"{self.role}: nothing for {STUCK_SECONDS} seconds")
            time.sleep(0.02)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()

    def node(self, ports):
        """The number of the node that the program is connected to, by the ports of its sockets."""
        own = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                own.add(os.readlink(link))
            except OSError:
                pass
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            port = int(fields[2].rpartition(":")[2], 16)
            if fields[3] == "01" and f"socket:[{fields[9]}]" in own and port in ports:
                return 1 + ports.index(port)
        return None


def run(path, result):
    urls = os.environ["CONY_CLUSTER_URLS"].split()
    ports = [int(url.rpartition(":")[2].partition("/")[0]) for url in urls]
    control = os.environ["CONY_CLUSTER_CTL"]
    receiver = Program(path, "receive", urls)
    publisher = Program(path, "publish", urls)
    programs = (publisher, receiver)
    faults, node = [], 0
    try:
        for fault in os.environ.get("CONY_SURVIVE_FAULTS", " ".join(FAULTS)).split():
            for program in programs:
                program.await_progress()
            time.sleep(QUIET_SECONDS)
            began = time.monotonic()
            if fault == "kill":
                node = node % len(urls) + 1
                subprocess.run([control, "kill", str(node)], check=True)
                time.sleep(QUIET_SECONDS)
                subprocess.run([control, "start", str(node)], check=True)
            elif fault == "freeze":
                node = publisher.node(ports) or 1
                subprocess.run([control, "pause", str(node)], check=True)
                time.sleep(FROZEN_SECONDS)
                subprocess.run([control, "resume", str(node)], check=True)
            else:
                subprocess.run([control, "roll"], check=True)
            faults.append((began, time.monotonic(), fault))
            print(f"{fault} {node if fault != 'roll' else 'of all nodes'}: "
                  f"{faults[-1][1] - began:.1f} s", flush=True)
        for program in programs:
            program.await_progress()
        time.sleep(QUIET_SECONDS)
        publisher.end()
        confirmed = {number for _, number, _ in publisher.lines}
        deadline = time.monotonic() + STUCK_SECONDS
        while missing := confirmed - {number for _, number, _ in list(receiver.lines)}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
    finally:
        for program in programs:
            program.end()
    return report(publisher, receiver, confirmed, missing, faults, result)


def report(publisher, receiver, confirmed, missing, faults, result):
    failed = publisher.failed
    seen, twice, unmarked = set(), 0, 0
    for _, number, marked in receiver.lines:
        if number in seen:
            twice += 1
            unmarked += marked != "true"
        seen.add(number)
    print(f"confirmed {len(confirmed)}, failed {len(failed)}, received {len(seen)}, twice {twice} "
          f"({unmarked} without a mark), lost {len(missing)}")
    for text in sorted(set(failed))[:5]:
        print(f"failed: {failed.count(text)} times {text}")
    for fault in dict.fromkeys(kind for _, _, kind in faults):
        gaps = [[longest_gap(program.lines, began, ended + QUIET_SECONDS)
                 for began, ended, kind in faults if kind == fault]
                for program in (publisher, receiver)]
        print(f"{fault}: longest gap of confirms {max(gaps[0]):.2f} s, of deliveries {max(gaps[1]):.2f} s; "
              f"each: {' '.join(f'{a:.2f}/{b:.2f}' for a, b in zip(*gaps))}")
    start = publisher.began
    Path(result).write_text(json.dumps({
        "confirmed": by_second(publisher.lines, start),
        "received": by_second(receiver.lines, start),
        "faults": [(round(began - start, 1), round(ended - start, 1), kind)
                   for began, ended, kind in faults],
    }) + "\n")
    return 1 if missing or unmarked else 0


def longest_gap(lines, began, ended):
    moments = [began, *(moment for moment, _, _ in lines if began < moment < ended), ended]
    return max(after - before for before, after in zip(moments, moments[1:]))


def by_second(lines, start):
    counts = [0] * (1 + int(lines[-1][0] - start))
    for moment, _, _ in lines:
        counts[max(0, int(moment - start))] += 1
    return counts


# --------------------------------------------------------------- drawing --

WIDTH, LEFT, PANEL, GAP = 900, 60, 120, 50
COLOURS = {"kill": "#c0392b", "freeze": "#2980b9", "roll": "#8e7cc3"}


def draw(result, picture):
    data = json.loads(Path(result).read_text())
    seconds = max(len(data["confirmed"]), len(data["received"]), 1)
    height = 2 * (PANEL + GAP) + 50
    x = lambda second: LEFT + second * (WIDTH - LEFT - 20) / seconds
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>']
    for row, name in enumerate(("confirmed", "received")):
        top = GAP + row * (PANEL + GAP)
        most = max(data[name]) or 1
        for began, ended, kind in data["faults"]:
            out.append(f'<rect x="{x(began):.1f}" y="{top}" width="{max(x(ended) - x(began), 1):.1f}" '
                       f'height="{PANEL}" fill="{COLOURS[kind]}" opacity="0.25"/>')
        points = " ".join(f"{x(second + 0.5):.1f},{top + PANEL * (1 - count / most):.1f}"
                          for second, count in enumerate(data[name]))
        out.append(f'<polyline points="{points}" fill="none" stroke="#222222"/>')
        out.append(f'<path d="M{LEFT} {top}V{top + PANEL}H{WIDTH - 20}" fill="none" stroke="#888888"/>')
        out.append(f'<text x="{LEFT}" y="{top - 8}">messages {name} in each second</text>')
        out.append(f'<text x="{LEFT - 6}" y="{top + 12}" text-anchor="end">{most}</text>')
        out.append(f'<text x="{LEFT - 6}" y="{top + PANEL}" text-anchor="end">0</text>')
    below = height - 14
    for second in range(0, seconds, 60):
        out.append(f'<text x="{x(second):.1f}" y="{below - 30}" text-anchor="middle">{second} s</text>')
    names = {"kill": "node killed, until it is up again", "freeze": "node frozen",
             "roll": "each node drained, stopped, started"}
    for column, (kind, name) in enumerate(names.items()):
        at = LEFT + column * 270
        out.append(f'<rect x="{at}" y="{below - 11}" width="14" height="12" '
                   f'fill="{COLOURS[kind]}" opacity="0.4"/><text x="{at + 20}" y="{below}">{name}</text>')
    out.append("</svg>")
    Path(picture).write_text("\n".join(out) + "\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "draw":
        sys.exit(draw(*sys.argv[2:]))
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(run(*sys.argv[1:]))
