r"""What a report shows of a run beside its figures: spectra, sizes of updates, samples, curves.

Shapes: ``M`` response tokens, ``D`` hidden size, ``V`` vocabulary, ``O`` and ``I`` output and input
features of a layer, ``R`` rank of its update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.anchored import difference_factors, lora_layers, only_adapter
from balora.anchored.layer import is_anchored
from balora.errors import ConfigError
from balora.evaluation.batches import (
    Row,
    encode,
    evaluating,
    in_batches,
    right_padded,
)
from balora.evaluation.inheritance import MeasureOptions, generate
from balora.fused.spectral import HeadFactor
from balora.models.adapter import inner_model
from balora.models.generation import padding_id
from balora.models.head import LMHead, check_head, head_of
from balora.models.limits import max_positions
from balora.objective import next_token_targets
from balora.regularizers.spectral import evenly_spaced_rows, singular_values
from balora.state import damaged, read_json

STATE_FILE = "trainer_state.json"
"""Transformers' own name for the log and the state of a run."""

_BATCH_SIZE = 8
_BLOCK_ELEMENTS = 2**24
"""Entries of a weight held in float64 at a time (128 MiB)."""


class _Chosen(NamedTuple):
    """A row and which of its response tokens count."""

    row: Row
    kept: Tensor


@torch.no_grad()
def logit_spectrum(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    max_tokens: int = 512,
    top: int = 64,
) -> list[float]:
    r"""Return the leading singular values of the logits of the response tokens.

    Of the matrix :math:`Z`, ``(M, V)``, that the SVD term of the objective rewards the structure
    of: one row for each response token, the logits that predict it, before a soft cap. Where there
    are more than ``max_tokens``, evenly spaced ones count, so that two models are compared on the
    same tokens. The values are found from the hidden states (:class:`balora.fused.HeadFactor`);
    where a head is adapted itself, or makes its logits in another way, from the logits as the model
    gives them, after a soft cap.

    Args:
        model: A causal language model, with adapters or without.
        tokenizer: Its tokenizer.
        pairs: Prompts and completions; at least one.
        max_tokens: Largest M, 1 or greater.
        top: How many values to return at most, 1 or greater.

    Returns:
        Descending, 0 or greater, in units of the logits; at most ``top``, and no more than there
        are tokens or than the logits can have a rank.

    Raises:
        ValueError: If ``pairs`` is empty, or ``max_tokens`` or ``top`` is below 1.
    """
    if not pairs:
        raise ValueError("`pairs` is empty: there are no response tokens to take a spectrum of.")
    _check_positive(max_tokens=max_tokens, top=top)
    limit = max_positions(model)
    chosen = _chosen_tokens([encode(tokenizer, *pair, limit) for pair in pairs], max_tokens)
    with evaluating(model):
        first = torch.tensor(chosen[0].row.input_ids, device=model.device)[None]
        head = _frozen_head(model, first)
        batches = in_batches(chosen, _BATCH_SIZE, "Reading logits")
        states = torch.cat(
            [_states(model, head, batch, padding_id(tokenizer)) for batch in batches]
        )
    values = singular_values(states) if head is None else HeadFactor(head).singular_values(states)
    return [float(value) for value in values[:top].tolist()]


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be 1 or greater, got {count}.")


def _chosen_tokens(rows: Sequence[Row], max_tokens: int) -> list[_Chosen]:
    """Return evenly spaced response tokens of all rows together, with the rows that hold any."""
    counts = [len(row.input_ids) - row.num_prompt for row in rows]
    kept = torch.zeros(sum(counts), dtype=torch.bool)
    kept[evenly_spaced_rows(len(kept), max_tokens)] = True
    parts = zip(rows, torch.split(kept, counts), strict=True)
    return [_Chosen(row, part) for row, part in parts if part.any()]


