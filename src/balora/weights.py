"""What stands for the weights of a model: a digest of their names, dtypes, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return 64 hexadecimal digits; the order of the names makes no difference."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()
