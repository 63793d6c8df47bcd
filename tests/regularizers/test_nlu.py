"""The NLU terms against a float64 loop, by hand, and against their nearest wrong implementations.

Shapes: ``M`` examples, ``C`` classes.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.regularizers import nlu

SHAPES = [(2, 2), (7, 3), (5, 13), (32, 1024), (1, 4), (8, 1)]  # M, C
HALF = [torch.bfloat16, torch.float16]
few_examples = settings(max_examples=40, deadline=None, derandomize=True)
shapes_and_seeds = {
    "num_examples": st.integers(1, 12),
    "num_classes": st.integers(1, 9),
    "seed": st.integers(0, 999),
}


def consistency_reference(student, reference) -> float:
    """The definition, one example at a time, in float64."""
    student, reference = student.detach().double().numpy(), reference.double().numpy()
    if student.shape[1] == 1:  # over the batch vector, which then is the only row
        difference = reference / math.sqrt((reference**2).sum())
        difference -= student / math.sqrt((student**2).sum())
        return float((difference**2).sum()) / len(student)
    total = 0.0
    for f, p in zip(student, reference, strict=True):
        total += ((p / math.sqrt((p**2).sum()) - f / math.sqrt((f**2).sum())) ** 2).sum()
    return float(total) / len(student)


def diversity_reference(logits) -> float:
    """The definition, one pair of classes at a time, in float64."""
    rows = logits.detach().double().numpy()
    num_examples, num_classes = rows.shape
    centred, total = rows - rows.mean(axis=0), 0.0
    for i in range(num_classes):
        for j in range(num_classes):
            if i != j:
                total += ((centred[:, i] * centred[:, j]).sum() / (num_examples - 1)) ** 2
    return float(total) / num_classes


def svd_reference(logits, k: int) -> float:
    sigma = np.linalg.svd(logits.detach().double().numpy(), compute_uv=False)
    return -sum(sigma[:k]) / sum(sigma)


def draw(num_examples: int, num_classes: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(num_examples, num_classes, generator=rng, dtype=torch.float64)


# Consistency (Eq. 5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_consistency_matches_reference(shape, rng):
    student, reference = torch.randn(*shape, generator=rng), torch.randn(*shape, generator=rng)
    expected = consistency_reference(student, reference)
    actual = nlu.consistency_loss(student, reference).item()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_consistency_closed_form():
    # (3, 4) and (4, 3) have unit vectors (0.6, 0.8) and (0.8, 0.6): 0.2^2 + 0.2^2. The second
    # pair has one direction: 0. Their mean is 0.04; a mean over the four entries would be 0.02.
    student = torch.tensor([[3.0, 4.0], [1.0, -1.0]])
    reference = torch.tensor([[4.0, 3.0], [5.0, -5.0]])
    assert nlu.consistency_loss(student, reference).item() == pytest.approx(0.04, rel=1e-6)


def test_consistency_of_one_class_normalises_the_batch_vector():
    # (3, 4) and (4, 3) again, as columns. Row by row, each would only be its sign: 0.
    student, reference = torch.tensor([[3.0], [4.0]]), torch.tensor([[4.0], [3.0]])
    assert nlu.consistency_loss(student, reference).item() == pytest.approx(0.08 / 2, rel=1e-6)


def test_consistency_is_a_mean_over_examples(rng):
    student, reference = torch.randn(2, 5, 3, generator=rng).unbind()
    once = nlu.consistency_loss(student, reference)
    twice = nlu.consistency_loss(student.repeat(2, 1), reference.repeat(2, 1))
    torch.testing.assert_close(twice, once)


def test_minimising_consistency_turns_rows_towards_the_reference(rng):
    student, reference = torch.randn(2, 5, 3, generator=rng).unbind()
    student = student.clone().requires_grad_()
    nlu.consistency_loss(student, reference).backward()
    after = torch.cosine_similarity(student - 0.1 * student.grad, reference)
    assert (after > torch.cosine_similarity(student, reference)).all()


@pytest.mark.parametrize("num_classes", [1, 3])
def test_consistency_holds_the_reference_constant(num_classes, rng):
    student, reference = torch.randn(2, 5, num_classes, generator=rng).unbind()
    student = student.clone().requires_grad_()
    reference = reference.clone().requires_grad_()
    nlu.consistency_loss(student, reference).backward()
    assert reference.grad is None
    assert student.grad.abs().max() > 0


@few_examples
@given(**shapes_and_seeds, scale=st.floats(0.01, 100))
def test_consistency_bounds_and_invariances(num_examples, num_classes, seed, scale):
    student, reference = (draw(num_examples, num_classes, s) for s in (seed, seed + 1000))
    value = nlu.consistency_loss(student, reference)
    highest = 4.0 if num_classes > 1 else 4.0 / num_examples
    assert 0 <= value <= highest + 1e-12
    torch.testing.assert_close(nlu.consistency_loss(scale * student, reference), value)
    torch.testing.assert_close(nlu.consistency_loss(student, scale * reference), value)
    agree = nlu.consistency_loss(scale * student, student).item()
    opposed = nlu.consistency_loss(-scale * student, student).item()
    torch.testing.assert_close((agree, opposed), (0.0, highest), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1)], ids=str)
def test_consistency_gradcheck(shape, rng):
    student, reference = torch.randn(2, *shape, generator=rng, dtype=torch.float64).unbind()
    loss = partial(nlu.consistency_loss, reference_logits=reference)
    assert torch.autograd.gradcheck(loss, (student.clone().requires_grad_(),))


@pytest.mark.parametrize("dtype", HALF)
def test_consistency_in_half_precision_costs_only_input_rounding(dtype, rng):
    student, reference = (torch.randn(32, 100, generator=rng).to(dtype) for _ in range(2))
    student.requires_grad_()
    value = nlu.consistency_loss(student, reference)
    value.backward()
    assert value.dtype == torch.float32
    expected = consistency_reference(student, reference)
    torch.testing.assert_close(value.item(), expected, rtol=1e-5, atol=0.0)
    wide = student.detach().double().requires_grad_()
    nlu.consistency_loss(wide, reference).backward()
    error = (student.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("num_classes", [1, 3])
def test_consistency_of_a_zero_row_stays_small(num_classes):
    # A zero row has no direction: |p|^2 = 1 apart from it, and a gradient of ordinary size.
    student = torch.zeros(1, num_classes, requires_grad=True)
    value = nlu.consistency_loss(student, torch.ones(1, num_classes))
    value.backward()
    assert value.item() == pytest.approx(1.0, rel=1e-6)
    assert student.grad.abs().max() <= 2.0


def test_consistency_refuses_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\), but `reference_logits` has shape \(2, 1\)"):
        nlu.consistency_loss(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(3,\)"):
        nlu.consistency_loss(torch.zeros(3), torch.zeros(3))


# Diversity (Eq. 6-7)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (32, 1024)], ids=str)
def test_diversity_matches_reference(shape, rng):
    logits = torch.randn(*shape, generator=rng)
    expected = diversity_reference(logits) if shape[0] > 1 else 0.0
    actual = nlu.diversity_loss(logits).item()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_diversity_is_the_off_diagonal_of_the_sample_covariance():
    # Columns (-1, 0, 1) and (-2, 0, 2): variances 1 and 4, covariance 2 (divided by M - 1 = 2).
    # (1/2) (2^2 + 2^2) = 4; divided by M the covariance were 4/3, and with the diagonal 12.5.
    logits = torch.tensor([[-1.0, -2.0], [0.0, 0.0], [1.0, 2.0]])
    assert nlu.diversity_loss(logits).item() == pytest.approx(4.0, rel=1e-6)


def test_diversity_centres_the_columns():
    # The same columns with means 10 and -20.
    logits = torch.tensor([[9.0, -22.0], [10.0, -20.0], [11.0, -18.0]])
    assert nlu.diversity_loss(logits).item() == pytest.approx(4.0, rel=1e-6)


def test_diversity_is_zero_for_uncorrelated_classes_of_any_variance():
    logits = torch.tensor([[5.0, 1.0], [5.0, -1.0], [-5.0, 1.0], [-5.0, -1.0]])
    assert nlu.diversity_loss(logits).item() == 0.0


def test_minimising_diversity_decorrelates(rng):
    logits = torch.randn(20, 2, generator=rng)
    logits[:, 1] += logits[:, 0]
    logits.requires_grad_()
    nlu.diversity_loss(logits).backward()
    before, after = (torch.cov(z.detach().mT)[0, 1] for z in (logits, logits - 0.1 * logits.grad))
    assert abs(after) < abs(before)


@few_examples
@given(**shapes_and_seeds, shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_diversity_bounds_and_invariances(num_examples, num_classes, seed, shift, scale):
    logits = draw(num_examples, num_classes, seed)
    value = nlu.diversity_loss(logits)
    assert value >= 0
    for same in (logits + shift, -logits, logits.flip(0), logits.flip(1)):
        torch.testing.assert_close(nlu.diversity_loss(same), value)
    torch.testing.assert_close(nlu.diversity_loss(scale * logits), scale**4 * value)


def test_diversity_gradcheck(rng):
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(nlu.diversity_loss, (logits,))


@pytest.mark.parametrize("dtype", HALF)
def test_diversity_in_half_precision_costs_only_input_rounding(dtype, rng):
    # Means of 3: centring before the promotion would lose digits.
    logits = (3 + torch.randn(32, 5, generator=rng)).to(dtype).requires_grad_()
    value = nlu.diversity_loss(logits)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.item(), diversity_reference(logits), rtol=1e-5, atol=0.0)
    wide = logits.detach().double().requires_grad_()
    nlu.diversity_loss(wide).backward()
    error = (logits.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(1, 3), (8, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("value", [1.0, math.inf])
def test_diversity_without_a_covariance_is_a_zero_in_the_graph(shape, value):
    # Zero times an overflown logit would be NaN.
    logits = torch.full(shape, value, requires_grad=True)
    loss = nlu.diversity_loss(logits)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(shape))


def test_diversity_refuses_shapes():
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(2, 3, 4\)"):
        nlu.diversity_loss(torch.zeros(2, 3, 4))


# SVD (Eq. 8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 0.3, 1.0])
def test_svd_matches_reference(shape, k, rng):
    logits = torch.randn(*shape, generator=rng)
    count = k if isinstance(k, int) else math.ceil(k * min(shape))
    actual = nlu.svd_loss(logits, k=k).item()
    torch.testing.assert_close(actual, svd_reference(logits, count), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("k", "expected"), [(1, -0.5), (2, -5 / 6), (0.3, -0.5), (0.34, -5 / 6), (1.0, -1.0)]
)
def test_svd_closed_form(k, expected):
    logits = torch.zeros(4, 3)
    logits[3, 0], logits[0, 1], logits[1, 2] = 2.0, -3.0, 1.0  # singular values 3, 2, 1
    assert nlu.svd_loss(logits, k=k).item() == pytest.approx(expected, rel=1e-6)


def test_the_default_k_is_a_fraction():
    # 0.3 of ten: three of ten equal singular values.
    assert nlu.svd_loss(torch.eye(10)).item() == pytest.approx(-0.3, rel=1e-6)


def test_minimising_svd_concentrates_the_spectrum(rng):
    logits = torch.randn(20, 3, generator=rng, requires_grad=True)
    nlu.svd_loss(logits, k=1).backward()
    before, after = (torch.linalg.svdvals(z.detach()) for z in (logits, logits - logits.grad))
    assert after[0] / after.sum() > before[0] / before.sum()


@few_examples
@given(**shapes_and_seeds, scale=st.floats(0.01, 100), k=st.integers(1, 12) | st.floats(0.01, 1.0))
def test_svd_bounds_and_invariances(num_examples, num_classes, seed, scale, k):
    logits = draw(num_examples, num_classes, seed)
    rank = min(num_examples, num_classes)
    count = min(k, rank) if isinstance(k, int) else math.ceil(k * rank)
    value = nlu.svd_loss(logits, k=k)
    assert -1 - 1e-12 <= value <= -count / rank + 1e-9
    for same in (scale * logits, -logits, logits.flip(0, 1)):
        torch.testing.assert_close(nlu.svd_loss(same, k=k), value, rtol=1e-6, atol=1e-7)


def test_svd_gradcheck(rng):
    logits = torch.randn(5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(nlu.svd_loss, k=2), (logits,))


@pytest.mark.parametrize("dtype", HALF)
def test_svd_in_half_precision_costs_only_input_rounding(dtype, rng):
    logits = torch.randn(32, 10, generator=rng).to(dtype).requires_grad_()
    value = nlu.svd_loss(logits)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.item(), svd_reference(logits, 3), rtol=1e-5, atol=0.0)
    wide = logits.detach().double().requires_grad_()
    nlu.svd_loss(wide).backward()
    error = (logits.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert error < torch.finfo(dtype).eps


def test_svd_of_all_zero_logits_is_zero():
    logits = torch.zeros(4, 3, requires_grad=True)
    value = nlu.svd_loss(logits)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("num_examples", [0, 3])
@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, True, math.nan])
def test_svd_refuses_k_with_and_without_examples(num_examples, k):
    with pytest.raises(ValueError, match=rf"`k` must be a count .* got {k}"):
        nlu.svd_loss(torch.zeros(num_examples, 3), k=k)


def test_svd_refuses_shapes():
    with pytest.raises(ValueError, match=r"`logits` must be 2-D.*got shape \(3,\)"):
        nlu.svd_loss(torch.zeros(3))


# All three


def consistency_with_itself_rolled(logits):
    return nlu.consistency_loss(logits, logits.detach().roll(1, dims=-1))


TERMS = {
    "consistency": consistency_with_itself_rolled,
    "diversity": nlu.diversity_loss,
    "svd": nlu.svd_loss,
}
each_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)


@each_term
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_examples_give_a_zero_in_the_graph(term, num_classes, dtype):
    weight = torch.ones(4, num_classes, dtype=dtype, requires_grad=True)
    value = term(torch.zeros(0, 4, dtype=dtype) @ weight)
    value.backward()
    assert value.item() == 0.0
    assert value.shape == ()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@each_term
def test_huge_logits_stay_finite(term, rng):
    logits = (1e4 * torch.randn(6, 5, generator=rng)).requires_grad_()
    value = term(logits)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@each_term
def test_dtype_of_the_value(term, rng):
    logits = torch.randn(6, 5, generator=rng)
    for dtype in (*HALF, torch.float32):
        assert term(logits.to(dtype)).dtype == torch.float32
    assert term(logits.double()).dtype == torch.float64


@each_term
def test_autocast_changes_nothing(term, rng):
    logits = torch.randn(6, 5, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term(logits)
    assert torch.equal(inside, term(logits))
