"""What a dry run says of the memory: counted as it is, or near what is measured."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from balora.config.quantization import Quantization
from balora.fused.tokens import CHUNK_BYTES
from balora.models.blank import blank_model
from balora.trainers.memory import memory_report
from balora.trainers.memory_plan import MemoryPlan, Tokens, memory_plan
from support.models import make_model
from support.training import CHECKPOINTING, LARGE, lora_config, make_trainer, run

WHOLE = Quantization()
FLOAT32 = 4


def plan_of(trainer, tokens=Tokens(4, 16), quantization=WHOLE, optimizer="adamw_torch"):  # noqa: B008
    return memory_plan(trainer, quantization, tokens, optimizer=optimizer)


def test_what_is_there_after_training_is_what_was_said(tmp_path):
    trainer = make_trainer(tmp_path, objective=LARGE, max_steps=1)
    plan = plan_of(trainer)
    run(trainer)
    report = memory_report(trainer.model)
    assert plan[:3] == (report.frozen, report.trained, report.anchor)
    assert plan.anchor == plan.adapter > 0
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert plan.gradients == sum(p.numel() * p.element_size() for p in trained)
    states = [s for state in trainer.optimizer.state.values() for s in state.values()]
    kept = sum(s.numel() * s.element_size() for s in states if s.dim())
    assert plan.optimizer == kept == 2 * plan.gradients
    assert plan.factor == 8 * 32**2
    assert plan_of(trainer, optimizer="sgd").optimizer == 0
    assert plan_of(trainer, optimizer="adamw_8bit").optimizer == plan.optimizer / 4


def test_full_fine_tuning_has_neither_adapter_nor_anchor_nor_factor(tmp_path):
    objective = {**LARGE, "consistency_coef": 0.0}
    options = {"peft_config": None}
    plan = plan_of(make_trainer(tmp_path, objective=objective, options=options))
    number = sum(p.numel() for p in make_model("llama").parameters())
    assert (plan.adapter, plan.anchor, plan.factor) == (0, 0, 0)
    assert plan.gradients == number * FLOAT32
    assert number * FLOAT32 <= plan.weights < number * FLOAT32 + 1000  # the rotary buffers


def saved_bytes(model, tokens: Tokens) -> int:
    """Return what the forward pass keeps for backward beyond weights and anchors."""
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.randint(3, 100, tuple(tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.get_base_model().model(input_ids=ids, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_activations_are_near_what_is_kept(checkpointing, tmp_path):
    tokens = Tokens(4, 32)
    trainer = make_trainer(
        tmp_path, model=make_model("llama", num_hidden_layers=8), **{CHECKPOINTING: checkpointing}
    )
    said = plan_of(trainer, tokens).activations - CHUNK_BYTES
    assert said > 0
    if checkpointing:  # which keeps the inputs of the layers, and one of them whole at a time
        whole = make_trainer(tmp_path, model=make_model("llama", num_hidden_layers=8))
        assert said < 0.4 * (plan_of(whole, tokens).activations - CHUNK_BYTES)
        return
    trainer.prepare()
    factors = 2 * (trainer.model.num_parameters(only_trainable=True) * 2) * FLOAT32
    measured = saved_bytes(trainer.model.train(), tokens) - factors
    assert said == pytest.approx(measured, rel=0.5)


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """A trainer of LLaMA-2-7B's shape, at rank 8."""
    config = LlamaConfig(intermediate_size=11008, pad_token_id=0)  # the rest is 7B's by default
    model, _ = blank_model(AutoModelForCausalLM, config, {"dtype": "bfloat16"})
    return make_trainer(
        tmp_path_factory.mktemp("large"),
        model=model,
        options={"peft_config": lora_config(r=8, lora_alpha=8)},
    )


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [
        ({}, 2 * 6_738_415_616),
        # 6,476,005,376 numbers of the layers at 4 bits and a scale of 4 bytes for 64 of them
        ({"load_in_4bit": True}, 2 * (6_738_415_616 - 6_476_005_376) + 0.5625 * 6_476_005_376),
        ({"load_in_4bit": True, "use_bnb_nested_quant": True}, 3.87e9),
        ({"load_in_8bit": True}, 7.0e9),
        ({"torchao": "int8_weight_only"}, 7.0e9),
    ],
)
def test_the_shape_of_7b(seven_billion, scheme, weights):
    plan = plan_of(seven_billion, Tokens(4, 512), Quantization(**scheme))
    assert plan.weights == pytest.approx(weights, rel=2e-3)
    assert plan.adapter == plan.anchor == FLOAT32 * 19_988_480
    assert plan.factor == 8 * 4096**2
    # 34 bytes a token and hidden entry in each layer: Korthikanti et al., arXiv 2205.05198
    published = 34 * 4 * 512 * 4096 * 32
    assert plan.activations - CHUNK_BYTES == pytest.approx(published, rel=0.3)
    lines = plan.lines(Tokens(4, 512))
    assert lines[0].split()[0] == "weights"
    assert "of 4 x 512 tokens, estimated" in " ".join(lines)
    assert lines[-1].startswith("together")


def test_only_what_there_is_has_a_line():
    plan = MemoryPlan(1000, 0, 0, 2000, 4000, 0, 3000)
    names = [line.split()[0] for line in plan.lines(Tokens(1, 2))]
    assert names == ["weights", "gradients", "optimizer", "activations", "together"]
    assert plan.lines(Tokens(1, 2))[-1].split()[1:] == ["10", "kB"]
