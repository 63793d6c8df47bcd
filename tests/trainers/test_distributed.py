"""Two processes of half a batch are one process of a whole one: both trainers, and the command."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from support.classification import logits_of, make_classifier, save_body
from support.classification_runs import rows_of, write
from support.models import make_model, make_tokenizer
from support.process import CLASSIFICATION, GENERATION, KINDS
from support.training import REGULARIZERS, make_rows, recomposed
from support.two_processes import run_one_and_two

NUM_TEST_ROWS = 13  # odd: the processes do not have the same number


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """Return the results of one process, and of two, by kind."""
    folder = tmp_path_factory.mktemp("runs")
    files = folder / "command"
    save_body(files / "bert", "bert")
    make_model("llama").save_pretrained(files / "llama")
    for name in ("bert", "llama"):
        make_tokenizer().save_pretrained(files / name)
    write(files / "train.jsonl", rows_of("single", 24))
    write(files / "test.jsonl", rows_of("single", NUM_TEST_ROWS))
    write(files / "pairs.jsonl", list(make_rows(8)))
    write(files / "bad.jsonl", [*make_rows(8), {"prompt": "1+1=", "completion": " "}])
    return run_one_and_two(folder, *KINDS)


@pytest.fixture
def runs(all_runs, kind):
    return all_runs[kind]


def cases(*without):
    """Return kind and name of the runs that are to be those of one process."""
    kinds = {"generation": GENERATION, "classification": CLASSIFICATION}
    return [
        pytest.param(kind, name, id=f"{kind}: {name}")
        for kind, names in kinds.items()
        for name in names
        if (kind, name) not in [*without, ("generation", "own counts"), ("generation", "halves")]
    ]


def of_kind(kind):
    return pytest.mark.parametrize("kind", [kind])


NUM_ROWS = {"generation": 5, "classification": 4}
RELATIVE = {"generation": 1e-6, "classification": 1e-5}
OF_GRADIENTS = {"generation": 1e-6, "classification": 5e-6}
FULL = ("classification", "full")


@pytest.mark.parametrize(("kind", "name"), cases())
def test_every_row_is_the_same(runs, kind, name):
    one, two = runs["one"][name]["rows"], runs["two"][name]["rows"]
    assert len(one) == len(two) == NUM_ROWS[kind]
    for row, other in zip(two, one, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            assert row[key] == pytest.approx(other[key], abs=1e-6, rel=RELATIVE[kind]), key
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)


@pytest.mark.parametrize(("kind", "name"), cases(FULL))
def test_every_term_acts(runs, kind, name):
    row = runs["two"][name]["rows"][-1]
    assert all(f"{term}_loss" in row for term in REGULARIZERS)
    if kind == "generation":
        assert row["consistency_loss"] > 1e-3
    else:
        assert row["consistency_loss"] > 1e-5
        assert abs(row["svd_loss"]) > 0.3


@pytest.mark.parametrize(("kind", "name"), cases())
def test_gradients_are_the_same(runs, kind, name):
    one, two, second = (runs[key][name]["gradients"] for key in ("one", "two", "second"))
    for step, other, of_rank_1 in zip(two, one, second, strict=True):
        for parameter, gradient in step.items():
            expected = other[parameter]
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=OF_GRADIENTS[kind])
            assert torch.equal(gradient, of_rank_1[parameter])


@of_kind("classification")
@pytest.mark.parametrize("name", [name for name in CLASSIFICATION if name != "full"])
def test_the_reference_is_that_of_the_first_head_in_both(runs, name):
    one, two, second = (runs[key][name]["reference"] for key in ("one", "two", "second"))
    assert torch.equal(two, second)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


OF_EVALUATION = ("loss", "entropy", "mean_token_accuracy", "num_tokens")


@of_kind("generation")
@pytest.mark.parametrize("name", ["plain", "flat"])
def test_every_figure_of_an_evaluation_is_that_of_one_process(runs, name):
    one, two = (runs[number][name]["evaluations"] for number in ("one", "two"))
    assert len(one) == len(two) == 3
    for row, other in zip(two, one, strict=True):
        for figure in OF_EVALUATION:
            expected = pytest.approx(other[f"eval_{figure}"], abs=1e-6, rel=1e-6)
            assert row[f"eval_{figure}"] == expected, figure


@of_kind("generation")
def test_rows_add_up_when_each_process_counts_its_own_tokens(runs):
    rows = runs["two"]["own counts"]["rows"]
    for row in rows:
        assert recomposed(row) == pytest.approx(row["loss"], abs=1e-6)
    # then the row is the mean of the two processes' means, not the mean over all tokens
    first, second = (row["task_loss"] for row in runs["one"]["halves"]["rows"])
    assert rows[0]["task_loss"] == pytest.approx((first + second) / 2, abs=1e-6)
    over_all = runs["one"]["plain"]["rows"][0]["task_loss"]
    assert rows[0]["task_loss"] != pytest.approx(over_all, abs=1e-4)


@of_kind("generation")
def test_rows_are_gathered_in_the_order_of_the_ranks_and_gradients_summed(runs):
    rows = torch.arange(6.0).reshape(3, 2) + 1
    assert torch.equal(runs["two"]["gather"]["gathered"], rows)
    assert torch.equal(runs["second"]["gather"]["gathered"], rows)
    # d/dx of (1 + 2) x^2: what both ranks did with the rows
    assert torch.equal(runs["two"]["gather"]["grad"], 6 * rows)
    assert runs["second"]["gather"]["grad"].shape == (0, 2)


@of_kind("generation")
def test_two_processes_save_one_adapter(runs):
    ids = torch.arange(5, 17)[None]
    logits = [
        PeftModel.from_pretrained(make_model("llama"), runs["folder"] / number / "plain")
        .eval()(input_ids=ids)
        .logits
        for number in ("one", "two")
    ]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    assert not list((runs["folder"] / "two" / "plain").glob(".balora-*"))


@of_kind("classification")
def test_two_processes_save_one_adapter_with_its_head(runs):
    folders = [runs["folder"] / number / "logits" for number in ("one", "two")]
    bases = [make_classifier(head_seed=9).model for _ in folders]
    logits = [
        logits_of(PeftModel.from_pretrained(base, folder))
        for base, folder in zip(bases, folders, strict=True)
    ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@of_kind("command")
def test_every_process_ends_well_or_with_the_same_refusal(runs):
    assert [runs[name]["status"] for name in ("one", "two", "second")] == [[0, 0, 2]] * 3


@pytest.mark.parametrize("task", ["classification", "generation", "trainers"])
@of_kind("command")
def test_the_first_process_prepares_the_data_and_the_others_find_them(runs, task):
    one, first, second = (runs[name]["work"][task] for name in ("one", "two", "second"))
    assert ("read" in one) == (task != "trainers")  # whose texts lie in memory
    assert len(one) > 2
    assert first == one
    assert second == []


@of_kind("command")
def test_every_evaluation_is_that_of_one_process(runs):
    one, two = (runs[name]["results"]["per_evaluation"]["validation"] for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for row, other in zip(one, two, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@of_kind("command")
def test_the_final_model_is_measured_on_every_row_once(runs):
    one, two = (runs[name]["results"]["final"]["validation"] for name in ("one", "two"))
    assert one["num_rows"] == two["num_rows"] == NUM_TEST_ROWS
    mappings = ("majority_class", "predicted", "present")  # approx takes none within a mapping
    for name in mappings:
        assert one.pop(name) == two.pop(name)
    assert one == pytest.approx(two, abs=1e-5)
