"""Classification on a small real encoder, method by method: choose on training data, then measure.

    python -m benchmarks.glue_study --glue GLUE --sick SICK.txt --model MODEL --out study.jsonl
    python -m benchmarks.glue_study --glue GLUE --model MODEL --tasks cola --out study.jsonl
    python -m benchmarks.glue_study --out study.jsonl --table

GLUE is a folder with CoLA, MRPC and STS-B in the original TSV; MODEL a BERT-like encoder. Every
cell is one `balora train` in a process of its own with one thread, and one line of the file: what
is in it already is not run again, so the study can be stopped at any moment. Two stages:

choose   each method's learning rate, and the coefficients of "balora (chosen)", by the task's
         metric after the last epoch on 15% of the training rows that are held out from the other
         85% (drawn once, seed 0); one seed
final    the choice of each method on all training rows, several seeds, without and with label
         noise; the choice is that of the clean data in both

The rows that are reported on, GLUE's validation rows, take no part in any choice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.measure import machine, make_parser, table_head, table_line
from tqdm.auto import tqdm

METHODS = ("full", "lora", "pissa", "balora")
CHOSEN = "balora (chosen)"
LEARNING_RATES = {
    "full": (3e-5, 1e-4, 3e-4),
    "lora": (1e-4, 3e-4, 1e-3),
    # from 3e-4 on these two end in one class on CoLA: singular directions take smaller steps
    "pissa": (3e-5, 1e-4, 3e-4),
    "balora": (3e-5, 1e-4, 3e-4),
}
_OFF = {"diversity_coef": 0.0, "svd_coef": 0.0}
SWEEP: dict[str, dict[str, Any]] = {  # the paper's coefficients are 1e-4, 4e-4, 1e-4
    "x100": {"consistency_coef": 1e-2, "diversity_coef": 4e-2, "svd_coef": 1e-2},
    "x1000": {"consistency_coef": 0.1, "diversity_coef": 0.4, "svd_coef": 0.1},
    "features, x100": {
        "space": "features",
        "consistency_coef": 1e-2,
        "diversity_coef": 4e-2,
        "svd_coef": 1e-2,
    },
    "features, consistency 1": {"space": "features", "consistency_coef": 1.0, **_OFF},
}
SHARED = {
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_target_modules": "all",
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.06,
    "weight_decay": 0.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_length": 128,
    "train_sampling_strategy": "group_by_length",  # half the padding
    "bf16": True,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 50,
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Task:
    """Where a task's files are in the original distribution, what it is judged by, what is run."""

    folder: str
    metric: str
    seeds: tuple[int, ...] = (0,)
    noise: tuple[float, ...] = (0.0,)
    has_header: bool = True
    learning_rates: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: dict.fromkeys(METHODS, (3e-4, 1e-3)) | {"full": (3e-5, 1e-4)}
    )
    sweep: Sequence[str] = ("x100", "features, x100")
    epochs: int = 3


TASKS = {
    "cola": Task(
        *("CoLA", "matthews_correlation", (0, 1, 2), (0.0, 0.2)),
        has_header=False,
        learning_rates=LEARNING_RATES,
        sweep=tuple(SWEEP),
    ),
    "mrpc": Task("MRPC", "accuracy"),
    "stsb": Task("STS-B", "pearson", epochs=2),  # as many steps as the 3 of MRPC
}


