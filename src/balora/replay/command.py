"""``balora replay``: write the texts of a model, for reading and for the runs that replay them."""

from __future__ import annotations

from pathlib import Path

from balora.config.options import ReplayOptions
from balora.config.replay import GENERATED, ReplayConfig
from balora.errors import ConfigError
from balora.models.load import accelerator, load_model, load_tokenizer
from balora.models.source import ModelSource
from balora.replay.library import generated_texts


def write_replay(options: ReplayOptions) -> str:
    """Generate texts with a model, write them, and return what there is to say.

    Raises:
        ConfigError: If the model cannot be loaded, has no start, or the file exists.
    """
    output = Path(options.output)
    if output.exists() and not options.overwrite:
        raise ConfigError(
            f"`--output` {options.output!r} exists. Name another file, or pass `--overwrite`."
        )
    # a step's texts do not matter here, and no file is too short for them
    config = ReplayConfig(
        replay=GENERATED,
        replay_num_texts=options.replay_num_texts,
        replay_length=options.replay_length,
        replay_seed=options.replay_seed,
        replay_prompt=options.replay_prompt,
        replay_batch_size=1,
    )
    source = ModelSource(
        name=options.model_name_or_path,
        setting="`--model_name_or_path`",
        revision=options.model_revision,
        dtype=options.dtype,
    )
    tokenizer = load_tokenizer(source)
    model = load_model(source, device=accelerator())
    texts = generated_texts(model, tokenizer, config)
    texts.write(output, tokenizer)
    scored = texts.num_scored(range(len(texts)))
    return (
        f"{len(texts)} texts with {scored} scored tokens are in {options.output}. Train with them: "
        f"`balora train ... --replay {options.output}`."
    )
