"""The model card of a run: what it was made from, with what, how it did, how to load it.

Written with every save. What is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel

from balora.card_results import is_hub_id, results_of, table_section
from balora.config.objective import COEFFICIENTS
from balora.config.quantization import Quantization
from balora.config.replay import ReplayConfig
from balora.data.glue import GLUE_TASKS, evaluated_on
from balora.models.adapter import inner_model
from balora.models.quantization import as_code, auto_class, quantization_of
from balora.models.source import ModelSource
from balora.serving import how_to_serve
from balora.usage import loading_lines

_BALORA = """@article{chang2024balora,
  title   = {Bias-Aware Low-Rank Adaptation: Mitigating Catastrophic Inheritance of
             Large Language Models},
  author  = {Chang, Yupeng and Chang, Yi and Wu, Yuan},
  journal = {arXiv preprint arXiv:2408.04556},
  year    = {2024}
}"""
_PISSA = """@article{meng2024pissa,
  title   = {PiSSA: Principal Singular Values and Singular Vectors Adaptation of
             Large Language Models},
  author  = {Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan},
  journal = {arXiv preprint arXiv:2404.02948},
  year    = {2024}
}"""
_REPLAY = """@article{bansal2025contextfree,
  title   = {Context-Free Synthetic Data Mitigates Forgetting},
  author  = {Bansal, Parikshit and Sanghavi, Sujay},
  journal = {arXiv preprint arXiv:2505.13811},
  year    = {2025}
}"""
_OLORA = """@article{buyukakyuz2024olora,
  title   = {OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models},
  author  = {B{\\"u}y{\\"u}kaky{\\"u}z, Kerim},
  journal = {arXiv preprint arXiv:2406.01775},
  year    = {2024}
}"""
_OF_START = {"pissa": _PISSA, "olora": _OLORA}
_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "weight_decay",
    "warmup_steps",
    "max_length",
    "seed",
)


def card_of(trainer: Any, folder: Path, metrics: Mapping[str, Any] | None = None) -> str:
    """Return the card of a trainer's model, as Markdown with its YAML.

    Args:
        trainer: A trainer of this package.
        folder: With the saved model; the lines that load it are left out while it has none.
        metrics: Metrics of the final model; ``None`` takes the last evaluation's.
    """
    name, has_adapter = _base_name(trainer), isinstance(trainer.model, PeftModel)
    on_hub, measured = is_hub_id(name), _metric_lines(trainer, metrics)
    title = Path(trainer.args.output_dir).resolve().name
    licence = _license_of(name)
    results = _eval_results(trainer, measured)
    data = ModelCardData(
        base_model=name if on_hub else None,
        base_model_relation=("adapter" if has_adapter else "finetune") if on_hub else None,
        library_name="peft" if has_adapter else "transformers",
        pipeline_tag="text-classification" if _is_classifier(trainer) else "text-generation",
        license=licence,
        datasets=_hub_datasets(trainer),
        tags=["balora", "lora", _start_of(trainer)] if has_adapter else ["balora"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        _what(trainer, name),
        "" if licence else "The licence is that of the base model.",
        _section("Training", _training_lines(trainer)),
        _section("Metrics", measured),
        _loading(trainer, folder),
        _serving(trainer, folder),
        "## Citation\n\n```bibtex\n" + "\n".join(_citations(trainer)) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(trainer: Any, name: str) -> str:
    base = f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{name}`"
    if not isinstance(trainer.model, PeftModel):
        return f"All weights of {base}, fine-tuned with balora."
    start = _start_of(trainer)
    return f"An adapter (LoRA, started from {start}) for {base}, fine-tuned with balora."


def _start_of(trainer: Any) -> str:
    return str(trainer.balora_config.adapter_init)


def _eval_results(trainer: Any, metrics: Mapping[str, Any]) -> list[EvalResult]:
    """Return the metrics of the trained model as the hub's model index has them."""
    name = evaluated_on(trainer.recipe_settings or {})
    return results_of(metrics, data=name, is_classifier=_is_classifier(trainer))


def _training_lines(trainer: Any) -> dict[str, Any]:
    recipe, args = trainer.recipe_settings or {}, trainer.args.to_dict()
    lines: dict[str, Any] = {
        name: recipe[name]
        for name in ("method", "dataset_name", "eval_dataset_name", "task")
        if recipe.get(name)
    }
    rows = getattr(trainer, "train_dataset", None)
    if isinstance(rows, Sized):
        lines["training rows"] = len(rows)
    config = trainer.balora_config
    lines |= {name: getattr(config, name) for name in COEFFICIENTS if getattr(config, name)}
    replay: ReplayConfig | None = getattr(trainer, "replay_config", None)
    if replay is not None and replay.is_on:
        names = ("replay", "replay_coef", "replay_every", "replay_num_texts")
        lines |= {name: getattr(replay, name) for name in names}
    if isinstance(trainer.model, PeftModel):
        adapter = trainer.model.peft_config[trainer.model.active_adapters[0]]
        lines |= {"lora_r": adapter.r, "lora_alpha": adapter.lora_alpha}
    settings = {name: args[name] for name in _SETTINGS if args.get(name) not in (None, -1, "")}
    return lines | settings


def _metric_lines(trainer: Any, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    if metrics is None:
        rows = [row for row in trainer.state.log_history if "eval_loss" in row]
        left_out = ("_runtime", "_per_second", "_num_tokens")
        metrics = {
            name: value
            for name, value in (rows[-1] if rows else {}).items()
            if name.startswith("eval_") and not name.endswith(left_out)
        }
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in metrics.items()}


def _section(title: str, lines: Mapping[str, Any]) -> str:
    if not lines:
        return ""
    return table_section(title, ("",), lines.items())


def lines_that_load(trainer: Any, folder: Path) -> str:
    """Return the lines that load the saved model of a trainer as it was trained.

    Args:
        trainer: A trainer of this package.
        folder: Where the model lies now; the lines name the trainer's own folder.
    """
    recipe, config = trainer.recipe_settings or {}, trainer.model.config
    base = inner_model(trainer.model)
    is_whole = trainer.balora_config.pissa_residual  # which the saved adapter belongs to
    quantization = Quantization() if is_whole else quantization_of(base)
    source = ModelSource(name="", dtype=base.dtype, quantization=quantization)
    has_classes = _is_classifier(trainer) and config.num_labels > 1
    return loading_lines(
        folder,
        revision=recipe.get("model_revision", "main"),
        dtype=recipe.get("dtype"),
        id2label=config.id2label if has_classes else None,
        pad_token_id=config.get_text_config().pad_token_id if _is_classifier(trainer) else None,
        has_other_head=bool(recipe.get("ignore_mismatched_sizes")),
        quantization=as_code(auto_class(is_classifier=_is_classifier(trainer)), source, config),
        shown=Path(trainer.args.output_dir),
        prompt_template=getattr(trainer, "prompt_template", "none"),
        is_pair=_reads_pairs(trainer),
    )


def _reads_pairs(trainer: Any) -> bool:
    """Say whether the rows of a classifier have two texts, as far as the recipe knows."""
    recipe = trainer.recipe_settings or {}
    task = GLUE_TASKS.get(str(recipe.get("task")))
    return recipe.get("text_pair_column") is not None or (task is not None and task.num_texts == 2)


def _is_classifier(trainer: Any) -> bool:
    return not hasattr(trainer, "replay_config")  # which the trainer of generation has


def _loading(trainer: Any, folder: Path) -> str:
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        return ""
    lines = lines_that_load(trainer, folder)
    return f"## How to load it\n\n```python\n{lines}\n```" if lines else ""


def _serving(trainer: Any, folder: Path) -> str:
    sentence = how_to_serve(folder, shown=Path(trainer.args.output_dir))
    return f"## How to serve it\n\n{sentence}" if sentence else ""


def _citations(trainer: Any) -> list[str]:
    found = [_BALORA]
    if isinstance(trainer.model, PeftModel) and trainer.balora_config.adapter_init in _OF_START:
        found.append(_OF_START[trainer.balora_config.adapter_init])
    replay = getattr(trainer, "replay_config", None)
    if replay is not None and replay.is_on:
        found.append(_REPLAY)
    return found


def _base_name(trainer: Any) -> str:
    model = trainer.model
    if isinstance(model, PeftModel):
        name = model.peft_config[model.active_adapters[0]].base_model_name_or_path
    else:
        name = model.config.name_or_path
    return str(name or "a model without a name")


def _license_of(name: str) -> str | None:
    """Return the licence that the card of a local base says; of the hub nothing is asked."""
    card = Path(name) / "README.md"
    if not card.is_file():
        return None
    try:
        data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
        found = getattr(data, "license", None)
        return None if found is None else str(found)
    except (ValueError, OSError):
        return None


def _hub_datasets(trainer: Any) -> list[str] | None:
    recipe = trainer.recipe_settings or {}
    name = str(recipe.get("dataset_name") or "")
    is_local = not name or re.search(r"\.\w+$", name)
    return None if is_local or not is_hub_id(name) else [name]
