"""One run of a recipe: data, model, trainer, and a folder that says what made it."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import (
    AutoTokenizer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig

from balora.data import Examples, load_examples
from balora.environment import describe_environment
from balora.errors import BaloraError, ConfigError, DataError, RowError
from balora.model_names import check_model_name
from balora.recipes import Recipe, training_arguments
from balora.trainers.sft import BALoraSFTTrainer

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LAST_WRITTEN = "trainer_state.json"


class SaveProvenance(TrainerCallback):  # type: ignore[misc]
    """Write the resolved recipe and the environment into every checkpoint."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the Trainer after a checkpoint is complete."""
        if args.should_save:
            self.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def write(self, folder: Path) -> None:
        """Write ``recipe.yaml`` and ``environment.json`` into ``folder``."""
        (folder / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
        facts = json.dumps(describe_environment(), indent=2)
        (folder / "environment.json").write_text(facts + "\n", encoding="utf-8")


def run_recipe(recipe: Recipe) -> BALoraSFTTrainer:
    """Train what ``recipe`` says and save it in its ``output_dir``; return the trainer.

    Raises:
        ConfigError: If a setting cannot work; before anything is written.
        DataError: If the data cannot be trained on, naming file and line.
    """
    args = training_arguments(recipe)
    output_dir = Path(args.output_dir)
    resume = _checkpoint_to_resume(args, output_dir)
    if resume is None:
        check_output_dir(output_dir, overwrite=recipe.run.overwrite)
    trainer = build_trainer(recipe, args)
    if resume is None and args.should_save:
        _remove_checkpoints(output_dir)
    provenance = SaveProvenance(recipe)
    trainer.add_callback(provenance)
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    if args.should_save:
        provenance.write(output_dir)
    return trainer


def build_trainer(recipe: Recipe, args: SFTConfig) -> BALoraSFTTrainer:
    """Load data and model and return the trainer of ``recipe``, ready to train."""
    train = load_examples(recipe.data, split=recipe.data.dataset_train_split, name="train")
    evaluation = _evaluation_examples(recipe, args)
    for note in (*train.notes, *(evaluation.notes if evaluation else ())):
        logger.warning(note)
    args.model_init_kwargs = _model_init_kwargs(recipe) | dict(args.model_init_kwargs or {})
    _check_files(recipe, args, train)
    try:
        return BALoraSFTTrainer(
            recipe.model.model_name_or_path,
            args,
            balora_config=recipe.objective,
            peft_config=peft_config(recipe),
            overlong_rows=recipe.data.overlong_rows,
            train_dataset=train.dataset,
            eval_dataset=evaluation.dataset if evaluation else None,
        )
    except RowError as error:
        examples = train if error.dataset == "train" or evaluation is None else evaluation
        raise DataError(f"{examples.locate(error.row)}: {error.problem}") from error
    except BaloraError:
        raise
    except OSError as error:
        raise ConfigError(
            f"`model_name_or_path` {recipe.model.model_name_or_path!r} cannot be loaded: "
            f"{_first_line(error)}"
        ) from error
    except ValueError as error:
        raise ConfigError(_setting_named(error, recipe)) from error


def _check_files(recipe: Recipe, args: SFTConfig, train: Examples) -> None:
    """Refuse a model folder or a template that is not there, and chats without a template."""
    name, template = recipe.model.model_name_or_path, args.chat_template_path
    check_model_name(name, "`model_name_or_path`")
    if template is not None and template.endswith((".jinja", ".j2")):
        if not Path(template).is_file():
            raise ConfigError(f"`chat_template_path` {template!r} does not exist.")
    elif template is None and "messages" in train.dataset.column_names:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name, trust_remote_code=args.trust_remote_code
            )
        except (OSError, ValueError):
            return  # loading the model says what is wrong
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"the rows are chats, but the tokenizer of {name!r} has no chat template. Set "
                "`chat_template_path` to a template with {% generation %} markers, or "
                "`prompt_template: alpaca` to train on the first question and answer."
            )


