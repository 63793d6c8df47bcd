"""The objective of classification: every term against its definition, normalised, and the edges.

The references below are loops in float64 numpy, from the logits (or features) of each example.
Shapes: ``M`` examples, ``C`` classes (1 for regression), ``F`` features.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from balora.config import BALoraConfig
from balora.errors import NonFiniteError
from balora.objective import Coefficients, LossTerms, Normalizer, nlu_objective, task_loss
from balora.regularizers import nlu

ALL_ON = Coefficients(1.0, 1.0, 1.0)
NAMES = Coefficients._fields
LOGITS, FEATURES = BALoraConfig(svd_k=0.3), BALoraConfig(svd_k=2, space="features")
SHAPES = [(2, 2), (7, 3), (13, 5), (64, 2)]


def make(rng, num_examples, num_classes, *, num_features=11, dtype=torch.float64):
    """Return logits, features, targets, and reference rows for both spaces."""
    draw = [
        torch.randn(num_examples, width, generator=rng, dtype=dtype)
        for width in (num_classes, num_features, num_classes, num_features)
    ]
    if num_classes == 1:
        targets = torch.randn(num_examples, generator=rng, dtype=dtype)
    else:
        targets = torch.randint(num_classes, (num_examples,), generator=rng)
    return draw[0], draw[1], targets, {"logits": draw[2], "features": draw[3]}


def objective(made, config=LOGITS, normalizer=None, coefficients=ALL_ON):
    logits, features, targets, references = made
    return nlu_objective(
        logits,
        features if config.space == "features" else None,
        targets,
        references[config.space],
        config=config,
        normalizer=normalizer or Normalizer(len(targets)),
        coefficients=coefficients,
    )


# against the definition


def task_reference(logits, targets):
    if logits.shape[1] == 1:
        return sum((f[0] - y) ** 2 for f, y in zip(logits, targets, strict=True))
    return sum(
        math.log(sum(math.exp(v) for v in f)) - f[y] for f, y in zip(logits, targets, strict=True)
    )


def consistency_sum(rows, reference):
    """Return the sum over the examples (or the squared distance of the batch vectors)."""
    if rows.shape[1] == 1:
        rows, reference = rows.T, reference.T
    return sum(
        ((p / np.sqrt((p**2).sum()) - f / np.sqrt((f**2).sum())) ** 2).sum()
        for f, p in zip(rows, reference, strict=True)
    )


def diversity_reference(rows):
    num_rows, num_columns = rows.shape
    mean, total = rows.mean(axis=0), 0.0
    for i in range(num_columns):
        for j in range(num_columns):
            if i != j:
                products = (rows[:, i] - mean[i]) * (rows[:, j] - mean[j])
                total += (products.sum() / (num_rows - 1)) ** 2
    return total / num_columns


def svd_reference(rows, k):
    sigma = np.linalg.svd(rows, compute_uv=False)
    count = math.ceil(k * len(sigma)) if isinstance(k, float) else k
    return -sigma[:count].sum() / sigma.sum()


@pytest.mark.parametrize("shape", [*SHAPES, (7, 1)], ids=str)
@pytest.mark.parametrize("config", [LOGITS, FEATURES], ids=["logits", "features"])
def test_terms_match_the_definition(shape, config, rng):
    made = make(rng, *shape)
    _, terms, counts = objective(made, config, Normalizer(40, num_processes=2, num_micro_steps=3))
    logits, features, targets = (tensor.numpy() for tensor in made[:3])
    rows = logits if config.space == "logits" else features
    consistency = consistency_sum(rows, made[3][config.space].numpy())
    # over the examples of the step and averaged by DDP, or over the micro-steps
    is_batch_term = rows.shape[1] == 1
    expected = [
        2 * task_reference(logits, targets) / 40,
        consistency / len(rows) / 3 if is_batch_term else 2 * consistency / 40,
        diversity_reference(rows) / 3,
        svd_reference(rows, config.svd_k) / 3,
    ]
    np.testing.assert_allclose(
        [term.item() for term in terms if term is not None], expected, rtol=1e-9
    )
    assert counts.num_examples.item() == shape[0]
    if shape[1] == 1:
        assert counts.num_correct is None
    else:
        assert counts.num_correct.item() == (logits.argmax(axis=1) == targets).sum()


def test_closed_form():
    # p = f = (1, 0) and p = (1, 0), f = (0, 1): distances 0 and 2
    logits = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    reference = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    _, terms, counts = nlu_objective(
        logits,
        None,
        torch.tensor([0, 0]),
        reference,
        config=BALoraConfig(svd_k=1),
        normalizer=Normalizer(2),
        coefficients=ALL_ON,
    )
    expected = LossTerms(
        task=torch.tensor((math.log(1 + math.exp(-3)) + 5 + math.log(1 + math.exp(-5))) / 2),
        consistency=torch.tensor(1.0),
        # centred rows (1.5, -2.5), (-1.5, 2.5): covariance -7.5
        diversity=torch.tensor(7.5**2),
        svd=torch.tensor(-5 / 8),
    )
    torch.testing.assert_close(tuple(terms[:4]), tuple(expected[:4]), rtol=1e-6, atol=1e-6)
    assert counts.num_correct.item() == 1


def test_closed_form_of_a_regression():
    # batch vectors (3, 4) / 5 and (1, 0): squared distance 0.16 + 0.64, over two examples
    _, terms, _ = nlu_objective(
        torch.tensor([[3.0], [4.0]]),
        None,
        torch.tensor([1.0, 1.0]),
        torch.tensor([[9.0], [0.0]]),
        config=LOGITS,
        normalizer=Normalizer(2),
        coefficients=ALL_ON,
    )
    found = [term.item() for term in terms if term is not None]
    assert found == pytest.approx([(4 + 9) / 2, 0.4, 0.0, -1.0], rel=1e-6)


def test_the_loss_is_the_weighted_sum(rng):
    made = make(rng, 7, 3)
    coefficients = Coefficients(0.7, 0.3, 0.5)
    loss, terms, _ = objective(made, coefficients=coefficients)
    expected = terms.task + 0.7 * terms.consistency + 0.3 * terms.diversity + 0.5 * terms.svd
    torch.testing.assert_close(loss, expected)


# how a step is cut


@pytest.mark.parametrize("config", [LOGITS, FEATURES], ids=["logits", "features"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_example_terms_do_not_depend_on_the_cut(config, num_classes, rng):
    made = make(rng, 8, num_classes)
    on = (
        Coefficients(1.0, 0.0, 0.0)
        if (num_classes > 1 or config is FEATURES)
        else Coefficients(0.0, 0.0, 0.0)
    )
    whole = objective(made, config, Normalizer(8), on)
    logits, features, targets, references = made
    parts = [
        objective(
            (
                logits[part],
                features[part],
                targets[part],
                {space: rows[part] for space, rows in references.items()},
            ),
            config,
            Normalizer(8, num_micro_steps=2),
            on,
        )
        for part in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, rtol=1e-12, atol=0)


def test_batch_terms_are_averaged_over_the_micro_steps(rng):
    made = make(rng, 8, 3)
    alone = objective(made, normalizer=Normalizer(8)).terms
    third = objective(made, normalizer=Normalizer(8, num_processes=2, num_micro_steps=3)).terms
    torch.testing.assert_close(third.diversity * 3, alone.diversity)
    torch.testing.assert_close(third.svd * 3, alone.svd)


# gradients


@pytest.mark.parametrize("config", [LOGITS, FEATURES], ids=["logits", "features"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_gradients(config, num_classes, rng):
    logits, features, targets, references = make(rng, 5, num_classes, num_features=4)

    def loss(logits, features):
        return objective((logits, features, targets, references), config).loss

    inputs = (logits.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_reference_is_held_constant(rng):
    logits, features, targets, references = make(rng, 5, 3)
    logits.requires_grad_()
    references["logits"].requires_grad_()
    objective((logits, features, targets, references)).loss.backward()
    assert references["logits"].grad is None
    assert logits.grad.abs().min() > 0


def test_terms_on_features_leave_the_logits_to_the_task(rng):
    logits, features, targets, references = make(rng, 5, 3)
    logits.requires_grad_()
    features.requires_grad_()
    _, terms, _ = objective((logits, features, targets, references), FEATURES)
    regularizers = terms.consistency + terms.diversity + terms.svd
    by_logits, by_features = torch.autograd.grad(
        regularizers, (logits, features), allow_unused=True
    )
    assert by_logits is None
    assert by_features.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_half_precision_costs_only_input_rounding(dtype, num_classes, rng):
    logits, features, targets, references = make(rng, 16, num_classes, dtype=torch.float32)
    rounded = logits.to(dtype), features.to(dtype), targets, references
    found = objective(rounded).terms
    expected = objective((rounded[0].double(), features, targets, references)).terms
    for one, other in zip(found[:4], expected[:4], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-6)


# the edges


@pytest.mark.parametrize("config", [LOGITS, FEATURES], ids=["logits", "features"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_no_example_gives_attached_zeros(config, num_classes, rng):
    logits, features, targets, references = make(rng, 0, num_classes)
    logits.requires_grad_()
    features.requires_grad_()
    made = logits, features, targets, references
    loss, terms, counts = objective(made, config, Normalizer(0))
    assert [loss.item(), *(term.item() for term in terms[:4])] == [0.0] * 5
    rows = logits if config is LOGITS else features
    for term, tensor in zip(terms[:4], (logits, rows, rows, rows), strict=True):
        (grad,) = torch.autograd.grad(term, tensor, retain_graph=True)
        assert grad.shape == tensor.shape
    assert counts.num_examples.item() == 0


@pytest.mark.parametrize("config", [LOGITS, FEATURES], ids=["logits", "features"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_batch_terms_of_one_example_are_attached_zeros(config, num_classes, rng):
    logits, features, targets, references = make(rng, 1, num_classes)
    logits.requires_grad_()
    features.requires_grad_()
    _, terms, _ = objective((logits, features, targets, references), config)
    rows = logits if config is LOGITS else features
    is_batch_term = rows.shape[1] == 1
    zeros = [terms.diversity, terms.svd, *([terms.consistency] if is_batch_term else [])]
    for term in zeros:
        assert term.item() == 0.0
        (grad,) = torch.autograd.grad(term, rows, retain_graph=True)
        assert not grad.any()
    assert terms.task.item() != 0.0
    assert is_batch_term or terms.consistency.item() > 0


def test_huge_logits_are_finite():
    logits = torch.tensor([[1e18, -1e18], [-1e18, 1e18], [0.0, 0.0]], requires_grad=True)
    _, terms, _ = nlu_objective(
        logits,
        None,
        torch.tensor([0, 1, 0]),
        torch.ones(3, 2),
        config=LOGITS,
        normalizer=Normalizer(3),
        coefficients=Coefficients(1.0, 0.0, 1.0),
    )
    (grad,) = torch.autograd.grad(terms.task + terms.consistency + terms.svd, logits)
    assert grad.isfinite().all()


def raising(*_args, **_kwargs):
    raise AssertionError("a term that is off was computed")


@pytest.mark.parametrize("on", [*NAMES, None])
def test_a_term_that_is_off_is_none_and_costs_nothing(on, rng, monkeypatch):
    logits, _, targets, references = make(rng, 5, 3)
    for name in NAMES:
        if name != on:
            monkeypatch.setattr(nlu, f"{name}_loss", raising)
    _, terms, _ = nlu_objective(
        logits,
        None,
        targets,
        references["logits"] if on == "consistency" else None,
        config=LOGITS,
        normalizer=Normalizer(5),
        coefficients=Coefficients(*(float(name == on) for name in NAMES)),
    )
    for name in NAMES:
        assert (getattr(terms, name) is None) == (name != on)


def test_task_loss_takes_whole_numbers_as_regression_targets():
    found = task_loss(torch.tensor([[0.5], [2.0]]), torch.tensor([1, 2]))
    assert found.item() == 0.25


# errors


def test_what_is_missing_is_named(rng):
    logits, features, targets, references = make(rng, 5, 3)
    with pytest.raises(ValueError, match="`reference` is None"):
        objective((logits, features, targets, {"logits": None}))
    with pytest.raises(ValueError, match="`space` is features, but `features` is missing"):
        objective((logits, None, targets, references), FEATURES)
    with pytest.raises(ValueError, match=r"`features` is of shape \(4, 11\).* of the 5 examples"):
        objective((logits, features[:4], targets, references), FEATURES)
    with pytest.raises(ValueError, match=r"`reference_logits` has shape \(5, 11\)"):
        objective((logits, features, targets, {"logits": references["features"]}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["logits", "features"])
def test_rows_that_are_not_finite_are_named(value, where, rng):
    made = make(rng, 5, 3)
    made[0 if where == "logits" else 1][2, 1] = value
    with pytest.raises(NonFiniteError, match=f"NaN or infinity in the {where}. Look"):
        objective(made, FEATURES)


def test_a_term_that_is_not_finite_is_named(rng):
    logits, features, targets, references = make(rng, 5, 1)
    targets[3] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity in the task loss"):
        objective((logits, features, targets, references))
    logits, features, targets, references = make(rng, 5, 3)
    references["logits"][3] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity in the consistency loss"):
        objective((logits, features, targets, references))
    with pytest.raises(NonFiniteError, match="NaN or infinity in the diversity loss"):
        objective((logits * 1e100, features, targets, {"logits": logits}))
