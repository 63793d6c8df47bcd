"""The scores of benchmarks as plain text, and as the cards of the runs have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.card_results import Evaluation, add_to_card, cards_line, results_of
from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.judges import judged_by
from balora.evaluation.bench.suite import Measured, Score
from balora.evaluation.metrics import metric_of
from balora.evaluation.table import aligned

Scores = Mapping[str, Score]


def format_scores(models: Mapping[str, Scores]) -> str:
    """Return one line a metric, one column a model.

    Each value has its standard error after it, and each benchmark its size.

    Raises:
        ValueError: If there is no model.
    """
    if not models:
        raise ValueError("`models` is empty: there is nothing to show.")
    names = list(dict.fromkeys(name for scores in models.values() for name in scores))
    lines = [["", *models]]
    for name in names:
        columns = [scores.get(name) for scores in models.values()]
        lines.append([_title(name, columns), *(_cell(name, score) for score in columns)])
    return aligned(lines)


def _title(name: str, columns: list[Score | None]) -> str:
    sizes = {score.n for score in columns if score is not None}
    size = f", n = {sizes.pop()}" if len(sizes) == 1 else ""
    return f"{metric_of(name).title}{size}"


def _cell(name: str, score: Score | None) -> str:
    if score is None or score.value is None or score.standard_error is None:
        return "-"
    metric = metric_of(name)
    return f"{metric.show(score.value)} +- {metric.form.format(score.standard_error)}"


def add_to_cards(
    runs: Sequence[Path], measured: Mapping[str, Measured], config: BenchConfig, *, dtype: str
) -> list[str]:
    """Write the scores into the cards of the runs, a section for each benchmark.

    Args:
        runs: Their folders; none where the pre-trained model alone was asked.
        measured: By the name of a run.
        config: What was asked.
        dtype: Of the weights.

    Returns:
        The line that says which cards were written, none where there are none.
    """
    written = [
        [
            add_to_card(run, _evaluation(name, measured[run.name], config, dtype))
            for name in config.benchmarks
        ]
        for run in runs
    ]
    return cards_line(of_run[-1] for of_run in written)


def _evaluation(benchmark: str, measured: Measured, config: BenchConfig, dtype: str) -> Evaluation:
    data = config.data_of(benchmark)
    where = "by a server" if config.backend == "endpoint" else f"in {dtype}"
    # every metric begins with the name of its benchmark
    scores = {name: one for name, one in measured.scores.items() if name.startswith(benchmark)}
    return Evaluation(
        command="bench",
        data=benchmark,
        part=", ".join(filter(None, (data.dataset_name, data.dataset_split))),
        num_rows=config.num_rows,
        heads=("score", "problems"),
        rows=[[metric_of(name).title, _cell(name, one), one.n] for name, one in scores.items()],
        how=". ".join([where, *judged_by([{benchmark: measured.facts[benchmark]}])]),
        results=results_of(
            {name: one.value for name, one in scores.items()},
            data=data.dataset_name or benchmark,
            is_classifier=False,
        ),
    )
