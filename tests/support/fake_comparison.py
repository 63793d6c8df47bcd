"""A comparison that nobody ran: fabricated rows and details, with numbers that are clearly fake.

`write_comparison` writes the files that tables, plots and report are made from.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from balora.config.values import dump_mapping

METHODS = (
    *("base", "full", "lora", "lora+kl", "pissa", "pissa+kl", "balora"),
    *("balora-consistency", "balora-svd"),
)
SEEDS = (0, 1, 2, 3, 4)
CONDITIONS = {"clean": 0.0, "noise-20": 0.2, "noise-40": 0.4}
LAYERS = [
    f"model.layers.{block}.{module}"
    for block in range(4)
    for module in (
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    )
]
SCRIPT = "<script>alert('a sample')</script> & <b>bold</b>"

_KEPT = {
    **{"base": 0.93, "full": 0.31, "lora": 0.42, "lora+kl": 0.71, "pissa": 0.37},
    **{"pissa+kl": 0.64, "balora": 0.52, "balora-consistency": 0.38, "balora-svd": 0.50},
}
_SCORE = {
    **{"base": 0.0, "full": 0.95, "lora": 0.86, "lora+kl": 0.84, "pissa": 0.92},
    **{"pissa+kl": 0.91, "balora": 0.93, "balora-consistency": 0.925, "balora-svd": 0.915},
}


def row(method, seed, condition="", *, error=None, stage="final", **metrics):
    """A row of results.jsonl."""
    parts = [condition] if condition else []
    parts += [method] if seed is None else [method, f"seed-{seed}"]
    failed = error is not None
    return {
        "cell": "/".join(parts),
        "stage": stage,
        "condition": condition,
        "method": method,
        "seed": seed,
        "fields": {},
        "metrics": {} if failed else metrics,
        "num_trainable_parameters": None if failed or method == "base" else 123_456,
        "train_seconds": None if failed or method == "base" else 31.25,
        "evaluation_seconds": None if failed else 8.0,
        "seconds": None if failed else 47.5,
        "peak_memory_mib": None if failed else 911.0,
        "versions": {} if failed else {"python": "3.11.7", "torch": "0.0.fake"},
        "commit": None if failed else "fa4efa4e",
        "error": error,
    }


def runs(method, scores, kept, condition=""):
    """Rows of one method: exact match and recall by seed."""
    pairs = enumerate(zip(scores, kept, strict=True))
    return [row(method, s, condition, exact_match=x, recall=k) for s, (x, k) in pairs]


def write_rows(folder: Path, rows, details=None, *, recipe=None, **compare):
    """Write the files of a comparison.

    Args:
        folder: Where to.
        rows: Of results.jsonl.
        details: By the key of a cell.
        recipe: Fields of comparison.yaml beside `compare`.
        compare: Fields of `compare`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(r) for r in rows]
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    own = {"output_dir": "outputs/fake", **(recipe or {}), "compare": compare}
    (folder / "comparison.yaml").write_text(dump_mapping(own), encoding="utf-8")
    for i, r in enumerate(rows):
        cell = folder / "cells" / f"cell-{i}"
        cell.mkdir(parents=True)
        (cell / "result.json").write_text(json.dumps(r), encoding="utf-8")
        if r["cell"] in (details or {}):
            (cell / "details.json").write_text(json.dumps(details[r["cell"]]), encoding="utf-8")
    return folder


def write_comparison(folder: Path, methods=METHODS, seeds=SEEDS, conditions=CONDITIONS):
    """Write methods x seeds x conditions, one cell of them failed, and a sweep."""
    rng = random.Random(7)
    rows, details = [], {}
    for condition, noise in conditions.items():
        for method in methods:
            for seed in (None,) if method == "base" else seeds:
                if (condition, method, seed) == ("noise-40", "full", 3):
                    error = "killed by signal 9 SIGKILL (out of memory?)"
                    rows.append(row(method, seed, condition, error=error))
                    continue
                made = row(method, seed, condition, **_metrics(method, noise, rng))
                made["num_trainable_parameters"] = _parameters(method)
                made["fields"] = {} if method == "base" else {"learning_rate": 2e-3}
                rows.append(made)
                details[made["cell"]] = _details(method, noise, rng)
    rows += [
        {
            **row("lora", 0, "clean", stage="choose", exact_match=score),
            "cell": f"choose/clean/lora/seed-0/learning_rate={rate}",
            "fields": {"learning_rate": rate},
        }
        for rate, score in ((1e-3, 0.61), (2e-3, 0.66), (5e-3, 0.57))
    ]
    return write_rows(
        folder,
        rows,
        details,
        recipe={"method": "balora", "learning_rate": 2e-3, "lab": {"noise_rate": 0.2}},
        methods=list(methods),
        seeds=list(seeds),
        baseline="lora",
        conditions={name: {"lab": {"noise_rate": rate}} for name, rate in conditions.items()},
        sweep={"lora": {"learning_rate": [1e-3, 2e-3, 5e-3]}},
        sweep_tolerance=0.02,
    )


