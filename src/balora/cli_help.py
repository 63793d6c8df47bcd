"""What the commands say of themselves: examples, exit status, and every field of a recipe.

Importing this module must not import torch; a field's sentence is read from where it is declared.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from textwrap import fill
from typing import NamedTuple

from balora.config.fields import describe
from balora.config.words import spelled_default, suggestion
from balora.errors import ConfigError

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
    "predict": """\
examples:
  balora predict outputs/reviews "A film to remember." "Two hours of my life."
  balora predict outputs/reviews --input reviews.csv --output predictions.csv
  balora predict outputs/math "Ann has 3 balls and buys 2. How many has she?" --max_new_tokens 64
""",
    "eval": """\
examples:
  balora eval outputs/run --base MODEL --dataset_name test.jsonl
  balora eval outputs/run --base MODEL --dataset_name test.jsonl --retention_file text.txt
  balora eval outputs/a outputs/b --base MODEL --dataset_name test.jsonl --num_rows 200
  balora eval outputs/reviews --base MODEL --eval_dataset_name other.csv --json metrics.json
  balora eval outputs/mnli --base MODEL --out_of_domain '{hans: {dataset_name: hans.jsonl}}'
""",
    "bench": """\
examples:
  balora bench outputs/math --base meta-llama/Llama-2-7b-hf --benchmarks gsm8k,math
  balora bench --base MODEL --benchmarks gsm8k --num_rows 100 --json metrics.json
  balora bench outputs/math --base MODEL --benchmarks gsm8k --gsm8k.dataset_name test.jsonl
""",
    "compare": """\
examples:
  balora compare --config recipes/gsm8k.yaml --model_name_or_path meta-llama/Llama-2-7b-hf \\
      --methods full,lora,pissa,balora --seeds 0,1,2 --output_dir outputs/compare
  balora compare --config recipes/lab.yaml --methods base,lora,lora+kl=0.3,balora-svd --jobs 2
  balora compare --config recipe.yaml --dry_run
  balora compare --report_only --output_dir outputs/compare --baseline pissa
  balora compare --config recipe.yaml --worker outputs/shared
  balora compare --worker outputs/shared --study 1f0c2a9b7d3e
  balora compare --config recipe.yaml --slurm '{workers: 8, timeout_min: 600, partition: gpu}'
""",
    "lab": """\
examples:
  balora lab
  balora lab --noise_rate 0.4 --world_seed 1
  balora lab outputs/lora outputs/balora --config recipes/lab.yaml --json metrics.json
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
    "schema": """\
examples:
  balora schema > train.schema.json
  balora schema compare > compare.schema.json
""",
    "sandbox": """\
examples:
  balora sandbox
  balora sandbox > sandbox.txt
  python -m balora sandbox
""",
    "env": """\
examples:
  balora env
  balora env > environment.txt
  python -m balora env
""",
}


class _Entry(NamedTuple):
    """A field as a recipe spells it: its default, what it takes, and what it means."""

    name: str
    default: str
    words: str
    sentence: str

    def lines(self) -> list[str]:
        """Return the line of a recipe, and the sentence below it."""
        value = "" if self.default == "required" else f" {self.default}"
        needed = "; required" if self.default == "required" else ""
        below = fill(self.sentence, 100, initial_indent="    ", subsequent_indent="    ")
        return [f"{self.name}:{value}  # {self.words}{needed}", below]


_Sections = dict[str, list[_Entry]]


def train_fields(word: str = "") -> str:
    """Return the fields of `balora train` by part, those with `word` in name or sentence."""
    from balora.config.classification import ClassificationConfig, OutOfDomainConfig
    from balora.recipes.kinds import CLASSIFICATION, GENERATION

    parts = [*GENERATION.parts.values()]
    after = parts.index(GENERATION.data) + 1
    parts[after:after] = [ClassificationConfig, OutOfDomainConfig]
    where = {
        GENERATION.data: " In text generation.",
        ClassificationConfig: " In classification and regression, where `task` is set.",
        OutOfDomainConfig: " An entry of `out_of_domain`.",
        **dict.fromkeys(GENERATION.own_parts.values(), " In text generation."),
    }
    apart = {**CLASSIFICATION.adapter_defaults, **_preset_differences()}
    sections = {
        _title(part) + where.get(part, ""): [
            _with_other_default(one, apart.get(one.name)) if part not in where else one
            for one in _entries(part)
        ]
        for part in parts
    }
    title = "Of transformers' TrainingArguments, and in text generation of trl's SFTConfig."
    sections[title] = _training_fields(
        {one.name for part in GENERATION.parts.values() for one in _entries(part)}
    )
    return _shown(sections, word)


