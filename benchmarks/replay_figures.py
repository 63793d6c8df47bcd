"""Draw what each setting of replay does: how many texts, how long, which weight, in which steps.

    python -m benchmarks.replay_figures

Reads the rows of `benchmarks/results/lab-replay-sweep`, which `recipes/lab_replay_sweep.yaml` made,
and writes `docs/figures/replay_sweep.svg`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balora.report.study import Study, read_study

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "texts": ("texts", 2000),
    "length": ("tokens of a text", 128),
    "coef": ("coefficient", 1.0),
    "every": ("steps from one replay to the next", 2),
}
"""The first word of the methods that vary it, with its title and its value in all others."""
METRICS = {
    "exact_match": ("problems solved (%)", "#b5542b"),
    "recall": ("facts recalled (%)", "#2166ac"),
}
TEXT = "retention_loss"


def points(of: Study, setting: str, metric: str) -> list[tuple[float, float]]:
    """Return the values of a setting, in order, each with the value of a metric, seed by seed."""
    given = SETTINGS[setting][1]
    methods: dict[float, str] = {given: "pissa+replay"}
    for method in of.methods:
        name, _, number = method.partition(" ")
        if name == setting:
            methods[float(number)] = method
    return [
        (value, found)
        for value, method in sorted(methods.items())
        for found in of.values(of.conditions[0], method, metric).values()
    ]


def draw(of: Study) -> Figure:
    """Return two rows of panels, a column a setting: the two scores, and the forgotten text."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(2, len(SETTINGS), sharey="row", sharex="col")
    (before,) = of.values(of.conditions[0], "base", TEXT).values()
    for column, (setting, (title, given)) in enumerate(SETTINGS.items()):
        scores, text = panels[0, column], panels[1, column]
        for metric, (label, colour) in METRICS.items():
            _line(scores, [(x, 100 * y) for x, y in points(of, setting, metric)], label, colour)
            without = of.values(of.conditions[0], "pissa", metric).values()
            for value in without:
                scores.axhline(100 * value, color=colour, linewidth=0.9, linestyle=":")
        forgotten = [(x, y - before) for x, y in points(of, setting, TEXT)]
        _line(text, forgotten, "lost on retained text", "#1b7837")
        for value in of.values(of.conditions[0], "pissa", TEXT).values():
            text.axhline(value - before, color="#1b7837", linewidth=0.9, linestyle=":")
        for axes in (scores, text):
            axes.axvline(given, color="#bbbbbb", linewidth=0.8, zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
        text.set(xscale="log", yscale="log", xlabel=title)
        ticks = sorted({x for x, _ in forgotten})
        text.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        text.minorticks_off()
    panels[0, 0].set_ylabel("%")
    panels[0, 0].legend(frameon=False, loc="lower right", fontsize=8)
    panels[1, 0].set_ylabel("lost on retained text\n(nats per token)")
    panels[1, 0].set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
    return figure


def _line(axes: Axes, values: list[tuple[float, float]], label: str, colour: str) -> None:
    xs, ys = zip(*values, strict=True)
    axes.plot(xs, ys, marker="o", markersize=4, linewidth=1.3, color=colour, label=label)


def main() -> None:
    """Write the picture."""
    study = read_study(ROOT / "benchmarks" / "results" / "lab-replay-sweep")
    with mpl.rc_context({"svg.hashsalt": "balora", "font.size": 9}):
        file = ROOT / "docs" / "figures" / "replay_sweep.svg"
        draw(study).savefig(file, metadata={"Date": None})
    print(file)


if __name__ == "__main__":
    main()
