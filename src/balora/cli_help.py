"""What the commands say of themselves: examples, exit status, and every field of a recipe.

Importing this module must not import torch; a field's sentence is read from where it is declared.
"""

from __future__ import annotations

from dataclasses import asdict

from balora.field_types import spelled_default

STATUS = "exit status: 0 done; 1 the run failed; 2 the recipe, an option or the data is wrong."

EXAMPLES = {
    "balora": """\
examples:
  balora quickstart
  balora train --config recipes/math.yaml --model_name_or_path meta-llama/Llama-2-7b-hf
  balora export outputs/math --base meta-llama/Llama-2-7b-hf --merge
""",
    "quickstart": """\
examples:
  balora quickstart
  balora quickstart --output_dir outputs/first --overwrite
  balora quickstart --method lora --output_dir outputs/lora
""",
    "train": """\
examples:
  balora train --config recipes/math.yaml --model_name_or_path meta-llama/Llama-2-7b-hf
  balora train --config recipes/glue.yaml --model_name_or_path FacebookAI/roberta-large --task cola
  balora train --task classification --model_name_or_path FacebookAI/roberta-base \\
      --dataset_name train.csv --text_column review --label_column stars \\
      --eval_dataset_name test.csv --output_dir outputs/reviews
  balora train --config recipe.yaml --svd_coef 0 --seed 1 --output_dir outputs/no-svd
  balora train --config recipe.yaml --learning_rate 1e-4 --dry_run
  balora train --config recipe.yaml --replay generated
  balora train --config recipe.yaml --resume_from_checkpoint true
  accelerate launch -m balora train --config recipe.yaml
""",
    "eval": """\
examples:
  balora eval outputs/run --base MODEL --dataset_name test.jsonl
  balora eval outputs/run --base MODEL --dataset_name test.jsonl --retention_file text.txt
  balora eval outputs/a outputs/b --base MODEL --dataset_name test.jsonl --num_rows 200
  balora eval outputs/reviews --base MODEL --eval_dataset_name other.csv --json figures.json
  balora eval outputs/mnli --base MODEL --out_of_domain '{hans: {dataset_name: hans.jsonl}}'
""",
    "compare": """\
examples:
  balora compare --config recipes/gsm8k.yaml --model_name_or_path meta-llama/Llama-2-7b-hf \\
      --methods full,lora,pissa,balora --seeds 0,1,2 --output_dir outputs/compare
  balora compare --config recipes/lab.yaml --methods base,lora,lora+kl=0.3,balora-svd --jobs 2
  balora compare --config recipe.yaml --dry_run
  balora compare --report_only --output_dir outputs/compare --baseline pissa
""",
    "lab": """\
examples:
  balora lab
  balora lab --noise_rate 0.4 --world_seed 1
  balora lab outputs/lora outputs/balora --config recipes/lab.yaml --json figures.json
""",
    "export": """\
examples:
  balora export outputs/run --base MODEL
  balora export outputs/run --base MODEL --rank 16 --to outputs/run-rank16
  balora export outputs/run --base MODEL --merge
""",
    "replay": """\
examples:
  balora replay --model_name_or_path MODEL --output texts.jsonl
  balora replay --model_name_or_path MODEL --output chats.jsonl --replay_prompt chat
  balora replay --model_name_or_path MODEL --output stories.jsonl --replay_prompt "Once upon a time"
""",
    "env": """\
examples:
  balora env
  balora env > environment.txt
  python -m balora env
""",
}


def train_fields() -> str:
    """Return the fields of `balora train`, by part."""
    from balora.classification_config import ClassificationConfig, OutOfDomainConfig
    from balora.config import (
        AdapterConfig,
        BALoraConfig,
        DataConfig,
        ModelConfig,
        RunConfig,
        StoppingConfig,
    )
    from balora.replay.config import ReplayConfig

    sections = {
        ModelConfig: "",
        DataConfig: " (text generation)",
        ClassificationConfig: " (classification and regression: where `task` is set)",
        OutOfDomainConfig: " (an entry of `out_of_domain`)",
        AdapterConfig: "",
        BALoraConfig: "",
        StoppingConfig: "",
        ReplayConfig: " (text generation)",
        RunConfig: "",
    }
    lines = [
        line
        for section, where in sections.items()
        for line in _section(section, where, "" if section is OutOfDomainConfig else "--")
    ]
    return "\n".join([*lines, *_training_fields()])


def _training_fields() -> list[str]:
    """Return what is said of the fields of the training arguments, whose class is not imported."""
    from balora.recipes.kinds import CLASSIFICATION, GENERATION
    from balora.recipes.limits import words

    rate = (
        f"{spelled_default(GENERATION.adapter_learning_rate)}, in classification "
        f"{spelled_default(CLASSIFICATION.adapter_learning_rate)}, with method full the library's"
    )
    return [
        "Every field of transformers' TrainingArguments as well, and for text generation of trl's "
        "SFTConfig. What they take:",
        f"  --learning_rate (a number, {words()['learning_rate']}; {rate})",
        *(f"  --{name} ({text})" for name, text in words().items() if name != "learning_rate"),
    ]


def compare_fields() -> str:
    """Return the fields of `balora compare` that no other command has, and the lab's."""
    from balora.compare.config import CompareConfig
    from balora.lab.config import LabConfig

    return "\n".join([*_section(CompareConfig), *_section(LabConfig, dashes="--lab.")])


def lab_fields() -> str:
    """Return the fields of `balora lab`."""
    from balora.lab.config import LabConfig

    return "\n".join(_section(LabConfig))


def _section(section: type, where: str = "", dashes: str = "--") -> list[str]:
    """Return the help of every field of a dataclass; a default may be another by kind of run."""
    from balora.field_types import describe
    from balora.recipes.kinds import CLASSIFICATION, GENERATION

    lines = [f"{section.__name__}{where}:"]
    in_classification = {
        **CLASSIFICATION.adapter_defaults,
        **_preset_differences(GENERATION.preset_task, CLASSIFICATION.preset_task),
    }
    for name, kind, default, sentence in describe(section):
        shown = spelled_default(default)
        if section.__name__ in ("AdapterConfig", "BALoraConfig") and name in in_classification:
            shown += f", in classification {spelled_default(in_classification[name])}"
        lines += [f"  {dashes}{name} ({kind}; {shown})", f"      {sentence}"]
    return lines


def _preset_differences(one: str, other: str) -> dict[str, object]:
    """Return the numbers of the default preset that differ between two kinds of run."""
    from balora.config import BALoraConfig

    first, second = (asdict(BALoraConfig.preset("paper", task)) for task in (one, other))
    return {name: value for name, value in second.items() if value != first[name]}
