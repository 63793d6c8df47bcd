"""The benchmarks of a comparison's cells: asked where the cell was trained, judged there as well.

What a model of a server judges waits until every cell has answered: `jobs` would multiply the
requests, and a server that is away must not cost a trained model. Nothing here loads torch before
it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from balora.compare.cells import Cell
from balora.compare.folder import Folder
from balora.config import DataConfig
from balora.data.sources import find_local
from balora.errors import ConfigError, DataError
from balora.evaluation.bench.config import BenchConfig
from balora.recipes.recipe import Recipe

if TYPE_CHECKING:
    from balora.evaluation.bench.suite import Measured
    from balora.evaluation.instrument import Models

FOLDER = "bench"
"""Of a cell's answers."""


def check_benchmarks(settings: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse what cannot be asked or judged, before anything runs.

    Args:
        settings: Of a condition's benchmarks.
        recipe: Of one of its cells.

    Raises:
        ConfigError: If a package, the sandbox, the judge or a reference is missing.
        DataError: If the problems of a benchmark cannot be read.
    """
    from balora.evaluation.bench.backends import make_backend
    from balora.evaluation.bench.run import checked_benchmarks, problems_of
    from balora.models.source import source_of

    config = BenchConfig(**settings)
    try:
        if config.backend != "transformers":
            make_backend(source_of(recipe), config).check()
        for benchmark in checked_benchmarks(config):
            problems_of(benchmark, config)
    except (ConfigError, DataError) as error:
        raise type(error)(f"`bench`: {error}") from error


def benchmark_files(settings: Mapping[str, Any]) -> dict[str, dict[str, list[Path]]]:
    """Return the files that problems and references are in, by what names them and split.

    Raises:
        DataError: If one is missing.
    """
    if not settings:
        return {}
    config, found = BenchConfig(**settings), dict[str, dict[str, list[Path]]]()
    for name in config.benchmarks:
        data = config.data_of(name)
        if data.dataset_name is not None:
            local = find_local(data.dataset_name, setting=f"{name}.dataset_name")
            if local is not None:
                found[f"bench.{name}.dataset_name"] = local.files
        if data.references is not None:
            found[f"bench.{name}.references"] = {"": [Path(data.references)]}
    return found


def answer_benchmarks(
    cell: Cell, recipe: Recipe, run: Path | None, models: Models, folder: Path
) -> dict[str, Any]:
    """Ask a cell's model its benchmarks, and judge all that needs no server.

    The pre-trained model is asked with the prompt that the others were trained with.

    Args:
        cell: With settings of benchmarks.
        recipe: Of the cell.
        run: The folder of what was trained; None for the pre-trained model.
        models: Both, loaded.
        folder: Of the cell.

    Returns:
        ``metrics`` and ``bench`` of its row.

    Raises:
        BaloraError: If answering or judging failed.
    """
    from balora.evaluation.bench.backends import make_backend
    from balora.evaluation.bench.prompts import template_of_rows
    from balora.evaluation.bench.run import (
        checked_benchmarks,
        judge_sheets,
        make_sheets,
        problems_of,
        write_answers,
    )
    from balora.evaluation.generation import TransformersGenerator
    from balora.models.source import source_of

    config, source = BenchConfig(**cell.bench), source_of(recipe)
    if config.prompt_template is None:
        data = cast(DataConfig, recipe.data)
        template = data.prompt_template or template_of_rows(data)
        config = dataclasses.replace(config, prompt_template=template)
    benchmarks = checked_benchmarks(config)
    problems = {one.name: problems_of(one, config) for one in benchmarks}
    sheets = make_sheets(run, source, config, problems, benchmarks, folder=folder / FOLDER)
    if config.backend == "transformers":  # as they are loaded
        model, tokenizer, size = models.tuned, models.tokenizer, config.eval_batch_size
        write_answers(sheets, lambda: TransformersGenerator(model, tokenizer, batch_size=size))
    else:
        backend = make_backend(source, config)
        try:
            write_answers(sheets, lambda: backend.generator(run))
        finally:
            backend.close()
    return _fields(judge_sheets([one for one in sheets if not one.benchmark.asks_a_server]))


def judge_answers(folder: Folder, cells: Sequence[Cell]) -> None:
    """Have answers of finished cells judged and write rows, where that is still to be done.

    A server judges what it has not judged. What was judged here by another version or in another
    isolation is judged anew: the answers are kept, and the scores of a comparison have one judge.

    Raises:
        BaloraError: If it fails for good; what it has said is kept, and so are the answers.
    """
    for cell in cells:
        row = folder.row(cell)
        place = folder.of(cell) / FOLDER
        if row is None or not (names := _to_judge(cell, row, place)):
            continue
        new = _fields(_judged(cell, names, place))
        bench = {part: {**row["bench"].get(part, {}), **own} for part, own in new["bench"].items()}
        metrics = {**row["metrics"], **new["metrics"]}
        folder.write_row(cell, {**row, "metrics": metrics, "bench": bench})


def _to_judge(cell: Cell, row: Mapping[str, Any], answers: Path) -> list[str]:
    """Return the benchmarks of a cell that are still to be judged; none where it has not finished.

    Args:
        cell: Of the row.
        row: As it stands.
        answers: The folder that they are in; without them nothing can be judged anew.
    """
    if row["error"] is not None or not cell.bench:
        return []
    from balora.evaluation.bench.run import MADE_BY
    from balora.evaluation.bench.store import AnswerStore
    from balora.evaluation.bench.suite import judge_of

    done = row.get("bench", {}).get("judged_by", {})
    config = BenchConfig(**cell.bench)
    found = []
    for name in config.benchmarks:
        benchmark = MADE_BY[name](config)
        if benchmark.asks_a_server:
            is_open = name not in done
        else:
            is_open = done.get(name) != judge_of(benchmark) and AnswerStore.is_in(answers, name)
        found += [name] if is_open else []
    return found


def _judged(cell: Cell, names: Sequence[str], folder: Path) -> Measured:
    from balora.evaluation.bench.run import checked_benchmarks, judge_sheets, problems_of
    from balora.evaluation.bench.store import AnswerStore
    from balora.evaluation.bench.suite import Sheet
    from balora.evaluation.generation import Sampling

    config = BenchConfig(**cell.bench)
    sampling = Sampling(num_samples=config.num_samples)
    return judge_sheets(
        [
            Sheet(
                one,
                tuple(problems_of(one, config)),
                {},
                sampling,
                AnswerStore.opened(folder, one.name),
            )
            for one in checked_benchmarks(config)
            if one.name in names
        ]
    )


def _fields(measured: Measured) -> dict[str, Any]:
    """Return what a row says of benchmarks."""
    return {
        "metrics": {name: score.value for name, score in measured.scores.items()},
        "bench": {
            "figures": {
                name: {"standard_error": score.standard_error, "n": score.n}
                for name, score in measured.scores.items()
            },
            "judged_by": measured.facts,
        },
    }
