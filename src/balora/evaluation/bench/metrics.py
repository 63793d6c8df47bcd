"""The metrics of the benchmarks, as the registry has them."""

from __future__ import annotations

from balora.evaluation.metrics import SHARE, Metric, register

INSTRUMENT = "benchmark"

register(
    Metric("gsm8k", "GSM8K", SHARE, "up", INSTRUMENT, "task", 0.0),
    Metric("gsm8k_paper", "GSM8K, the authors' rule", SHARE, "up", INSTRUMENT, "other"),
    Metric("gsm8k_flexible", "GSM8K, last number of the text", SHARE, "up", INSTRUMENT, "other"),
    Metric("math", "MATH", SHARE, "up", INSTRUMENT, "task", 0.0),
    Metric("math_paper", "MATH, the authors' rule", SHARE, "up", INSTRUMENT, "other"),
    Metric("humaneval", "HumanEval (pass@1)", SHARE, "up", INSTRUMENT, "task", 0.0),
    Metric("mbpp", "MBPP (pass@1)", SHARE, "up", INSTRUMENT, "task", 0.0),
    Metric("humaneval_pass@10", "HumanEval (pass@10)", SHARE, "up", INSTRUMENT, "other"),
    Metric("humaneval_pass@100", "HumanEval (pass@100)", SHARE, "up", INSTRUMENT, "other"),
    Metric("mbpp_pass@10", "MBPP (pass@10)", SHARE, "up", INSTRUMENT, "other"),
    Metric("mbpp_pass@100", "MBPP (pass@100)", SHARE, "up", INSTRUMENT, "other"),
    Metric("mt_bench", "MT-Bench, first turn (1 to 10)", "{:.2f}", "up", INSTRUMENT, "task"),
    Metric("unanswered", "without an answer", SHARE, "down", INSTRUMENT, "other"),
    Metric("unrated", "without a rating", SHARE, "down", INSTRUMENT, "other"),
    Metric("programs_timed_out", "programs out of time", SHARE, "down", INSTRUMENT, "other"),
)
