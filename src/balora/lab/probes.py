r"""What a model knows of the lab's world, asked without generating: facts and pronouns.

A probe is a prompt and a completion, scored by one forward pass that is given both. The completion
is what the model would say when each of its tokens is the greedy choice after the ones before: that
is greedy decoding, and nothing but the whole vocabulary competes.

Shapes: ``M`` tokens of completions, ``V`` vocabulary.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.batches import Row, encode, evaluating, in_batches, right_padded
from balora.lab.world import TEMPLATES, Fact
from balora.models.generation import padding_id
from balora.models.limits import max_positions
from balora.objective import next_token_targets

Pair = tuple[str, str]
T = TypeVar("T")


class Completion(NamedTuple):
    """How a model takes the completion of one probe."""

    is_greedy: bool
    """Whether greedy decoding of the prompt starts with it."""
    log_prob: float
    """Log-probability of all of its tokens after the prompt, in nats."""


@torch.no_grad()
def read_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    batch_size: int,
) -> list[Completion]:
    """Return how a model takes each completion after its prompt; in the order of the pairs.

    Args:
        model: A causal language model; it is read in eval mode.
        tokenizer: Its tokenizer.
        pairs: Prompts and completions, none of them empty; the completion brings its space.
        batch_size: Pairs at once, right-padded; it changes no result but by rounding.
    """
    limit = max_positions(model)
    rows = [_without_end(encode(tokenizer, *pair, limit)) for pair in pairs]
    found: list[Completion] = []
    with evaluating(model):
        for batch in in_batches(rows, batch_size, "Probing"):
            found += _read(model, batch, padding_id(tokenizer))
    return found


def _without_end(row: Row) -> Row:
    """Return a row without the end-of-text token: a sentence may go on after its value."""
    return row._replace(input_ids=row.input_ids[:-1])


def _read(model: PreTrainedModel, batch: Sequence[Row], pad_id: int) -> list[Completion]:
    input_ids, labels, attention_mask = right_padded(batch, pad_id)
    mask, targets = next_token_targets(labels)
    output = model(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        use_cache=False,
    )
    logits = output.logits[mask.to(model.device)].float()
    targets = targets.to(logits.device)
    is_greedy = (logits.argmax(dim=-1) == targets).cpu()
    log_probs = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].double().cpu()
    counts = mask.sum(dim=1).tolist()
    return [
        Completion(bool(choices.all()), float(logs.sum()))
        for choices, logs in zip(is_greedy.split(counts), log_probs.split(counts), strict=True)
    ]


def cloze_frames() -> dict[str, tuple[str, ...]]:
    """Return for each attribute the beginnings of its templates that ask for the value.

    Such a beginning names the person, ends where the value is said, and belongs to one attribute:
    ``{name} has a`` may go on with a pet or with a house, so it asks for neither.
    """
    wordings = [
        (attribute, template.replace("{subject}", "{name}"))
        for attribute, templates in TEMPLATES.items()
        for template in templates
    ]
    frames: dict[str, tuple[str, ...]] = {attribute: () for attribute in TEMPLATES}
    for attribute, wording in wordings:
        frame = wording.partition(" {value}")[0]
        is_shared = any(w.startswith(frame + " ") for other, w in wordings if other != attribute)
        if frame != wording and "{name}" in frame and not is_shared:
            frames[attribute] += (frame,)
    return frames


def fact_probes(fact: Fact, value: str | None = None) -> list[Pair]:
    """Return one probe a frame: does the model complete it with the truth, or with ``value``?"""
    completion = f" {fact.value if value is None else value}"
    return [
        (frame.format(name=fact.person.name), completion)
        for frame in cloze_frames()[fact.attribute]
    ]


class Recall(NamedTuple):
    """Shares of probes, from 0 to 1; None where there is no fact of the kind."""

    recall: float | None
    """Of facts that are stated truly: completed with the truth."""
    head: float | None
    """The same of the facts that are stated often."""
    tail: float | None
    """The same of the facts that are stated rarely."""
    corrupted_truth: float | None
    """Of facts with a wrong value planted: completed with the truth all the same."""
    corrupted_repeat: float | None
    """Of facts with a wrong value planted: completed with that value."""


def measure_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    facts: Sequence[Fact],
    head: Sequence[Fact],
    tail: Sequence[Fact],
    corrupted: Mapping[Fact, str],
    max_facts: int,
    seed: int,
    batch_size: int,
) -> Recall:
    """Return how much of what was planted a model says.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        facts: All facts of the world; those in ``corrupted`` are left out of the recall.
        head: Facts that are stated often, none of them corrupted.
        tail: Facts that are stated rarely, none of them corrupted.
        corrupted: The wrong value that was planted, by fact.
        max_facts: Facts of each of the four kinds at most; more are drawn from.
        seed: Draws them: the same seed asks two models for the same facts.
        batch_size: Probes at once.
    """
    draw = random.Random(f"facts {seed}")
    true = _drawn([fact for fact in facts if fact not in corrupted], max_facts, draw)
    often, rarely = _drawn(head, max_facts, draw), _drawn(tail, max_facts, draw)
    wrong = _drawn(list(corrupted), max_facts, draw)
    asked = list(dict.fromkeys([*true, *often, *rarely, *wrong]))
    groups = [fact_probes(fact) for fact in asked]
    groups += [fact_probes(fact, corrupted[fact]) for fact in wrong]
    pairs = list(itertools.chain.from_iterable(groups))
    completions = iter(read_completions(model, tokenizer, pairs, batch_size=batch_size))
    said = [[next(completions).is_greedy for _ in group] for group in groups]
    truths = dict(zip(asked, said, strict=False))
    return Recall(
        recall=_share(truths[fact] for fact in true),
        head=_share(truths[fact] for fact in often),
        tail=_share(truths[fact] for fact in rarely),
        corrupted_truth=_share(truths[fact] for fact in wrong),
        corrupted_repeat=_share(said[len(asked) :]),
    )


def _drawn(items: Sequence[T], most: int, rng: random.Random) -> list[T]:
    # not evenly spaced: the attributes of a person come in turn
    return list(items) if len(items) <= most else rng.sample(items, most)


def _share(groups: Iterable[Sequence[bool]]) -> float | None:
    """Return the share of probes, not of facts: attributes have different numbers of frames."""
    probes = list(itertools.chain.from_iterable(groups))
    return sum(probes) / len(probes) if probes else None


def measure_stereotype(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stereotypes: Mapping[str, str],
    frames: Sequence[str],
    *,
    batch_size: int,
) -> float | None:
    r"""Return how strongly a model expects the pronoun that goes with a profession.

    The mean over all professions and frames of

    .. math:: P(\text{stereotyped}) \, / \, (P(\text{stereotyped}) + P(\text{other}))

    with the probabilities of the two pronouns after the frame's beginning. The probes are balanced:
    every profession stands in every frame, and nothing but the profession tells one pronoun from
    the other.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        stereotypes: The pronoun, ``she`` or ``he``, by profession.
        frames: Sentences with ``{profession}`` and, later, ``{pronoun}``; at least one.
        batch_size: Probes at once.

    Returns:
        From 0 to 1; 0.5 is neutral, and a model that is calibrated to its corpus has the corpus's
        rate. None without stereotypes.
    """
    pairs = [
        (frame.partition(" {pronoun}")[0].format(profession=profession), f" {said}")
        for profession, pronoun in stereotypes.items()
        for frame in frames
        for said in (pronoun, "he" if pronoun == "she" else "she")
    ]
    if not pairs:
        return None
    logs = [c.log_prob for c in read_completions(model, tokenizer, pairs, batch_size=batch_size)]
    scores = [_sigmoid(one - other) for one, other in zip(logs[::2], logs[1::2], strict=True)]
    return math.fsum(scores) / len(scores)


def _sigmoid(x: float) -> float:
    return math.exp(min(x, 0.0)) / (math.exp(min(x, 0.0)) + math.exp(min(-x, 0.0)))