def _states(
    model: PreTrainedModel, head: LMHead | None, batch: Sequence[_Chosen], pad_id: int
) -> Tensor:
    """Return the hidden states that predict the chosen tokens, the logits without a head."""
    input_ids, labels, attention_mask = right_padded([chosen.row for chosen in batch], pad_id)
    for line, (row, kept) in zip(labels, batch, strict=True):
        line[row.num_prompt : len(row.input_ids)][~kept] = -100
    mask, _ = next_token_targets(labels)
    inputs = {
        "input_ids": input_ids.to(model.device),
        "attention_mask": attention_mask.to(model.device),
        "use_cache": False,
    }
    if head is None:
        states: Tensor = model(**inputs).logits
    else:
        states = inner_model(model).base_model(**inputs).last_hidden_state
    return states[mask.to(states.device)]


def _frozen_head(model: PreTrainedModel, input_ids: Tensor) -> LMHead | None:
    """Return the head, without a gradient, where the logits are its own of the hidden states."""
    plain = inner_model(model)
    if isinstance(plain.get_output_embeddings(), BaseTunerLayer | AuxiliaryTrainingWrapper):
        return None
    try:
        check_head(plain, input_ids)
    except ConfigError:  # a model that is trained is refused; here its logits do as well
        return None
    head = head_of(plain)
    bias = None if head.bias is None else head.bias.detach()
    return replace(head, weight=head.weight.detach(), bias=bias)


@torch.no_grad()
def update_sizes(tuned: PreTrainedModel, base: PreTrainedModel) -> list[dict[str, Any]]:
    r"""Return how much fine-tuning changed each weight matrix, relative to the matrix itself.

    .. math:: \lVert W_{tuned} - W \rVert_F \, / \, \lVert W \rVert_F

    in float64. Of an adapter the difference is :math:`s B A` (anchored:
    :math:`s (B A - B_0 A_0)`), whose norm is found from the factors: with :math:`B = Q_B R_B` and
    :math:`A^\top = Q_A R_A` it is that of the small :math:`s R_B R_A^\top`.

    Args:
        tuned: A PEFT model with one LoRA adapter, anchored or not, or a whole model.
        base: The pre-trained model without adapters, of the same architecture.

    Returns:
        One mapping a layer, in the order of the model: ``layer``, its name in the base model, and
        ``relative``, 0 or greater. With an adapter every adapted layer and every matrix that was
        trained in full beside it; of a whole model the matrices (two dimensions or more) that
        changed at all. A matrix that the base does not have, or that is 0 there, is left out.

    Raises:
        ValueError: If a matrix has another shape in the base, or a layer has a LoRA of a kind
            whose update is not :math:`s B A` (DoRA).
        ConfigError: If ``tuned`` carries several adapters, or one that is no LoRA.
    """
    if isinstance(tuned, PeftModel):
        changes = _adapter_changes(tuned, base)
    else:
        ours, theirs = dict(tuned.named_parameters()), dict(base.named_parameters())
        changes = ((n, c, s) for n, c, s in _full_changes(ours, theirs) if c != 0)
    return [
        {"layer": name, "relative": change / size} for name, change, size in changes if size != 0
    ]


def _full_changes(
    tuned: dict[str, Tensor], base: dict[str, Tensor]
) -> Iterator[tuple[str, float, float]]:
    """Yield layer, norm of the difference and norm of the base for the matrices of both."""
    for name, weight in tuned.items():
        if weight.dim() < 2 or name not in base:
            continue
        if weight.shape != base[name].shape:
            raise ValueError(
                f"`{name}` has shape {tuple(weight.shape)} after fine-tuning and "
                f"{tuple(base[name].shape)} in the base, so they are not one model's."
            )
        change = _norm(weight, base[name])
        yield name.removesuffix(".weight"), change, _norm(base[name])


def _adapter_changes(tuned: PeftModel, base: PreTrainedModel) -> Iterator[tuple[str, float, float]]:
    adapter = only_adapter(tuned)
    for name, layer in lora_layers(tuned):
        weight = dequantize_module_weight(base.get_submodule(name))
        yield name, _update_norm(name, layer, adapter), _norm(weight)
    theirs = dict(base.named_parameters())
    for name, module in tuned.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            own = module.modules_to_save[adapter].named_parameters()
            yield from _full_changes({f"{name}.{key}": value for key, value in own}, theirs)


