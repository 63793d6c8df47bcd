"""Time of the SVD term without the vocabulary, next to the singular values of the logits.

    python -m benchmarks.bench_spectral --out spectral.jsonl
    python -m benchmarks.bench_spectral --sizes 512x768x50257 --repeats 5

Tokens x hidden size x vocabulary; value and gradient at the hidden states, float32:

logits    torch.linalg.svdvals of the logits
product   torch.linalg.svdvals of the hidden states times the factor of the head, float32
ours      balora.fused.HeadFactor: float64 Gram matrix and eigenvalues, minimum-norm gradient

The factor of the head is made once a run; its time is given beside. `value_error` is the largest
difference from float64 `svdvals` of the logits, over the largest singular value. Writes one JSON
line per size.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.measure import (
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    ratios,
    table_head,
    table_line,
    timed,
    write_rows,
)
from torch import Tensor

from balora.fused import HeadFactor
from balora.models.head import LMHead
from balora.regularizers import nlg

SIZES = ["512x768x50257", "1024x768x50257", "512x4096x32000"]
COLUMNS = ["M x d x V", "ours", "product / ours", "logits / ours", "logits / ours, values only"]
COLUMNS += ["factor, once a run"]


def term(spectrum: Callable[[Tensor], Tensor], hidden: Tensor, max_rank: int) -> Tensor:
    """Return the gradient of the SVD term, from a way to find the spectrum."""
    value = nlg.spectrum_loss(spectrum(hidden), max_rank=max_rank)
    return torch.autograd.grad(value, hidden)[0]


def measure(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one size."""
    num_tokens, hidden_size, vocab = map(int, size.split("x"))
    rng = torch.Generator().manual_seed(options.seed)
    weight = torch.empty(vocab, hidden_size).normal_(generator=rng).mul_(hidden_size**-0.5)
    hidden = torch.randn(num_tokens, hidden_size, generator=rng).requires_grad_()
    factor_seconds, factor = timed(lambda: HeadFactor(LMHead(weight)))
    root = factor.root.float()
    spectra: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": factor.singular_values,
        "product": lambda rows: torch.linalg.svdvals(rows @ root.mT),
        "logits": lambda rows: torch.linalg.svdvals(rows @ weight.mT),
    }
    both = {name: partial(term, way, hidden, hidden_size) for name, way in spectra.items()}
    values = {name: partial(torch.no_grad()(way), hidden) for name, way in spectra.items()}
    seconds = in_turns(both, repeats=options.repeats)
    value_seconds = in_turns(values, repeats=options.repeats)
    exact = torch.linalg.svdvals(hidden.detach().double() @ weight.double().mT)
    found = {name: call() for name, call in values.items()}
    errors = {name: (sigma - exact[: len(sigma)]).abs().max() for name, sigma in found.items()}
    return {
        "size": size,
        "seconds": {name: quantiles(times) for name, times in seconds.items()},
        "over_ours": ratios(seconds, "ours"),
        "value_seconds": {name: quantiles(times) for name, times in value_seconds.items()},
        "value_over_ours": ratios(value_seconds, "ours"),
        "factor_seconds": round(factor_seconds, 2),
        "value_error": {name: float(error / exact[0]) for name, error in errors.items()},
    } | machine()


def table_row(row: dict[str, Any]) -> str:
    """Return one line of the table: seconds of ours, ratios of the others to it."""
    return table_line(
        [
            row["size"].replace("x", " x "),
            interval(row["seconds"]["ours"], " s"),
            *(interval(row["over_ours"][name]) for name in ("product", "logits")),
            interval(row["value_over_ours"]["logits"]),
            f"{row['factor_seconds']} s",
        ]
    )


def main() -> None:
    """Measure every size, print a table and write the rows."""
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="MxDxV")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(table_head(COLUMNS))
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        rows.append(measure(size, options))
        print(table_row(rows[-1]), flush=True)
        write_rows(options.out, rows)


if __name__ == "__main__":
    main()
