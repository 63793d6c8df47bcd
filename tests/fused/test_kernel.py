"""The kernel for GPUs gives what the blocks of rows give, measured against them in float64.

Without a GPU it runs in Triton's interpreter: `make test-kernel`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from balora.fused.block import NUM_SCRATCH, RowValues, TokenCoefficients, TokenSettings, row_values
from balora.models.head import LMHead

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if find_spec("triton") is None or not (torch.cuda.is_available() or IS_INTERPRETED):
    pytest.skip(
        "needs Triton, and a CUDA device or TRITON_INTERPRET=1 to interpret it",
        allow_module_level=True,
    )

from balora.fused import kernel  # noqa: E402 - Triton reads the variable when it is imported

DEVICE = "cpu" if IS_INTERPRETED else "cuda"
pytestmark = pytest.mark.gpu
if IS_INTERPRETED:  # what Triton does with numpy's scalars and infinities
    pytestmark = [
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    ]
ALL = TokenCoefficients(0.7, 0.4, 0.3)
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 8e-4}
"""Of the gradient, which is rounded once; the values are those of float32 always."""


def make_products(rng, *, num_rows=7, vocab=300, dtype=torch.float32, distance=1.0, models=2):
    """Return products of the head with a standard deviation of 3, and targets."""
    reference = 3 * torch.randn(num_rows, vocab, generator=rng)
    difference = distance * torch.randn(num_rows, vocab, generator=rng)
    targets = torch.randint(vocab, (num_rows,), generator=rng)
    if models == 1:
        return reference[None].to(dtype), targets
    is_half = dtype.itemsize < 4
    student = difference if is_half else reference + difference
    return torch.stack([student, reference]).to(dtype), targets


def expected(products, targets, head, settings):
    """Return what the blocks of rows give in float64, and the logits' gradient."""
    logits = products.double()
    if len(products) == 2 and products.dtype.itemsize < 4:
        logits[0] += logits[1]
    if head.bias is not None:
        head = LMHead(head.weight, head.bias.cpu().double(), head.scale)
    student, *reference = [head.finish_(rows.clone()) for rows in logits]
    scratch = student.new_empty(NUM_SCRATCH, *student.shape)
    values = row_values(student, reference[0] if reference else None, targets, settings, scratch)
    return values, student * head.scale


def found(products, targets, head, settings):
    products = products.to(DEVICE)
    out = torch.full((len(RowValues._fields), len(targets)), torch.nan, device=DEVICE)
    bias = None if head.bias is None else head.bias.to(DEVICE)
    head = LMHead(head.weight, bias, head.scale)
    kernel.write_row_values(products, targets.to(DEVICE), head=head, settings=settings, out=out)
    return RowValues(*out.cpu()), products[0].cpu()


def assert_same(products, targets, head, settings):
    values, gradient = expected(products, targets, head, settings)
    actual, actual_gradient = found(products, targets, head, settings)
    for name, value in values._asdict().items():
        is_near = pytest.approx(value.tolist(), rel=1e-5, abs=3e-6)
        assert getattr(actual, name).tolist() == is_near, name
    error = (actual_gradient.double() - gradient).norm()
    assert error <= TOLERANCES[products.dtype] * gradient.norm() + 1e-7


def head_of(vocab, rng, *, bias=False, scale=1.0):
    return LMHead(torch.empty(vocab, 1), torch.randn(vocab, generator=rng) if bias else None, scale)


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("head_settings", [{}, {"bias": True, "scale": 0.3}], ids=str)
@pytest.mark.parametrize("on", [ALL, ALL._replace(diversity=0.0), ALL._replace(task=0.0)], ids=str)
def test_values_and_gradient(on, head_settings, temperature, dtype, rng):
    products, targets = make_products(rng, dtype=dtype)
    head = head_of(300, rng, **head_settings)
    assert_same(products, targets, head, TokenSettings(on, temperature))


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("diversity", [0.0, 0.3])
def test_without_a_reference(diversity, dtype, rng):
    products, targets = make_products(rng, dtype=dtype, models=1)
    settings = TokenSettings(TokenCoefficients(1.0, 0.0, diversity))
    assert_same(products, targets, head_of(300, rng, bias=True), settings)


