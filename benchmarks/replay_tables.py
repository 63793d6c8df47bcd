"""The tables on replay in docs/experiments.md, computed from the rows they come from.

    python -m benchmarks.replay_tables

Prints Markdown; a test holds the page to every line of it (`benchmarks.claims`). The rows are those
of `benchmarks/results/lab-replay` and `lab-replay-sweep`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measure import table_line

from balora.report.statistics import mean_interval
from balora.report.study import Study, read_study

RESULTS = Path(__file__).resolve().parent / "results"
CONFIRMING = ("world-1", "world-2")
"""Worlds in which nothing was chosen."""
PAIRS = (("full+replay", "full"), ("lora+replay", "lora"), ("pissa+replay", "pissa"))
"""A method with replay and the same without."""
RIVALS = (("pissa+replay", "lora"), ("pissa+replay", "pissa+kl=0.1"))
CONTROLS = (
    "pissa slow",
    "pissa longer",
    "balora-replay",
    "balora+replay",
    "pissa+replay cross-entropy",
)
"""What a sceptic asks for, each beside PiSSA with replay."""
MEANS = (
    ("exact_match", 100, 1),
    ("recall", 100, 1),
    ("retention_loss", 1, 3),
    ("stereotype_score", 1, 2),
)
"""Metric, factor and decimals of a column."""
DEFECTS = (*MEANS, ("corrupted_repeat", 100, 1))


def pooled(of: Study, conditions: Sequence[str], method: str, metric: str) -> list[float]:
    """Return the values of a method over conditions and seeds."""
    return [value for name in conditions for value in of.values(name, method, metric).values()]


def means(
    of: Study,
    groups: Sequence[Sequence[str]],
    methods: Iterable[str],
    columns: Sequence[tuple[str, int, int]] = MEANS,
) -> list[str]:
    """Return a line for each method: the mean of every column in every group of conditions."""
    lines = []
    for method in methods:
        cells = []
        for group in groups:
            for metric, factor, digits in columns:
                found = pooled(of, group, method, metric)
                cells.append(f"{factor * statistics.mean(found):.{digits}f}" if found else "-")
        lines.append(table_line([method, *cells]))
    return lines


def left(of: Study, conditions: Sequence[str], method: str, other: str, metric: str) -> list[float]:
    """Return what a method loses against the pre-trained model, in % of what another loses.

    One number for each condition and seed that both have; 100 says that both lose the same.
    """
    shares = []
    for name in conditions:
        (before,) = of.values(name, "base", metric).values()
        mine, theirs = (of.values(name, m, metric) for m in (method, other))
        shares += [
            100 * (mine[seed] - before) / (theirs[seed] - before) for seed in mine if seed in theirs
        ]
    return shares


def gained(of: Study, conditions: Sequence[str], method: str, other: str) -> list[float]:
    """Return the points of exact match that a method has more than another, pair by pair."""
    found = []
    for name in conditions:
        mine, theirs = (of.values(name, m, "exact_match") for m in (method, other))
        found += [100 * (mine[seed] - theirs[seed]) for seed in mine if seed in theirs]
    return found


def compared(of: Study, conditions: Sequence[str], method: str, other: str, name: str) -> str:
    """Return a line: text and recall still lost in % of another's loss, and points of exact match.

    Each is the mean over pairs of world and seed with its 95% interval (Student's t); two pairs are
    given as they are.
    """
    text, facts = (left(of, conditions, method, other, m) for m in ("retention_loss", "recall"))
    points = gained(of, conditions, method, other)
    return table_line([name, _interval(text), _interval(facts), _interval(points, "+")])


def extremes(of: Study) -> list[tuple[float, float]]:
    """Return the least and the most that replay leaves of the loss of text, and of recall, in %.

    Over all pairs of a method with replay and the same without, of every condition and seed.
    """
    found = []
    for metric in ("retention_loss", "recall"):
        shares = [x for pair in PAIRS for x in left(of, of.conditions, *pair, metric)]
        found.append((min(shares), max(shares)))
    return found


def verdict(of: Study) -> str:
    """Return the beginning of the verdict: how many pairs there are, and their extremes."""
    number = sum(len(left(of, of.conditions, *pair, "recall")) for pair in PAIRS)
    (text, most_text), (facts, most_facts) = extremes(of)
    return (
        f"In all {number} pairs of world, seed and method, replay leaves {text:.1f}% to "
        f"{most_text:.1f}% of the loss on retained text and {facts:.0f}% to {most_facts:.0f}% of "
        "the loss of recall"
    )


def points_more(of: Study) -> list[str]:
    """Return how many points of exact match PiSSA with replay has more than its rivals."""
    pieces = []
    for (method, other), name in zip(
        RIVALS, ("LoRA", "PiSSA with the consistency term"), strict=True
    ):
        found = mean_interval(gained(of, CONFIRMING, method, other))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        pieces.append(f"{found.low:.1f} to {found.high:.1f} points more than {name}")
    return pieces


def rates(of: Study, method: str) -> str:
    """Return a line: every learning rate that was tried, the chosen one in bold."""
    chosen = {row["fields"].get("learning_rate") for row in of.rows if row["method"] == method}
    cells = []
    for row in of.tried:
        if row["method"] == method:
            rate, value = row["fields"]["learning_rate"], 100 * row["metrics"]["exact_match"]
            cell = f"{rate:g}: {value:.1f}"
            cells.append((rate, f"**{cell}**" if rate in chosen else cell))
    return table_line([method, ", ".join(cell for _, cell in sorted(cells))])


def lab_tables(of: Study) -> list[list[str]]:
    """Return the tables of the lab, each a list of lines without its head."""
    main = [name for name in of.methods if name not in CONTROLS]
    controls = [name for name in CONTROLS if pooled(of, CONFIRMING, name, "recall")]
    return [
        [rates(of, name) for name in of.trained if any(row["method"] == name for row in of.tried)],
        means(of, [["clean"], CONFIRMING], main),
        means(of, [["noise-20"], ["noise-40"]], main, DEFECTS),
        [
            compared(of, CONFIRMING, *pair, name)
            for pair, name in (
                *((pair, pair[1]) for pair in PAIRS),
                *((pair, f"{pair[0]} against {pair[1]}") for pair in RIVALS),
            )
        ],
        means(of, [["clean"], CONFIRMING], controls),
        [compared(of, CONFIRMING, "pissa+replay", name, name) for name in controls],
        [verdict(of)],
    ]


def sweep_table(of: Study) -> list[str]:
    """Return a line for each value of each setting."""
    return means(of, [of.conditions], of.methods)


def tables() -> list[list[str]]:
    """Return every table of the page that is computed here."""
    found = lab_tables(read_study(RESULTS / "lab-replay"))
    sweep = RESULTS / "lab-replay-sweep"
    return [*found, sweep_table(read_study(sweep))] if sweep.is_dir() else found


def _interval(values: Sequence[float], sign: str = "") -> str:
    """Return the mean and its 95% interval; of two values the values, as an interval is idle."""
    if len(values) == 2:
        return " and ".join(f"{value:{sign}.1f}" for value in values)
    found = mean_interval(values)
    if found is None:
        return "-"
    if found.low is None:
        return f"{found.mean:{sign}.1f}"
    return f"{found.mean:{sign}.1f} [{found.low:{sign}.1f}, {found.high:{sign}.1f}]"


def main() -> None:
    """Print every table."""
    print("\n\n".join("\n".join(table) for table in tables()))


if __name__ == "__main__":
    main()
