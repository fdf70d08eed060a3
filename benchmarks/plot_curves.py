"""Draw the evaluation returns of several runs, from their ``metrics.csv``, into one picture.

    python benchmarks/plot_curves.py docs/spread.png --envs 64 MAPPO=runs/a,runs/b IPPO=runs/c,runs/d

Each argument is a label and the runs it stands for (their median is drawn, with their range shaded). ``LABEL@32=...`` says that
these runs had another number of environments. With ``--time`` returns are drawn over seconds of training.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def curve(directory: Path, column: str) -> dict[int, float]:
    """Values of a column by time step."""
    with (directory / "metrics.csv").open() as file:
        return {int(row["timestep"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("runs", nargs="+", help="LABEL=DIRECTORY[,DIRECTORY...]")
    parser.add_argument("--envs", type=int, default=1, help="environments stepped together")
    parser.add_argument(
        "--time", action="store_true", help="over seconds of training, the runs' median at each evaluation"
    )
    parser.add_argument("--column", default="evaluation_return")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the values")
    parser.add_argument("--ylabel", default="evaluation return, summed over agents")
    parser.add_argument("--line", type=float, action="append", default=[], help="draw a horizontal line here")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for entry in args.runs:
        label, _, listed = entry.partition("=")
        label, _, envs = label.partition("@")
        directories = [Path(directory) for directory in listed.split(",")]
        curves = [curve(directory, args.column) for directory in directories]
        steps = sorted(set.intersection(*(set(points) for points in curves)))
        columns = [[args.scale * points[step] for points in curves] for step in steps]
        if args.time:
            clocks = [curve(directory, "training_seconds") for directory in directories]
            x = [statistics.median(clock[step] for clock in clocks) for step in steps]
        else:
            x = [step * int(envs or args.envs) for step in steps]
        axes.plot(x, [statistics.median(values) for values in columns], label=f"{label} ({len(curves)} seeds)")
        axes.fill_between(x, [min(values) for values in columns], [max(values) for values in columns], alpha=0.2)
    for level in args.line:
        axes.axhline(level, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="seconds of training" if args.time else "environment steps", ylabel=args.ylabel, title=args.title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output, dpi=120)


if __name__ == "__main__":
    main()