def _update_norm(name: str, layer: Any, adapter: str) -> float:
    """Return the Frobenius norm of what the adapter of one layer adds to its weight."""
    if is_anchored(layer, adapter):
        down, up = difference_factors(layer, adapter)
    elif (variant := layer.lora_variant.get(adapter)) is not None:
        raise ValueError(
            f"`{name}` has a LoRA of the kind {type(variant).__name__}, whose update is not the "
            "product of B and A. Merge it and compare the whole models."
        )
    elif adapter in layer.lora_embedding_A:
        down, up = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    else:
        down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    r_up = torch.linalg.qr(up.flatten(1).double(), mode="r").R
    r_down = torch.linalg.qr(down.flatten(1).double().mT, mode="r").R
    product = r_up @ r_down.mT * layer.scaling[adapter]
    return float(torch.linalg.matrix_norm(product))


def _norm(weight: Tensor, other: Tensor | None = None) -> float:
    """Return the Frobenius norm of a weight, less another one, without a float64 copy of it."""
    block = max(_BLOCK_ELEMENTS // max(weight[0].numel(), 1), 1)
    total = 0.0
    for start in range(0, len(weight), block):
        rows = slice(start, start + block)
        values = weight[rows].double()
        if other is not None:
            values = values - other[rows].to(weight.device).double()
        total += float(values.square().sum())
    return math.sqrt(total)


def sample_pairs(
    tuned: PreTrainedModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    num: int = 5,
    max_new_tokens: int = 256,
) -> list[dict[str, str]]:
    """Return what both models answer to a few prompts, greedily, beside the gold answer.

    Args:
        tuned: The fine-tuned model.
        base: The pre-trained model.
        tokenizer: Of both.
        pairs: Prompts and completions.
        num: How many, evenly spaced from the first on; 1 or greater.
        max_new_tokens: Longest answer.

    Returns:
        Mappings with ``prompt``, ``gold``, ``before`` (the pre-trained model) and ``after``; the
        answers without the space around them. Empty for no pairs.

    Raises:
        ValueError: If ``num`` is below 1.
    """
    _check_positive(num=num)
    chosen = [pairs[i] for i in evenly_spaced_rows(len(pairs), num).tolist()]
    if not chosen:
        return []
    options = MeasureOptions(max_new_tokens=max_new_tokens)
    prompts = [prompt for prompt, _ in chosen]
    with evaluating(tuned), evaluating(base):
        before, after = (
            generate(model, tokenizer, prompts, options=options) for model in (base, tuned)
        )
    return [
        {"prompt": prompt, "gold": gold.strip(), "before": one.strip(), "after": other.strip()}
        for (prompt, gold), one, other in zip(chosen, before, after, strict=True)
    ]


def learning_curves(run: Path) -> list[dict[str, float]]:
    """Return the logged training losses of a run: the whole, the task's and each term's.

    Args:
        run: The folder that `balora train` left.

    Returns:
        One mapping a log row that holds a training loss, in order: ``step``, ``loss``,
        ``task_loss`` and the unweighted terms that were on (``consistency_loss``,
        ``diversity_loss``, ``svd_loss``). Empty when nothing was logged.

    Raises:
        ConfigError: If the folder has no such log, or one that cannot be read.
    """
    path = run / STATE_FILE
    if not path.is_file():
        raise ConfigError(f"`{run}` has no {STATE_FILE}; name the folder of a finished run.")
    fix = "Name the folder of another run, or train it again."
    history = read_json(path, fix, fields={"log_history": list})["log_history"]
    if not all(isinstance(row, dict) for row in history):
        raise damaged(path, "is damaged: `log_history` has no rows", fix)
    return [
        {"step": row["step"], **{n: row[n] for n in row if n == "loss" or n.endswith("_loss")}}
        for row in history
        if "loss" in row
    ]
