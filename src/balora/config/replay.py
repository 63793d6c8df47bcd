"""The settings of replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from balora.config.fields import field_problems
from balora.config.parts import Count, Seed, refuse
from balora.config.rules import Form, Interval, Named, NotEmpty, PathTo

GENERATED = "generated"
"""The value of `replay` for texts that the pre-trained model writes itself."""

RECOMMENDED: Mapping[str, Any] = {"replay": GENERATED, "replay_coef": 1.0, "replay_every": 2}
"""What the preset ``recommended`` adds to a recipe that says nothing of replay itself."""

ReplayLoss = Literal["kl", "cross_entropy"]
ReplayReference = Literal["auto", "memory", "disk", "live"]

Pair = list[str]
"""Two words."""

_GENERATION_ONLY = ("replay_prompt",)
_SOURCE_ONLY = ("replay_column",)
_REFERENCE_ONLY = ("replay_swap", "replay_reference", "replay_reference_gib")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayConfig:
    """A fourth term: what the model wrote, or read, before fine-tuning it should go on modelling.

    Raises:
        ConfigError: If a value has the wrong type or cannot act; all problems in one message.
    """

    replay: Annotated[str | None, PathTo("data"), Named((GENERATED,))] = None
    """Texts to go on modelling as before: generated (by the model), or a data set; null: none."""

    replay_column: str | None = None
    """Column of the texts in the data set that `replay` names; null takes `text`."""

    replay_coef: Annotated[float, Interval(gt=0)] = 1.0
    """Multiplies the replay term; in a step that has it, `replay_every` times."""

    replay_num_texts: Count = 2000
    """Texts to generate, or to take from the data set at most; rare facts need more."""

    replay_length: Annotated[int, Interval(ge=2)] = 128
    """Tokens of a text at most, the start included."""

    replay_batch_size: Count = 16
    """Texts of an optimizer step at most, of all its micro-steps and processes together."""

    replay_every: Count = 4
    """Optimizer steps from one with replay to the next; 1 replays in every step."""

    replay_seed: Seed = 0
    """Seed of the texts and of their order, independent of the seed of the run."""

    replay_prompt: Annotated[str | None, Named(("chat",))] = None
    """What generated texts begin with: null for the beginning of a text, chat, or a text."""

    replay_loss: ReplayLoss = "kl"
    """Divergence from the pre-trained model (kl), or cross-entropy on the texts, as a control."""

    replay_swap: Annotated[list[Pair] | None, NotEmpty(), Form("[[he, she], [his, her]]")] = None
    """Pairs of words to balance: the reference is that of a text and of its swap; null: none."""

    replay_reference: ReplayReference = "auto"
    """Where the pre-trained hidden states lie: memory, disk, or live (computed anew); or auto."""

    replay_reference_gib: Annotated[float, Interval(ge=0)] = 4.0
    """GiB of hidden states that auto keeps in memory at most, before it takes the disk."""

    def __post_init__(self) -> None:
        refuse(
            "replay",
            field_problems(self, self._number_problems, self._swap_problems, self._inert_problems),
        )

    @property
    def is_on(self) -> bool:
        """True when a run has the replay term."""
        return self.replay is not None

    @property
    def needs_reference(self) -> bool:
        """True when the term compares with the pre-trained model's distributions."""
        return self.is_on and self.replay_loss == "kl"

    def _number_problems(self) -> list[str]:
        if not self.is_on or self.replay_num_texts >= self.replay_batch_size:
            return []
        return [
            f"`replay_num_texts` is {self.replay_num_texts}, fewer than the "
            f"{self.replay_batch_size} of a step (`replay_batch_size`); lower the latter"
        ]

    def _swap_problems(self) -> list[str]:
        wrong = [pair for pair in self.replay_swap or () if len(pair) != 2]
        return [
            f"`replay_swap` has {pair}, which is no pair; write two words, such as [he, she]"
            for pair in wrong
        ]

    def inert(self) -> dict[str, str]:
        """Return the fields that cannot act under the others, and why."""
        if self.replay == GENERATED:
            found = dict.fromkeys(_SOURCE_ONLY, "the model writes the texts itself")
        else:
            found = dict.fromkeys(_GENERATION_ONLY, f"the texts come from {self.replay}")
        if self.replay_loss == "cross_entropy":
            found |= dict.fromkeys(_REFERENCE_ONLY, "`replay_loss` is cross_entropy")
        elif self.replay_reference != "auto":
            found["replay_reference_gib"] = f"`replay_reference` is {self.replay_reference}"
        return found

    def _inert_problems(self) -> list[str]:
        given = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default and field.name != "replay"
        }
        if not self.is_on:
            return [
                f"`{name}` is {value}, but `replay` is null and so it cannot act; set `replay: "
                f"{GENERATED}`, or leave `{name}` out"
                for name, value in given.items()
            ]
        return [
            f"`{name}` is {given[name]}, but {why}, so it cannot act; leave it out"
            for name, why in self.inert().items()
            if name in given
        ]


def acting_fields(config: ReplayConfig) -> dict[str, Any]:
    """Return the fields that may be written down: those that act, by name; none without replay."""
    if not config.is_on:
        return {}
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    inert = config.inert()
    return {k: v for k, v in values.items() if v is not None and k not in inert}
