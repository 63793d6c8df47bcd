"""Singular values against numpy and float64 autograd, above all where a spectrum is degenerate.

Shapes: ``M`` rows, ``N`` columns.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from balora.regularizers import spectral
from balora.regularizers.spectral import (
    evenly_spaced_rows,
    resolve_k,
    singular_values,
    top_k_ratio,
    top_k_variance,
)

SHAPES = [(1, 1), (1, 7), (7, 1), (7, 13), (13, 7), (16, 16), (64, 1000)]
few_examples = settings(max_examples=40, deadline=None, derandomize=True)


def degenerate(name: str, rng: torch.Generator) -> Tensor:
    """A matrix on which ``svdvals`` autograd is wrong or infinite; of integers, so exact."""
    rows = torch.randint(-4, 5, (6, 11), generator=rng).double()
    return {
        "duplicated rows": rows[[0, 1, 2, 0, 1, 3]],
        "zero rows": torch.cat([rows[:3], torch.zeros_like(rows[:2])]),
        "rank one": rows[:, :1] @ rows[:1],
        "rank deficient, tall": (rows[:, :2] @ rows[:2]).mT,
        "all zero": torch.zeros(4, 9, dtype=torch.float64),
    }[name]


DEGENERATE = ["duplicated rows", "zero rows", "rank one", "rank deficient, tall", "all zero"]


def minimum_norm_gradient(matrix: Tensor, grad_sigma: np.ndarray) -> np.ndarray:
    """``U_r diag(g) V_r^T`` over the non-zero singular values, from numpy's SVD."""
    u, sigma, vh = np.linalg.svd(matrix.detach().double().numpy(), full_matrices=False)
    rank = int((sigma > 1e-10 * sigma[0]).sum())
    return (u[:, :rank] * grad_sigma[:rank]) @ vh[:rank]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("needs_grad", [False, True])
def test_values_match_numpy(needs_grad, shape, dtype, rng):
    matrix = torch.randn(*shape, generator=rng, dtype=dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    actual = singular_values(matrix.requires_grad_(needs_grad))
    assert actual.dtype == dtype
    assert actual.requires_grad == needs_grad
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-5)


def test_vectors_are_computed_for_a_gradient_only(rng, monkeypatch):
    matrix = torch.randn(4, 7, generator=rng)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    singular_values(matrix)
    with torch.no_grad():
        singular_values(matrix.requires_grad_())
    with pytest.raises(TypeError):
        singular_values(matrix)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_matches_float64_svdvals(shape, rng):
    matrix = torch.randn(*shape, generator=rng).requires_grad_()
    weights = torch.randn(min(shape), generator=rng)
    singular_values(matrix).mul(weights).sum().backward()
    expected = matrix.detach().double().requires_grad_()
    torch.linalg.svdvals(expected).mul(weights.double()).sum().backward()
    error = (matrix.grad.double() - expected.grad).norm() / expected.grad.norm()
    assert error < 1e-4


def test_closed_form():
    # The singular values of diag(3, -4) are 4 and 3; d sigma_1 is u_1 v_1^T.
    matrix = torch.tensor([[3.0, 0.0], [0.0, -4.0]], requires_grad=True)
    sigma = singular_values(matrix)
    torch.testing.assert_close(sigma.detach(), torch.tensor([4.0, 3.0]))
    sigma[0].backward()
    torch.testing.assert_close(matrix.grad, torch.tensor([[0.0, 0.0], [0.0, -1.0]]))


@pytest.mark.parametrize("shape", [(1, 3), (3, 5), (5, 3), (4, 4)], ids=str)
def test_gradcheck(shape, rng):
    matrix = torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(singular_values, (matrix,))


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_gradient_has_minimum_norm(name, dtype, rng):
    # Only the sum of all singular values has a gradient that no choice of basis changes here.
    matrix = degenerate(name, rng).to(dtype).requires_grad_()
    sigma = singular_values(matrix)
    sigma.sum().backward()
    expected_sigma = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    np.testing.assert_allclose(
        sigma.detach().numpy(), expected_sigma, rtol=1e-5, atol=1e-12 * (expected_sigma[0] + 1)
    )
    expected = minimum_norm_gradient(matrix, np.ones(len(sigma)))
    np.testing.assert_allclose(matrix.grad.double().numpy(), expected, atol=1e-6)


