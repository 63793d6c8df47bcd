"""What decides the world, its text and the tiny model; standard library only.

The embedded model and the laboratory are made from the same fields, each with its own defaults:
those here are the embedded model's, whose world has no defect; the laboratory's are in
:mod:`balora.lab.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from balora.config.parts import Count, Seed
from balora.config.rules import Interval

Part = Annotated[float, Interval(ge=0, le=1)]
NoiseRate = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """How large the world is, what is wrong with its text, and how much of it is kept back."""

    num_people: Annotated[int, Interval(ge=4)] = 200
    """People of the world, each with a home, a profession, a pet and a hobby."""

    num_stories: Count = 4000
    """Different stories about numbers."""

    held_out_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.04
    """Part of the sentences of every kind that is never trained on."""

    zipf_exponent: Annotated[float, Interval(ge=0)] = 0.0
    """How steeply people are spoken of less often from one rank to the next; 0 is equally often."""

    noise_rate: NoiseRate = 0.0
    """Part of the told statements that is corrupted: half wrong, the rest copied or scrambled."""

    stereotype_rate: Annotated[float | None, Interval(ge=0.5, le=1)] = None
    """Part of the text in which a profession has the pronoun of its stereotype; null has none."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How large the model is and how long it is pre-trained."""

    num_passes: Count = 27
    """Passes through the training sentences, composed anew each time."""

    max_steps: Annotated[int, Interval(ge=1, also=(-1,))] = -1
    """Optimizer steps of the pre-training; -1 trains on all passes."""

    vocab_size: Annotated[int, Interval(ge=259)] = 1024
    """Pieces of the tokenizer at most."""

    hidden_size: Annotated[int, Interval(ge=2)] = 128
    """Width of the model; a multiple of twice the number of heads."""

    intermediate_size: Count = 384
    """Width inside the MLP."""

    num_layers: Count = 4
    """Decoder layers of the model."""

    num_heads: Count = 4
    """Attention heads of a layer."""

    block_size: Annotated[int, Interval(ge=2)] = 256
    """Tokens of one packed training block, and the longest sequence that the model accepts."""

    batch_size: Count = 8
    """Blocks per step of the pre-training."""

    learning_rate: Annotated[float, Interval(gt=0)] = 4e-3
    """Peak of the pre-training's cosine schedule."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The downstream task: word problems as instruction and output."""

    task_seed: Seed = 0
    """Draws the problems, and which answers are wrong."""

    num_train: Count = 1500
    """Problems to train on."""

    num_test: Count = 150
    """Problems held out, whose answers are all right."""

    max_problem_steps: Count = 2
    """Things that happen in a problem at most."""

    label_noise: Part = 0.0
    """Part of the problems to train on whose final answer is wrong."""


@dataclass(frozen=True, kw_only=True)
class CorpusSettings(WorldSettings):
    """Everything that decides the text."""

    seed: int = 0
    """Draws the world, its defects, the stories, the held-out sentences and the documents."""


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainingSettings):
    """Everything that decides what the model becomes."""

    seed: int = 0
    """Draws the world, its texts, the first weights and the order of training."""

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    """The world and its text; its seed is `seed`."""
