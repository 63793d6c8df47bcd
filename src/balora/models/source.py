"""Which pre-trained model is meant, and how it is loaded: the same for every command."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from balora.config.quantization import SCHEMES, Quantization
from balora.config.values import read_mapping
from balora.errors import ConfigError
from balora.models.names import check_model_name
from balora.recipes import Recipe

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"

_OWN = ("revision", "dtype", "attn_implementation", "trust_remote_code")
_WHERE = ("token", "cache_dir", "subfolder", "code_revision")
"""Arguments that say where the files are, for a config and a tokenizer too."""

_OF_TRAINING = ("trust_remote_code", "device_map", "dtype", "revision", "attn_implementation")
"""Keys of `model_init_kwargs` that a run's recipe does not decide for those who evaluate it."""


_ON_ONE_DEVICE = ("MULTI_GPU", "DEEPSPEED")
"""Kinds of processes of which each holds the whole model, or the part that it is given later."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A pre-trained model by name, and what `from_pretrained` is told about it."""

    name: str
    """A hub id or a folder."""
    setting: str = "`model_name_or_path`"
    """What the user calls the model; errors name it."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    dtype: Any = "float32"
    """Type of the weights, a name or torch's own; auto takes the checkpoint's."""
    attn_implementation: str | None = None
    """Attention kernel; None lets transformers choose."""
    trust_remote_code: bool = False
    """Whether code that the checkpoint brings may run."""
    quantization: Quantization = field(default_factory=Quantization)
    """How the weights are quantised when they are loaded."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of ``from_pretrained``."""

    def __post_init__(self) -> None:
        check_model_name(self.name, self.setting)

    @property
    def words(self) -> str:
        """The setting and its value, as the subject of a sentence."""
        at = "" if self.revision == "main" else f" at revision {self.revision!r}"
        return f"{self.setting} {self.name!r}{at}"

    def arguments(self) -> dict[str, Any]:
        """Return what ``from_pretrained`` of a model is given beside the name."""
        found = {**self.where(), "dtype": self.dtype, **self.options}
        if self.attn_implementation is not None:
            found["attn_implementation"] = self.attn_implementation
        return found

    def where(self) -> dict[str, Any]:
        """Return what ``from_pretrained`` of a config or a tokenizer is given beside the name."""
        own = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return own | {name: self.options[name] for name in _WHERE if name in self.options}

    @classmethod
    def of_arguments(cls, name: str, arguments: Mapping[str, Any]) -> ModelSource:
        """Return the source of a model that is named with arguments of ``from_pretrained``."""
        options = {"dtype": "auto", **arguments}
        own = {key: options.pop(key) for key in _OWN if key in options}
        return cls(name=name, setting="the model", options=options, **own)


def source_of(recipe: Recipe) -> ModelSource:
    """Return the model that a recipe starts from, loaded as the recipe says."""
    model = recipe.model
    options = dict(recipe.training.get("model_init_kwargs") or {})
    source = ModelSource(
        name=model.model_name_or_path,
        revision=model.model_revision,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        trust_remote_code=bool(recipe.training.get("trust_remote_code")),
        quantization=recipe.quantization,
    )
    named = {name: options.pop(name) for name in _OF_TRAINING if name in options}
    device_map = {"device_map": named.pop("device_map")} if "device_map" in named else {}
    return replace(source, options=options | device_map, **named)


def source_to_measure(recipe: Recipe) -> ModelSource:
    """Return the model that what a recipe leaves belongs to.

    An adapter that was trained on a quantised residual belongs to the whole weights.
    """
    source = source_of(recipe)
    is_whole = recipe.objective.pissa_residual
    return replace(source, quantization=Quantization()) if is_whole else source


def placed_source(source: ModelSource) -> ModelSource:
    """Return the source with the device that the weights are read to at once, where there is one.

    One process spreads a model over the accelerators that it sees, as trl does; of several each
    has its own, and on a CPU there is nothing to place.
    """
    state = PartialState()
    alone = state.distributed_type.value not in _ON_ONE_DEVICE
    if "device_map" in source.options or state.device.type in ("cpu", "mps") or not alone:
        return source
    return replace(source, options={**source.options, "device_map": "auto"})


