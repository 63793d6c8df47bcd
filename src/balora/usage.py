"""The lines of Python that use what a command has left: complete, without balora, from anywhere.

PEFT's format of an adapter has no place for the classes of a classifier, so the lines name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from balora.state import read_json

_FIX = "Train or export again."


def loading_lines(
    folder: Path,
    *,
    base: str | None = None,
    revision: str = "main",
    dtype: str | None = None,
    id2label: Mapping[int, str] | None = None,
    pad_token_id: int | None = None,
    has_other_head: bool = False,
    quantization: tuple[str, str] | None = None,
    shown: Path | None = None,
    prompt_template: str = "none",
    is_pair: bool = False,
) -> str:
    """Return Python that leaves the model of a folder in ``model``, and asks it, line by line.

    Empty for an adapter that does not know its base.

    Args:
        folder: With an adapter, or with a whole model.
        base: The pre-trained model of an adapter; ``None`` takes the one that it names itself.
        revision: Of the base on the hub.
        dtype: In which the run loaded the base; ``None`` or auto leaves it to the checkpoint.
        id2label: The classes of a classifier; ``None`` for a regression, which has one output.
        pad_token_id: Of a classifier whose base names another or none: a decoder pools the last
            token before it.
        has_other_head: Whether the base has a head for other classes, which is not taken.
        quantization: The imports and the expression of the base's ``quantization_config``.
        shown: What the lines name in place of ``folder``.
        prompt_template: What a language model's prompts were laid out with, or chat.
        is_pair: Whether a classifier reads two texts.
    """
    place, path = str((shown or folder).resolve()), folder / "adapter_config.json"
    if not path.is_file():
        auto = _auto_class(read_json(folder / "config.json", _FIX).get("architectures"))
        return _block(
            f"from transformers import {auto}, AutoTokenizer, pipeline",
            f"model = {auto}.from_pretrained({place!r})",
            *_asking("ForSequence" in auto, place, prompt_template, is_pair),
        )
    config: dict[str, Any] = read_json(path, _FIX)
    is_classifier = config.get("task_type") == "SEQ_CLS"
    auto = "AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM"
    own = base or config.get("base_model_name_or_path")
    if not own:
        return ""
    name = absolute_name(own)
    arguments = [repr(name)] + ([f"revision={revision!r}"] if revision != "main" else [])
    arguments += [f"dtype={dtype!r}"] if dtype not in (None, "auto") else []
    arguments += _head_arguments(id2label, has_other_head) if is_classifier else []
    if quantization is not None:
        arguments.append(f"quantization_config={quantization[1]}")
    lines = [
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer, pipeline",
        *([] if quantization is None else [quantization[0]]),
        f"base = {auto}.from_pretrained({', '.join(arguments)})",
    ]
    if is_classifier and pad_token_id is not None:
        lines.append(f"base.config.get_text_config().pad_token_id = {pad_token_id}")
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return _block(
        *lines,
        f"model = PeftModel.from_pretrained(base, {place!r})",
        *_asking(is_classifier, place if has_tokenizer else name, prompt_template, is_pair),
    )


def _head_arguments(id2label: Mapping[int, str] | None, has_other_head: bool) -> list[str]:
    """Return the arguments that name the classes of a classifier, or say that it has none."""
    own = [f"id2label={dict(id2label)!r}"] if id2label else []
    own = own or ["num_labels=1", "problem_type='regression'"]
    return [*own, "ignore_mismatched_sizes=True"] if has_other_head else own


def _asking(is_classifier: bool, tokenizer: str, template: str, is_pair: bool) -> list[str]:
    """Return the lines that ask ``model``, laid out as it was trained."""
    given = f"model=model, tokenizer=AutoTokenizer.from_pretrained({tokenizer!r})"
    if is_classifier:
        pair = {"text": "A text.", "text_pair": "Another text."}
        text = repr(pair if is_pair else "A text to classify.")
        return [f'use = pipeline("text-classification", {given})', f"print(use({text}))"]
    question = "Write a sentence."
    prompt: Any = [{"role": "user", "content": question}]
    if template != "chat":
        from balora.data.templates import template_named  # whose room is slow to import

        prompt = template_named(template).prompt(question)
    return [
        f'use = pipeline("text-generation", {given})',
        f"prompt = {prompt!r}",
        'print(use(prompt, max_new_tokens=64, return_full_text=False)[0]["generated_text"])',
    ]


def reading_lines(path: Path) -> str:
    """Return Python that leaves the rows of a .jsonl or .csv file in ``rows``."""
    is_csv = path.suffix == ".csv"
    rows = "list(csv.DictReader(file))" if is_csv else "[json.loads(line) for line in file]"
    return _block(
        f"import {'csv' if is_csv else 'json'}",
        f"with open({str(path.resolve())!r}, encoding='utf-8', newline='') as file:",
        f"    rows = {rows}",
        "print(rows[0])",
    )


def absolute_name(name: str) -> str:
    """Return a folder by its whole path, so that it is found from anywhere; a hub id as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _auto_class(architectures: Any) -> str:
    saved_as = " ".join(architectures or ())
    if "ForSequenceClassification" in saved_as:
        return "AutoModelForSequenceClassification"
    return "AutoModelForCausalLM"


def _block(*lines: str) -> str:
    return "\n".join(lines)