@pytest.mark.parametrize("vocab", [1, 2, 4095, 4096, 4097, 9000])
def test_vocabularies_around_the_columns_of_a_program(vocab, rng):
    products, targets = make_products(rng, vocab=vocab, num_rows=3)
    assert_same(products, targets, head_of(vocab, rng), TokenSettings(ALL, 2.0))


@given(
    num_rows=st.integers(0, 5),
    vocab=st.integers(1, 70),
    temperature=st.sampled_from([1.0, 3.0]),
    dtype=st.sampled_from(kernel.DTYPES),
    seed=st.integers(0, 99),
)
@hypothesis_settings(max_examples=25)
def test_shapes(num_rows, vocab, temperature, dtype, seed):
    rng = torch.Generator().manual_seed(seed)
    products, targets = make_products(rng, num_rows=num_rows, vocab=vocab, dtype=dtype)
    assert_same(products, targets, head_of(vocab, rng), TokenSettings(ALL, temperature))


def test_rows_of_a_wider_buffer_and_of_wider_values(rng):
    products, targets = make_products(rng)
    values, gradient = expected(products, targets, head_of(300, rng), TokenSettings(ALL))
    wide = torch.full((2, 20, 320), 7.0, device=DEVICE)
    wide[:, 3:10, :300] = products.to(DEVICE)
    out = torch.zeros(5, 20, device=DEVICE)
    kernel.write_row_values(
        wide[:, 3:10, :300],
        targets.to(DEVICE),
        head=head_of(300, rng),
        settings=TokenSettings(ALL),
        out=out[:, 3:10],
    )
    torch.testing.assert_close(wide[0, 3:10, :300].cpu().double(), gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        out[:, 3:10].cpu().double(), torch.stack(values).double(), rtol=1e-5, atol=3e-6
    )
    assert bool((wide[0, :3] == 7).all())
    assert bool((wide[0, 10:] == 7).all())
    assert bool((wide[0, :, 300:] == 7).all())
    assert bool((out[:, :3] == 0).all())


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("dtype", kernel.DTYPES)
def test_the_consistency_near_the_reference(dtype, distance, rng):
    products, targets = make_products(rng, vocab=3000, dtype=dtype, distance=distance)
    settings = TokenSettings(TokenCoefficients(0.0, 1.0, 0.0))
    values, gradient = expected(products, targets, head_of(3000, rng), settings)
    actual, actual_gradient = found(products, targets, head_of(3000, rng), settings)
    # logits of scale 10 are known to 1e-6; in float16 a small gradient has few digits
    rel = 1e-3 if dtype == torch.float32 else 1e-4
    assert actual.consistency.tolist() == pytest.approx(values.consistency.tolist(), rel=rel)
    error = (actual_gradient.double() - gradient).norm() / gradient.norm()
    assert error < max(TOLERANCES[dtype], (6e-6 if dtype == torch.float16 else 5e-7) / distance)
    assert bool((actual.consistency >= 0).all())


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", kernel.DTYPES)
def test_the_consistency_at_the_reference_is_exactly_0(dtype, temperature, rng):
    products, targets = make_products(rng, vocab=3000, dtype=dtype, distance=0.0)
    settings = TokenSettings(TokenCoefficients(0.0, 1.0, 0.0), temperature)
    values, gradient = found(products, targets, head_of(3000, rng, bias=True), settings)
    assert bool((values.consistency == 0).all())
    assert not gradient.any()


@pytest.mark.parametrize("shift", [-1e4, -80.0, 80.0, 1e4])
def test_logits_far_from_zero_and_far_apart(shift, rng):
    products, targets = make_products(rng)
    products += shift
    products[0, 0, 5] += 90.0
    products[1, 1, 9] += 300.0
    assert_same(products, targets, head_of(300, rng), TokenSettings(ALL))


