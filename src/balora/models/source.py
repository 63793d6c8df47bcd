"""Which pre-trained model is meant, and how it is loaded: the same for every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from balora.errors import ConfigError
from balora.models.names import check_model_name
from balora.recipes import Recipe
from balora.recipes.values import read_mapping

RECIPE_FILE = "recipe.yaml"

_OWN = ("revision", "dtype", "attn_implementation", "trust_remote_code")
_WHERE = ("token", "cache_dir", "subfolder", "code_revision")
"""Arguments that say where the files are, for a config and a tokenizer too."""

_FOR_TRAINING_ONLY = ("trust_remote_code", "device_map", "dtype", "revision", "attn_implementation")
"""Keys of `model_init_kwargs` that a run's recipe does not decide for those who evaluate it."""


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
    )
    named = {name: options.pop(name) for name in _FOR_TRAINING_ONLY if name in options}
    device_map = {"device_map": named.pop("device_map")} if "device_map" in named else {}
    return replace(source, options=options | device_map, **named)


def base_of_run(
    run: Path,
    base: str,
    *,
    setting: str = "`--base`",
    revision: str | None = None,
    dtype: str | None = None,
) -> ModelSource:
    """Return the pre-trained model of a finished run, loaded as training loaded it.

    Its recipe says the type of the weights and the attention kernel; float32 where the folder has
    no recipe. It says the revision too where ``base`` is the very name that it trains.

    Args:
        run: The folder that `balora train` left.
        base: Hub id or folder of the pre-trained model; it may have moved since.
        setting: What the user calls the base.
        revision: In place of the recipe's.
        dtype: In place of the recipe's.
    """
    recipe = read_recipe(run)
    options = dict(recipe.get("model_init_kwargs") or {})
    if revision is None:
        is_same = recipe.get("model_name_or_path") == base
        revision = str(recipe.get("model_revision") or "main") if is_same else "main"
    return ModelSource(
        name=base,
        setting=setting,
        revision=revision,
        dtype=dtype or str(options.get("dtype") or recipe.get("dtype") or "float32"),
        attn_implementation=options.get("attn_implementation", recipe.get("attn_implementation")),
        options={name: value for name, value in options.items() if name not in _FOR_TRAINING_ONLY},
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
    known = read_recipe(run).get("model_name_or_path")
    return f"Name the model it was trained on{f', {known!r}' if known else ''}."
