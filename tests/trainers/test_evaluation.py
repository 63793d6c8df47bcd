"""Evaluation: every row once and every token alike, whatever the batches and the processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from balora.objective import TokenCounts
from balora.trainers.evaluation import TokenSums, masked, num_counted
from support.models import make_model
from support.training import make_rows, make_trainer


def at(rank, remainder, *, is_last=True):
    """Return an accelerator that reads a loader: ``remainder`` rows of all in the last batch."""
    state = SimpleNamespace(end_of_dataloader=is_last, remainder=remainder)
    return SimpleNamespace(process_index=rank, gradient_state=state)


@pytest.mark.parametrize(
    ("rank", "remainder", "expected"),
    [(0, 5, 4), (1, 5, 1), (2, 5, 0), (0, 3, 3), (1, 3, 0), (1, 0, 4), (1, -1, 4)],
)
def test_rows_that_fill_the_last_batch_up_do_not_count(rank, remainder, expected):
    assert num_counted(at(rank, remainder), 4) == expected
    assert num_counted(at(rank, remainder, is_last=False), 4) == 4


def test_labels_are_masked_by_rows():
    labels = torch.arange(6).reshape(3, 2)
    one_row = torch.tensor([[0, 1], [-100, -100], [-100, -100]])
    assert torch.equal(masked(labels, None, at(1, 4)), one_row)
    flat = masked(labels.reshape(1, 6), torch.tensor([1, 3, 2]), at(1, 5))
    assert torch.equal(flat, torch.tensor([[0, 1, 2, 3, -100, -100]]))
    assert torch.equal(labels, torch.arange(6).reshape(3, 2))


def test_means_are_over_the_tokens():
    sums = TokenSums()
    assert sums.means() == {}
    for loss, number in ((6.0, 2.0), (0.0, 1.0)):
        count = torch.tensor(number)
        sums.add(torch.tensor(loss), TokenCounts(count, 2 * count, torch.tensor(1.0)))
    expected = {"loss": 2.0, "entropy": 2.0, "mean_token_accuracy": 2 / 3}
    assert sums.means() == pytest.approx(expected)


@pytest.mark.parametrize(
    "layout", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "flat"]
)
def test_the_loss_is_the_mean_over_the_tokens_of_all_rows(tmp_path, layout):
    trainer = make_trainer(
        tmp_path,
        options={"eval_dataset": make_rows(5)},
        per_device_eval_batch_size=2,
        **layout,
    )
    metrics = trainer.evaluate()
    model, total, number = make_model("llama"), 0.0, 0
    for row in trainer.eval_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        number += int((labels != -100).sum())
    assert metrics["eval_loss"] == pytest.approx(total / number, rel=1e-5)
    assert trainer.state.log_history[-1]["eval_entropy"] > 0


def test_logits_are_there_for_metrics_that_ask_for_them(tmp_path):
    seen = []
    trainer = make_trainer(
        tmp_path,
        options={
            "eval_dataset": make_rows(3),
            "compute_metrics": lambda found: seen.append(found.predictions.shape) or {"one": 1.0},
        },
    )
    metrics = trainer.evaluate()
    assert metrics["eval_one"] == 1.0
    assert seen[0][0] == 3
    assert metrics["eval_loss"] > 0
