"""The command line: parse, call, exit status. Importing this module must not import torch."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from balora import __version__
from balora.cli_help import EXAMPLES, STATUS, bench_fields, compare_fields, lab_fields, train_fields
from balora.config.options import (
    BenchOptions,
    EvalOptions,
    ExportOptions,
    Once,
    PredictOptions,
    ReplayOptions,
    add_options,
    read_options,
    schemes,
)
from balora.config.rules import PathTo
from balora.environment import (
    hide_bars_in_logs,
    hide_known_warnings,
    launched,
    print_messages,
)
from balora.errors import BaloraError, ConfigError

if TYPE_CHECKING:
    from balora.models.source import ModelSource

_AFTER_INTERRUPT = {
    "train": "; `--resume_from_checkpoint true` resumes the last checkpoint, if one was saved",
    "quickstart": "; the same command with `--overwrite` starts again",
    "eval": "; the same command measures again",
    "predict": "; the same command predicts again",
    "compare": "; the same command resumes the comparison, without `--overwrite` if a cell had "
    "finished",
    "lab": "; the same command pre-trains an unfinished model again",
    "export": "; the same command writes the export again",
}
"""What to do after Ctrl-C or SIGTERM, by command."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send; it ends a command as Ctrl-C does."""

    exit_status = 128 + signal.SIGTERM


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one waits for nothing
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors are one sentence on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    hint = ""
    try:
        options, rest = build_parser().parse_known_args(arguments)
        if rest and options.command in ("export", "replay", "schema", "sandbox", "env"):
            raise ConfigError(f"unknown option `{rest[0]}`; see `balora {options.command} --help`.")
        hint = _AFTER_INTERRUPT.get(options.command, "")
        options.run(options, rest)
    except _Shown:
        return 0
    except KeyboardInterrupt as error:
        is_terminated = isinstance(error, _Terminated)
        if launched()[0] == 0:
            word = "terminated" if is_terminated else "interrupted"
            print(f"balora: {word}{hint}", file=sys.stderr)
        return _Terminated.exit_status if is_terminated else 1
    except BaloraError as error:
        if debug:
            raise
        if launched()[0] == 0:
            print(f"balora: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def entry_point() -> None:
    """Run as a program: an unforeseen error is one line too, unless ``--debug`` is given."""
    hide_bars_in_logs()
    hide_known_warnings()
    print_messages()
    logging.getLogger("balora").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    if "--debug" not in sys.argv:
        sys.excepthook = _one_line
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _one_line(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    first = (str(error).strip() or "no message").splitlines()[0]
    print(f"balora: {kind.__name__}: {first} (--debug shows the traceback)", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`.")


class _Shown(Exception):
    """What was asked for has been printed, and there is nothing else to do."""


class _ShowFields(argparse.Action):
    """Print the fields of a command, also where options that it requires are missing."""

    def __init__(self, *, show: Callable[[str], str], **more: Any) -> None:
        super().__init__(nargs="?", const="", metavar="WORD", **more)
        self.show = show

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, word: Any, option: str | None = None
    ) -> NoReturn:
        """Print all fields, or those with a word in them."""
        print(self.show(word))
        raise _Shown


class _ShowVersion(argparse.Action):
    """Print the version; what it runs with is in `balora env`."""

    def __call__(self, *_: Any) -> NoReturn:
        """Print it."""
        print(f"balora {__version__}")
        raise _Shown


@cache
def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command; options of `train` that it leaves are recipe fields."""
    parser = _parser(_Parser, "balora", "Fine-tune language models with BA-LoRA.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _parser(
        commands.add_parser,
        "train",
        "Fine-tune a causal language model or, with `task`, a classifier or a regression. "
        "The recipe describes the run; an option sets one field of it, as in trl and "
        "transformers.",
    )
    train.add_argument("--config", action=Once, metavar="RECIPE", help="the recipe, a YAML file")
    _add_help_fields(train, train_fields, "a recipe")
    train.usage = "balora train [--config RECIPE] [--FIELD VALUE ...]"
    train.set_defaults(run=_train)

    quickstart = _parser(
        commands.add_parser,
        "quickstart",
        "Fine-tune a tiny model on a CPU and show what changed. Model and data come with the "
        "package. The options are the fields of `balora train`.",
    )
    quickstart.usage = "balora quickstart [--FIELD VALUE ...]"
    quickstart.set_defaults(run=_quickstart)

    predict = _parser(
        commands.add_parser,
        "predict",
        "Use a finished run on new texts: classes with probabilities, numbers, or generated text. "
        "OUT is a folder that `balora train` wrote; the texts stand after it, or in a file.",
    )
    predict.usage = "balora predict OUT [TEXT ...] [--input FILE] [--output FILE] [--FIELD VALUE]"
    add_options(predict, PredictOptions)
    predict.set_defaults(run=_predict)

    evaluate = _parser(
        commands.add_parser,
        "eval",
        "Evaluate fine-tuned models against their base: exact match, drift from the base, response "
        "entropy, and the loss on text that should be retained. Classifiers are evaluated with the "
        "metrics of their task, also out of domain (`--out_of_domain`). List the run folders (OUT) "
        "first, then any options. The rows are those of the run's recipe unless `--dataset_name` "
        "names others; the other data fields of a recipe (`--dataset_test_split`, "
        "`--prompt_column`, ...) are options too.",
    )
    evaluate.usage = "balora eval OUT [OUT ...] --base MODEL [--FIELD VALUE ...]"
    add_options(evaluate, EvalOptions)
    evaluate.set_defaults(run=_eval)

    bench = _parser(
        commands.add_parser,
        "bench",
        "Measure skills on fixed problems: GSM8K, MATH, HumanEval, MBPP and MT-Bench. Every "
        "answer, its verdict and why are in a row of a file; the same command goes on with the "
        "answers that are missing. OUT are folders that `balora train` wrote, before any field; "
        "without one the pre-trained model is asked.",
    )
    bench.usage = "balora bench [OUT ...] --base MODEL --benchmarks NAMES [--FIELD VALUE ...]"
    _add_help_fields(bench, bench_fields, "`bench`")
    add_options(bench, BenchOptions)
    bench.set_defaults(run=_bench)

    compare = _parser(
        commands.add_parser,
        "compare",
        "Train and evaluate every method with every seed, and compare them. It writes tables with "
        "intervals, paired differences to a baseline, and a report. Methods are base, full, lora, "
        "pissa, olora, mica, balora, with terms added or removed (lora+kl=0.3). The options are "
        "the fields of `balora train`, those of `compare:` in the recipe, `--bench.FIELD` and "
        "`--lab.FIELD`. "
        "Finished cells are retained: the same command resumes an interrupted comparison. With "
        "`--worker OUT` it runs free cells of a folder that any number of workers share.",
    )
    compare.add_argument("--config", action=Once, metavar="RECIPE", help="the recipe, a YAML file")
    _add_help_fields(compare, compare_fields, "`compare`")
    compare.usage = "balora compare [--config RECIPE] [--FIELD VALUE ...] [--dry_run]"
    compare.set_defaults(run=_compare)

    lab = _parser(
        commands.add_parser,
        "lab",
        "Pre-train a tiny model on a synthetic world and print its defect card. The card has "
        "recall of head and tail facts, repeated noise, stereotypes and diversity. The model is "
        "cached in $BALORA_CACHE or ~/.cache/balora. To evaluate runs that were fine-tuned from "
        "it, list their folders (OUT) first, then any options.",
    )
    lab.usage = "balora lab [OUT ...] [--config RECIPE] [--FIELD VALUE ...]"
    lab.add_argument(
        "--config", action=Once, metavar="RECIPE", help="a recipe with a mapping `lab`"
    )
    _add_help_fields(lab, lab_fields, "the lab")
    lab.add_argument(
        "--json", action=Once, metavar="FILE", help="also write the metrics to this file"
    )
    lab.set_defaults(run=_lab)

    export = _parser(
        commands.add_parser,
        "export",
        "Export a trained adapter as a plain LoRA of rank 2r, truncated, or merged into its base.",
    )
    export.add_argument("source", type=Path, metavar="OUT", help="a folder `balora train` wrote")
    add_options(export, ExportOptions)
    export.set_defaults(run=_export)

    replay = _parser(
        commands.add_parser,
        "replay",
        "Generate the texts of replay with a pre-trained model. They are sampled at temperature 1 "
        "without truncation. A run with `replay: generated` generates its own; this command "
        "generates them separately, to read them or to use them in several runs "
        "(`--replay texts.jsonl`).",
    )
    add_options(replay, ReplayOptions)
    replay.set_defaults(run=_replay)

    schema = _parser(
        commands.add_parser,
        "schema",
        "Print the JSON schema of a recipe, by which an editor completes and checks it: a first "
        "line `# yaml-language-server: $schema=FILE` names it.",
    )
    schema.add_argument("recipe", nargs="?", default="train", choices=("train", "compare", "lab"))
    schema.set_defaults(run=_schema)

    sandbox = _parser(
        commands.add_parser,
        "sandbox",
        "Say what isolates the programs that a model writes: each layer is tried with a program "
        "that it has to stop. Without all of them `balora bench` runs no program.",
    )
    sandbox.set_defaults(run=_sandbox)

    env = _parser(commands.add_parser, "env", "Print versions and devices, for bug reports.")
    env.set_defaults(run=_env)
    return parser


def _add_help_fields(parser: argparse.ArgumentParser, show: Callable[[str], str], of: str) -> None:
    what = f"list the fields of {of}, all or with WORD"
    parser.add_argument("--help_fields", action=_ShowFields, show=show, help=what)


def _parser(make: object, name: str, description: str) -> argparse.ArgumentParser:
    summary = description.partition(". ")[0].rstrip(".")
    parser: argparse.ArgumentParser = make(  # type: ignore[operator]
        **({"prog": name} if name == "balora" else {"name": name, "help": summary}),
        description=textwrap.fill(description, 88, break_on_hyphens=False),
        epilog=f"{EXAMPLES[name]}\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def runs_and_fields(rest: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Divide what argparse leaves into the runs, which stand first, and the fields.

    As an argument of the parser's own, runs would swallow the value of a field it does not know.
    """
    num = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    return [Path(word) for word in rest[:num]], overrides(rest[num:])


def overrides(rest: Sequence[str]) -> dict[str, str]:
    """Turn ``--field value``, ``--field=value`` and a bare ``--flag`` into a mapping.

    Raises:
        ConfigError: For a value without a field, or a field given twice.
    """
    fields: dict[str, str] = {}
    position = 0
    while position < len(rest):
        word, position = rest[position], position + 1
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(
                f"`{word}` belongs to no option; fields are given as `--field value`."
            )
        name, separator, value = word[2:].partition("=")
        if not separator:
            has_value = position < len(rest) and not rest[position].startswith("--")
            value, position = (rest[position], position + 1) if has_value else ("true", position)
        if name in fields:
            raise ConfigError(f"`--{name}` is given twice; keep one.")
        if not value.strip():
            raise ConfigError(
                f"`--{name}` is empty; give it a value, or `null` to take it out of the recipe."
            )
        fields[name] = value
    return fields


def _train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.recipes import load_recipe

    recipe = load_recipe(options.config, overrides(rest))
    if recipe.run.dry_run:
        from balora.trainers.preflight import check_run

        memory = check_run(recipe)
        print(recipe.to_yaml(), end="")
        print("\n# Memory of one process in training, computed from the shapes:")
        print("\n".join(f"#   {line}" for line in memory))
        return
    from balora.trainers.run import run_recipe

    trainer = run_recipe(recipe)
    if launched()[0] > 0:
        return
    if recipe.kind.evaluates_itself:
        from balora.evaluation.results import format_results, read_results

        print(format_results(read_results(Path(trainer.args.output_dir))), end="\n\n")
    print(_where(trainer, recipe.adapter.method))


def _where(trainer: Any, method: str) -> str:
    """Say where the result is, and the lines that load it."""
    from balora.trainers.card import lines_that_load

    folder = Path(trainer.args.output_dir)
    what = "model is" if method == "full" else "adapter, a plain LoRA, is"
    lines = [
        f"The {what} in {folder}. `balora predict {folder} TEXT` uses it.",
        _how_to_serve(folder),
        "These lines load it:",
    ]
    return "\n".join(filter(None, lines)) + f"\n\n{lines_that_load(trainer, folder)}"


def _how_to_serve(folder: Path, base: str | None = None) -> str:
    """Say how a server takes an adapter, and what is lost where it must be made smaller for it."""
    from balora.anchored.truncate import error_at
    from balora.models.adapter import is_adapter_folder, read_adapter
    from balora.serving import VLLM_RANKS, how_to_serve, room_for

    lost = None
    if is_adapter_folder(folder) and room_for(read_adapter(folder).config.r) is None:
        lost = error_at(folder, VLLM_RANKS[-1])
    return how_to_serve(folder, base=base, lost=lost)


def _quickstart(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.quickstart import quickstart

    print(quickstart(overrides(rest)))


def _predict(given: argparse.Namespace, rest: Sequence[str]) -> None:
    options = read_options(PredictOptions, given)
    unknown = [word for word in rest if word.startswith("--") and " " not in word and word != "--"]
    if unknown:
        raise ConfigError(f"unknown option `{unknown[0]}`; see `balora predict --help`.")
    words = [word for word in rest if word != "--"]
    if not words:
        raise ConfigError("no run is named; its folder stands first: `balora predict OUT TEXT`.")
    from balora.predict.command import predict

    predict(Path(words[0]), words[1:], options, show=print)


def _json_file(text: str | None) -> Path | None:
    """Return where metrics are to be written; refused now and not when they have been computed."""
    if text is not None and (problem := PathTo("new file").missing(text)) is not None:
        raise ConfigError(f"`--json` {problem}.")
    return None if text is None else Path(text)


def _eval(given: argparse.Namespace, rest: Sequence[str]) -> None:
    options = read_options(EvalOptions, given)
    runs, fields = runs_and_fields(rest)
    if not runs:
        raise ConfigError(
            "no run is named; folders that `balora train` wrote stand first: `balora eval OUT ...`."
        )
    from balora.evaluation.command import evaluate

    text, metrics = evaluate(runs, _base(options, runs), fields, options)
    print(text)
    _write_metrics(options, metrics)


def _bench(given: argparse.Namespace, rest: Sequence[str]) -> None:
    options = read_options(BenchOptions, given)
    runs, fields = runs_and_fields(rest)
    from balora.evaluation.bench.judges import judged_by
    from balora.evaluation.bench.run import bench_config, measure_benchmarks
    from balora.evaluation.bench.table import add_to_cards, format_scores
    from balora.models.names import name_of_dtype
    from balora.usage import reading_lines

    config = bench_config(fields)
    base = _base(options, runs)
    measured = measure_benchmarks(runs, base, config)
    print(format_scores({name: one.scores for name, one in measured.items()}))
    lines = judged_by(one.facts for one in measured.values())
    if options.card:
        lines += add_to_cards(runs, measured, config, dtype=name_of_dtype(base.dtype))
    print("\n".join(["", *lines, f"The answers are in {config.output_dir}."]))
    rows = Path(config.output_dir) / next(iter(measured)) / f"{config.benchmarks[0]}.jsonl"
    print(f"These lines read those to {config.benchmarks[0]}:\n\n{reading_lines(rows)}")
    _write_metrics(options, {name: one.to_dict() for name, one in measured.items()})


def _base(options: EvalOptions | BenchOptions, runs: Sequence[Path]) -> ModelSource:
    from balora.models.source import base_of_runs

    return base_of_runs(
        runs,
        options.base,
        revision=options.revision,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        **schemes(options),
    )


def _write_metrics(options: EvalOptions | BenchOptions, metrics: Mapping[str, Any]) -> None:
    """Write the metrics where `--json` says: last, so that a full disk does not take them."""
    if options.json is not None:
        from balora.files import write_json

        write_json(Path(options.json), metrics, name="`--json`")


def _compare(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.compare.command import compare

    compare(options.config, overrides(rest), show=print)


def _lab(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.lab.command import lab

    runs, fields = runs_and_fields(rest)
    lab(runs, options.config, fields, show=print, json_file=_json_file(options.json))


def _export(given: argparse.Namespace, rest: Sequence[str]) -> None:
    options = read_options(ExportOptions, given)
    from balora.anchored.export import export_adapter, export_merged
    from balora.models.run_folder import base_as_code, classes_of, is_classifier
    from balora.models.source import read_recipe
    from balora.usage import loading_lines

    source: Path = given.source
    kind = "merged" if options.merge else f"rank{options.rank}" if options.rank else "export"
    destination = Path(options.to) if options.to else source.with_name(f"{source.name}-{kind}")
    if options.merge:
        quantization = export_merged(
            source,
            options.base,
            destination,
            revision=options.revision,
            overwrite=options.overwrite,
            **schemes(options),
        )
        if quantization:
            print(
                f"Merged into the dequantised weights of the base ({quantization}), on which the "
                f"adapter was trained; `--{quantization.scheme} false` merges into the weights as "
                "they were saved."
            )
        print(f"The merged model is in {destination}. These lines load it:\n")
        print(loading_lines(destination, **_asked(source)))
        return
    truncation = export_adapter(
        source,
        options.base,
        destination,
        rank=options.rank,
        revision=options.revision,
        overwrite=options.overwrite,
    )
    if truncation:
        print(
            f"Rank {truncation.rank} loses {truncation.relative_error:.2%} of the update "
            f"(Frobenius norm); most in {truncation.worst_layer}, {truncation.worst_error:.2%}."
        )
    names = classes_of(source) if is_classifier(source) else None
    recipe = read_recipe(source)
    is_same = recipe.get("model_name_or_path") == options.base
    print(f"The adapter is in {destination}.")
    if sentence := _how_to_serve(destination, options.base):
        print(sentence)
    print("These lines load it:\n")
    print(
        loading_lines(
            destination,
            base=options.base,
            revision=options.revision or (is_same and recipe.get("model_revision")) or "main",
            dtype=recipe.get("dtype"),
            id2label=dict(enumerate(names)) if names else None,
            has_other_head=bool(recipe.get("ignore_mismatched_sizes")),
            **_asked(source),
            quantization=base_as_code(source, options.base, **schemes(options)),
        )
    )


def _asked(source: Path) -> dict[str, Any]:
    """Return how the printed lines ask the model of a run."""
    from balora.evaluation.bench.prompts import template_of_run
    from balora.models.run_folder import is_classifier
    from balora.models.source import read_recipe

    return {
        "prompt_template": "none" if is_classifier(source) else template_of_run(source),
        "is_pair": read_recipe(source).get("text_pair_column") is not None,
    }


def _replay(given: argparse.Namespace, rest: Sequence[str]) -> None:
    options = read_options(ReplayOptions, given)
    from balora.replay.command import write_replay

    print(write_replay(options))


def _schema(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.schema import as_text, schema

    print(as_text(schema(options.recipe)))


def _sandbox(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.sandbox import check

    layers = check()
    for layer in layers:
        print(f"{layer.name:<11} {'holds' if layer.holds else 'fails'}  {layer.says}")
    if not all(layer.holds for layer in layers):
        raise BaloraError("programs that a model writes cannot be isolated here.")


def _env(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from balora.environment import describe_environment

    facts = describe_environment()
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))


if __name__ == "__main__":
    entry_point()
