"""Sequence classification models: load one, know its new parameters, its head and its layers.

Shapes: ``M`` examples, ``S`` positions, ``C`` classes (1 for regression), ``F`` features.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from balora.errors import ConfigError
from balora.models.finite import check_finite
from balora.models.load import from_pretrained, load_config, load_tokenizer, refuse_missing
from balora.models.source import ModelSource

logger = logging.getLogger(__name__)

_WRAPPERS = re.compile(r"\.(original_module|base_layer|modules_to_save\.[^.]+)(?=\.|$)")
"""What PEFT puts into the name of a module that it trains in full, or adapts."""

_IN_A_LAYER = re.compile(r"\.\d+\.")


class LoadedClassifier(NamedTuple):
    """A classification model, and which of its modules have to be trained in full."""

    model: PreTrainedModel
    new_modules: tuple[str, ...]
    """The head, and every module that loading gave random weights, as ``modules_to_save``."""


def load_classifier(
    name: str | ModelSource,
    *,
    class_names: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> LoadedClassifier:
    """Load a model for sequence classification, or for regression, with its head.

    Args:
        name: A hub id or a folder, or a source, which says how it is loaded.
        class_names: The classes in the order of their indices; ``None`` for regression.
        tokenizer: Of the model; by default the one of that name. Without a padding token it gets
            its end-of-text token as one; it pads on the right from now on, for XLNet on the left.
        ignore_mismatched_sizes: Whether a head for another number of classes is replaced.
        **kwargs: As for ``from_pretrained``; none beside a source.

    Returns:
        The model in eval mode, and the modules to train and save in full: the head, and the
        smallest set that holds every parameter which the checkpoint does not have.

    Raises:
        ConfigError: If the checkpoint cannot be loaded, has a head for another number of classes,
            lacks a weight or has one that is not finite, the tokenizer has no token to pad with,
            or there are fewer than two classes.
    """
    if class_names is not None and len(class_names) < 2:
        raise ConfigError(
            f"`class_names` is {list(class_names)}, but a classifier needs two classes or more. "
            "Name them, or pass None for regression."
        )
    source = name if isinstance(name, ModelSource) else ModelSource.of_arguments(name, kwargs)
    tokenizer = load_tokenizer(source) if tokenizer is None else tokenizer
    set_pad_token(tokenizer, load_config(source))
    if not ignore_mismatched_sizes:
        _check_own_head(source, class_names)
    names = dict(enumerate(class_names)) if class_names is not None else {0: "LABEL_0"}
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        source,
        id2label=names,  # which says how many there are
        label2id={label: index for index, label in names.items()},
        problem_type="regression" if class_names is None else "single_label_classification",
    )
    refuse_missing(model, info, source, but=_may_be_new(model, ignore_mismatched_sizes))
    check_finite(model, source.words)
    align_pad_token(model, tokenizer)
    random = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    return LoadedClassifier(model, _modules_to_train(model, random))


def _may_be_new(model: PreTrainedModel, new_head: bool) -> Callable[[str, bool], bool]:
    """Return which weights a checkpoint need not have: those outside of the encoder's layers.

    A pooler or a head is drawn anew where a checkpoint of another task has none. A layer is not:
    there a checkpoint is incomplete. A head of another size is drawn anew where that is asked for.
    """
    body = {id(parameter) for parameter in model.base_model.parameters()}
    outside = {name for name, p in model.named_parameters() if id(p) not in body}

    def may_be_new(name: str, is_missing: bool) -> bool:
        if not is_missing:
            return new_head and name in outside
        return name in outside or not _IN_A_LAYER.search(name)

    return may_be_new


def _check_own_head(source: ModelSource, class_names: Sequence[str] | None) -> None:
    """Refuse a checkpoint whose own head does not fit; say when its classes have another order."""
    config = load_config(source)
    if not any("ForSequenceClassification" in kind for kind in config.architectures or ()):
        return
    num_classes = 1 if class_names is None else len(class_names)
    if config.num_labels != num_classes:
        raise ConfigError(
            f"{source.words} has a head for {config.num_labels} classes already, but the data need "
            f"{num_classes}. Name the model without that head, or set "
            "`ignore_mismatched_sizes: true` to start with a new one."
        )
    own = [str(config.id2label[index]).lower() for index in range(num_classes)]
    wanted = [str(label).lower() for label in class_names or own]
    if own != wanted and set(own) == set(wanted):
        logger.warning(
            "the head of %s knows its classes in the order %s, the data have %s: it starts with "
            "them mixed up",
            source.name,
            ", ".join(own),
            ", ".join(wanted),
        )


def set_pad_token(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig | None = None
) -> None:
    """Let a tokenizer pad: with its end-of-text token if it has no other, and on the right.

    XLNet classifies by the last position, whatever is there, so its rows are padded on the left;
    its positions are relative, and padding shifts none of them.

    Args:
        tokenizer: Changed in place.
        config: Of the model; None for one that pools the last token that is no padding.

    Raises:
        ConfigError: If it has neither token, or the model would classify padding on either side.
    """
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                "the tokenizer has neither a padding nor an end-of-text token, so rows of "
                "different lengths cannot be put into a batch. Set `tokenizer.pad_token`."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    # the summary of the other types is of a position that padding on the right does not move
    if getattr(config, "summary_type", None) in ("last", "mean") and config is not None:
        if config.model_type != "xlnet" or config.summary_type != "last":
            raise ConfigError(
                f"a `{config.model_type}` with `summary_type` {config.summary_type!r} takes "
                "padding into its classification, so results would depend on the batch size. Name "
                "a model of another architecture."
            )
        tokenizer.padding_side = "left"


def align_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell ``model`` what ``tokenizer`` pads with: a decoder pools the last token before it.

    RoBERTa and its kin are left alone. They count positions from the padding token they were built
    with, so that a config with another one would give the model other positions when it is loaded.
    """
    if not _counts_from_padding(model):
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _counts_from_padding(model: PreTrainedModel) -> bool:
    return any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )


def _modules_to_train(model: PreTrainedModel, random: set[str]) -> tuple[str, ...]:
    """Return the head and the largest modules of which every parameter is in ``random``."""
    parameters = {name for name, _ in model.named_parameters()}

    def is_random(module: str) -> bool:
        return all(name in random for name in parameters if name.startswith(f"{module}."))

    head = head_name(model).split(".")[0]
    found = {head: None}
    for parameter in sorted(random & parameters):
        module = parameter.rpartition(".")[0]
        while (parent := module.rpartition(".")[0]) and is_random(parent):
            module = parent
        if module != head and not module.startswith(f"{head}."):
            found[module] = None
    return tuple(found)


def head_name(model: PreTrainedModel) -> str:
    """Return the name of the last linear layer: outside the encoder, with one output per class.

    Raises:
        ConfigError: If there is none.
    """
    return _last_linear(model)[0]


def _last_linear(model: PreTrainedModel) -> tuple[str, list[nn.Linear]]:
    """Return the layer's name, and with PEFT's wrapper around it the original and the copy."""
    body = {id(module) for module in model.base_model.modules()}
    found: dict[str, list[nn.Linear]] = {}
    for name, module in model.named_modules():
        is_factor = ".lora_" in name
        is_candidate = isinstance(module, nn.Linear) and id(module) not in body and not is_factor
        if is_candidate and module.out_features == model.config.num_labels:
            found.setdefault(_WRAPPERS.sub("", name), []).append(module)
    if not found:
        raise ConfigError(
            f"`{type(model).__name__}` has no linear layer with {model.config.num_labels} outputs "
            "on top of its encoder. Use an `AutoModelForSequenceClassification`."
        )
    *_, last = found.items()
    return last


class ClassifierHead:
    """The last linear layer of a classification model; what it is given are the features."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.name, self.layers = _last_linear(model)
        self._config = model.config.get_text_config()
        self._is_checked = False

    @property
    def is_trained(self) -> bool:
        """Whether training changes the layer that is used."""
        return any(p.requires_grad for layer in self.layers for p in layer.parameters())

    @property
    def is_at_start(self) -> bool:
        """Whether the copy that PEFT trains is still the layer that it was made from."""
        first, *copies = (list(layer.parameters()) for layer in self.layers)
        return all(
            torch.equal(one, other)
            for copy in copies
            for one, other in zip(first, copy, strict=True)
        )

    def width(self, space: str) -> int:
        """Return the columns of the rows that the terms act on in ``space``."""
        layer = self.layers[0]
        return layer.out_features if space == "logits" else layer.in_features

    def run(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Any, Tensor]:
        """Return the output of ``model`` and the features, shape ``(M, F)``, in its graph.

        A decoder applies its head at every position; its features are those of the last token
        that is not padding, as in transformers.

        Raises:
            ConfigError: If the logits are not the layer's output at that token.
        """
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append((given[0], output))

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            output = model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        features, logits = (self._pooled(rows, inputs["input_ids"]) for rows in seen[-1])
        if not self._is_checked:
            self._check(logits, output.logits)
        return output, features

    def _pooled(self, rows: Tensor, input_ids: Tensor) -> Tensor:
        if rows.dim() == 2:
            return rows
        if self._config.pad_token_id is None:  # then the model takes one row at a time
            return rows[:, -1]
        is_token = (input_ids != self._config.pad_token_id).int()
        positions = torch.arange(input_ids.shape[1], device=rows.device)
        last = (positions * is_token).argmax(dim=1)
        return rows[torch.arange(len(rows), device=rows.device), last]

    def _check(self, expected: Tensor, logits: Tensor) -> None:
        is_same = expected.shape == logits.shape and torch.allclose(
            expected.to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True
        )
        if not is_same:
            raise ConfigError(
                f"the logits are not what `{self.name}` returns, so its input is not the pooled "
                "features. Set `space: logits`, and please report the model."
            )
        self._is_checked = True