def _training_fields(own: Collection[str]) -> list[_Entry]:
    """Return the fields of the training arguments, whose classes are not imported."""
    from balora.config.classification import ClassificationConfig
    from balora.schema import packaged_schema

    schema = packaged_schema("train")
    generation = {**schema["properties"], **schema["else"]["properties"]}
    other_own = {field.name for field in fields(ClassificationConfig)}
    entries = []
    for name, field in generation.items():
        if not field or name in own or "\n\n" not in field["description"]:
            continue
        sentence, _, rest = field["description"].partition("\n\n")
        words, _, default = rest.rpartition("; ")
        entry = _Entry(name, default, words, sentence)
        other = {} if name in other_own else schema["then"]["properties"].get(name) or {}
        entries.append(_with_other_default(entry, other.get("default")))
    return entries


def _with_other_default(entry: _Entry, default: object) -> _Entry:
    if default is None:
        return entry
    return entry._replace(words=f"{entry.words}; in classification {spelled_default(default)}")


def bench_fields(word: str = "") -> str:
    """Return the fields of `balora bench` that are no options of it, and those of a data set."""
    from balora.evaluation.bench.config import BenchConfig, BenchmarkData

    of_data = f"On the command line --gsm8k.FIELD, say. {_title(BenchmarkData)}"
    return _shown(
        {_title(BenchConfig): _entries(BenchConfig), of_data: _entries(BenchmarkData)}, word
    )


def compare_fields(word: str = "") -> str:
    """Return the fields of `balora compare` that no other command has, and the lab's."""
    from balora.compare.config import CompareConfig
    from balora.lab.config import LabConfig

    sections = {
        f"Under `compare:`. {_title(CompareConfig)}": _entries(CompareConfig),
        f"Under `lab:`, on the command line --lab.FIELD. {_title(LabConfig)}": _entries(LabConfig),
    }
    return _shown(sections, word)


def lab_fields(word: str = "") -> str:
    """Return the fields of `balora lab`."""
    from balora.lab.config import LabConfig

    return _shown({f"Under `lab:`. {_title(LabConfig)}": _entries(LabConfig)}, word)


def _shown(sections: _Sections, word: str) -> str:
    """Return the sections as text: all fields, or those with a word in their name or sentence.

    Raises:
        ConfigError: If no field has the word.
    """
    wanted = word.casefold()
    found = {
        title: [one for one in entries if wanted in f"{one.name} {one.sentence}".casefold()]
        for title, entries in sections.items()
    }
    if not any(found.values()):
        names = [one.name for entries in sections.values() for one in entries]
        raise ConfigError(f"`--help_fields` {word}: no field has it{suggestion(word, names)}.")
    blocks = [
        "\n".join([f"# {title}", *(line for one in entries for line in one.lines())])
        for title, entries in found.items()
        if entries
    ]
    head = "# As in a recipe; on the command line --FIELD VALUE. What is shown is the default."
    return "\n\n".join([head, *blocks])


def _title(section: type) -> str:
    return (section.__doc__ or "").splitlines()[0]


def _entries(section: type) -> list[_Entry]:
    return [
        _Entry(one.name, spelled_default(one.default), one.type, one.sentence)
        for one in describe(section)
    ]


def _preset_differences() -> dict[str, object]:
    """Return the numbers of the default preset that classification has for itself."""
    from balora.config import BALoraConfig
    from balora.recipes.kinds import CLASSIFICATION, GENERATION

    first, second = (
        asdict(BALoraConfig.preset("paper", kind.preset_task))
        for kind in (GENERATION, CLASSIFICATION)
    )
    return {name: value for name, value in second.items() if value != first[name]}
