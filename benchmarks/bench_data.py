"""What reading a JSONL file costs, beside the reader of ``datasets``.

    python -m benchmarks.bench_data --out data.jsonl
    python -m benchmarks.bench_data --rows 10000 --repeats 3

The files hold 100,000 rows of text: ``pairs`` have a query, a response and two columns that are not
read, ``chats`` three turns. Each is read into an empty cache, in each round once by balora
(`load_rows`) and once by ``datasets.load_dataset("json")``, in random order:

    ratio = balora / datasets, round by round

The claim is a ratio of at most 2: balora parses every line with Python's json, which infers
nothing, where ``datasets`` has pyarrow infer types. Also told: the seconds of a second call, which
finds the rows in the cache, and how far one call raises the resident memory of a fresh process.

Writes one JSON line for each file and prints a table.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from benchmarks.measure import (
    in_fresh_process,
    in_turns,
    interval,
    machine,
    make_parser,
    peak_extra_mib,
    quantiles,
    ratios,
    table_head,
    table_line,
    timed,
    write_rows,
)

from balora.data.sources import find_local, load_rows

READERS = ("balora", "datasets")
KINDS = ("pairs", "chats")


def write_file(kind: str, folder: Path, *, num_rows: int, seed: int) -> Path:
    """Write rows of text drawn from 5,000 words and return the file."""
    draw = random.Random(seed)
    words = [f"w{number}" for number in range(5000)]

    def text(num_words: int) -> str:
        return " ".join(draw.choices(words, k=num_words))

    file = folder / f"{kind}.jsonl"
    with file.open("w") as lines:
        for number in range(num_rows):
            asked, answered = text(40), text(60)
            row: dict[str, Any] = {"query": asked, "response": answered, "type": "x", "id": number}
            if kind == "chats":
                turns = (("system", "Be kind."), ("user", asked), ("assistant", answered))
                row = {"messages": [{"role": role, "content": said} for role, said in turns]}
            lines.write(json.dumps(row) + "\n")
    return file


def read(reader: str, file: Path, cache: str) -> datasets.Dataset:
    """Return the rows of a file, through the cache in a folder."""
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    if reader == "balora":
        return load_rows(str(file), find_local(str(file)), None, "train")[0]
    files = {"train": [str(file)]}
    return datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)


def reading(reader: str, file: Path) -> Callable[[], int]:
    """Return a function that reads a file into an empty cache."""

    def call() -> int:
        with tempfile.TemporaryDirectory() as cache:
            return len(read(reader, file, cache))

    return call


def peak(reader: str, file: Path) -> float | None:
    """Return the MiB by which reading a file raises the resident memory of this process."""
    datasets.disable_progress_bars()
    return peak_extra_mib(reading(reader, file))


def seconds_again(reader: str, file: Path, repeats: int) -> list[float]:
    """Return the seconds of calls that find the rows in the cache."""
    with tempfile.TemporaryDirectory() as cache:
        read(reader, file, cache)
        return [timed(lambda: read(reader, file, cache))[0] for _ in range(repeats)]


def measure(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the row of one file."""
    file = write_file(kind, folder, num_rows=options.rows, seed=options.seed)
    calls = {reader: reading(reader, file) for reader in READERS}
    for call in calls.values():
        call()  # imports, and the disk's cache
    seconds = in_turns(calls, repeats=options.repeats, seed=options.seed)
    fresh = {"preload": "benchmarks.bench_data"}
    return {
        "benchmark": "data",
        "file": kind,
        "rows": options.rows,
        "mib": round(file.stat().st_size / 2**20, 1),
        "seconds": {reader: quantiles(times) for reader, times in seconds.items()},
        "ratio": ratios(seconds, "datasets")["balora"],
        "seconds_again": {
            reader: quantiles(seconds_again(reader, file, options.repeats)) for reader in READERS
        },
        "extra_mib": {reader: in_fresh_process(peak, reader, file, **fresh) for reader in READERS},
        **machine(),
        "threads": options.threads,
        "datasets": datasets.__version__,
        "pyarrow": pa.__version__,
    }


def main() -> None:
    """Measure both files, write a line for each, and print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    pa.set_cpu_count(options.threads)
    datasets.disable_progress_bars()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            rows.append(measure(kind, options, Path(folder)))
            write_rows(options.out, rows)
    names = ["balora", "balora / datasets", "again", "memory, MiB", "datasets', MiB"]
    print(table_head(["File", "Size, MiB", *names]))
    for row in rows:
        cells = [row["file"], str(row["mib"]), interval(row["seconds"]["balora"], " s")]
        cells += [interval(row["ratio"]), interval(row["seconds_again"]["balora"], " s")]
        print(table_line([*cells, *(str(row["extra_mib"][reader]) for reader in READERS)]))


if __name__ == "__main__":
    main()