def base_of_runs(
    runs: Sequence[Path],
    base: str,
    *,
    setting: str = "`--base`",
    **given: Any,
) -> ModelSource:
    """Return the pre-trained model of finished runs, loaded as training loaded it.

    Their recipes say the type of the weights, how they are quantised and the attention kernel;
    without any it is float32. They say the revision too where ``base`` is the very name that they
    train. An adapter that was trained on a quantised residual belongs to the whole weights.

    Args:
        runs: The folders that `balora train` left; none for the pre-trained model alone.
        base: Hub id or folder of the pre-trained model; it may have moved since.
        setting: What the user calls the base.
        **given: ``revision``, ``dtype``, ``attn_implementation``, ``load_in_4bit``,
            ``load_in_8bit`` and ``torchao`` in place of the recipes'.

    Raises:
        ConfigError: If the runs were not loaded alike, or the base is a folder that is not there.
    """
    named: Sequence[Path | None] = runs or [None]
    sources = [_base_of(run, base, setting, given) for run in named]
    for run, source in zip(runs, sources, strict=False):
        for name in ("revision", "dtype", "attn_implementation", "quantization", "options"):
            first, other = getattr(sources[0], name), getattr(source, name)
            if first != other:
                own = "model_init_kwargs" if name == "options" else name
                option = first.scheme or other.scheme if name == "quantization" else name
                way = "" if name == "options" else f", or pass `--{option}` for all"
                raise ConfigError(
                    f"`{own}` is {first} in the recipe of `{runs[0]}` and {other} in that of "
                    f"`{run}`, but they are measured against one base. Take one run at a time{way}."
                )
    if sources[0].revision != "main" and given.get("revision") is None:
        logger.info(
            "the base is read at revision %s, as the recipe says; `--revision` names another",
            sources[0].revision,
        )
    if runs:
        _say_quantization(runs[0], sources[0].quantization)
    return sources[0]


def _say_quantization(run: Path, taken: Quantization) -> None:
    """Say where a base is quantised otherwise than a run trained it."""
    recipe = read_recipe(run)
    trained = Quantization.of(recipe)
    if trained == taken:
        return
    why = "as the command line says"
    if recipe.get("pissa_residual") and taken.scheme is None:
        why = "for it quantised the residual alone, and the saved adapter is for the whole weights"
    logger.info(
        "`%s` was trained on %s; the base is loaded with %s, %s",
        run,
        trained or "a base that is not quantised",
        taken or "its weights as they were saved",
        why,
    )


def _base_of(run: Path | None, base: str, setting: str, given: Mapping[str, Any]) -> ModelSource:
    given = {name: value for name, value in given.items() if value is not None}
    schemes = {name: given.pop(name) for name in SCHEMES if name in given}
    recipe = {} if run is None else read_recipe(run)
    options = dict(recipe.get("model_init_kwargs") or {})
    name, revision = trained_on(recipe)
    own: dict[str, Any] = {
        "revision": revision if name == base else None,
        "dtype": options.get("dtype", recipe.get("dtype")),
        "attn_implementation": options.get(
            "attn_implementation", recipe.get("attn_implementation")
        ),
    }
    own |= given
    trained = {} if recipe.get("pissa_residual") else recipe
    return ModelSource(
        name=base,
        setting=setting,
        quantization=Quantization.of(trained, schemes),
        options={name: value for name, value in options.items() if name not in _OF_TRAINING},
        **{name: value for name, value in own.items() if value is not None},
    )


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the fields of a run's ``recipe.yaml``, none where there is no such file.

    Raises:
        ConfigError: If the file is no mapping.
    """
    path = run / RECIPE_FILE
    return dict(read_mapping(path)) if path.is_file() else {}


def check_is_not_run(run: Path, base: ModelSource) -> None:
    """Refuse a base that is the run itself: nothing would have changed from it.

    Raises:
        ConfigError: Naming the setting of the base.
    """
    if Path(base.name).expanduser().is_dir() and Path(base.name).resolve() == run.resolve():
        raise ConfigError(f"{base.words} is the run itself. {name_the_base(run)}")


def name_the_base(run: Path) -> str:
    """Return the sentence that says which model to name, as far as the folder knows."""
    known, revision = trained_on(read_recipe(run))
    at = "" if revision == "main" else f" at revision {revision!r}"
    return f"Name the model it was trained on{f', {known!r}{at}' if known else ''}."


def trained_on(recipe: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the name of the model in the fields of a recipe, None where it has none, and revision.

    What is loaded otherwise by `model_init_kwargs` goes before the field of its own.
    """
    options = recipe.get("model_init_kwargs") or {}
    revision = options.get("revision") or recipe.get("model_revision") or "main"
    return recipe.get("model_name_or_path"), revision
