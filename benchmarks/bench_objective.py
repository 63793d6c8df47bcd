"""Time and memory of the objective without logits, next to what else there is.

    python -m benchmarks.bench_objective --out objective.jsonl
    python -m benchmarks.bench_objective --heads llama3 --tokens 1024 --dtypes float32 --repeats 3
    python -m benchmarks.bench_objective --heads llama2 --device cuda --dtypes bfloat16

Forward and backward, from the hidden states of student and reference to the gradient of the
student's: cross-entropy, KL to the reference and entropy. The variants run in turns in one process:

products  three bare matrix products of tokens x hidden size x vocabulary, the yardstick
floor     the same into memory that is there already: what no allocation could beat
ours      balora.fused.token_terms
blocks    the same without the kernel that a GPU has: as on a CPU, in fewer and larger blocks
svd       balora.fused.FusedObjective, which adds the SVD term
plain     balora.objective.nlg_objective without the SVD term: builds the logits
library   trl's chunked log-probabilities with entropy, and its chunked divergence
liger     Liger's fused linear cross-entropy and fused linear JSD (beta 0: the KL), where it runs

Each variant's gradient is compared with that of `plain`. `peak_extra_mib` is how far one call
raises the memory above the inputs. Writes one JSON line per case and prints a table: ratios to the
products, taken round by round. What would not fit into `--memory_gb` is left out, and the row says
so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from benchmarks.measure import (
    add_device,
    in_turns,
    interval,
    machine,
    make_parser,
    peak_extra_mib,
    quantiles,
    ratios,
    synchronized,
    table_head,
    table_line,
    write_rows,
)
from torch import Tensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from balora.config import BALoraConfig
from balora.fused import FusedObjective, TokenCoefficients, TokenSettings, token_terms, tokens
from balora.models.head import LMHead
from balora.objective import Coefficients, Normalizer, nlg_objective

HEADS = {  # hidden size, vocabulary
    "gpt2": (768, 50257),
    "narrow": (768, 128256),
    "gemma": (2048, 256000),
    "llama2": (4096, 32000),
    "llama3": (4096, 128256),
}
VARIANTS = ("products", "floor", "ours", "svd", "plain", "library", "blocks", "liger")
SLOW = ("plain", "library", "liger")
"""Sit out the rounds that would go beyond ``--budget``."""
TERMS = TokenCoefficients(1.0, 0.3, 0.2)
CONFIG = BALoraConfig(svd_coef=0.1)


class Case(NamedTuple):
    """The inputs of one measurement."""

    hidden: Tensor
    reference: Tensor
    targets: Tensor
    head: LMHead


def make_case(head: str, num_tokens: int, dtype: torch.dtype, options: argparse.Namespace) -> Case:
    """Return random inputs: logits of scale 1, a student near its reference."""
    size, vocab = HEADS[head]
    device = options.device
    made = {"generator": torch.Generator(device).manual_seed(options.seed), "device": device}
    weight = torch.randn(vocab, size, **made).mul_(size**-0.5)
    reference = torch.randn(num_tokens, size, **made)
    hidden = reference + 0.1 * torch.randn(num_tokens, size, **made)
    targets = torch.randint(vocab, (num_tokens,), **made)
    return Case(
        hidden.to(dtype).requires_grad_(),
        reference.to(dtype),
        targets,
        LMHead(weight.to(dtype)),
    )


def ours(case: Case) -> Tensor:
    """Return the loss of the fused token terms."""
    hidden, reference, targets, head = case
    return token_terms(hidden, reference, targets, head=head, settings=TokenSettings(TERMS)).loss


def blocks(case: Case) -> Tensor:
    """Return the loss of the fused token terms without the kernel."""
    with patch.object(tokens, "_kernel", lambda device, dtype: None):
        return ours(case)


def with_svd(case: Case, objective: FusedObjective) -> Tensor:
    """Return the loss of the whole fused objective."""
    coefficients = Coefficients(TERMS.consistency, TERMS.diversity, CONFIG.svd_coef)
    hidden, reference, targets, head = case
    return objective(
        hidden,
        reference,
        targets,
        head=head,
        normalizer=Normalizer(1),
        coefficients=coefficients,
    ).loss


def plain(case: Case) -> Tensor:
    """Return the loss of the readable objective, which builds the logits."""
    hidden, reference, targets, head = case
    return nlg_objective(
        hidden,
        reference,
        targets,
        head=head,
        config=CONFIG,
        normalizer=Normalizer(1),
        coefficients=Coefficients(TERMS.consistency, TERMS.diversity, 0.0),
    ).loss


def library(case: Case) -> Tensor:
    """Return the loss composed of trl's two chunked kernels, which tile the vocabulary."""
    hidden, reference, targets, head = case
    log_probs, entropy = ChunkedLogProbFunction.apply(
        hidden, head.weight, None, targets, 1.0, 32768, None, 1.0, ("entropy",)
    )[:2]
    divergence = ChunkedDivergenceFunction.apply(
        hidden, head.weight, None, reference, head.weight, None, 0.0
    )[0]
    task = TERMS.task * -log_probs.sum()
    return task + TERMS.consistency * divergence.sum() - TERMS.diversity * entropy.sum()


