"""What only a CUDA device can show: that it gives the figures of the CPU, and holds less memory.

python -m pytest -m gpu
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

from balora.anchored import initialise, reference_mode
from balora.cli import main
from balora.config import BALoraConfig
from balora.evaluation import text_loss
from balora.fused import (
    FusedObjective,
    HeadFactor,
    TokenCoefficients,
    TokenSettings,
    token_terms,
    tokens,
)
from balora.models.head import LMHead
from balora.objective import Coefficients, Normalizer, nlg_objective
from support import classification, training
from support.adapters import anchored_model, make_batch
from support.comparison import ROWS, model_folder, recipe, write_rows  # noqa: F401 - fixtures
from support.models import make_model, make_tokenizer
from support.training import LARGE

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOGETHER = TokenSettings(TokenCoefficients(1.0, 1.0, 1.0))
HEADS = {"plain": {}, "scale": {"scale": 0.25}, "softcap": {"softcap": 8.0}}


def make_problem(rng, *, num_tokens=300, size=64, vocab=5000, dtype=torch.float32, std=3, **head):
    """Return student, reference, targets and head; ``std`` is the spread of the logits."""
    weight = torch.randn(vocab, size, generator=rng) * std / size**0.5 / head.get("scale", 1.0)
    reference = torch.randn(num_tokens, size, generator=rng)
    hidden = reference + 0.1 * torch.randn(num_tokens, size, generator=rng)
    targets = torch.randint(vocab, (num_tokens,), generator=rng)
    hidden = hidden.to(DEVICE, dtype).requires_grad_()
    head = LMHead(weight.to(DEVICE, dtype), **head)
    return hidden, reference.to(DEVICE, dtype), targets.to(DEVICE), head


def relative_error(found, exact):
    exact = exact.double()
    return float((found.double().to(exact.device) - exact).norm() / exact.norm())


# the fused objective


@pytest.mark.parametrize("head_settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, None), (2.0, 20)])
def test_the_fused_objective_is_the_readable_one_in_float64(temperature, top_k, head_settings, rng):
    config = BALoraConfig(temperature=temperature, entropy_top_k=top_k)
    *inputs, head = make_problem(rng, **head_settings)
    given = {"normalizer": Normalizer(300), "coefficients": Coefficients(0.7, 0.3, 0.5)}
    found = FusedObjective(config)(*inputs, head=head, **given)
    (gradient,) = torch.autograd.grad(found.loss, inputs[0])
    hidden, reference = (x.detach().cpu().double() for x in inputs[:2])
    hidden.requires_grad_()
    exact_head = LMHead(head.weight.cpu().double(), None, head.scale, head.softcap)
    exact = nlg_objective(
        hidden, reference, inputs[2].cpu(), head=exact_head, config=config, **given
    )
    (exact_gradient,) = torch.autograd.grad(exact.loss, hidden)
    for name, term in exact.terms._asdict().items():
        if term is not None:
            assert getattr(found.terms, name).item() == pytest.approx(term.item(), rel=3e-5)
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
    assert relative_error(gradient, exact_gradient) < 1e-4


@pytest.mark.parametrize("distance", [1.0, 0.1, 0.01])
def test_the_consistency_is_right_near_the_reference_in_bfloat16(distance, rng):
    hidden, reference, targets, head = make_problem(rng, dtype=torch.bfloat16)
    hidden = (reference + distance * (hidden - reference)).detach().requires_grad_()
    settings = TokenSettings(TokenCoefficients(0.0, 1.0, 0.0))
    found = token_terms(hidden, reference, targets, head=head, settings=settings)
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    rows, weight = hidden.detach().double().requires_grad_(), head.weight.double()
    log_p = (rows @ weight.mT).log_softmax(dim=1)
    log_q = (reference.double() @ weight.mT).log_softmax(dim=1)
    exact = F.kl_div(log_p, log_q, log_target=True, reduction="sum")
    (exact_gradient,) = torch.autograd.grad(exact, rows)
    assert found.consistency.item() == pytest.approx(exact.item(), rel=0.02)
    assert relative_error(gradient, exact_gradient) < 0.02


def test_the_spectrum_is_that_of_the_logits(rng):
    hidden, _, _, head = make_problem(rng)
    found = HeadFactor(head).singular_values(hidden.detach())
    exact = torch.linalg.svdvals(hidden.detach().double() @ head.weight.double().mT)[: len(found)]
    assert float((found - exact).abs().max() / exact[0]) < 1e-12


def test_no_more_is_held_than_the_products_of_a_chunk(rng):
    hidden, reference, targets, head = make_problem(
        rng, num_tokens=16384, vocab=32000, dtype=torch.bfloat16
    )
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    token_terms(hidden, reference, targets, head=head, settings=TOGETHER).loss.backward()
    assert torch.cuda.max_memory_allocated() - held < 1.25 * tokens.CHUNK_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_with_the_kernel_and_without(dtype, rng, monkeypatch):
    *inputs, head = make_problem(rng, dtype=dtype)
    assert tokens._kernel(inputs[0].device, dtype) is not None
    found = []
    for _ in range(2):
        terms = token_terms(*inputs, head=head, settings=TOGETHER, chunk_bytes=1)
        (gradient,) = torch.autograd.grad(terms.loss, inputs[0])
        found.append((gradient, torch.stack([*terms[1:4], *terms.counts])))
        monkeypatch.setattr(tokens, "_kernel", lambda device, dtype: None)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-3
    assert relative_error(found[0][0], found[1][0]) < tolerance
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not tokens.HAS_OUT_DTYPE, reason="needs torch 2.8 for CUDA")
def test_a_large_odd_vocabulary_does_not_cost_the_gradient_its_digits(rng):
    # split over the vocabulary, a product in half precision rounds its parts before adding them
    hidden, reference, targets, head = make_problem(
        rng, num_tokens=1024, size=768, vocab=50257, dtype=torch.bfloat16, std=1
    )
    terms = token_terms(hidden, reference, targets, head=head, settings=TOGETHER)
    (gradient,) = torch.autograd.grad(terms.loss, hidden)
    rows, exact_head = hidden.detach().double().requires_grad_(), LMHead(head.weight.double())
    coefficients = Coefficients(1.0, 1.0, 0.0)
    given = {"normalizer": Normalizer(1), "coefficients": coefficients, "config": BALoraConfig()}
    exact = nlg_objective(rows, reference.double(), targets, head=exact_head, **given)
    (exact_gradient,) = torch.autograd.grad(exact.loss, rows)
    assert relative_error(gradient, exact_gradient) < 2e-3


# the adapter


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_an_anchored_adapter_starts_as_the_model_it_is_on(architecture, rng):
    model = anchored_model(architecture).to(DEVICE)
    batch = {name: x.to(DEVICE) for name, x in make_batch(architecture, rng).items()}
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch).logits
    initialise(model)
    with torch.no_grad():
        assert relative_error(model(**batch).logits, base) < 1e-5
    with reference_mode(model):
        assert torch.equal(model(**batch).logits, base)


# training


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (LARGE, {}),
        ({**LARGE, "adapter_init": "lora"}, {}),
        (LARGE, {"gradient_accumulation_steps": 2, training.CHECKPOINTING: True}),
    ],
    ids=["pissa", "lora", "accumulated"],
)
def test_text_generation_trains_as_on_the_cpu(objective, settings, tmp_path):
    rows = [
        training.run(
            training.make_trainer(
                tmp_path / str(on_cpu), objective=objective, use_cpu=on_cpu, **settings
            )
        )
        for on_cpu in (True, False)
    ]
    for on_cpu, on_gpu in zip(*rows, strict=True):
        for name in ("loss", "task_loss", "consistency_loss", "diversity_loss", "svd_loss"):
            assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-3, abs=1e-5)


def test_bfloat16_trains_and_what_is_saved_loads_in_plain_peft(tmp_path):
    trainer = training.make_trainer(
        tmp_path, objective=LARGE, use_cpu=False, bf16=True, max_steps=8
    )
    rows = training.run(trainer)
    assert rows[-1]["task_loss"] < rows[0]["task_loss"]
    assert rows[-1]["consistency_loss"] > 0
    trainer.save_model()
    loaded = PeftModel.from_pretrained(make_model("llama"), tmp_path).to(DEVICE).eval()
    ids = torch.tensor([[1, 50, 60, 70]], device=DEVICE)
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        assert relative_error(loaded(input_ids=ids).logits, expected) < 0.03  # autocast


@pytest.mark.parametrize("method", classification.METHODS)
def test_classification_trains_as_on_the_cpu(method, tmp_path):
    rows = []
    for on_cpu in (True, False):
        torch.manual_seed(0)
        trainer = classification.make_trainer(tmp_path / str(on_cpu), method=method, use_cpu=on_cpu)
        trainer.train()
        rows.append([row for row in trainer.state.log_history if "loss" in row])
    for on_cpu, on_gpu in zip(*rows, strict=True):
        assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-3)


def test_the_loss_of_a_text_is_that_of_the_cpu():
    model, tokenizer, text = make_model("llama"), make_tokenizer(), "one two three " * 40
    on_cpu = text_loss(model, tokenizer, text, block=64)
    on_gpu = text_loss(model.to(DEVICE), tokenizer, text, block=64)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-5)


# the commands


def test_a_comparison_with_two_cells_at_a_time(recipe, model_folder, tmp_path):  # noqa: F811
    methods = ["full", "pissa", "balora", "lora+kl=0.1"]
    path = recipe(
        {"methods": methods, "seeds": [0], "jobs": 2, "max_new_tokens": 4},
        model_name_or_path=model_folder,
        dataset_name=write_rows(tmp_path / "train.jsonl", ROWS),
        eval_dataset_name=write_rows(tmp_path / "test.jsonl", ROWS[:4]),
    )
    assert main(["compare", "--config", str(path)]) == 0
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == methods
    assert all(row["error"] is None and row["peak_memory_mib"] > 0 for row in rows)
    assert all("no device" not in row["versions"]["cuda"] for row in rows)
    assert (out / "report.html").is_file()


def test_the_lab_pre_trains_and_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    fields = {"num_people": 4, "num_stories": 5, "num_passes": 1, "max_steps": 2, "batch_size": 2}
    fields |= {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1}
    fields |= {"num_heads": 2, "num_train": 6, "num_test": 2}
    options = [part for name, value in fields.items() for part in (f"--{name}", str(value))]
    figures = tmp_path / "figures.json"
    assert main(["lab", *options, "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["base"]["retention_loss"] > 0
