#!/usr/bin/env python3
"""Draws what was measured: plot.py results.json folder. The same numbers make the same files."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "replvfs",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
    }
)
OURS, OTHERS, LINE = "#1f6f8b", "#d1793a", "#555555"


def write(figure, path):
    figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    # Matplotlib leaves spaces at the ends of lines.
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))


def ratios(runs, plain, what):
    return [what(run) / what(other) for run, other in zip(runs, plain)]


def rate(run, count="commits"):
    return run[count] / run["seconds"]


def speed(results, folder):
    """What is left of SQLite's own speed."""
    rates, reads = results["rates"]["measured"], results["reads"]["measured"]
    groups = [
        ("commits of a row", lambda peer: ratios(rates["small"][peer], rates["small"]["plain"], rate)),
        ("commits of 1,000 rows", lambda peer: ratios(rates["batches"][peer], rates["batches"]["plain"], rate)),
        ("reads, no writer", lambda peer: ratios(reads[peer], reads["plain"], lambda run: rate(run["alone"], "reads"))),
        ("reads beside a writer", lambda peer: ratios(reads[peer], reads["plain"], lambda run: rate(run["beside"], "reads"))),
        ("that writer's commits", lambda peer: ratios(reads[peer], reads["plain"], lambda run: rate(run["written"]))),
    ]
    figure, axes = plt.subplots(figsize=(7.2, 3))
    for peer, label, color, shift in [("async", "replvfs, async", OURS, -0.19), ("litestream", "Litestream", OTHERS, 0.19)]:
        found = [what(peer) for _, what in groups]
        middle = [statistics.median(numbers) for numbers in found]
        below = [at - min(numbers) for at, numbers in zip(middle, found)]
        above = [max(numbers) - at for at, numbers in zip(middle, found)]
        places = [at + shift for at in range(len(groups))]
        axes.bar(places, middle, 0.34, color=color, label=label)
        axes.errorbar(places, middle, [below, above], fmt="none", ecolor=LINE, elinewidth=1, capsize=2)
        for place, at, up in zip(places, middle, above):
            axes.text(place, at + up + 0.02, f"{at:.2f}", ha="center", fontsize=8)
    axes.axhline(1, color=LINE, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(groups)), [name.replace(" ", "\n", 2) for name, _ in groups])
    axes.set_ylabel("share of SQLite's own rate")
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.02))
    write(figure, folder / "speed.svg")


def fresh(results, folder):
    """How many of the commits can be restored so long after they have returned."""
    measured = results["fresh"]["measured"]
    figure, axes = plt.subplots(figsize=(7.2, 3))
    for delay, style in [("0", "-"), ("20", "--")]:
        for peer, label, color in [("async", "replvfs, async", OURS), ("litestream", "Litestream", OTHERS)]:
            waited = sorted(measured[delay][peer])
            share = [(at + 1) / len(waited) for at in range(len(waited))]
            axes.step([waited[0], *waited], [0, *share], where="post", color=color, linestyle=style, label=f"{label}; a request takes {delay} ms")
    axes.set_xscale("log")
    axes.set_xticks([1, 3, 10, 30, 100, 300, 1000, 3000], ["1 ms", "3 ms", "10 ms", "30 ms", "100 ms", "0.3 s", "1 s", "3 s"])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of the commits")
    axes.set_xlabel("from a commit's return until it can be restored")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.3), ncols=2)
    write(figure, folder / "fresh.svg")


def main():
    results, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    if {"rates", "reads"} <= results.keys():
        speed(results, folder)
    if "fresh" in results:
        fresh(results, folder)


main()
