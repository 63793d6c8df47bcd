"""The log rows: every term of the objective, summed on the device and read once per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from balora.objective import Coefficients, LossTerms, TokenCounts

_TERMS = LossTerms._fields
_REGULARIZERS = LossTerms._fields[1:]


class StepLog:
    """Sums over the micro-steps since the last log row; no device sync before :meth:`pop`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0.0

    def add(
        self,
        terms: LossTerms,
        coefficients: Coefficients,
        counts: TokenCounts,
        *,
        num_input_tokens: Tensor,
        num_micro_steps: int,
    ) -> None:
        """Add one micro-step of an optimizer step of ``num_micro_steps``."""
        values = {f"{k}_loss": v for k, v in terms._asdict().items() if v is not None}
        for name, coefficient in coefficients._asdict().items():
            if f"{name}_loss" in values:
                values[f"{name}_coef"] = coefficient * values[f"{name}_loss"]
                values[f"{name}_coef_mean"] = torch.tensor(coefficient / num_micro_steps)
        values |= counts._asdict() | {"num_input_tokens": num_input_tokens}
        for name, value in values.items():
            value = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_steps += 1 / num_micro_steps

    def pop(self, accelerator: Any) -> dict[str, float]:
        r"""Return the row and start a new one: means per optimizer step, over all processes.

        ``loss = task_loss + sum of X_coef * X_loss`` holds in every row. Where a schedule moves
        a coefficient within the row, ``X_coef`` is its mean weighted by the term,
        :math:`\sum_t c_t L_t / \sum_t L_t`, so that the row still adds up.

        ``num_input_tokens`` is the sum over the row, not a mean. Empty without a micro-step.
        """
        if not self._sums:
            return {}
        names, num_steps = list(self._sums), round(self._num_steps)
        sums = torch.stack([self._sums[n].to(accelerator.device) for n in names])
        mean = dict(zip(names, accelerator.reduce(sums, "mean").tolist(), strict=True))
        self._sums, self._num_steps = {}, 0.0
        row = {f"{name}_loss": mean[f"{name}_loss"] / num_steps for name in _present(mean, _TERMS)}
        for name in _present(mean, _REGULARIZERS):
            contribution, term = mean[f"{name}_coef"], mean[f"{name}_loss"]
            row[f"{name}_coef"] = (
                contribution / term if term else mean[f"{name}_coef_mean"] / num_steps
            )
        num_tokens = max(mean["num_tokens"], 1.0)
        row["entropy"] = mean["entropy"] / num_tokens
        row["mean_token_accuracy"] = mean["num_correct"] / num_tokens
        row["num_input_tokens"] = mean["num_input_tokens"] * accelerator.num_processes
        return row


def _present(values: dict[str, float], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if f"{name}_loss" in values]
