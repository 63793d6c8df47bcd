"""The rows of the model at step 0, with which the consistency term of classification compares.

The head is new, so the pre-trained model has no logits of its own: its place is taken by the model
before the first step, in eval mode. That never changes, so its rows are computed once, ride along
as a column of the training data, and lie beside the checkpoints together with the head they came
from: a resumed process would start from another random one.

Shapes: ``N`` examples, ``C`` classes (1 for regression), ``F`` features.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset, concatenate_datasets
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from balora.anchored import reference_mode
from balora.errors import ConfigError, NonFiniteError

REFERENCE_FILE = "reference.safetensors"
"""The rows, the head they came from, and what else they depend on."""

REFERENCE_COLUMN, ROW_COLUMN = "reference", "row"
"""What the training data carry beside the tokens: the reference, and the number of the row."""

_HEAD = "head."
_ORIGINAL = ".original_module."


class Reference(NamedTuple):
    """The rows of step 0, and what they were computed from."""

    rows: Tensor
    """Shape ``(N, C)`` or ``(N, F)``, float32, on the CPU."""
    head: dict[str, Tensor]
    """The weights that are trained in full, as they were at step 0, by name."""
    key: dict[str, str]
    """Digests of the frozen weights and of the tokens, the space and the precision."""


def reference_key(
    model: nn.Module, dataset: Dataset, *, space: str, precision: str
) -> dict[str, str]:
    """Return what the reference of ``dataset`` depends on, beside the head.

    Args:
        model: The base model, inside any PEFT wrapper.
        dataset: Tokenized; only what the model reads counts, not the labels.
        space: ``logits`` or ``features``.
        precision: In which the passes run, such as ``no`` or ``bf16``.
    """
    weights = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and _ORIGINAL not in name
    }
    return {
        "weights": _digest_of_tensors(weights),
        "data": _digest_of_columns(dataset, input_columns(model, dataset)),
        "space": space,
        "precision": precision,
    }


def input_columns(model: nn.Module, dataset: Dataset) -> list[str]:
    """Return the columns of ``dataset`` that the model's forward takes, labels left out."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in dataset.column_names if name in taken and name != "labels"]


def compute_reference(
    model: nn.Module,
    dataset: Dataset,
    *,
    rows_of: Callable[[dict[str, Any]], Tensor],
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    width: int,
) -> Tensor:
    """Return the rows of the model at step 0 for every example, in the order of ``dataset``.

    Several processes each compute a share, from the head of the first.

    Args:
        model: The base model inside its PEFT wrapper; its adapters are switched off meanwhile.
        dataset: Tokenized.
        rows_of: From a batch to its rows, shape ``(B, width)``.
        collate: Makes a batch of examples.
        batch_size: Examples of a pass, those of one length together.
        width: ``C`` or ``F``.

    Returns:
        Shape ``(N, width)``, float32, on the CPU.

    Raises:
        NonFiniteError: If a row holds NaN or infinity.
    """
    share_head(model)
    rank, num_processes = _rank_and_world()
    plain = dataset.select_columns(input_columns(model, dataset))
    order = np.argsort(_lengths(plain, "input_ids"), kind="stable")[rank::num_processes]
    batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
    loader = DataLoader(plain, batch_sampler=batches, collate_fn=collate)
    device = next(model.parameters()).device
    rows = torch.zeros(len(dataset), width, device=device)
    with reference_mode(model):
        progress = tqdm(
            loader, desc="Reference", unit="batch", disable=rank > 0 or len(batches) < 2
        )
        for batch, indices in zip(progress, batches, strict=True):
            rows[torch.tensor(indices, device=device)] = rows_of(batch).float()
    if num_processes > 1:  # every row is 0 in all processes but one
        dist.all_reduce(rows)
    _check_finite(rows)
    return rows.cpu()


def initial_head(model: nn.Module) -> dict[str, Tensor]:
    """Return the modules that are trained in full as they were at step 0: PEFT keeps them."""
    return {
        name.replace(_ORIGINAL, "."): parameter.data
        for name, parameter in model.named_parameters()
        if _ORIGINAL in name
    }


def share_head(model: nn.Module) -> None:
    """Give every process the initial head of the first; they may have drawn different ones."""
    if _rank_and_world()[1] > 1:
        for weight in initial_head(model).values():
            dist.broadcast(weight, 0)


