"""The log rows: every term of the objective, summed on the device and read once per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from balora.objective import Coefficients, ExampleCounts, LossTerms, TokenCounts

_TERMS = (*Coefficients._fields, "replay")
"""Of a row, in its order."""
_LEAST_ROWS = 8
"""Rows of a log that say something of its course."""


def loss_doubt(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one line where the loss of a run did not fall; None where it did or few rows say it.

    The mean of the last quarter of the rows is compared with that of the first.

    Args:
        history: As in ``trainer.state``; rows without ``loss`` are left out.
    """
    losses = [float(row["loss"]) for row in history if "loss" in row]
    if len(losses) < _LEAST_ROWS:
        return None
    quarter = len(losses) // 4
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    if last < first:
        return None
    return (
        f"the loss did not fall: {first:.3f} in the first quarter of the run, {last:.3f} in the "
        "last. Try a lower `learning_rate` if it jumps, a higher one if it stays, or more steps."
    )


class StepLog:
    """Sums over the micro-steps since the last log row; no device sync before a ``pop``."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_input_tokens: Tensor | None = None

    def add(
        self,
        terms: LossTerms,
        coefficients: Coefficients,
        counts: TokenCounts | ExampleCounts,
        *,
        num_micro_steps: int,
        num_input_tokens: Tensor | None = None,
        replay: Tensor | None = None,
        replay_coefficient: float = 0.0,
    ) -> None:
        """Add one micro-step of an optimizer step of ``num_micro_steps``."""
        share = 1 / num_micro_steps
        values: dict[str, Any] = counts._asdict() | {"steps": share, "task_loss": terms.task}
        del values["num_svd_rows"]  # no sum
        weighted = zip((*terms[1:], replay), (*coefficients, replay_coefficient), strict=True)
        for name, (term, coefficient) in zip(_TERMS, weighted, strict=True):
            if term is not None:
                values[f"{name}_loss"] = term
                values[f"{name}_product"] = coefficient * term.detach().double()
                values[f"{name}_coef"] = coefficient * share
                values[f"{name}_steps"] = share
        for name, value in values.items():
            if value is not None:
                self._sums[name] = _sum(self._sums.get(name), value)
        if num_input_tokens is not None:
            self._num_input_tokens = _sum(self._num_input_tokens, num_input_tokens)

    def state(self) -> dict[str, Any]:
        """Return the sums since the last log row, to go on from in another process."""
        return {
            "sums": {name: value.cpu() for name, value in self._sums.items()},
            "num_input_tokens": None
            if self._num_input_tokens is None
            else self._num_input_tokens.cpu(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned; the next micro-step brings its device."""
        self._sums = dict(state["sums"])
        self._num_input_tokens = state["num_input_tokens"]

    def pop_num_input_tokens(self, accelerator: Any) -> int:
        """Return the tokens that all processes read since the last call, padding left out."""
        if self._num_input_tokens is None:
            return 0
        count = accelerator.reduce(self._num_input_tokens.to(accelerator.device), "sum")
        self._num_input_tokens = None
        return int(count)

    def pop(self, accelerator: Any) -> dict[str, float]:
        r"""Return the row and start a new one: means per optimizer step, over all processes.

        ``loss = task_loss + sum of X_coef * X_loss`` holds in every row. ``X_loss`` is the mean
        over the steps in which the term was on. Where a schedule moves a coefficient within the
        row, ``X_coef`` is its mean weighted by the term, :math:`\sum_t c_t L_t / \sum_t L_t`, a
        step without the term counting as 0, so that the row still adds up.

        Entropy and accuracy are means over the tokens, or examples. Empty without a micro-step.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name].to(accelerator.device) for name in names])
        mean = dict(zip(names, accelerator.reduce(sums, "mean").tolist(), strict=True))
        self._sums = {}
        row = {"task_loss": mean["task_loss"] / mean["steps"]}
        for name in _TERMS:
            if f"{name}_loss" in mean:
                row |= _term_and_coefficient(name, mean)
        return row | _means_over_items(mean)


def _term_and_coefficient(name: str, sums: dict[str, float]) -> dict[str, float]:
    term = sums[f"{name}_loss"] / sums[f"{name}_steps"]
    # a term of exactly 0 (the consistency at the start) says nothing about its coefficient
    weighted = sums[f"{name}_product"] / term if term else sums[f"{name}_coef"]
    return {f"{name}_loss": term, f"{name}_coef": weighted / sums["steps"]}


def _means_over_items(sums: dict[str, float]) -> dict[str, float]:
    if "num_tokens" in sums:
        num_tokens = max(sums["num_tokens"], 1.0)
        return {
            "entropy": sums["entropy"] / num_tokens,
            "mean_token_accuracy": sums["num_correct"] / num_tokens,
        }
    if "num_correct" in sums:  # none of a regression
        return {"accuracy": sums["num_correct"] / max(sums["num_examples"], 1.0)}
    return {}


def _sum(total: Tensor | None, value: Tensor | float) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64).detach()
    return value if total is None else total.to(value.device) + value
