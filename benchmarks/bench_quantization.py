"""What `pissa_residual` keeps of a weight that quantising loses: the error of the whole weight.

    python -m benchmarks.bench_quantization --out bench_quantization.jsonl
    python -m benchmarks.bench_quantization --sizes 4096x4096 --ranks 64 128 256

Writes one JSON line per weight, rank and scheme and prints a table; it needs bitsandbytes and
torchao. The yardstick is the quantised weight itself. With `pissa_residual` the principal
components stay whole and what they leave is quantised; both errors are Frobenius norms over that
of the weight. Only weights are compared here, no training.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks.measure import machine, make_parser, table_head, table_line, write_rows
from torch import Tensor, nn

from balora.anchored import principal_components
from balora.anchored.layer import dequantised_weight
from balora.config import BALoraConfig
from balora.models.quantization import quantised

EXACT = BALoraConfig(pissa_svd="exact")
DECAYS = {"Gaussian": None, "i^-0.3": 0.3, "i^-0.6": 0.6}
"""The i-th singular value by the name of the spectrum; None has independent normal entries."""


def weight_of(decay: float | None, rows: int, columns: int, seed: int) -> Tensor:
    """Return a weight with a spectrum and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    if decay is None:
        return torch.randn(rows, columns, generator=generator)
    number = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, number, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(columns, number, generator=generator)).Q
    return (u * torch.arange(1, number + 1) ** -decay) @ v.mT


def layer_of(scheme: str, weight: Tensor) -> Any:
    """Return a linear layer whose weight is quantised."""
    rows, columns = weight.shape
    if scheme == "torchao int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        layer: Any = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        quantize_(layer, Int8WeightOnlyConfig())
        return layer
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(
        columns, rows, bias=False, quant_type=scheme, compress_statistics=False
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type=scheme, compress_statistics=False
    )
    return layer.to("cpu")


def error(found: Tensor, weight: Tensor) -> float:
    """Return the Frobenius error over the norm of ``weight``."""
    return float((found.double() - weight.double()).norm() / weight.double().norm())


def measure(scheme: str, weight: Tensor, rank: int) -> dict[str, float]:
    """Return the error of the quantised weight, of the quantised residual with its start."""
    layer = layer_of(scheme, weight)
    plain = error(dequantised_weight(layer), weight)
    u, s, vh = principal_components(weight, rank, EXACT)
    start = (u * s) @ vh
    layer.weight = quantised(layer, weight - start)
    kept = error(dequantised_weight(layer) + start, weight)
    return {"error": plain, "residual_error": kept, "less": 1 - kept / plain}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", default=["768x768"], metavar="ROWSxCOLUMNS")
    add("--ranks", nargs="+", type=int, default=[16, 128])
    add("--schemes", nargs="+", default=["nf4", "fp4", "torchao int8"])
    return parser.parse_args()


COLUMNS = ["Scheme", "Size", "Spectrum", "Rank", "Quantised", "Residual quantised", "Less"]


def main() -> None:
    """Measure every weight, print a table and write the rows."""
    options = parse()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    print(table_head(COLUMNS))
    for size in options.sizes:
        for spectrum, decay in DECAYS.items():
            weight = weight_of(decay, *map(int, size.split("x")), seed=options.seed)
            for scheme in options.schemes:
                for rank in options.ranks:
                    case = {"scheme": scheme, "size": size, "spectrum": spectrum, "rank": rank}
                    rows.append({**case, **measure(scheme, weight, rank), **machine()})
                    print(_line(rows[-1]), flush=True)
                    write_rows(options.out, rows)


def _line(row: dict[str, Any]) -> str:
    cells = [row["scheme"], row["size"], row["spectrum"], str(row["rank"])]
    errors = [f"{row[name]:.2%}" for name in ("error", "residual_error")]
    return table_line([*cells, *errors, f"{row['less']:.0%}"])


if __name__ == "__main__":
    main()
