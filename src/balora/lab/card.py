"""The defect card of a model of the lab: what it knows, repeats, expects, keeps and has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.config import DataConfig
from balora.evaluation.exact_match import measure_answers
from balora.evaluation.instrument import Instrument, MeasureOptions, Metrics, Models
from balora.evaluation.retention import measure_retention
from balora.evaluation.run import evaluation_rows, prompt_pairs
from balora.files import read_filled_text
from balora.lab.diversity import distinct, sample_texts, self_similarity, word_entropy
from balora.lab.planted import GENERIC_FRAMES, HELD_OUT_FRAMES
from balora.lab.probes import measure_recall, measure_stereotype

if TYPE_CHECKING:  # building imports the trainer
    from balora.lab.build import BuiltLab


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """How much is measured. With the defaults a model of a million parameters takes seconds."""

    batch_size: int = 64
    """Rows at once; it changes no metric but by rounding."""
    max_facts: int = 1000
    """Facts of each kind at most; more are drawn from."""
    num_samples: int = 64
    """Open-ended samples; 2 or more."""
    sample_tokens: int = 48
    """Longest sample."""
    max_rows: int = 200
    """Rows of the task, and noisy ones, at most; from the first on."""
    max_new_tokens: int = 64
    """Longest answer."""
    retention_characters: int = 50_000
    """Start of the retention text that is read, to the end of a line."""

    @classmethod
    def of_rows(cls, num_rows: int, **others: int) -> CardOptions:
        """Return options under which so many test rows are all measured."""
        return cls(max_rows=max(num_rows, cls.max_rows), **others)


def measure_defects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lab: BuiltLab,
    *,
    seed: int = 0,
    options: CardOptions | None = None,
) -> Metrics:
    """Measure a model against the truth of the lab that its pre-training came from.

    The same seed asks two models the same; the model's mode and torch's generators stay as they
    are.

    Args:
        model: The lab's own model, or one that was fine-tuned from it.
        tokenizer: The lab's.
        lab: The world with what was planted, and the files of its task.
        seed: Draws the samples, and facts where there are more than are asked.
        options: How much is measured.

    Returns:
        The values by the name of the metric. Shares of cloze probes, from 0 to 1: ``recall``,
        those of the facts that are stated truly which the model completes with the truth, None
        where every fact is corrupted; ``recall_head`` and ``recall_tail``, the same of the facts
        stated often and rarely, None where there are none; ``corrupted_repeat`` and
        ``corrupted_truth``, those of corrupted facts completed with the wrong value that was
        planted and with the truth, None without any. ``stereotype_score``: mean probability of the
        stereotyped pronoun of a profession against the other, None where none was planted.
        Of open-ended samples ``distinct_1``, ``distinct_2``, ``sample_entropy`` in nats and
        ``self_similarity``, as :mod:`balora.lab.diversity` has them. ``retention_loss``: mean
        cross-entropy per token of text held out from pre-training, in nats. ``exact_match``: share
        of the task's test rows answered rightly, None where no row has an answer.
        ``memorised_noise``: share of the training rows with a wrong answer for which the model
        gives that answer, None without label noise.

    Raises:
        DataError: If the files of the task cannot be read.
        ConfigError: If the retention text cannot be read.
    """
    options = options or CardOptions()
    planted, size = lab.world, options.batch_size
    models = Models(model, model, tokenizer)
    retained = _retained_text(lab.retention_file, options.retention_characters)
    recall = measure_recall(
        model,
        tokenizer,
        facts=planted.world.facts,
        head=planted.head,
        tail=planted.tail,
        corrupted=planted.corrupted,
        max_facts=options.max_facts,
        seed=seed,
        batch_size=size,
    )
    frames = [*GENERIC_FRAMES, *HELD_OUT_FRAMES]
    samples = sample_texts(
        model,
        tokenizer,
        num=options.num_samples,
        max_new_tokens=options.sample_tokens,
        seed=seed,
        batch_size=size,
    )
    return {
        "recall": recall.recall,
        "recall_head": recall.head,
        "recall_tail": recall.tail,
        "corrupted_repeat": recall.corrupted_repeat,
        "corrupted_truth": recall.corrupted_truth,
        "stereotype_score": measure_stereotype(
            model, tokenizer, planted.stereotypes, frames, batch_size=size
        ),
        "distinct_1": distinct(samples, 1),
        "distinct_2": distinct(samples, 2),
        "sample_entropy": word_entropy(samples),
        "self_similarity": self_similarity(samples),
        **measure_retention(models, MeasureOptions(retention_text=retained)),
        "exact_match": _exact_match(models, lab.test_file, options),
        "memorised_noise": None
        if lab.noisy_file is None
        else _exact_match(models, lab.noisy_file, options),
    }


def defects(lab: BuiltLab, options: CardOptions) -> Instrument:
    """Return the instrument that fills the defect card of a lab, on the files of the lab."""
    return Instrument(
        "lab",
        lambda models, _: measure_defects(models.tuned, models.tokenizer, lab, options=options),
    )


def _retained_text(file: Path, most: int) -> str:
    text = read_filled_text(file, "`--retention_file`")
    if len(text) <= most:
        return text
    return text[: text.rfind("\n", 0, most) + 1] or text[:most]


def _exact_match(models: Models, file: Path, options: CardOptions) -> float | None:
    """Return the share of rows whose answer the model gives, with the prompt of `balora train`."""
    rows = evaluation_rows(DataConfig(dataset_name=str(file)), options.max_rows)
    asked = MeasureOptions(
        options.batch_size,
        options.max_new_tokens,
        examples=prompt_pairs(rows, models.tokenizer),
    )
    return measure_answers(models, asked)["exact_match"]
