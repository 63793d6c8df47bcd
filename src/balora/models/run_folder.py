"""A finished run's model: the adapter on its base, or the whole model, of either kind of run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.config.classification import ClassificationConfig
from balora.data.glue import GLUE_TASKS
from balora.errors import ConfigError
from balora.models.adapter import is_adapter_folder, read_adapter
from balora.models.classifier import load_classifier
from balora.models.fits import check_adapter_fits, num_labels_of
from balora.models.load import attach_adapter, load_config, load_model, load_tokenizer, placed
from balora.models.quantization import as_code, auto_class
from balora.models.record import check_recorded_base, check_recorded_weights
from balora.models.source import (
    RECIPE_FILE,
    ModelSource,
    base_of_runs,
    check_is_not_run,
    read_recipe,
)
from balora.recipes import load_recipe


class LoadedRun(NamedTuple):
    """The model of a run, in eval mode."""

    model: PreTrainedModel
    """With an adapter it is a ``PeftModel`` on the untouched base."""
    tokenizer: PreTrainedTokenizerBase
    """The run's own, where it has one."""
    class_names: tuple[str, ...] | None
    """Of a classifier, in the order of its outputs; None of regression and of a language model."""


def load_run(
    run: Path,
    base: ModelSource,
    *,
    class_names: Sequence[str] | None = None,
    device: torch.device | None = None,
) -> LoadedRun:
    """Return the model of a run and what belongs to it: plain PEFT on the base, or the whole model.

    Args:
        run: A folder with an adapter or a model, as `balora train` and `balora export` leave.
        base: The pre-trained model, also where the run is a whole one; see `base_of_runs`.
        class_names: Of a classifier, in place of those that the run says.
        device: Where the model goes; None leaves it where ``base`` puts it.

    Raises:
        ConfigError: If the folder holds neither, the base is not the adapter's, or a model cannot
            be loaded or has a weight that is not finite.
    """
    check_base(run, base, class_names=class_names)
    if not is_adapter_folder(run):
        base = dataclasses.replace(base, name=str(run), setting="the run", revision="main")
    return _load(run, base, class_names, device)


def load_run_alone(
    run: Path,
    base: str | None = None,
    *,
    device: torch.device | None = None,
    **given: str | None,
) -> LoadedRun:
    """Return the model of a run, to use it: its own weights on the base that it names itself.

    Args:
        run: A folder with an adapter or a model.
        base: The pre-trained model of an adapter, where that has moved.
        device: Where the model goes; None leaves it where it is loaded.
        **given: As for `base_of_runs`.

    Raises:
        ConfigError: As `load_run`; if an adapter names no base, or one that is not there; and for
            a base beside a whole model.
    """
    if is_adapter_folder(run):
        source = base_of_runs([run], base or _named_base(run), setting="`--base`", **given)
        check_base(run, source)
    elif base is not None:
        raise ConfigError(f"`--base` is {base!r}, but `{run}` is a whole model; leave it out.")
    else:
        source = base_of_runs([run], str(run), setting="the run", **given)
    return _load(run, source, None, device)


def _named_base(run: Path) -> str:
    """Return the base that an adapter names, if it is there or is one of the hub."""
    name = read_adapter(run).config.base_model_name_or_path
    if not name:
        raise ConfigError(f"`{run}` does not say which model it was trained on; name it: `--base`.")
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise ConfigError(
            f"`{run}` was trained on {name!r}, which is not there; name its place with `--base`."
        )
    return str(name)


def _load(
    run: Path,
    source: ModelSource,
    class_names: Sequence[str] | None,
    device: torch.device | None,
) -> LoadedRun:
    """Return the model of a run: with an adapter ``source`` is the base, else the run itself."""
    is_adapter, tokenizer, names = is_adapter_folder(run), load_tokenizer(source, run), None
    if is_classifier(run):
        names = tuple(class_names) if class_names is not None else classes_of(run)
        # the head of the base, if it has one, makes room for the run's
        model = load_classifier(
            source, class_names=names, tokenizer=tokenizer, ignore_mismatched_sizes=is_adapter
        ).model
    else:
        model = load_model(source)
    if is_adapter:
        check_recorded_weights(run, source, model)
    model = placed(model, device)
    return LoadedRun(attach_adapter(model, run) if is_adapter else model, tokenizer, names)


def base_as_code(run: Path, base: str, **schemes: Any) -> tuple[str, str] | None:
    """Return the code that quantises the base of a run's adapter, None where it is not quantised.

    Args:
        run: The folder of the run.
        base: Its pre-trained model.
        **schemes: As for `base_of_runs`.
    """
    source = base_of_runs([run], base, **schemes)
    if not source.quantization:
        return None
    auto = auto_class(is_classifier=is_classifier(run))
    return as_code(auto, source, load_config(source))


def check_base(run: Path, base: ModelSource, *, class_names: Sequence[str] | None = None) -> None:
    """Refuse a base that a run does not belong to, before a weight is loaded.

    Raises:
        ConfigError: Naming the setting of the base; or the folder, if it holds no model.
    """
    if is_adapter_folder(run):
        num_labels = None
        if is_classifier(run):
            num_labels = len(class_names or classes_of(run) or ("target",))
        check_adapter_fits(run, base, num_labels=num_labels)
        return
    check_holds_model(run)
    check_is_not_run(run, base)
    check_recorded_base(run, base, load_config(base))


def check_holds_model(run: Path) -> None:
    """Refuse a folder without an adapter and without a model.

    Raises:
        ConfigError: Naming the folder.
    """
    if not is_adapter_folder(run) and not (run / "config.json").is_file():
        raise ConfigError(f"`{run}` holds neither an adapter nor a model; name a finished run.")


def is_classifier(run: Path) -> bool:
    """Say whether a run's model classifies or predicts numbers, and does not write."""
    if read_recipe(run).get("task") is not None:
        return True
    if is_adapter_folder(run):
        return read_adapter(run).is_classifier
    kinds = load_config(ModelSource(name=str(run), setting="the run")).architectures or ()
    return any("ForSequenceClassification" in kind for kind in kinds)


def classes_of(run: Path) -> tuple[str, ...] | None:
    """Return the classes of a run in the order of the model's outputs, None for regression.

    They come from the recipe; without one, from a whole model's config, or are numbered.

    Raises:
        ConfigError: If a recipe of own data does not say them.
    """
    if (run / RECIPE_FILE).is_file():
        return class_names_of(cast(ClassificationConfig, load_recipe(run / RECIPE_FILE).data))
    if is_adapter_folder(run):
        number = num_labels_of(read_adapter(run))
        return None if number == 1 else tuple(f"LABEL_{i}" for i in range(number))
    names = load_config(ModelSource(name=str(run), setting="the run")).id2label
    return None if len(names) == 1 else tuple(str(names[i]) for i in range(len(names)))


def class_names_of(data: ClassificationConfig) -> tuple[str, ...] | None:
    """Return the classes of a run in the order of the model's outputs; None for regression.

    Raises:
        ConfigError: If the recipe of own data does not say them.
    """
    if data.is_regression:
        return None
    names = GLUE_TASKS[data.task].class_names if data.task in GLUE_TASKS else data.named_classes
    if names is None:
        raise ConfigError("the recipe says no `class_names`; pass them in the model's order.")
    return tuple(names)
