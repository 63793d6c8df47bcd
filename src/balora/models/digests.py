"""Digests: whether rows, weights and batches are the same as when they were recorded.

Of the values themselves, so that another process, another file or another way of storing the same
values gives the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.models.quantization import stored_tensors

_ORIGINAL = ".original_module."
_NUM_SAMPLES = 4096
"""Values of a weight that enter the digest of a base model."""

_WEIGHT_FILES = (".safetensors", ".bin")
_NUM_PIECES, _PIECE = 256, 1 << 16
"""Pieces of a file of weights that enter its digest, and their bytes."""

_NUM_EXAMPLES, _BATCH = 64, 8
"""Examples that are collated for a digest, and how many at once."""

_NOT_IN_FORWARD = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Fields of a model's config on which its logits do not depend (the dtype is in the weights)."""


def digest_of_config(model: PreTrainedModel) -> str:
    """Return a digest of what the forward pass of ``model`` depends on beside its weights."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_IN_FORWARD}
    described = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a base model that are not trained, under their own names.

    Of a quantised one these are its numbers and their scales.
    """
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in stored_tensors(model, buffers=False)
        if not tensor.requires_grad and _ORIGINAL not in name
    }


def digest_of_samples(
    tensors: Mapping[str, Tensor], full: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> str:
    """Return a digest of evenly spaced values of each tensor: of a large model, in a moment.

    Another model, revision or dtype has another one; a change of single values may not.

    Args:
        tensors: By name.
        full: From a tensor that is split over processes to the whole one.
    """
    samples = {}
    for name, tensor in tensors.items():
        values = full(tensor)
        flat = values.detach().reshape(-1)
        step = max(len(flat) // _NUM_SAMPLES, 1)
        samples[f"{name} {tuple(values.shape)}"] = flat[::step].clone()
    return digest_of_tensors(samples)


def digest_of_weight_files(folder: Path) -> str:
    """Return a digest of the files of weights in a folder, of large ones by evenly spaced pieces.

    Their names and places count for nothing, so that a copy of the folder has the same.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.suffix in _WEIGHT_FILES):
        size = file.stat().st_size
        digest.update(f"{file.suffix} {size}".encode())
        with file.open("rb") as content:
            for start in range(0, size, max(size // _NUM_PIECES, _PIECE)):
                content.seek(start)
                digest.update(content.read(_PIECE))
    return digest.hexdigest()[:16]


def digest_of_batches(
    dataset: Dataset, collate: Callable[[list[Any]], Any], *, without: Collection[str] = ()
) -> str:
    """Return a digest of what a data collator makes of evenly spaced rows and of the longest.

    Args:
        dataset: Tokenized, with the columns that the data collator is given.
        collate: Makes a batch of examples; it may draw random numbers, which the run does not
            notice.
        without: What of a batch does not count.
    """
    numbers = set(range(0, len(dataset), max(len(dataset) // _NUM_EXAMPLES, 1)))
    if "input_ids" in dataset.column_names and len(dataset):
        numbers.add(int(np.argmax(lengths_of(dataset, "input_ids"))))
    chosen = sorted(numbers)
    digest = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for start in range(0, len(chosen), _BATCH):
            batch = collate([dataset[number] for number in chosen[start : start + _BATCH]])
            read = {k: v for k, v in batch.items() if k not in without}
            tensors = {k: v for k, v in read.items() if isinstance(v, Tensor)}
            digest.update(digest_of_tensors(tensors).encode())
            digest.update(repr([(k, v) for k, v in read.items() if k not in tensors]).encode())
    return digest.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def digest_of_columns(dataset: Dataset, *, without: Collection[str] = ()) -> str:
    """Return a digest of the rows in their order; how Arrow stores them is no matter.

    Of the values themselves: a fingerprint of ``datasets`` differs between processes.

    Args:
        dataset: With the columns that count, in their order.
        without: Columns that do not.
    """
    columns = [name for name in dataset.column_names if name not in without]
    digest = hashlib.sha256(f"{columns} {len(dataset)}".encode())
    for name in columns:
        for array in _arrays(dataset, name):
            while pa.types.is_list(array.type) or _is_other_list(array.type):
                digest.update(_list_lengths(array).data)
                array = array.flatten()
            digest.update(_bytes_of(array))
    return digest.hexdigest()


def _is_other_list(kind: Any) -> bool:
    return bool(pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _bytes_of(array: Any) -> bytes:
    """Return values as bytes, whole numbers in one width: how wide they lie depends on the file."""
    is_integer = pa.types.is_integer(array.type)
    if array.null_count or not (is_integer or pa.types.is_floating(array.type)):
        return repr(array.to_pylist()).encode()
    kind = np.int64 if is_integer else np.float64
    values: bytes = array.to_numpy(zero_copy_only=False).astype(kind).tobytes()
    return values


def lengths_of(dataset: Dataset, column: str) -> Any:
    """Return the lengths of the lists in a column, shape ``(N,)``, -1 for a null."""
    return np.concatenate([_list_lengths(array) for array in _arrays(dataset, column)])


def _list_lengths(array: Any) -> Any:
    lengths = pc.fill_null(pc.list_value_length(array), -1)
    return np.ascontiguousarray(lengths.to_numpy(zero_copy_only=False).astype(np.int64))


def _arrays(dataset: Dataset, column: str) -> Iterator[Any]:
    """Yield a column in pieces, as Arrow's arrays."""
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        yield table[column].combine_chunks()