def test_a_target_with_the_largest_logit_counts_as_correct(rng):
    products = torch.zeros(1, 2, 5)
    products[0, 1, 3] = 1e-3
    settings = TokenSettings(TokenCoefficients())
    values, _ = found(products, torch.tensor([4, 4]), head_of(5, rng), settings)
    assert values.is_correct.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("model", [0, 1])
def test_what_is_not_finite_shows(model, bad, rng):
    products, targets = make_products(rng)
    products[model, 2, 7] = bad
    values, _ = found(products, targets, head_of(300, rng), TokenSettings(ALL))
    sums = torch.stack([values.task, values.consistency, values.diversity]).sum(dim=0)
    assert not sums[2].isfinite()
    assert bool(sums[[0, 1, 3, 4, 5, 6]].isfinite().all())


@pytest.mark.parametrize("dtype", kernel.DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_softmaxes_that_exclude_one_another(temperature, dtype, rng):
    products, targets = make_products(rng, num_rows=1, dtype=dtype)
    products[:] = 0
    is_half = dtype != torch.float32
    products[0, 0, 3], products[1, 0, 8] = 50.0, 50.0
    if is_half:  # the first is the difference
        products[0, 0, 8] = -50.0
    settings = TokenSettings(TokenCoefficients(0.0, 1.0, 0.0), temperature)
    values, gradient = expected(products, targets, head_of(300, rng), settings)
    actual, actual_gradient = found(products, targets, head_of(300, rng), settings)
    assert actual.consistency.item() == pytest.approx(values.consistency.item(), rel=1e-6)
    error = (actual_gradient.double() - gradient).norm() / gradient.norm()
    assert error < (TOLERANCES[dtype] if is_half else 3e-7)


def test_strides_of_any_kind(rng):
    products, targets = make_products(rng)
    head = head_of(300, rng, bias=True)
    values, gradient = expected(products, targets, head, TokenSettings(ALL))
    strided = torch.stack([head.bias, head.bias + 9], dim=1).to(DEVICE)[:, 0]
    out = torch.full((len(targets), 5), torch.nan, device=DEVICE).mT
    on_device = products.to(DEVICE)
    kernel.write_row_values(
        on_device,
        torch.stack([targets, 0 * targets], dim=1).to(DEVICE)[:, 0],
        head=LMHead(head.weight, strided),
        settings=TokenSettings(ALL),
        out=out,
    )
    torch.testing.assert_close(
        out.cpu().double(), torch.stack(values).double(), rtol=1e-5, atol=3e-6
    )
    torch.testing.assert_close(on_device[0].cpu().double(), gradient, rtol=1e-4, atol=1e-6)


def test_it_is_launched_where_its_tensors_are(rng, monkeypatch):
    entered = []
    device_of = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: entered.append(x) or device_of(x))
    products, targets = make_products(rng)
    found(products, targets, head_of(300, rng), TokenSettings(ALL))
    assert [tensor.shape for tensor in entered] == [products.shape]


@pytest.mark.parametrize("dtype", kernel.DTYPES)
def test_the_check_passes_and_notices_wrong_values(dtype, monkeypatch):
    kernel.check_works(torch.device(DEVICE), dtype)
    monkeypatch.setattr(kernel, "write_row_values", lambda *_, **__: None)
    with pytest.raises(ArithmeticError, match="two equal logits gave"):
        kernel.check_works(torch.device(DEVICE), dtype)


def test_what_it_does_not_know():
    head, top_k = LMHead(torch.empty(3, 1)), TokenSettings(ALL, entropy_top_k=2)
    assert kernel.is_supported(torch.bfloat16, head, TokenSettings(ALL))
    assert kernel.is_supported(torch.bfloat16, head, TokenSettings(TokenCoefficients(), 1.0, 2))
    assert not kernel.is_supported(torch.bfloat16, head, top_k)
    assert not kernel.is_supported(torch.float64, head, TokenSettings(ALL))
    assert not kernel.is_supported(
        torch.float32, LMHead(head.weight, softcap=3.0), TokenSettings(ALL)
    )