@dataclass(frozen=True)
class Cell:
    """One run of the study."""

    stage: str
    task: str
    method: str
    learning_rate: float
    seed: int = 0
    noise: float = 0.0
    coefficients: dict[str, Any] = field(default_factory=dict)
    setting: str = ""
    """The name of the coefficients; empty for those of the method."""

    def recipe(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the fields of the run."""
        fields: dict[str, Any] = {
            "task": self.task,
            "method": self.method.partition(" ")[0],
            "model_name_or_path": str(options.model),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            **SHARED,
            "num_train_epochs": TASKS[self.task].epochs,
            **self.coefficients,
            **data_fields(self, options),
        }
        if self.method == "full":
            fields = {name: value for name, value in fields.items() if not name.startswith("lora_")}
        if self.noise:
            fields |= {"label_noise": self.noise, "transform_seed": self.seed}
        return fields


def data_fields(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that name the data: for a choice, two parts of the training rows."""
    task = TASKS[cell.task]
    folder = options.glue / task.folder
    if cell.stage == "choose":
        parts = held_out_parts(folder / "train.tsv", options.work / cell.task, task.has_header)
        return {"dataset_name": str(parts[0]), "eval_dataset_name": str(parts[1])}
    fields: dict[str, Any] = {"dataset_name": str(folder)}
    if cell.task == "cola":
        fields["dataset_test_split"] = "validation[:527]"  # the rest of it is the other sources
        out_of_domain = {"dataset_name": str(folder / "out_of_domain_dev.tsv")}
        fields["out_of_domain"] = [{"name": "other_sources", **out_of_domain}]
    if cell.task == "stsb" and options.sick:
        sick = {
            "name": "sick",
            "dataset_name": str(options.sick),
            "text_column": "sentence_A",
            "text_pair_column": "sentence_B",
            "label_column": "relatedness_score",
        }
        fields["out_of_domain"] = [sick]
    return fields


def held_out_parts(source: Path, folder: Path, has_header: bool) -> tuple[Path, Path]:
    """Write 85% and 15% of the rows of a TSV file, drawn once, and return both files."""
    parts = folder / "fit.tsv", folder / "held_out.tsv"
    if all(part.is_file() for part in parts):
        return parts
    folder.mkdir(parents=True, exist_ok=True)
    lines = source.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    header, rows = (lines[:1], lines[1:]) if has_header else ([], lines)
    random.Random(0).shuffle(rows)
    cut = round(0.85 * len(rows))
    for part, kept in zip(parts, (rows[:cut], rows[cut:]), strict=True):
        part.write_text("".join([*header, *kept]), encoding="utf-8")
    return parts


# cells


def choices_of_rates(task: str) -> Iterator[Cell]:
    """Yield the runs that choose each method's learning rate."""
    for method in METHODS:
        for rate in TASKS[task].learning_rates[method]:
            yield Cell("choose", task, method, rate)


def choices_of_coefficients(task: str, rates: dict[str, float]) -> Iterator[Cell]:
    """Yield the runs that choose the coefficients, at the rate chosen for the paper's."""
    for name in TASKS[task].sweep:
        chosen = {"coefficients": SWEEP[name], "setting": name}
        yield Cell("choose", task, CHOSEN, rates["balora"], **chosen)


def finals(task: str, rates: dict[str, float], setting: str) -> Iterator[Cell]:
    """Yield the runs that are reported, seed by seed."""
    for seed in TASKS[task].seeds:
        for noise in TASKS[task].noise:
            for method in METHODS:
                yield Cell("final", task, method, rates[method], seed, noise)
            chosen = {"coefficients": SWEEP[setting], "setting": setting}
            yield Cell("final", task, CHOSEN, rates["balora"], seed, noise, **chosen)


# the study


def run_cell(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Run one cell and return its line; a failed run is a line with its error."""
    name = "-".join(str(value) for value in key_of(asdict(cell)) if value not in ("", None))
    folder = options.work / "".join(c if c.isalnum() or c in "-." else "_" for c in name)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(cell.recipe(options)), encoding="utf-8")
    command = [sys.executable, "-m", "balora", "train", "--config", str(recipe)]
    command += ["--output_dir", str(folder / "run"), "--overwrite"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    row = asdict(cell) | {"seconds": round(time.perf_counter() - start, 1), **machine()}
    if done.returncode:
        return row | {"error": done.stderr.strip().splitlines()[-1:]}
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder / "run")
    kept = ("best", "last", "out_of_domain", "trained_parameters", "transforms")
    return row | {name: results.get(name) for name in kept}


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what makes a line that of one cell."""
    names = ("stage", "task", "method", "setting", "learning_rate", "seed", "noise")
    return tuple(row[name] for name in names)


class Study:
    """The lines that are there, and the file they are in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self.rows = [row for line in text.splitlines() if "error" not in (row := json.loads(line))]

    def run(self, cells: list[Cell], options: argparse.Namespace) -> None:
        """Run the cells that have no line yet, ``--jobs`` at a time."""
        done = {key_of(row) for row in self.rows}
        missing = [cell for cell in cells if key_of(asdict(cell)) not in done]
        title = f"{cells[0].task}, {cells[0].stage}"
        progress = tqdm(total=len(cells), initial=len(cells) - len(missing), desc=title)
        with ThreadPoolExecutor(options.jobs) as pool, progress, self.path.open("a") as file:
            for row in pool.map(partial(run_cell, options=options), missing):
                file.write(json.dumps(row) + "\n")
                file.flush()
                progress.update()
                if "error" in row:
                    print(f"failed: {key_of(row)}: {row['error']}", file=sys.stderr)
                else:
                    self.rows.append(row)

    def best(self, task: str, value: Callable[[dict[str, Any]], Any], **where: Any) -> Any:
        """Return the ``value`` of the cell that is best on the held-out training rows.

        Of equals, as where several settings end in one class, the one with the lowest loss.
        """
        found = [
            row
            for row in self.rows
            if row["stage"] == "choose"
            and row["task"] == task
            and all(row[name] == wanted for name, wanted in where.items())
        ]
        metric = TASKS[task].metric
        return value(max(found, key=lambda row: (score(row, metric), -score(row, "loss"))))

    def rates(self, task: str) -> dict[str, float]:
        """Return the learning rate chosen for each method."""
        return {m: self.best(task, lambda row: row["learning_rate"], method=m) for m in METHODS}


def score(row: dict[str, Any], metric: str, which: str = "last") -> float:
    """Return a metric on the evaluation rows."""
    (figures,) = row[which].values()
    return value_of(figures, metric)


def value_of(figures: dict[str, Any] | None, metric: str) -> float:
    """Return a figure; an undefined one is the worst there is."""
    value = None if figures is None else figures[metric]
    return -np.inf if value is None else float(value)


def study(options: argparse.Namespace) -> None:
    """Choose, then measure, task by task."""
    found = Study(options.out)
    for task in options.tasks:
        found.run(list(choices_of_rates(task)), options)
        rates = found.rates(task)
        found.run(list(choices_of_coefficients(task, rates)), options)
        of_rate = {"method": CHOSEN, "learning_rate": rates["balora"]}
        setting = found.best(task, lambda row: row["setting"], **of_rate)
        if options.stage == "all":
            found.run(list(finals(task, rates, setting)), options)


# the tables


def spread(values: list[float]) -> str:
    """Return mean and standard deviation, for one seed the value alone.

    A correlation is undefined where every row has the same prediction.
    """
    if not np.isfinite(values).all():
        return "undefined"
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * np.std(values, ddof=1):.1f})"


def tables(rows: list[dict[str, Any]]) -> str:
    """Return the study in Markdown: what was chosen, then what came out."""
    return "\n\n".join(
        part
        for task in dict.fromkeys(row["task"] for row in rows)
        for part in (choice_table(rows, task), *final_tables(rows, task))
    )


def choice_table(rows: list[dict[str, Any]], task: str) -> str:
    """Return one line for each run of the first stage."""
    metric = TASKS[task].metric
    lines = [table_head(["Task", "Method", "Coefficients", "Learning rate", f"{metric} x 100"])]
    lines += [
        table_line(
            [
                task,
                row["method"],
                row["setting"] or "-",
                f"{row['learning_rate']:g}",
                spread([score(row, metric)]),
            ]
        )
        for row in rows
        if row["task"] == task and row["stage"] == "choose"
    ]
    return "\n".join(lines)


def final_tables(rows: list[dict[str, Any]], task: str) -> Iterator[str]:
    """Yield one table for each share of label noise: mean (standard deviation) over the seeds."""
    metric = TASKS[task].metric
    final = [row for row in rows if row["task"] == task and row["stage"] == "final"]
    columns = [
        "Method",
        "Learning rate",
        "Seeds",
        "Last epoch",
        "Best epoch",
        "Out of domain",
        "ECE",
    ]
    for noise in dict.fromkeys(row["noise"] for row in final):
        lines = [f"{task}, {metric} x 100, label noise {noise:.0%}:", "", table_head(columns)]
        for method in (*METHODS, CHOSEN):
            own = [row for row in final if row["noise"] == noise and row["method"] == method]
            if own:
                lines.append(final_line(own, metric))
        yield "\n".join(lines)


def final_line(rows: list[dict[str, Any]], metric: str) -> str:
    """Return the line of one method."""
    (last,) = ({*row["last"]} for row in rows[:1])
    name = next(iter(last))
    other = [figures for row in rows for figures in (row["out_of_domain"] or {}).values()]
    errors = [row["last"][name].get("ece") for row in rows]
    return table_line(
        [
            rows[0]["method"] + (f": {rows[0]['setting']}" if rows[0]["setting"] else ""),
            f"{rows[0]['learning_rate']:g}",
            str(len(rows)),
            *(spread([score(row, metric, which) for row in rows]) for which in ("last", "best")),
            spread([value_of(figures, metric) for figures in other]) if other else "-",
            "-" if None in errors else spread(errors),
        ]
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--glue", type=Path, help="folder with CoLA, MRPC and STS-B")
    add("--sick", type=Path, help="the SICK file, out of domain for STS-B")
    add("--model", type=Path, help="folder of the encoder")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--stage", choices=["choose", "all"], default="all")
    add("--jobs", type=int, default=os.cpu_count(), help="cells at a time, one thread each")
    add("--work", type=Path, default=Path("outputs/glue_study"), help="folder for the runs")
    add("--table", action="store_true", help="print the tables of what is there, and stop")
    options = parser.parse_args()
    if options.out is None or not (options.table or (options.glue and options.model)):
        parser.error("--out is needed, and --glue and --model to run anything.")
    return options


def main() -> None:
    """Run what is missing of the study and print its tables."""
    options = parse()
    if not options.table:
        study(options)
    print(tables(Study(options.out).rows))


if __name__ == "__main__":
    main()
