"""What the fused objective asks of its inputs: shapes, dtypes, range, and no NaN.

Shapes: ``M`` tokens, ``D`` hidden size, ``V`` vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from balora.errors import NonFiniteError
from balora.models.head import LMHead


def check_inputs(
    hidden: Tensor, reference_hidden: Tensor | None, targets: Tensor, head: LMHead
) -> None:
    """Refuse inputs that do not fit together, targets out of range and non-finite numbers.

    Raises:
        ValueError: Naming the argument, its value and what it should be.
        NonFiniteError: If a hidden state is NaN or infinite.
    """
    check_frozen(head)
    _check_shapes(hidden, reference_hidden, targets, head)
    _check_dtypes(hidden, reference_hidden, targets, head)
    _check_targets(targets, len(head.weight))
    _check_finite("hidden", hidden)
    if reference_hidden is not None:
        _check_finite("reference_hidden", reference_hidden)


def check_frozen(head: LMHead) -> None:
    """Refuse a head that is trained: its own gradient would be missing, and silently.

    Raises:
        ValueError: If the weight or the bias requires a gradient.
    """
    if head.is_trained:
        raise ValueError(
            "the head requires a gradient, but the fused objective gives it none. Freeze it, or "
            "use `balora.objective.nlg_objective`."
        )


def _check_shapes(
    hidden: Tensor, reference_hidden: Tensor | None, targets: Tensor, head: LMHead
) -> None:
    vocab_size, hidden_size = head.weight.shape
    if hidden.dim() != 2 or hidden.shape[1] != hidden_size:
        raise ValueError(
            f"`hidden` has shape {tuple(hidden.shape)}, but a head of shape "
            f"{(vocab_size, hidden_size)} needs one row of {hidden_size} for each token that "
            "counts. Drop masked positions and flatten the rest first."
        )
    if reference_hidden is not None and reference_hidden.shape != hidden.shape:
        raise ValueError(
            f"`reference_hidden` has shape {tuple(reference_hidden.shape)}, but `hidden` has "
            f"shape {tuple(hidden.shape)}. Both must hold the same tokens."
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"`targets` has shape {tuple(targets.shape)}, but `hidden` has {len(hidden)} rows. "
            "Each row needs the one token that it predicts."
        )
    if head.bias is not None and head.bias.shape != (vocab_size,):
        raise ValueError(
            f"the head's bias has shape {tuple(head.bias.shape)}, but its weight has "
            f"{vocab_size} rows. Both must cover the same vocabulary."
        )


def _check_dtypes(
    hidden: Tensor, reference_hidden: Tensor | None, targets: Tensor, head: LMHead
) -> None:
    if targets.dtype != torch.int64:
        raise ValueError(f"`targets` must be int64 token ids, got {targets.dtype}.")
    if torch.is_autocast_enabled(hidden.device.type):
        return  # the products run in autocast's dtype whatever comes in
    others = {"reference_hidden": reference_hidden, "the head's weight": head.weight}
    for name, other in others.items():
        if other is not None and other.dtype != hidden.dtype:
            raise ValueError(
                f"`hidden` is {hidden.dtype}, but {name} is {other.dtype}. Cast one of them, or "
                "run under `torch.autocast`."
            )


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    if len(targets) == 0:
        return
    least, greatest = torch.stack(torch.aminmax(targets)).tolist()
    if least < 0 or greatest >= vocab_size:
        raise ValueError(
            f"`targets` holds {least if least < 0 else greatest}, but the head has tokens 0 to "
            f"{vocab_size - 1}. Drop the positions that do not count (label -100) together with "
            "their hidden states: `balora.objective.next_token_targets`."
        )


def _check_finite(name: str, rows: Tensor) -> None:
    bad = int((~rows.isfinite()).any(dim=1).sum())
    if bad:
        raise NonFiniteError(
            f"`{name}` holds NaN or infinity in {bad} of its {len(rows)} rows, so the model has "
            "diverged or overflowed. Lower the learning rate, or train in bfloat16 or float32 "
            "where it is float16."
        )


def check_terms(terms: dict[str, Tensor | None]) -> None:
    """Refuse a term that is NaN or infinite although the hidden states are finite.

    Raises:
        NonFiniteError: Naming the terms.
    """
    on = {name: term.detach() for name, term in terms.items() if term is not None}
    if not on:
        return
    finite = torch.stack([term.isfinite() for term in on.values()]).tolist()
    bad = [name for name, is_finite in zip(on, finite, strict=True) if not is_finite]
    if bad:
        raise NonFiniteError(
            f"NaN or infinity in the loss ({', '.join(bad)}) although the hidden states are "
            "finite. Look for NaN or infinity in the head, and for float16, whose logits overflow "
            "beyond 65504: use bfloat16 or float32."
        )
