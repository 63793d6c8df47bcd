"""``balora lab``: a pre-trained model with planted defects, and what fine-tuning did to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from balora.config.fields import field_hints
from balora.config.values import dump_mapping, parse_texts, read_mapping, read_switch
from balora.errors import ConfigError
from balora.evaluation.run import check_runs
from balora.evaluation.table import format_table
from balora.files import write_json
from balora.lab.build import BuiltLab, build_lab
from balora.lab.card import CardOptions, measure_defects
from balora.lab.config import LabConfig, lab_config
from balora.models.load import accelerator, load_model, load_tokenizer
from balora.models.names import name_of_dtype
from balora.models.run_folder import check_base, load_run
from balora.models.source import ModelSource, base_of_runs
from balora.state import read_json


def lab(
    runs: Sequence[Path],
    config_path: Path | str | None,
    given: Mapping[str, str],
    *,
    show: Callable[[str], None],
    json_file: Path | None = None,
) -> None:
    """Build or find the model of a lab, measure it and runs fine-tuned from it, and show the card.

    Args:
        runs: Folders that `balora train` left, of models fine-tuned from this one.
        config_path: A recipe with a mapping `lab`, such as a comparison's; None for the defaults.
        given: Fields of `LabConfig` as texts, which replace those of the recipe; with ``dry_run``
            they are checked and shown as a recipe, and nothing is built.
        show: Takes what is for the console.
        json_file: Where the metrics are written as well, by the name of the model: last, so that
            a full disk does not take them.

    Raises:
        ConfigError: If the recipe or a field is wrong, a folder is no run or one of another
            model's, or two have one name.
    """
    texts = dict(given)
    is_dry = read_switch("dry_run", texts.pop("dry_run", "false"))
    given_here = parse_texts(texts, field_hints(LabConfig))
    config = lab_config({**_from_recipe(config_path), **given_here})
    check_runs(runs)
    if is_dry:
        show(dump_mapping({"lab": asdict(config)}).rstrip())
        return
    built = build_lab(config)
    for run in runs:
        _check_base(run, built.model)
    cards, dtype = _cards(built, runs, CardOptions.of_rows(config.num_test))
    show("\n".join([format_table(cards), f"Computed in {dtype}.", "", *_where(built)]))
    if json_file is not None:
        metrics = {name: card | {"dtype": dtype} for name, card in cards.items()}
        write_json(json_file, metrics, name="`--json`")


def _from_recipe(path: Path | str | None) -> dict[str, Any]:
    """Return the mapping `lab` of a recipe."""
    if path is None:
        return {}
    content = read_mapping(Path(path)).get("lab")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} has no mapping `lab`, which says how the world and its model are made. Add "
            "one, or leave `--config` out for the defaults."
        )
    return content


def _check_base(run: Path, model: Path) -> None:
    """Refuse a run that says it was fine-tuned from another model: its metrics would say nothing.

    A cache may have moved, so the entry's name counts, which is a hash of how the model was made.
    """
    base = _base_of(run)
    if base is not None and Path(base).parts[-2:] != model.parts[-2:]:
        raise ConfigError(
            f"`{run}` was fine-tuned from {base}, but the model of this lab is {model}. Give the "
            "fields of the lab that it was fine-tuned in."
        )


def _base_of(run: Path) -> str | None:
    recipe, adapter = run / "recipe.yaml", run / "adapter_config.json"
    if recipe.is_file():
        return read_mapping(recipe).get("model_name_or_path")
    if adapter.is_file():
        fix = "Save or download the adapter again."
        name = read_json(adapter, fix).get("base_model_name_or_path")
        return None if name is None else str(name)
    return None


def _cards(
    built: BuiltLab, runs: Sequence[Path], options: CardOptions
) -> tuple[dict[str, dict[str, float | None]], str]:
    """Return the card of each model by name, and the type of the weights that computed them."""
    base = _base_source(built, runs)
    for run in runs:
        check_base(run, base)
    model, tokenizer = load_model(base, device=accelerator()), load_tokenizer(base)
    dtype = name_of_dtype(model.dtype)
    cards = {"base": measure_defects(model, tokenizer, built, options=options)}
    for run in runs:
        model = load_run(run, base, device=accelerator()).model
        cards[run.name] = measure_defects(model, tokenizer, built, options=options)
    return cards, dtype


def _base_source(built: BuiltLab, runs: Sequence[Path]) -> ModelSource:
    name, setting = str(built.model), "the lab's model"
    if not runs:
        return ModelSource(name=name, setting=setting)
    return base_of_runs(runs, name, setting=setting)


def _where(built: BuiltLab) -> list[str]:
    """Return where the files are: the entry of the cache, and their names in it."""
    entry = built.model.parent
    files = [built.train_file, built.test_file, built.retention_file]
    names = ", ".join(str(file.relative_to(entry)) for file in files)
    noisy = built.noisy_file
    wrong = "" if noisy is None else f"; wrong answers: {noisy.relative_to(entry)}"
    return [
        f"The model is {_short(built.model)}.",
        f"Beside it, in the same folder: {names}{wrong}.",
    ]


def _short(path: Path) -> str:
    """Return a path with ``~`` for the user's own folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
