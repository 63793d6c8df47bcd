"""Whether every weight of a model is a finite number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from balora.errors import ConfigError
from balora.models.quantization import stored_tensors


def check_finite(model: nn.Module, what: str) -> None:
    """Refuse a model with a NaN or an infinite weight, naming the tensor.

    One pass over the weights, without a copy: about 0.05 s a gigabyte on one CPU core.

    Args:
        model: After loading.
        what: The model or adapter in the words of the user, the subject of the message.

    Raises:
        ConfigError: For the first such tensor.
    """
    name = first_not_finite(stored_tensors(model))
    if name is not None:
        raise ConfigError(
            f"{what} has a weight that is NaN or infinite, in `{name}`. Load another checkpoint, "
            "or set `dtype: float32` where a half-precision type has overflowed."
        )


@torch.no_grad()
def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, None without one."""
    checked = [(name, tensor) for name, tensor in tensors if _has_numbers(tensor)]
    # the largest and the smallest entry are NaN where any is; asked for all at once, because each
    # answer of an accelerator is waited for
    extremes = [torch.stack(torch.aminmax(tensor.detach())).float() for _, tensor in checked]
    for device in {extreme.device for extreme in extremes}:
        here = [i for i, extreme in enumerate(extremes) if extreme.device == device]
        is_finite = torch.stack([extremes[i] for i in here]).isfinite().all(dim=1).tolist()
        for i, fine in zip(here, is_finite, strict=True):
            if not fine:
                return checked[i][0]
    return None


def _has_numbers(tensor: Tensor) -> bool:
    # types of one byte are quantised, and their scales are asked; a meta tensor has no numbers yet
    is_float = tensor.is_floating_point() and tensor.element_size() > 1
    has_own = not tensor.is_meta and any(tensor.stride() or (1,))  # a blank one is a single zero
    return is_float and tensor.numel() > 0 and has_own