def test_leading_values_of_duplicated_rows_have_minimum_norm_gradient(rng):
    matrix = degenerate("duplicated rows", rng).requires_grad_()
    singular_values(matrix)[:2].sum().backward()
    expected = minimum_norm_gradient(matrix, np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(matrix.grad.numpy(), expected, atol=1e-10)


def test_zero_singular_values_are_exactly_zero(rng):
    sigma = singular_values(degenerate("duplicated rows", rng))
    assert torch.equal(sigma == 0, torch.tensor([False] * 4 + [True] * 2))


def test_repeated_singular_values_have_a_finite_gradient(rng):
    # All equal to 2: the gradient of their sum is U V^T, which is the matrix over 2.
    orthonormal = torch.linalg.qr(torch.randn(9, 4, generator=rng, dtype=torch.float64)).Q.mT
    matrix = (2 * orthonormal).detach().requires_grad_()
    sigma = singular_values(matrix)
    sigma.sum().backward()
    torch.testing.assert_close(sigma.detach(), torch.full((4,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(matrix.grad, orthonormal)


def test_gram_is_float64(rng):
    # Singular values from 1 down to 1e-4: their squares are below what a float32 Gram resolves.
    u, v = (torch.linalg.qr(torch.randn(n, 9, generator=rng).double()).Q for n in (9, 50))
    matrix = ((u * torch.logspace(0, -4, 9, dtype=torch.float64)) @ v.mT).float().requires_grad_()
    sigma = singular_values(matrix)
    sigma.sum().backward()
    expected = torch.linalg.svdvals(matrix.detach().double())
    torch.testing.assert_close(sigma.detach().double(), expected, rtol=1e-5, atol=0.0)
    gradient = minimum_norm_gradient(matrix, np.ones(9))
    np.testing.assert_allclose(matrix.grad.numpy(), gradient, atol=1e-4)


class LargestFloat64(TorchDispatchMode):
    """Records the number of elements of the largest float64 tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("shape", [(5, 1000), (1000, 5)], ids=str)
def test_column_blocks_change_nothing_and_bound_the_float64_copy(shape, rng, monkeypatch):
    matrix = torch.randn(*shape, generator=rng).requires_grad_()
    sigma = singular_values(matrix)
    (grad,) = torch.autograd.grad(sigma.sum(), matrix)
    monkeypatch.setattr(spectral, "_BLOCK_ELEMENTS", 5 * 64)  # the last block is not full
    with LargestFloat64() as seen:
        blocked = singular_values(matrix)
        (blocked_grad,) = torch.autograd.grad(blocked.sum(), matrix)
    assert seen.largest == 5 * 64
    torch.testing.assert_close(blocked, sigma)
    torch.testing.assert_close(blocked_grad, grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_only_input_rounding(dtype, rng):
    matrix = torch.randn(16, 100, generator=rng).to(dtype).requires_grad_()
    sigma = singular_values(matrix)
    sigma.sum().backward()
    expected = torch.linalg.svdvals(matrix.detach().double())
    assert sigma.dtype == torch.float32
    torch.testing.assert_close(sigma.detach().double(), expected, rtol=1e-6, atol=0.0)
    gradient = minimum_norm_gradient(matrix, np.ones(16))  # rounded once, to the input dtype
    np.testing.assert_allclose(
        matrix.grad.double().numpy(), gradient, rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_autocast_changes_nothing(rng):
    matrix = torch.randn(8, 30, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = singular_values(matrix)
    assert torch.equal(inside, singular_values(matrix))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_non_finite_input_gives_nan_rather_than_an_error(bad, everywhere):
    # eigh alone raises on the one and gives partly finite values on the other.
    matrix = torch.full((3, 5), bad) if everywhere else torch.eye(20, 30)
    matrix[0, 1] = bad
    assert singular_values(matrix).isnan().all()
    matrix.requires_grad_()
    sigma = singular_values(matrix)
    sigma.sum().backward()
    assert sigma.isnan().all()
    assert matrix.grad.isnan().any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_empty_matrix_has_no_singular_values_but_a_graph(shape):
    matrix = torch.zeros(*shape, requires_grad=True)
    sigma = singular_values(matrix)
    assert sigma.shape == (0,)
    sigma.sum().backward()
    assert matrix.grad.shape == shape


def test_second_derivative_is_refused():
    matrix = torch.eye(2, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(singular_values(matrix).square().sum(), matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@few_examples
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 999))
def test_invariances(rows, columns, seed):
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(rows, rows, generator=rng, dtype=torch.float64)).Q
    sigma = singular_values(matrix)
    assert (sigma >= 0).all()
    assert (sigma.diff() <= 0).all()
    torch.testing.assert_close(sigma.square().sum(), matrix.square().sum())
    # Near-singular draws: a Gram resolves a small singular value to about sqrt(eps).
    for same in (matrix.mT, rotation @ matrix, matrix.flip(0)):
        torch.testing.assert_close(singular_values(same), sigma, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(singular_values(-3 * matrix), 3 * sigma, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)], ids=str)
def test_refuses_what_is_not_a_matrix(shape):
    with pytest.raises(ValueError, match=r"`matrix` must be 2-D.*" + re.escape(str(shape))):
        singular_values(torch.zeros(shape))


@pytest.mark.parametrize(
    ("k", "max_rank", "expected"),
    [
        (1, 10, 1),
        (10, 10, 10),
        (11, 10, 10),  # a count is capped
        (1.0, 10, 10),  # a float is a fraction, an int a count
        (0.3, 10, 3),
        (0.3, 11, 4),  # rounded up
        (0.3, 1, 1),
        (1e-9, 50, 1),
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (np.float64(0.3), 10, 3),
    ],
)
def test_resolve_k(k, max_rank, expected):
    assert resolve_k(k, max_rank) == expected


@pytest.mark.parametrize("k", [0, -1, 0.0, -0.3, 1.5, math.nan, math.inf, True, False, "3", None])
def test_resolve_k_refuses(k):
    with pytest.raises(ValueError, match=rf"`k` must be a count .* got {k!r}\."):
        resolve_k(k, 10)


def test_resolve_k_refuses_a_rank_below_one():
    with pytest.raises(ValueError, match="`max_rank` must be 1 or greater, got 0"):
        resolve_k(3, 0)


@few_examples
@given(hundredths=st.integers(1, 100), max_rank=st.integers(1, 5000))
def test_resolve_k_rounds_the_decimal_up(hundredths, max_rank):
    exact = Decimal(hundredths) / 100 * max_rank
    assert resolve_k(hundredths / 100, max_rank) == math.ceil(exact)


@pytest.mark.parametrize(
    ("k", "denominator", "expected"),
    [
        (1, "nuclear", 4 / 7),
        (2, "nuclear", 1.0),
        (9, "nuclear", 1.0),  # beyond the number of values
        (1, "frobenius", 4 / 5),
        (2, "frobenius", 7 / 5),
    ],
)
def test_top_k_ratio_closed_form(k, denominator, expected):
    sigma = torch.tensor([4.0, 3.0])
    assert top_k_ratio(sigma, k, denominator=denominator).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_top_k_variance_is_that_of_the_population():
    sigma = torch.tensor([5.0, 3.0, 1.0, 0.0])
    assert top_k_variance(sigma, 2).item() == 1.0  # the sample variance would be 2
    assert top_k_variance(sigma, 1).item() == 0.0
    assert top_k_variance(sigma, 9).item() == pytest.approx(sigma.numpy().var().item(), rel=1e-6)


@pytest.mark.parametrize("denominator", ["nuclear", "frobenius"])
@pytest.mark.parametrize("length", [0, 3])
def test_zero_spectrum_gives_a_zero_in_the_graph(denominator, length):
    sigma = torch.zeros(length, requires_grad=True)
    total = top_k_ratio(sigma, 2, denominator=denominator) + top_k_variance(sigma, 2)
    total.backward()
    assert total.item() == 0.0
    assert sigma.grad.isfinite().all()


def test_ratio_and_variance_refuse_bad_arguments():
    sigma = torch.ones(3)
    for function in (top_k_ratio, top_k_variance):
        with pytest.raises(ValueError, match="`k` must be 1 or greater, got 0"):
            function(sigma, 0)
        with pytest.raises(ValueError, match=r"`sigma` must be 1-D, got shape \(1, 3\)"):
            function(sigma[None], 1)
    with pytest.raises(ValueError, match=r"`denominator` must be .* got 'spectral'"):
        top_k_ratio(sigma, 1, denominator="spectral")


@few_examples
@given(num_rows=st.integers(0, 3000), max_rows=st.integers(1, 1500))
def test_evenly_spaced_rows(num_rows, max_rows):
    rows = evenly_spaced_rows(num_rows, max_rows)
    assert rows.dtype == torch.int64
    assert len(rows) == min(num_rows, max_rows)
    assert all(0 <= row < num_rows for row in rows.tolist())
    gaps = rows.diff()
    if num_rows <= max_rows:
        assert rows.tolist() == list(range(num_rows))
    elif len(gaps):
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
        assert num_rows - rows[-1] <= gaps.max() + 1  # the last gap, to the end, is like the others


def test_evenly_spaced_rows_example():
    assert evenly_spaced_rows(10, 4).tolist() == [0, 2, 5, 7]


def test_evenly_spaced_rows_refuses():
    with pytest.raises(ValueError, match="`max_rows` must be 1 or greater, got 0"):
        evenly_spaced_rows(5, 0)
    with pytest.raises(ValueError, match="`num_rows` must be 0 or greater, got -1"):
        evenly_spaced_rows(-1, 5)
