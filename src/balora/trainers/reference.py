"""The rows of the model at step 0, with which the consistency term of classification compares.

The head is new, so the pre-trained model has no logits of its own: its place is taken by the model
before the first step, in eval mode. That never changes, so its rows are computed once, are looked
up for every batch by the numbers of its rows, and lie in every checkpoint together with the head
they came from: a resumed process would start from another random one.

Shapes: ``N`` examples, ``C`` classes (1 for regression), ``F`` features.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from balora.anchored import reference_mode
from balora.anchored.residual import comparable_weights
from balora.distributed import add_up, rank_and_world, take_from
from balora.environment import is_silent
from balora.errors import ConfigError, DataError, NonFiniteError
from balora.models.digests import (
    digest_of_batches,
    digest_of_columns,
    digest_of_config,
    digest_of_tensors,
    lengths_of,
)
from balora.staging import staged_file
from balora.state import open_tensors

REFERENCE_FILE = "reference.safetensors"
"""The rows, the head they came from, and what else they depend on."""

REFERENCE_COLUMN, ROW_COLUMN = "balora_reference", "balora_row"
"""What the training batches carry beside the tokens: the reference, and the number of the row."""

LABEL_COLUMNS = ("labels", "label", "label_ids")
"""What the data collators of transformers make the labels of a batch from."""

_HEAD = "head."
_ORIGINAL = ".original_module."


class Reference(NamedTuple):
    """The rows of step 0, and what they were computed from."""

    rows: Tensor
    """Shape ``(N, C)`` or ``(N, F)``, float32, on the CPU."""
    head: dict[str, Tensor]
    """The weights that are trained in full, as they were at step 0, by name."""
    key: dict[str, str]
    """Digests of the model's config, frozen weights and tokens; the space and the precision."""


@dataclass(frozen=True, kw_only=True)
class ReferencePass:
    """How the rows of a data set are computed."""

    rows_of: Callable[[dict[str, Any]], Tensor]
    """From a batch to its rows, shape ``(B, width)``."""
    collate: Callable[[list[Any]], Any]
    """Makes a batch of examples."""
    batch_size: int
    """Examples of a pass, those of one length together."""
    width: int
    """``C`` or ``F``."""
    show_progress: bool = False
    """Whether the first process draws a bar."""


def reference_key(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    collate: Callable[[list[Any]], Any],
    space: str,
    precision: str,
) -> dict[str, str]:
    """Return what the reference of ``dataset`` depends on, beside the head.

    Args:
        model: The base model, inside any PEFT wrapper.
        dataset: Tokenized, with the columns that the data collator is given. Their order and
            content count, and the order of the rows; the labels do not.
        collate: Makes a batch of examples.
        space: ``logits`` or ``features``.
        precision: In which the passes run, such as ``no`` or ``bf16``.
    """
    check_tokenized(dataset)
    return {
        "config": digest_of_config(model),
        "weights": digest_of_tensors(comparable_weights(model)),
        "data": digest_of_columns(dataset, without=LABEL_COLUMNS),
        "batches": digest_of_batches(dataset, collate, without=LABEL_COLUMNS),
        "space": space,
        "precision": precision,
    }


def check_tokenized(dataset: Dataset) -> None:
    """Refuse data without tokens, of which no reference can be computed.

    Raises:
        DataError: If there is no column ``input_ids``.
    """
    if "input_ids" not in dataset.column_names:
        raise DataError(
            "the train data set has no column `input_ids`, it has "
            f"{', '.join(dataset.column_names)}, and the reference of the consistency term is "
            "computed before training. Tokenize the data first, or set `consistency_coef: 0`."
        )


