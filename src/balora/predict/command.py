"""``balora predict``: load a run, ask it, and show or write what it says, in the order of rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from balora.config.options import PredictOptions
from balora.data.provenance import LocatedRows
from balora.data.reading import texts_alone
from balora.data.templates import template_named
from balora.data.tokens import tokenize_rows
from balora.errors import ConfigError, NonFiniteError
from balora.evaluation.bench.prompts import CHAT, Prompter, prompter_of
from balora.evaluation.generation import Sampling, TransformersGenerator, in_order
from balora.evaluation.predict import predict_logits
from balora.evaluation.table import aligned
from balora.files import finite, write_text
from balora.models.limits import Limits, max_positions
from balora.models.load import accelerator
from balora.models.run_folder import (
    LoadedRun,
    check_holds_model,
    is_classifier,
    load_run_alone,
)
from balora.predict.rows import prompts_of, read_asked, texts_to_classify
from balora.usage import reading_lines

Row = dict[str, Any]
_OF_GENERATION = ("prompt_template", "max_new_tokens", "temperature", "seed")
_DIGITS = 6
_LONGEST_SHOWN = 60


def predict(
    run: Path, texts: Sequence[str], options: PredictOptions, *, show: Callable[[str], None]
) -> None:
    """Predict texts with a run, and show the predictions or write them to a file.

    Args:
        run: A folder with an adapter or a model.
        texts: Those of the command line; none where a file is named.
        options: Of the command.
        show: Called with what is printed.

    Raises:
        ConfigError: If an option, the run or its base cannot work.
        DataError: If the file cannot be read, or holds what cannot be predicted.
        WriteError: If the predictions cannot be written.
    """
    if not run.is_dir():
        raise ConfigError(f"`{run}` does not exist; name the folder of a finished run.")
    check_holds_model(run)
    _check_output(options)
    rows = read_asked(run, texts, options)
    classifies = is_classifier(run)
    found = (_classify if classifies else _generate)(run, rows, options)
    if options.output is None and options.input is None:
        show(_table(texts, found) if classifies else _answers(texts, found))
        return
    whole = [{**row, **one} for row, one in zip(rows.dataset, found, strict=True)]
    if options.output is None:
        show(_as_lines(whole).rstrip())
    else:
        path = Path(options.output)
        write_text(path, _as_csv(whole) if _is_csv(path) else _as_lines(whole), name="`--output`")
        show(f"{len(whole)} predictions are in {path}. These lines read them:\n")
        show(reading_lines(path))


def _check_output(options: PredictOptions) -> None:
    """Refuse an output that is no file of rows, is there already, or is the input."""
    if options.output is None:
        if options.overwrite:
            raise ConfigError("`--overwrite` is set, but there is no `--output`; leave it out.")
        return
    path = Path(options.output)
    if path.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"`--output` is {str(path)!r}; name a file that ends in .jsonl or .csv.")
    if options.input is not None and path.resolve() == Path(options.input).resolve():
        raise ConfigError(f"`--output` is {str(path)!r}, the file of `--input`; name another.")
    if path.exists() and not options.overwrite:
        raise ConfigError(
            f"`--output` {str(path)!r} exists; name another file, or pass `--overwrite`."
        )


def _load(run: Path, options: PredictOptions) -> LoadedRun:
    return load_run_alone(
        run,
        options.base,
        device=accelerator(),
        revision=options.revision,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
    )


def _classify(run: Path, rows: LocatedRows, options: PredictOptions) -> list[Row]:
    """Return the class of each row with all probabilities; of a regression the number."""
    for name in _OF_GENERATION:
        if getattr(options, name) is not None:
            raise ConfigError(
                f"`--{name}` acts on text generation only, and `{run}` is a classifier; leave it "
                "out."
            )
    texts, max_length = texts_to_classify(run, rows, options)
    loaded = _load(run, options)
    own = LocatedRows(
        texts_alone(rows.dataset, texts), rows.name, rows.split, (), rows.files, rows.split_sizes
    )
    if max_length is None:
        max_length = min(loaded.tokenizer.model_max_length, max_positions(loaded.model))
    tokens = tokenize_rows(own, loaded.tokenizer, max_length)
    problem = Limits.of(loaded.model, loaded.tokenizer).first_problem(tokens)
    if problem is not None:
        own.refuse([problem[0]], problem[1], purpose="predicted")
    logits = predict_logits(loaded.model, tokens, loaded.tokenizer, batch_size=options.batch_size)
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise NonFiniteError(f"the model gives NaN or infinity for {own.locate(int(bad[0]))}.")
    if loaded.class_names is None:
        return [{"predicted_value": round(float(value), _DIGITS)} for value in logits[:, 0]]
    return [_of_classes(row, loaded.class_names) for row in logits.astype(np.float64)]


def _of_classes(logits: Any, names: Sequence[str]) -> Row:
    probabilities = softmax(logits).tolist()
    best = int(np.argmax(logits))
    return {
        "predicted_label": names[best],
        "predicted_probability": round(probabilities[best], _DIGITS),
        "probabilities": {
            name: round(value, _DIGITS) for name, value in zip(names, probabilities, strict=True)
        },
    }


def _generate(run: Path, rows: LocatedRows, options: PredictOptions) -> list[Row]:
    """Return what the run writes after each prompt."""
    loaded: list[LoadedRun] = []

    def tokenizer() -> Any:
        loaded.append(_load(run, options))
        return loaded[0].tokenizer

    prompter = prompter_of(run, options.prompt_template, tokenizer)
    prompts = prompts_of(run, rows, prompter, options)
    model = loaded[0] if loaded else _load(run, options)
    generator = TransformersGenerator(model.model, model.tokenizer, batch_size=options.batch_size)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens or 256,
        stop=prompter.stop,
        temperature=options.temperature or 0.0,
        seed=options.seed or 0,
    )
    answers = in_order(generator.generate(prompts, sampling))
    between = _separator(prompter)
    return [{"generated_text": texts[0].removeprefix(between)} for texts in answers]


def _separator(prompter: Prompter) -> str:
    """Return what a response begins with in training, and is no part of it."""
    return "" if prompter.template == CHAT else template_named(prompter.template).separator


def _is_csv(path: Path) -> bool:
    return path.suffix == ".csv"


def _as_lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def _as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV: the probability of each class in a column, lists and mappings as JSON."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Row) -> Row:
    cells: Row = {}
    for name, value in row.items():
        if name == "probabilities":
            cells |= {f"probability of {label}": share for label, share in value.items()}
        elif isinstance(value, list | Mapping):
            cells[name] = json.dumps(value, ensure_ascii=False, default=str)
        else:
            cells[name] = value
    return cells


def _table(texts: Sequence[str], found: Sequence[Row]) -> str:
    """Return a line per text: the class and its probability, or the number."""
    lines = []
    for text, row in zip(texts, found, strict=True):
        if "predicted_value" in row:
            cells = [f"{row['predicted_value']:.4f}"]
        else:
            cells = [f"{row['predicted_label']}", f"{row['predicted_probability']:.1%}"]
        shown = " ".join(text.split())
        if len(shown) > _LONGEST_SHOWN:
            shown = shown[: _LONGEST_SHOWN - 3] + "..."
        lines.append([shown, *cells])
    heads = ["text", "value"] if "predicted_value" in found[0] else ["text", "label", "probability"]
    return aligned([heads, *lines])


def _answers(texts: Sequence[str], found: Sequence[Row]) -> str:
    pairs = zip(texts, found, strict=True)
    return "\n\n".join(f"> {text}\n{row['generated_text']}" for text, row in pairs)
