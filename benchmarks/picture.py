"""Draw the picture of README.md: what fine-tuning leaves of the facts, with replay and without.

    python -m benchmarks.picture

Reads the rows of `benchmarks/results/lab-replay`, writes `docs/figures/replay.svg` and the numbers
that it shows into `docs/figures/replay.json`; a test compares these with the rows.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from balora.report.study import Study, read_study

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
CONDITIONS = ("world-1", "world-2")
"""Those in which nothing was chosen."""
TASK, KNOWLEDGE = "exact_match", "recall"
COLOURS = {"full": "#b5542b", "lora": "#2166ac", "pissa": "#1b7837"}
NAMES = {"full": "full fine-tuning", "lora": "LoRA", "pissa": "PiSSA"}


def numbers(of: Study) -> dict[str, Any]:
    """Return what is drawn, in percent: facts and task score of each method, world and seed."""
    before = statistics.mean(
        value for name in CONDITIONS for value in of.values(name, "base", KNOWLEDGE).values()
    )
    methods = [name + suffix for name in COLOURS for suffix in ("", "+replay")]
    points: dict[str, list[list[float]]] = {}
    for method in methods:
        for condition in CONDITIONS:
            known, solved = (of.values(condition, method, name) for name in (KNOWLEDGE, TASK))
            points.setdefault(method, []).extend(
                [round(100 * known[seed], 1), round(100 * solved[seed], 1)]
                for seed in sorted(known)
            )
    return {"before": round(100 * before, 1), "methods": points}


def draw(shown: dict[str, Any]) -> Figure:
    """Return the picture: right is more knowledge, up is a better task score."""
    figure = Figure(figsize=(6.2, 3.0), layout="constrained")
    axes = figure.subplots()
    every = [point for points in shown["methods"].values() for point in points]
    means = {name: _mean(points) for name, points in shown["methods"].items()}
    for method, colour in COLOURS.items():
        _pair(axes, shown["methods"], means, method, colour)
    before = shown["before"]
    axes.axvline(before, color="#666666", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    low = min(y for _, y in every)
    axes.set(xlim=(min(x for x, _ in every) - 12, 102), ylim=(low - 3, 101.5))
    axes.annotate(
        f"before\nfine-tuning:\n{before:.0f}%",
        (before, low - 2),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        color="#444444",
        fontsize=8.5,
    )
    of_replay = max(means[f"{name}+replay"][1] for name in COLOURS)
    axes.annotate(
        "with replay",
        (before, of_replay),
        (-30, 14),
        textcoords="offset points",
        ha="right",
        weight="bold",
    )
    axes.set_xlabel("facts that the model still knows (%)")
    axes.set_ylabel("word problems solved (%)")
    axes.yaxis.set_major_locator(MultipleLocator(5))
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _pair(
    axes: Axes, points: dict[str, Any], means: dict[str, list[float]], method: str, colour: str
) -> None:
    without, with_it = means[method], means[f"{method}+replay"]
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 6, "shrinkB": 6}
    axes.annotate("", with_it, without, arrowprops={**arrow, "connectionstyle": "arc3,rad=-0.08"})
    for name in (method, f"{method}+replay"):
        axes.scatter(*zip(*points[name], strict=True), s=9, color=colour, alpha=0.45, linewidth=0)
        face = colour if name != method else "white"
        axes.scatter(*means[name], s=52, facecolor=face, edgecolor=colour, linewidth=1.6, zorder=3)
    axes.annotate(
        NAMES[method],
        without,
        (0, -9),
        textcoords="offset points",
        ha="center",
        va="top",
        color=colour,
    )


def _mean(points: list[list[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*points, strict=True)]


def main() -> None:
    """Write the picture and its numbers."""
    shown = numbers(read_study(ROOT / "benchmarks" / "results" / "lab-replay"))
    with mpl.rc_context({"svg.hashsalt": "balora", "font.size": 10}):
        draw(shown).savefig(FIGURES / "replay.svg", metadata={"Date": None})
    text = json.dumps(shown)
    (FIGURES / "replay.json").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
