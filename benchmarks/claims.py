"""The figures that docs/ give in prose, computed from the rows they come from.

    python -m benchmarks.claims

Prints each piece of a sentence as it must stand, below the name of its page. A test holds the pages
to them, so a figure that is typed by hand, or a sentence about columns that say something else, is
found. The rows are those of `benchmarks/results`; those of the quickstart are in the table of
docs/experiments.md, where no others are kept.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks import replay_tables

from balora.report.statistics import Estimate
from balora.report.study import Study, read_study
from balora.report.tables import main_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EXPERIMENTS, PERFORMANCE, FINDINGS, REPLAY = (
    "docs/experiments.md",
    "docs/performance.md",
    "docs/findings.md",
    "docs/replay.md",
)
COMPARE = "docs/compare.md"
SAME_START = (("lora+kl=0.1", "lora at 4.5e-3"), ("pissa+kl=0.1", "pissa"))
"""A method with the consistency term and the one without, at the same learning rate."""


@cache
def study(name: str) -> Study:
    """Return a study whose rows are kept."""
    return read_study(RESULTS / name)


def difference(of: Study, condition: str, method: str, other: str, metric: str) -> Estimate:
    """Return the paired difference of two methods."""
    found = replace(of, baseline=other).difference(condition, method, metric)
    assert found is not None, (condition, method, other, metric)
    return found


def beyond(of: Study, method: str, other: str) -> tuple[int, list[tuple[str, str, Estimate]]]:
    """Return in how many metrics two methods can be compared, and the differences beyond 0."""
    found, number = [], 0
    for condition in of.conditions:
        for metric in of.metrics:
            if not of.values(condition, method, metric):
                continue
            number += 1
            made = difference(of, condition, method, other, metric)
            if made.excludes_zero:
                found.append((condition, metric, made))
    return number, found


def kept(of: Study, condition: str, method: str, other: str) -> float:
    """Return which share of the retained text that `other` loses is kept by `method`."""
    base, less, more = (
        of.values(condition, name, "retention_loss").values() for name in ("base", method, other)
    )
    lost = statistics.mean(more) - statistics.mean(base)
    return (statistics.mean(more) - statistics.mean(less)) / lost


def percents(values: list[float]) -> str:
    """Return the smallest and the largest share."""
    return f"{min(values):.0%} to {max(values):.0%}"


def fall(of: Study, condition: str, method: str, other: str = "pissa") -> str:
    """Return by how much the KL is lower than that of another method, with its interval."""
    made = difference(of, condition, method, other, "kl")
    assert made.low is not None
    assert made.high is not None
    share = -made.mean / statistics.mean(of.values(condition, other, "kl").values())
    return f"{-made.mean:.2f} ({-made.high:.2f} to {-made.low:.2f}), {share:.1%}"


def quickstart() -> dict[str, list[float]]:
    """Return the loss on retained text of the quickstart by method, seed after seed."""
    page = (ROOT / EXPERIMENTS).read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| \d \| [\d.]+%, ([\d.]+) \| [\d.]+%, ([\d.]+) \| [\d.]+%, ([\d.]+) \|$",
        page,
        re.MULTILINE,
    )
    assert len(rows) == 3, rows
    columns = zip(*((float(value) for value in row) for row in rows), strict=True)
    return dict(zip(("pissa", "balora", "kl"), map(list, columns), strict=True))


def quickstart_kept(other: str) -> str:
    """Return how much less the consistency term forgets, over the seeds."""
    base = float(
        re.search(
            r"^\| loss on retained text \| (0\.908) ",  # type: ignore[index]
            (ROOT / EXPERIMENTS).read_text(encoding="utf-8"),
            re.MULTILINE,
        )[1]
    )
    found = quickstart()
    pairs = zip(found[other], found["kl"], strict=True)
    return percents([(more - less) / (more - base) for more, less in pairs])


def replay_leaves(of: Study) -> list[str]:
    """Return what replay leaves of what a method loses without it, over all pairs of cells."""
    (text, most_text), (facts, most_facts) = replay_tables.extremes(of)
    return [
        f"leaves {text:.1f}% to {most_text:.1f}% of what the same method loses",
        f"{facts:.0f}% to {most_facts:.0f}% in recall of facts",
    ]


def claims() -> dict[str, list[str]]:
    """Return by page the pieces of sentences that must stand in it, white space aside."""
    coefficients, lab, large = study("lab-coefficients"), study("lab"), study("lab-large")
    comparisons = [kept(lab, c, *pair) for c in lab.conditions for pair in SAME_START]
    at_001, at_01 = (
        kept(coefficients, "", f"pissa+kl={coefficient}", "pissa") for coefficient in (0.03, 0.1)
    )
    number, found = beyond(lab, "balora", "pissa")
    of_kl = [condition for condition, metric, _ in found if metric == "kl"]
    others = [metric for _, metric, _ in found if metric != "kl"]
    kl = [
        lab.values(c, "balora", "kl")[seed] - value
        for c in lab.conditions
        for seed, value in lab.values(c, "pissa", "kl").items()
    ]
    large_number, large_found = beyond(large, "balora", "pissa")
    assert of_kl == ["clean", "noise-20"]
    assert not large_found
    seconds = [row["seconds"] for row in lab.rows if row["seed"] is not None]
    median = f"{statistics.median(seconds):.1f} s"
    whole = statistics.mean(coefficients.values("", "pissa", "kl").values())
    return {
        FINDINGS: [
            f"forgot {quickstart_kept('balora')} less",
            *replay_leaves(study("lab-replay")),
            *replay_tables.points_more(study("lab-replay")),
            f"keeps {percents(comparisons)} of the lost retained text",
            f"falls by {_share(coefficients, 'balora')}, with ten times as large ones by "
            f"{_share(coefficients, 'ten times')}",
        ],
        REPLAY: replay_leaves(study("lab-replay")),
        EXPERIMENTS: [
            *(line for table in replay_tables.tables() for line in table),
            f"keeps in every seed {quickstart_kept('pissa')} of what PiSSA forgets",
            f"of PiSSA's {whole:.2f} nats falls by {fall(coefficients, '', 'balora')}, with ten "
            f"times as large ones by {fall(coefficients, '', 'ten times')}",
            f"{at_001:.0%} and {at_01:.0%} of the retained text",
            f"falls by {fall(lab, 'clean', 'balora')} in the clean world and by "
            f"{fall(lab, 'noise-20', 'balora')} at 20% noise",
            f"{sum(value < 0 for value in kl)} of {len(kl)} pairs",
            f"Of {number} comparisons {len(found)} are beyond their interval: the KL in "
            f"{len(of_kl)} worlds, and {len(others)} others",
            f"keeps {percents(comparisons)} of the retained text",
            f"none of the {large_number} metrics tells them apart",
            f"{median} a cell (median",
        ],
        PERFORMANCE: [f"| {median} | {max(seconds):.0f} s |"],
        COMPARE: _two_stars(lab),
    }


def _two_stars(lab: Study) -> list[str]:
    """Return the line that explains the stars, and its p-values before and after the correction."""
    method, pieces = "lora at 4.5e-3", []
    (line,) = (line for line in main_table(lab, "clean").lines if line[0] == method)
    for metric in ("recall", "exact_match"):
        made, number = difference(lab, "clean", method, "lora", metric), len(lab.trained) - 1
        corrected = lab.corrected("clean", metric)[method]
        assert corrected is not None
        pieces.append(f"p = {made.p_value:.2g}")
        pieces.append(
            f"{made.p_value:.2g} x {number} = {corrected:.2g} is at most 0.05"
            if corrected <= 0.05
            else f"the corrected p is {corrected:.2g}"
        )
    return [" ".join(line[:5]), *pieces]


def _share(of: Study, method: str) -> str:
    made = difference(of, "", method, "pissa", "kl").mean
    return f"{-made / statistics.mean(of.values('', 'pissa', 'kl').values()):.0%}"


def main() -> None:
    """Print every claim below the name of its page."""
    for page, pieces in claims().items():
        print(page)
        print("\n".join(f"  {piece}" for piece in pieces))


if __name__ == "__main__":
    main()
