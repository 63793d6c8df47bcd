"""Principal components against the optimum of Eckart and Young, computed in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.anchored import principal_components, randomized_svd
from balora.config import BALoraConfig

DEFAULT = BALoraConfig()
EXACT = BALoraConfig(pissa_svd="exact")
METHODS = {"randomized": DEFAULT, "exact": EXACT}
GPT2_WEIGHTS = ("decoder1.query", "decoder1.value", "decoder7.query", "decoder7.value")


def optimal_error(weight, rank):
    """The smallest Frobenius error any matrix of this rank can have."""
    singular_values = torch.linalg.svdvals(weight.double())
    return float(singular_values[rank:].square().sum().sqrt())


def error_of(weight, components):
    u, s, vh = (part.double() for part in components)
    return float((weight.double() - (u * s) @ vh).norm())


def gpt2_weight(shared_data, name):
    path = shared_data / "data" / "gpt2_attention" / f"{name}.w.dat"
    weight = np.fromfile(path, dtype=">f4").astype(np.float32).reshape(768, 768)
    return torch.from_numpy(weight).mT  # stored [in, out]


def power_law(shape, rng, exponent=0.7):
    u, _ = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=rng))
    v, _ = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=rng))
    return (u * torch.arange(1, min(shape) + 1) ** -exponent) @ v.mT


@pytest.mark.parametrize("name", GPT2_WEIGHTS)
def test_randomized_is_near_the_optimum_on_gpt2(name, shared_data):
    weight = gpt2_weight(shared_data, name)
    for rank in (16, 64, 128):
        error = error_of(weight, principal_components(weight, rank, DEFAULT))
        assert 1 - 1e-6 <= error / optimal_error(weight, rank) <= 1.002, rank


def test_exact_is_the_optimum_on_gpt2(shared_data):
    weight = gpt2_weight(shared_data, GPT2_WEIGHTS[0])
    error = error_of(weight, principal_components(weight, 64, EXACT))
    assert error / optimal_error(weight, 64) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(200, 200), (150, 301), (301, 150)], ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "power law"])
def test_randomized_is_near_the_optimum(shape, kind, rng):
    make = power_law if kind == "power law" else lambda s, g: torch.randn(*s, generator=g)
    weight = make(shape, rng)
    for rank in (1, 16, 100):
        error = error_of(weight, principal_components(weight, rank, DEFAULT))
        assert error <= 1.002 * optimal_error(weight, rank), rank


def test_oversampling_and_power_iterations_are_what_makes_it_good(rng):
    # a Gaussian matrix has the flattest spectrum, the hardest case
    weight = torch.randn(300, 300, generator=rng)
    excess = {
        (p, q): error_of(
            weight, randomized_svd(weight, 32, oversampling=p, power_iterations=q, seed=0)
        )
        / optimal_error(weight, 32)
        - 1
        for p, q in [(0, 0), (16, 0), (0, 8), (16, 8)]
    }
    assert excess[16, 8] < 0.002
    assert excess[0, 0] > 20 * excess[16, 8]
    assert excess[16, 0] > 20 * excess[16, 8]
    assert excess[0, 8] > 2 * excess[16, 8]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 23),
    num_columns=st.integers(1, 23),
    data=st.data(),
    seed=st.integers(0, 2**16),
)
def test_components_of_any_shape(method, num_rows, num_columns, data, seed):
    # small enough that rank + oversampling reaches every direction: exact up to rounding
    rank = data.draw(st.integers(1, min(num_rows, num_columns)))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    config = BALoraConfig(
        pissa_svd=method, **({"pissa_oversampling": 23} if method != "exact" else {})
    )
    u, s, vh = principal_components(weight, rank, config)
    assert (u.shape, s.shape, vh.shape) == ((num_rows, rank), (rank,), (rank, num_columns))
    torch.testing.assert_close(s, torch.linalg.svdvals(weight)[:rank], rtol=1e-8, atol=1e-10)
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(u.mT @ u, identity, rtol=0, atol=1e-10)
    torch.testing.assert_close(vh @ vh.mT, identity, rtol=0, atol=1e-10)
    # the triplets belong together: W v = s u, W^T u = s v
    torch.testing.assert_close(weight @ vh.mT, u * s, rtol=0, atol=1e-8)
    torch.testing.assert_close(weight.mT @ u, vh.mT * s, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_rank_deficient_weight_is_recovered(method, rng):
    weight = torch.randn(80, 5, generator=rng) @ torch.randn(5, 90, generator=rng)
    components = principal_components(weight, 12, METHODS[method])
    assert all(torch.isfinite(part).all() for part in components)
    assert error_of(weight, components) < 1e-4 * weight.norm()
    assert (components.s[5:] < 1e-4 * components.s[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_zero_weight_has_zero_singular_values(method):
    components = principal_components(torch.zeros(30, 40), 3, METHODS[method])
    assert all(torch.isfinite(part).all() for part in components)
    assert not components.s.any()


def test_same_seed_same_bits_and_no_global_state(rng):
    weight = torch.randn(120, 130, generator=rng)
    torch.manual_seed(5)
    first = principal_components(weight, 8, DEFAULT)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    again = principal_components(weight, 8, DEFAULT)
    other = principal_components(weight, 8, BALoraConfig(pissa_seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.u, other.u)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_half_precision_is_computed_in_float32(method, dtype, computed, rng):
    weight = torch.randn(60, 70, generator=rng).to(dtype)
    components = principal_components(weight, 8, METHODS[method])
    assert {part.dtype for part in components} == {computed}
    assert error_of(weight, components) <= 1.002 * optimal_error(weight, 8)


def test_autocast_does_not_reach_the_svd(rng):
    weight = torch.randn(60, 70, generator=rng)
    expected = principal_components(weight, 8, DEFAULT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = principal_components(weight, 8, DEFAULT)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(method, value):
    weight = torch.ones(6, 5)
    weight[3, 2] = value
    with pytest.raises(ValueError, match="holds a NaN or an infinity"):
        principal_components(weight, 2, METHODS[method])


@pytest.mark.parametrize("rank", [0, 6])
def test_rank_outside_the_matrix_is_refused(rank):
    with pytest.raises(ValueError, match=f"`rank` must be 1 to 5, got {rank}"):
        principal_components(torch.ones(6, 5), rank, EXACT)


def test_components_carry_no_gradient(rng):
    weight = torch.randn(20, 30, generator=rng, requires_grad=True)
    for config in METHODS.values():
        assert not any(part.requires_grad for part in principal_components(weight, 3, config))