def save_reference(folder: Path, reference: Reference) -> None:
    """Write the reference into ``folder``; the file appears by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {f"{_HEAD}{name}": weight for name, weight in reference.head.items()}
    tensors = {"rows": reference.rows, **head}
    stage = folder / f".tmp-{REFERENCE_FILE}"
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        stage,
        metadata=reference.key,
    )
    os.replace(stage, folder / REFERENCE_FILE)


def link_reference(source: Path, folder: Path) -> None:
    """Put the file of ``source`` into ``folder`` too: as a hard link where that is possible."""
    target = folder / REFERENCE_FILE
    target.unlink(missing_ok=True)
    try:
        os.link(source / REFERENCE_FILE, target)
    except OSError:  # another device, or a file system without links
        shutil.copy2(source / REFERENCE_FILE, target)


def load_reference(folder: Path, model: nn.Module, key: dict[str, str]) -> Reference:
    """Read the reference of a checkpoint and put its head back into ``model``.

    Args:
        folder: The checkpoint.
        model: The base model inside its PEFT wrapper.
        key: What the reference would be computed from now, see :func:`reference_key`.

    Raises:
        ConfigError: If there is none, or it was computed from something else.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        raise ConfigError(
            f"`{folder}` has no {REFERENCE_FILE}, so the head that the consistency term started "
            "from is lost. Start from the beginning, or set `consistency_coef: 0`."
        )
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
        other = [name for name, value in key.items() if found.get(name) != value]
        if other:
            raise ConfigError(
                f"the reference in `{folder}` belongs to other settings than these: "
                f"{', '.join(other)}. Resume with the model, the data and the settings the run "
                "was started with."
            )
        names = [name for name in file.keys() if name.startswith(_HEAD)]
        head = {name.removeprefix(_HEAD): file.get_tensor(name) for name in names}
        rows = file.get_tensor("rows")
    _set_head(model, head, folder)
    return Reference(rows, head, found)


def _set_head(model: nn.Module, head: dict[str, Tensor], folder: Path) -> None:
    own = initial_head(model)
    expected = {name: tuple(weight.shape) for name, weight in own.items()}
    if expected != {name: tuple(weight.shape) for name, weight in head.items()}:
        raise ConfigError(
            f"the head in `{folder}` ({', '.join(head)}) is not that of the model "
            f"({', '.join(own)}). Resume with the model the run was started with."
        )
    for name, weight in own.items():
        weight.copy_(head[name])


def add_columns(dataset: Dataset, rows: Tensor | None) -> Dataset:
    """Return ``dataset`` with the number of each row and, where given, its reference."""
    old = [name for name in (REFERENCE_COLUMN, ROW_COLUMN) if name in dataset.column_names]
    columns: dict[str, Any] = {ROW_COLUMN: np.arange(len(dataset))}
    if rows is not None:
        columns[REFERENCE_COLUMN] = rows.numpy()
    return concatenate_datasets([dataset.remove_columns(old), Dataset.from_dict(columns)], axis=1)


def _rank_and_world() -> tuple[int, int]:
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _check_finite(rows: Tensor) -> None:
    bad = (~rows.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise NonFiniteError(
            f"the model gives NaN or infinity for row {int(bad[0])} of the training data before "
            "training has begun. Use bfloat16 or float32 where it is float16, or another model."
        )


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _digest_of_columns(dataset: Dataset, columns: list[str]) -> str:
    """Digest the tokens themselves: a fingerprint of ``datasets`` differs between processes."""
    digest = hashlib.sha256(f"{columns} {len(dataset)}".encode())
    for name in columns:
        for lists in _lists(dataset, name):
            digest.update(lists.value_lengths().to_numpy().astype(np.int64).data)
            digest.update(lists.flatten().to_numpy().astype(np.int64).data)
    return digest.hexdigest()


def _lengths(dataset: Dataset, column: str) -> Any:
    return np.concatenate([lists.value_lengths().to_numpy() for lists in _lists(dataset, column)])


def _lists(dataset: Dataset, column: str) -> Iterator[Any]:
    """Yield a column of lists as Arrow's list arrays."""
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        yield table[column].combine_chunks()
