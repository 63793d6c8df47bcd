"""The sizes of the updates against merged models in float64."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from balora.anchored import initialise
from balora.errors import ConfigError
from balora.evaluation.updates import update_sizes
from support.adapters import (
    adapted_model,
    anchored_model,
    dense_updates,
    lora_config,
    make_batch,
    train,
)
from support.models import make_model


def merged_sizes(tuned, base):
    """||W' - W|| / ||W|| of every matrix that differs, from a merged model in float64."""
    merged = tuned.double().merge_and_unload() if isinstance(tuned, PeftModel) else tuned.double()
    weights = dict(merged.named_parameters())
    sizes = {}
    for name, weight in base.double().named_parameters():
        change = (weights[name] - weight).norm() / weight.norm()
        if weight.dim() == 2 and change > 1e-12:
            sizes[name.removesuffix(".weight")] = change.item()
    return sizes


def as_mapping(rows):
    assert all(row.keys() == {"layer", "relative"} for row in rows)
    return {row["layer"]: row["relative"] for row in rows}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_plain_lora_gives_what_merging_gives(architecture, rng):
    one = "q_proj" if architecture == "llama" else "c_fc"
    model = adapted_model(architecture, alpha_pattern={one: 1}, rank_pattern={one: 3})
    train(model, make_batch(architecture, rng))
    actual = as_mapping(update_sizes(model, make_model(architecture)))
    expected = merged_sizes(model, make_model(architecture))
    assert actual == pytest.approx(expected, rel=1e-6)
    assert len(actual) == (14 if architecture == "llama" else 8)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_anchored_model_and_what_it_saves_give_the_change_from_the_base(
    architecture, rng, tmp_path
):
    model = anchored_model(architecture)
    train(model, make_batch(architecture, rng), learning_rate=1e-3)
    base = make_model(architecture)
    actual = as_mapping(update_sizes(model, base))
    weights = dict(make_model(architecture).double().named_parameters())
    expected = {
        name: (update.norm() / weights[f"{name}.weight"].norm()).item()
        for name, update in dense_updates(model).items()
    }
    assert actual == pytest.approx(expected, rel=1e-4)  # A - A0 is taken in float32
    # far from the norm of the product itself: that is most of the weight
    assert max(actual.values()) < 0.2
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make_model(architecture), str(tmp_path))
    assert as_mapping(update_sizes(loaded, base)) == pytest.approx(actual, rel=1e-6)
    assert as_mapping(update_sizes(loaded, base)) == pytest.approx(
        merged_sizes(loaded, make_model(architecture)), rel=1e-6
    )


def test_an_adapter_that_changed_nothing_yet_is_listed_with_0():
    base = make_model("llama")
    for model in (adapted_model("llama"), anchored_model("llama")):
        sizes = as_mapping(update_sizes(model, base))
        assert len(sizes) == 14
        assert set(sizes.values()) == {0.0}
    initialise(model)
    assert set(as_mapping(update_sizes(model, base)).values()) == {0.0}


def test_full_fine_tuning_lists_the_matrices_that_changed():
    base, tuned = make_model("llama"), make_model("llama")
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.mul_(2.0)  # exact in float32
        tuned.model.layers[1].self_attn.q_proj.weight[0, 0] += 1e-6
        tuned.model.norm.weight.add_(1.0)  # a vector
    sizes = as_mapping(update_sizes(tuned, base))
    assert list(sizes) == ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    assert sizes["model.layers.0.mlp.up_proj"] == pytest.approx(1.0, rel=1e-12)
    assert sizes == pytest.approx(merged_sizes(tuned, make_model("llama")), rel=1e-9)
    assert update_sizes(make_model("llama"), base) == []


def test_full_fine_tuning_of_a_tied_model_lists_the_embedding_once(rng):
    base, tuned = (make_model("gemma") for _ in range(2))
    train(tuned.train(), make_batch("gemma", rng))
    sizes = as_mapping(update_sizes(tuned, base))
    assert len(sizes) == 15
    assert sizes == pytest.approx(merged_sizes(tuned, make_model("gemma")), rel=1e-6)


def test_a_matrix_trained_in_full_beside_the_adapter_is_listed(rng):
    model = adapted_model("llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    train(model, make_batch("llama", rng))
    actual = as_mapping(update_sizes(model, make_model("llama")))
    assert list(actual)[-1] == "lm_head"
    assert actual == pytest.approx(merged_sizes(model, make_model("llama")), rel=1e-6)


def test_an_adapted_embedding_gives_what_merging_gives(rng):
    model = adapted_model("llama", target_modules=["embed_tokens", "q_proj"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=rng)
    actual = as_mapping(update_sizes(model, make_model("llama")))
    assert "model.embed_tokens" in actual
    assert actual == pytest.approx(merged_sizes(model, make_model("llama")), rel=1e-6)


def test_updates_that_are_no_product_or_of_another_model_are_refused():
    base = make_model("llama")
    dora = get_peft_model(make_model("llama"), lora_config("llama", use_dora=True))
    with pytest.raises(ValueError, match=r"`model\.layers\.0\.self_attn\.q_proj` has .*Dora"):
        update_sizes(dora, base)
    other = make_model("llama", hidden_size=16)
    with pytest.raises(ValueError, match=r"shape \(128, 16\) after fine-tuning and \(128, 32\)"):
        update_sizes(other, base)
    two = adapted_model("llama")
    two.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="'default', 'second'"):
        update_sizes(two, base)
