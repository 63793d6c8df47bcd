"""Time and error of the randomised SVD behind the PiSSA start, next to the exact SVD.

    python -m benchmarks.bench_svd --out bench_svd.jsonl
    python -m benchmarks.bench_svd --sizes 4096x4096 --rank 64 --repeats 5
    python -m benchmarks.bench_svd --gpt2_attention FOLDER

Writes one JSON line per weight and prints a table. The exact SVD is the yardstick: in time, and as
the optimum of Eckart and Young. The randomised one runs with the package's defaults. The two are
timed in turns, so that both see the same machine; the exact one of a large weight takes minutes, so
it is repeated only while `--exact_budget` lasts, and the row says how often it ran.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measure import (
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    table_head,
    table_line,
    write_rows,
)
from torch import Tensor

from balora.anchored import PrincipalComponents, principal_components
from balora.config import BALoraConfig

RANDOMIZED = BALoraConfig()
EXACT = BALoraConfig(pissa_svd="exact")
SIZES = ["768x768", "4096x4096", "4096x11008"]
DECAY = 0.3
"""The i-th singular value is i^-0.3: those of GPT-2's attention weights, measured over the largest,
are i^-0.15 to i^-0.25 at i = 100 and i^-0.4 at i = 500."""


def gaussian(num_rows: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """Return a matrix of independent normal entries: the flattest spectrum, the hardest case."""
    return torch.randn(num_rows, num_columns, generator=generator)


def power_law(num_rows: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """Return a matrix with singular values i^-DECAY and random singular vectors."""
    num_values = min(num_rows, num_columns)
    u = torch.linalg.qr(torch.randn(num_rows, num_values, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(num_columns, num_values, generator=generator)).Q
    return (u * torch.arange(1, num_values + 1) ** -DECAY) @ v.mT


def gpt2_attention(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the 768 x 768 weights of a folder of raw big-endian float32 files."""
    for path in sorted(folder.glob("*.w.dat")):
        weight = np.fromfile(path, dtype=">f4").astype(np.float32).reshape(768, 768)
        yield f"GPT-2 {path.name.removesuffix('.w.dat')}", torch.from_numpy(weight).mT.contiguous()


def relative_error(weight: Tensor, components: PrincipalComponents) -> float:
    """Return the Frobenius error of the approximation over the norm of ``weight``."""
    approximation = (components.u * components.s) @ components.vh
    error = torch.linalg.vector_norm(weight - approximation, dtype=torch.float64)
    return float(error / torch.linalg.vector_norm(weight, dtype=torch.float64))


def measure(weight: Tensor, rank: int, *, repeats: int, exact_budget: float) -> dict[str, Any]:
    """Return times and errors of both methods, run in turns."""
    found: dict[str, PrincipalComponents] = {}

    def run(name: str, config: BALoraConfig) -> None:
        found[name] = principal_components(weight, rank, config)

    runs = in_turns(
        {
            "randomized": partial(run, "randomized", RANDOMIZED),
            "exact": partial(run, "exact", EXACT),
        },
        repeats=repeats,
        budgets={"exact": exact_budget},
    )
    seconds = {name: quantiles(times) for name, times in runs.items()}
    error, optimum = (relative_error(weight, found[name]) for name in ("randomized", "exact"))
    return {
        "rank": rank,
        "oversampling": RANDOMIZED.pissa_oversampling,
        "power_iterations": RANDOMIZED.pissa_power_iterations,
        "randomized_seconds": seconds["randomized"],
        "exact_seconds": seconds["exact"],
        "times_faster": round(seconds["exact"]["median"] / seconds["randomized"]["median"], 1),
        "relative_error": error,
        "optimal_relative_error": optimum,
        "above_optimum": error / optimum - 1,
    }


def weights(options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights to measure, one at a time, with their names."""
    if options.gpt2_attention:
        yield from gpt2_attention(options.gpt2_attention)
    for size in options.sizes:
        num_rows, num_columns = map(int, size.split("x"))
        for name, make in {"Gaussian": gaussian, "power law": power_law}.items():
            yield name, make(num_rows, num_columns, torch.Generator().manual_seed(options.seed))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", default=SIZES, metavar="ROWSxCOLUMNS")
    add("--rank", type=int, default=128)
    add("--repeats", type=int, default=5, help="runs of the randomised SVD per weight")
    add("--exact_budget", type=float, default=60.0, help="seconds of exact SVD per weight")
    add("--gpt2_attention", type=Path, help="folder of real 768 x 768 weights, *.w.dat")
    return parser.parse_args()


COLUMNS = ["Size", "Spectrum", "Exact", "Randomised", "Times faster", "Error", "Above optimum"]


def main() -> None:
    """Measure every weight, print a table and write the rows."""
    options = parse()
    torch.set_num_threads(options.threads)
    principal_components(torch.randn(256, 256), 16, RANDOMIZED)  # warm up
    rows = []
    print(table_head(COLUMNS))
    for name, weight in weights(options):
        figures = measure(
            weight, options.rank, repeats=options.repeats, exact_budget=options.exact_budget
        )
        size = " x ".join(map(str, weight.shape))
        rows.append({"size": size, "spectrum": name, **figures, **machine()})
        print(table_row(rows[-1]), flush=True)
        write_rows(options.out, rows)


def table_row(row: dict[str, Any]) -> str:
    """Return one line of the table: medians, in brackets the 20th and 80th percentiles."""
    return table_line(
        [
            row["size"],
            row["spectrum"],
            *(interval(row[seconds], " s") for seconds in ("exact_seconds", "randomized_seconds")),
            f"{row['times_faster']:.0f}",
            f"{row['relative_error']:.4f}",
            f"{row['above_optimum']:.3%}",
        ]
    )


if __name__ == "__main__":
    main()
