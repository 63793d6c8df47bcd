"""What the commands say of themselves: examples, exit status, and every field of a recipe.

Importing this module must not import torch; a field's sentence is read from where it is declared.
"""

from __future__ import annotations

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
  balora train --task classification --model_name_or_path FacebookAI/roberta-base \
      --dataset_name train.csv --text_column review --label_column stars \
      --eval_dataset_name test.csv --output_dir outputs/reviews
  balora train --config recipe.yaml --svd_coef 0 --seed 1 --output_dir outputs/no-svd
  balora train --config recipe.yaml --learning_rate 1e-4 --dry_run
  balora train --config recipe.yaml --resume_from_checkpoint true
  accelerate launch -m balora train --config recipe.yaml
""",
    "eval": """\
examples:
  balora eval outputs/run --base MODEL --dataset_name test.jsonl
  balora eval outputs/run --base MODEL --dataset_name test.jsonl --retention_file text.txt
  balora eval outputs/a outputs/b --base MODEL --dataset_name test.jsonl --num_rows 200
  balora eval outputs/reviews --base MODEL --eval_dataset_name other.csv --json figures.json
  balora eval outputs/mnli --base MODEL --out_of_domain "$(cat sets.yaml)"
""",
    "compare": """\
examples:
  balora compare --config recipes/gsm8k.yaml --model_name_or_path meta-llama/Llama-2-7b-hf \
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
    )

    sections = {
        ModelConfig: "",
        DataConfig: " (text generation)",
        ClassificationConfig: " (classification and regression: where `task` is set)",
        OutOfDomainConfig: " (an entry of `out_of_domain`)",
        AdapterConfig: "",
        BALoraConfig: "",
        RunConfig: "",
    }
    lines = [
        line
        for section, where in sections.items()
        for line in _section(section, where, "" if section is OutOfDomainConfig else "--")
    ]
    lines.append(
        "Every field of transformers' TrainingArguments as well, and for text generation of trl's "
        "SFTConfig."
    )
    return "\n".join(lines)


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
    """Return the help of every field of a dataclass."""
    from balora.config import describe

    lines = [f"{section.__name__}{where}:"]
    for name, kind, default, sentence in describe(section):
        lines += [f"  {dashes}{name} ({kind}, {default})", f"      {sentence}"]
    return lines