def liger(case: Case) -> Tensor:
    """Return the loss of Liger's two kernels, which have no entropy: two terms of the three."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    hidden, reference, targets, head = case
    task = LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, hidden, targets)
    divergence = LigerFusedLinearJSD(jsd_beta=0.0)(
        hidden, head.weight, reference, head.weight, None
    )
    loss: Tensor = TERMS.task * task + TERMS.consistency * len(hidden) * divergence
    return loss


def gradient(loss: Callable[[Case], Tensor], case: Case) -> Tensor:
    """Run a variant forward and backward."""
    return torch.autograd.grad(loss(case), case.hidden)[0]


@torch.no_grad()
def products(case: Case) -> Tensor:
    """Multiply three times."""
    weight = case.head.weight
    reference_logits, logits = case.reference @ weight.mT, case.hidden @ weight.mT
    del reference_logits
    return logits @ weight


@torch.no_grad()
def floor(case: Case, logits: Tensor) -> Tensor:
    """Multiply three times, into memory that is there already."""
    weight = case.head.weight
    torch.mm(case.reference, weight.mT, out=logits)
    torch.mm(case.hidden, weight.mT, out=logits)
    return logits @ weight


def calls_of(case: Case, names: list[str]) -> dict[str, Callable[[], Tensor]]:
    """Return the calls of a case by name, each waiting for the device's work."""
    losses = {
        "ours": ours,
        "blocks": blocks,
        "svd": partial(with_svd, objective=FusedObjective(CONFIG)),
        "plain": plain,
        "library": library,
        "liger": liger,
    }
    calls: dict[str, Callable[[], Tensor]] = {}
    if "floor" in names:
        shape = len(case.hidden), len(case.head.weight)
        calls["floor"] = partial(floor, case, case.hidden.new_empty(shape).detach())
    if "products" in names:
        calls["products"] = partial(products, case)
    calls |= {n: partial(gradient, losses[n], case) for n in names if n in losses}
    return {name: synchronized(call, case.hidden.device.type) for name, call in calls.items()}


def fitting(
    names: list[str], shape: tuple[int, int, int], dtype: torch.dtype, memory_gb: float
) -> dict[str, str]:
    """Return which of the variants do not fit, and why."""
    num_tokens, size, vocab = shape
    # the plain objective holds about ten float32 matrices of logits, and a float32 head
    needed = 4 * (10 * num_tokens * vocab + vocab * size) + dtype.itemsize * vocab * size
    if "plain" in names and needed > memory_gb * 1e9:
        return {"plain": f"would need about {needed / 1e9:.0f} GB"}
    return {}


def measure(
    head: str, num_tokens: int, dtype: torch.dtype, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of one case."""
    size, vocab = HEADS[head]
    left_out = fitting(options.variants, (num_tokens, size, vocab), dtype, options.memory_gb)
    names = [name for name in options.variants if name not in left_out]
    case = make_case(head, num_tokens, dtype, options)
    memory, found = {}, {}
    for name in names:  # one at a time: what a variant keeps is not another's
        call = calls_of(case, [name])[name]
        memory[name] = peak_extra_mib(call, options.device)
        if name not in ("products", "floor", "svd"):  # other numbers
            found[name] = call().double().cpu()
    budgets = dict.fromkeys(SLOW, options.budget)
    seconds = in_turns(calls_of(case, names), repeats=options.repeats, budgets=budgets)
    is_compared = {"ours", "library"} <= {*names}
    return {
        "head": head,
        "d": size,
        "V": vocab,
        "N": num_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: quantiles(times) for name, times in seconds.items()},
        "over_products": ratios(seconds, "products") if "products" in seconds else None,
        "over_floor": ratios(seconds, "floor")["ours"] if {"ours", "floor"} <= {*names} else None,
        "over_library": ratios(seconds, "library")["ours"] if is_compared else None,
        "peak_extra_mib": memory,
        "gradient_off_plain": _differences(found),
        "left_out": left_out,
        **machine(options.device),
    }


def _differences(found: dict[str, Tensor]) -> dict[str, float] | None:
    """Return the relative error of each gradient, in the Frobenius norm, against the plain one."""
    exact = found.get("plain")
    if exact is None:
        return None
    return {n: float((g - exact).norm() / exact.norm()) for n, g in found.items() if n != "plain"}


def table_columns(names: list[str]) -> list[str]:
    """Return the columns of the table for the measured variants."""
    return [
        "Head, d x V",
        "N",
        "dtype",
        "Products",
        *(f"{name} / products" for name in names),
        "ours / floor",
        "ours / library",
        *(f"{name}, MiB" for name in names),
    ]


def table_row(row: dict[str, Any], names: list[str]) -> str:
    """Return one line of the table: seconds of the products, ratios to them, extra MiB."""
    over, memory = row["over_products"] or {}, row["peak_extra_mib"]
    return table_line(
        [
            f"{row['head']}, {row['d']} x {row['V']}",
            str(row["N"]),
            row["dtype"],
            interval(row["seconds"]["products"], " s") if over else "-",
            *(interval(over[name]) if name in over else "-" for name in names),
            *(interval(row[key]) if row[key] else "-" for key in ("over_floor", "over_library")),
            *("-" if memory.get(name) is None else f"{memory[name]:.0f}" for name in names),
        ]
    )


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    add("--tokens", nargs="+", type=int, default=[512, 1024, 4096])
    add("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    add("--variants", nargs="+", choices=VARIANTS, default=VARIANTS[:-2])
    add("--repeats", type=int, default=5, help="rounds of each case")
    add("--budget", type=float, default=60.0, help="seconds of a case for each slow variant")
    add("--memory_gb", type=float, default=20.0)
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    """Measure every case, print a table and write the rows."""
    options = parse()
    torch.set_num_threads(options.threads)
    names = [name for name in options.variants if name not in ("products", "floor")]
    print(table_head(table_columns(names)))
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for head in options.heads:
            for num_tokens in options.tokens:
                rows.append(measure(head, num_tokens, getattr(torch, dtype), options))
                print(table_row(rows[-1], names), flush=True)
                write_rows(options.out, rows)


if __name__ == "__main__":
    main()
