"""Time and peak memory of a whole training step: forward, backward, optimizer, next to PiSSA.

    python -m benchmarks.bench_step --out step.jsonl
    python -m benchmarks.bench_step --shape llama --rank 128 --variants pissa balora
    python -m benchmarks.bench_step --shape llama2_7b --dtype bfloat16 --device cuda

Random weights of a published shape, adapters on all linear layers, AdamW on the adapter. The
yardstick is PiSSA with the same fused cross-entropy; `authors` is the method as it was published,
with a second model and full logits. The variants are timed in turns, one step of each per round,
and a ratio is the median over the rounds of the ratios within a round. Peak memory is that of a
fresh process per variant, of the whole life of the process on a CPU (resident) and of the
allocator on a GPU. Writes one JSON line per variant and prints a table.

`flop_floor` is the least time over that of `pissa` if arithmetic were all: matrix products counted
from the shapes.
"""

from __future__ import annotations

import argparse
import gc
import json
from typing import Any

import torch
from benchmarks.measure import (
    add_device,
    in_fresh_process,
    in_turns,
    interval,
    machine,
    make_parser,
    quantiles,
    ratios,
    status_mib,
    synchronized,
    table_head,
    table_line,
)
from benchmarks.step_models import SHAPES, Models, Workload, num_parameters
from benchmarks.step_variants import VARIANTS, make_step, matmul_flops

DEFAULT = ["pissa", "balora", "balora_without_svd", "balora_iclr2026", "authors"]
YARDSTICKS = ["pissa", "authors"]


def time_steps(
    workload: Workload, names: list[str], repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Return the seconds of each variant's steps, one per round.

    The first steps, which make what is kept (the head's factor, the optimizer's state), are not
    timed.
    """
    models = Models(workload)
    steps = {
        name: synchronized(make_step(VARIANTS[name], models), workload.device) for name in names
    }
    for step in steps.values():
        for _ in range(warmup):
            step()
    gc.collect()
    return in_turns(steps, repeats=repeats, seed=workload.seed)


def memory_of(workload: Workload, name: str, num_steps: int = 3) -> dict[str, float | None]:
    """Return the peak memory of a variant, in MiB, of a process of its own."""
    found: dict[str, float | None] = in_fresh_process(
        peak_memory, workload, name, num_steps, preload="benchmarks.step_variants"
    )
    return found


def peak_memory(workload: Workload, name: str, num_steps: int) -> dict[str, float | None]:
    """Return the peak of this process, and what of it is beyond the imports; run it in a fresh one.

    On a GPU both are the peak of the allocator. `peak_before_steps_mib` shows whether making the
    models, the SVD of their weights included, or the steps set the peak.
    """
    torch.set_num_threads(workload.threads)
    imports = status_mib("VmRSS") if workload.device == "cpu" else 0.0
    step = make_step(VARIANTS[name], Models(workload))
    before = peak_mib(workload.device)
    for _ in range(num_steps):
        step()
    peak = peak_mib(workload.device)
    return {
        "peak_mib": peak,
        "peak_model_and_step_mib": None if peak is None or imports is None else peak - imports,
        "peak_before_steps_mib": before,
    }


def peak_mib(device: str) -> float | None:
    """Return the peak so far, of this process or of the GPU's allocator."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return status_mib("VmHWM")


def row_of(
    workload: Workload,
    name: str,
    seconds: dict[str, list[float]],
    memory: dict[str, float | None],
) -> dict[str, Any]:
    """Return the line of results of one variant."""
    floor = matmul_flops(VARIANTS[name], workload)
    yardsticks = [yardstick for yardstick in YARDSTICKS if yardstick in seconds]
    return {
        "variant": name,
        "description": VARIANTS[name].description,
        **workload.facts(),
        "parameters": num_parameters(workload),
        "seconds": quantiles(seconds[name]) if seconds else None,
        "ratio_to": {yardstick: ratios(seconds, yardstick)[name] for yardstick in yardsticks},
        "flop_floor": round(floor / matmul_flops(VARIANTS["pissa"], workload), 3),
        "matmul_teraflops": round(floor / 1e12, 3),
        **memory,
        **machine(workload.device),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown: medians, in brackets the 20th and 80th percentiles."""
    yardsticks = list(rows[0]["ratio_to"])
    columns = ["Variant", "Seconds per step", *(f"Times {y}" for y in yardsticks), "Floor"]
    columns += ["Peak, MiB", "Model and step, MiB"]
    lines = [table_head(columns)]
    for row in rows:
        memory = [row.get("peak_mib"), row.get("peak_model_and_step_mib")]
        lines.append(
            table_line(
                [
                    row["variant"],
                    interval(row["seconds"]) if row["seconds"] else "-",
                    *(interval(row["ratio_to"][yardstick]) for yardstick in yardsticks),
                    f"{row['flop_floor']:.2f}",
                    *("-" if value is None else f"{value:.0f}" for value in memory),
                ]
            )
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add, usual = parser.add_argument, Workload()
    add("--shape", choices=SHAPES, default=usual.shape)
    add("--rank", type=int, default=usual.rank)
    add("--batch", type=int, default=usual.batch, help="sequences")
    add("--length", type=int, default=usual.length, help="tokens of a sequence")
    add("--valid", type=float, default=usual.valid, help="share of a sequence that is scored")
    add("--variants", nargs="+", choices=VARIANTS, default=DEFAULT, metavar="VARIANT")
    add("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    add("--authors_svd_rows", type=int, default=usual.authors_svd_rows, help="cap, as ours")
    add("--measure", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    add("--repeats", type=int, default=7, help="rounds of timing")
    add("--dtype", choices=["float32", "bfloat16"], default=usual.dtype)
    add_device(parser)
    return parser.parse_args(arguments)


def workload_of(options: argparse.Namespace) -> Workload:
    """Return the workload that the command line describes."""
    return Workload(**{name: getattr(options, name) for name in Workload.__dataclass_fields__})


def main(arguments: list[str] | None = None) -> None:
    """Measure every variant, print the table and write the rows."""
    options = parse(arguments)
    workload = workload_of(options)
    torch.set_num_threads(workload.threads)
    rows = measure(workload, options.variants, options.repeats, options.measure)
    print(table(rows))
    if options.out:
        with options.out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def measure(
    workload: Workload, names: list[str], repeats: int, what: list[str]
) -> list[dict[str, Any]]:
    """Return one row per variant; memory comes first, while this process holds no model."""
    memory = {name: memory_of(workload, name) if "memory" in what else {} for name in names}
    seconds = time_steps(workload, names, repeats) if "time" in what else {}
    return [row_of(workload, name, seconds, memory[name]) for name in names]


if __name__ == "__main__":
    main()