def compute_reference(model: nn.Module, dataset: Dataset, passes: ReferencePass) -> Tensor:
    """Return the rows of the model at step 0 for every example, in the order of ``dataset``.

    Several processes each compute a share, from the head of the first. The random state is left
    as it was, so that a run draws the same numbers with and without a reference.

    Args:
        model: The base model inside its PEFT wrapper; its adapters are switched off meanwhile.
        dataset: Tokenized, with the columns that the data collator is given.
        passes: How.

    Returns:
        Shape ``(N, passes.width)``, float32, on the CPU.

    Raises:
        DataError: If there is no column ``input_ids``.
        NonFiniteError: If a row holds NaN or infinity.
    """
    check_tokenized(dataset)
    share_head(model)
    rank, num_processes = rank_and_world()
    order = np.argsort(lengths_of(dataset, "input_ids"), kind="stable")[rank::num_processes]
    size = passes.batch_size
    batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
    # with a generator of its own a loader does not draw from the run's
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=passes.collate, generator=torch.Generator()
    )
    disable = is_silent(rank > 0 or len(batches) < 2 or not passes.show_progress)
    progress = tqdm(loader, desc="Reference", unit="batch", disable=disable)
    # a sum over processes needs the device that they communicate from
    device = next(model.parameters()).device if num_processes > 1 else torch.device("cpu")
    rows = torch.zeros(len(dataset), passes.width, device=device)
    taken = inspect.signature(model.forward).parameters
    with reference_mode(model):
        for batch, indices in zip(progress, batches, strict=True):
            read = {k: v for k, v in batch.items() if k in taken and k not in LABEL_COLUMNS}
            rows[torch.tensor(indices, device=device)] = passes.rows_of(read).float().to(device)
    add_up(rows)  # every row is 0 in all processes but one
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
    for weight in initial_head(model).values():
        take_from(weight)


def save_reference(folder: Path, reference: Reference) -> None:
    """Write the reference into ``folder``, which exists; the file appears by rename."""
    head = {f"{_HEAD}{name}": weight for name, weight in reference.head.items()}
    tensors = {"rows": reference.rows, **head}
    with staged_file(folder / REFERENCE_FILE) as stage:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            stage,
            metadata=reference.key,
        )


def keep_reference(folder: Path, reference: Reference, like: Path | None) -> Path:
    """Put the reference into ``folder``, as a hard link to ``like`` where that is possible.

    Args:
        folder: The checkpoint.
        reference: What to write where there is no link.
        like: A file with the same reference, of an earlier checkpoint.

    Returns:
        The file in ``folder``.
    """
    target = folder / REFERENCE_FILE
    folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if like is not None:
        try:
            os.link(like, target)
            return target
        except OSError:  # deleted by now, another device, or a file system without links
            pass
    save_reference(folder, reference)
    return target


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
    fix = "Resume from an earlier checkpoint, or start from the beginning."
    with open_tensors(path, fix) as file:
        found = file.metadata() or {}
        other = [name for name, value in key.items() if found.get(name) != value]
        if other:
            raise ConfigError(
                f"the reference in `{folder}` was computed with other {', '.join(other)}. Resume "
                "with the model, the data and the settings the run was started with, or start "
                "from the beginning."
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


def with_row_numbers(dataset: Dataset) -> Dataset:
    """Return ``dataset`` in its own format with one more column: the number of each row."""
    old = [ROW_COLUMN] if ROW_COLUMN in dataset.column_names else []
    numbers = np.arange(len(dataset))
    return dataset.remove_columns(old).add_column(ROW_COLUMN, numbers)  # keeps the format


@dataclass(frozen=True)
class CollateRows:
    """A data collator whose batches also have the numbers of their rows and their reference."""

    collate: Callable[[list[Any]], Any]
    """The collator of everything else."""
    reference: Tensor | None = None
    """Shape ``(N, C)`` or ``(N, F)``."""

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Return the batch; examples without a number are left to ``collate``."""
        if not examples or ROW_COLUMN not in examples[0]:
            return self.collate(examples)
        numbers = torch.tensor([int(example[ROW_COLUMN]) for example in examples])
        rest = [{k: v for k, v in example.items() if k != ROW_COLUMN} for example in examples]
        batch = self.collate(rest)
        batch[ROW_COLUMN] = numbers
        if self.reference is not None:
            batch[REFERENCE_COLUMN] = self.reference[numbers]
        return batch


def _check_finite(rows: Tensor) -> None:
    bad = (~rows.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise NonFiniteError(
            f"the model gives NaN or infinity for row {int(bad[0])} of the training data before "
            "training has begun. Use bfloat16 or float32 where it is float16, or another model."
        )