def _parameters(method):
    return {"base": None, "full": 973_696}.get(method, 123_904)


def _metrics(method, noise, rng):
    is_base = method == "base"
    spread = 0.0 if is_base else 1.0
    kept = _KEPT[method] - 0.25 * noise + spread * rng.gauss(0, 0.025)
    score = _SCORE[method] - (0.0 if is_base else 0.15 * noise) + spread * rng.gauss(0, 0.012)
    return {
        "exact_match": min(max(score, 0.0), 1.0),
        "response_loss": 6.7 if is_base else 0.02 + (1 - score) / 2,
        "kl": 0.0 if is_base else 9 * (1 - kept) + rng.gauss(0, 0.2),
        "entropy": 0.79 if is_base else 0.05 + rng.random() / 50,
        "recall": kept,
        "recall_head": min(kept + 0.04, 1.0),
        "recall_tail": kept - 0.15,
        "retention_loss": 0.91 if is_base else 2.9 - 2 * kept + rng.gauss(0, 0.02),
        "memorised_noise": None if noise == 0 else noise / 2 + rng.gauss(0, 0.01),
        "corrupted_repeat": None if noise == 0 else 0.3 + rng.gauss(0, 0.02),
        "stereotype_score": 0.83 + rng.gauss(0, 0.01),
        "distinct_1": 0.31 + rng.gauss(0, 0.005),
        "distinct_2": 0.62 + rng.gauss(0, 0.005),
        "sample_entropy": 4.1 + rng.gauss(0, 0.05),
        "self_similarity": 0.22 + rng.gauss(0, 0.01),
    }


def _details(method, noise, rng):
    before = [900 * math.exp(-i / 9) + 12 for i in range(64)]
    if method == "base":
        return {"spectrum": {"before": before}}
    forgotten = 1 - _KEPT[method]
    after = [
        s * (1 + forgotten * (0.8 - i / 40) + rng.gauss(0, 0.01)) for i, s in enumerate(before)
    ]
    size = 0.002 * (8 if method == "full" else 4) * (0.3 + forgotten)
    layers = ["model.embed_tokens", *LAYERS, "lm_head"] if method == "full" else LAYERS
    return {
        "curves": [_step(method, step, noise, rng) for step in range(5, 255, 5)],
        "spectrum": {"before": before, "after": after},
        "updates": [
            {"layer": name, "relative": size * (1 + (i % 7) / 3 + i / 20 + rng.random() / 5)}
            for i, name in enumerate(layers)
        ],
        "samples": [
            {
                "prompt": f"Tom has {i} pens and buys {i + 2} more. How many pens does he have?",
                "gold": f"Tom has {i} + {i + 2} = {2 * i + 2} pens. The answer is: {2 * i + 2}",
                "before": f"{SCRIPT} was born in the old town of Nowhere {i}.",
                "after": f"Tom has {i} + {i + 2} = {2 * i + 2} pens. The answer is: {2 * i + 2}",
            }
            for i in range(3)
        ],
    }


def _step(method, step, noise, rng):
    rate = {"full": 25, "pissa": 30, "pissa+kl": 33}.get(method, 38 + 3 * METHODS.index(method))
    task = 6.2 * math.exp(-step / rate) + 0.05 + noise / 2 + abs(rng.gauss(0, 0.02))
    terms = {"task_loss": task, "loss": task}
    if "kl" in method or method in ("balora", "balora-svd"):
        terms["consistency_loss"] = 7 * (1 - _KEPT[method]) * (1 - math.exp(-step / 40))
        terms["consistency_loss"] += rng.gauss(0, 0.05)
    if method.startswith("balora"):
        terms["diversity_loss"] = -0.8 * math.exp(-step / 60) - 0.05 + rng.gauss(0, 0.01)
    if method in ("balora", "balora-consistency"):
        terms["svd_loss"] = -0.4 - 0.3 * (1 - math.exp(-step / 90)) + rng.gauss(0, 0.01)
    return {"step": step, **terms}
