"""Logits and figures of whole data sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from balora.data.classification import ClassificationRows
from balora.errors import NonFiniteError
from balora.evaluation.predict import measure_sets, predict_logits
from support.classification import make_classifier, make_rows
from support.models import make_tokenizer


def one_by_one(model, rows):
    """The logits of each row alone, in eval mode."""
    model.eval()
    with torch.no_grad():
        return np.concatenate(
            [model(input_ids=torch.tensor([row["input_ids"]])).logits.numpy() for row in rows]
        )


@pytest.mark.parametrize("architecture", ["bert", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_logits_are_those_of_each_row_alone_in_order(architecture, batch_size):
    # with dropout, which must be off; the rows differ in length, so they are not read in order
    model, rows = make_classifier(architecture, dropout=True).model, make_rows(7)
    expected = one_by_one(model, rows)
    model.train()
    found = predict_logits(model, rows, make_tokenizer(), batch_size=batch_size)
    assert model.training
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_columns_that_the_model_does_not_take_are_left_out():
    model, rows = make_classifier("llama").model, make_rows(3)
    expected = predict_logits(model, rows, make_tokenizer())
    more = rows.add_column("text", ["a", "b", "c"])  # no tensor can be made of it
    found = predict_logits(model, more, make_tokenizer())
    np.testing.assert_array_equal(found, expected)


def text_rows(**columns):
    return ClassificationRows(Dataset.from_dict(columns), "rows", "train")


def test_a_set_has_its_rows_its_metrics_and_where_given_its_worst_group():
    model = make_classifier("bert").model
    columns = {"text": ["a", "bb", "ccc"], "label": [0, 1, 2]}
    sets = {"one": text_rows(**columns), "two": text_rows(**columns, group=["x", "y", "y"])}
    found = measure_sets(model, sets, make_tokenizer(), task="mnli", max_length=8)
    names = ["num_rows", "accuracy", "ece", "majority_class", "predicted", "present"]
    assert list(found["one"]) == names
    assert found["one"]["present"] == {"0": 1, "1": 1, "2": 1}
    in_sets = replace(sets["one"], class_sets=((0,), (1, 2)))
    (other,) = measure_sets(
        model, {"one": in_sets}, make_tokenizer(), task="mnli", max_length=8
    ).values()
    assert "present" not in other  # its rows have sets of classes
    assert found["one"]["num_rows"] == 3
    assert found["two"]["worst_group"]["name"] in ("x", "y")
    assert {**found["two"], "worst_group": None} == {**found["one"], "worst_group": None}


def test_nan_names_the_set_and_the_row():
    model = make_classifier("bert").model
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    sets = {"hans": text_rows(text=["a"], label=[0])}
    with pytest.raises(NonFiniteError, match=r"hans: the model gives NaN or infinity for row 0"):
        measure_sets(model, sets, make_tokenizer(), task="mnli", max_length=8)