def peft_config(recipe: Recipe) -> LoraConfig | None:
    """Return PEFT's config of the recipe's adapter, None for full fine-tuning."""
    adapter = recipe.adapter
    if adapter.method == "full":
        return None
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.lora_target_modules,
        use_rslora=adapter.use_rslora,
    )


def check_output_dir(output_dir: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds something.

    Raises:
        ConfigError: If it is a file, or not empty and ``overwrite`` is false.
    """
    if output_dir.is_file():
        raise ConfigError(f"`output_dir` {str(output_dir)!r} is a file; name a folder.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise ConfigError(
            f"`output_dir` {str(output_dir)!r} is not empty. Name another folder, pass "
            "`--overwrite`, or go on with `--resume_from_checkpoint true`."
        )


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest complete checkpoint: one whose last-written file is there."""
    found = [
        (int(match[1]), path)
        for path in (output_dir.iterdir() if output_dir.is_dir() else ())
        if (match := _CHECKPOINT.fullmatch(path.name)) and (path / _LAST_WRITTEN).is_file()
    ]
    return max(found)[1] if found else None


def _checkpoint_to_resume(args: SFTConfig, output_dir: Path) -> str | None:
    wish = args.resume_from_checkpoint
    if wish is None or str(wish).lower() == "false":
        return None
    if str(wish).lower() == "true":
        checkpoint = last_checkpoint(output_dir)
        if checkpoint is None:
            raise ConfigError(
                f"`resume_from_checkpoint` is true, but {str(output_dir)!r} holds no complete "
                "checkpoint. Leave it out to start from the beginning."
            )
        wish = checkpoint
    if not (Path(wish) / _LAST_WRITTEN).is_file():
        raise ConfigError(
            f"`resume_from_checkpoint` {wish!r} is no complete checkpoint: it has no "
            f"{_LAST_WRITTEN}. Name a `checkpoint-N` folder."
        )
    done = json.loads((Path(wish) / _LAST_WRITTEN).read_text(encoding="utf-8"))["global_step"]
    if 0 < args.max_steps <= done:
        raise ConfigError(
            f"`resume_from_checkpoint` {str(wish)!r} has done {done} steps and `max_steps` is "
            f"{args.max_steps}, so nothing is left. Raise `max_steps`."
        )
    return str(wish)


def _remove_checkpoints(output_dir: Path) -> None:
    """Make sure that no checkpoint of an overwritten run is taken for one of this run."""
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        if _CHECKPOINT.fullmatch(path.name):
            (path / _LAST_WRITTEN).unlink(missing_ok=True)


def _evaluation_examples(recipe: Recipe, args: SFTConfig) -> Examples | None:
    split = recipe.data.dataset_test_split
    if split is None and recipe.data.eval_dataset_name is None:
        if args.eval_strategy != "no" or args.load_best_model_at_end:
            raise ConfigError(
                f"`eval_strategy` is {str(args.eval_strategy)!r}, but there is nothing to evaluate "
                "on. Set `dataset_test_split` or `eval_dataset_name`."
            )
        return None
    return load_examples(recipe.data, split=split or "train", name="eval")


def _model_init_kwargs(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    wanted = {"dtype": model.dtype, "revision": model.model_revision}
    if model.attn_implementation:
        wanted["attn_implementation"] = model.attn_implementation
    return wanted


def _setting_named(error: ValueError, recipe: Recipe) -> str:
    """Name the setting behind an error of peft's or trl's."""
    message = _first_line(error)
    if "arget modules" in message:
        return (
            f"`lora_target_modules` {recipe.adapter.lora_target_modules!r} match no linear layer "
            f"of {recipe.model.model_name_or_path!r}. Use `all-linear` or names such as `q_proj`."
        )
    if "not training-compatible" in message:
        return (
            "the chat template does not mark the assistant's turns, and only these are scored. Put "
            "{% generation %} ... {% endgeneration %} around them and name the file in "
            "`chat_template_path`."
        )
    return message


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
