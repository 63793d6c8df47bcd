"""What a report shows of a run, against plain float64 computations."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from balora.anchored import initialise
from balora.errors import ConfigError
from balora.evaluation.details import (
    learning_curves,
    logit_spectrum,
    sample_pairs,
    update_sizes,
)
from balora.evaluation.inheritance import MeasureOptions, generate
from support.adapters import (
    adapted_model,
    anchored_model,
    dense_updates,
    lora_config,
    make_batch,
    train,
)
from support.models import CAUSAL, OTHER_HEADS, make_model, make_tokenizer
from support.training import LARGE, OFF, loss_rows, make_trainer

PAIRS = [
    ("2 and 3?", " The answer is: 5"),
    ("What is the number of hats in the box?", " 4 - 1 = 3. The answer is: 3"),
    ("Hm", " #### 1"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@torch.no_grad()
def response_logits(model, tokenizer, pairs):
    """The logits that predict each response token, one row of the data at a time, in float64."""
    model, rows = model.double(), []
    for prompt, completion in pairs:
        start = len(tokenizer(prompt).input_ids)
        ids = [*tokenizer(prompt + completion).input_ids, tokenizer.eos_token_id]
        rows.append(model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1])
    return torch.cat(rows)


# the spectrum


@pytest.mark.parametrize("architecture", [*CAUSAL, "cohere", "granite", "phi"])
def test_the_spectrum_is_that_of_the_logits(architecture, tokenizer):
    model = make_model(architecture)
    actual = logit_spectrum(model, tokenizer, PAIRS)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, PAIRS))
    # no more than the logits can have a rank: the hidden size, and one for a bias
    assert len(actual) == {"phi": 33}.get(architecture, 32)
    torch.testing.assert_close(
        torch.tensor(actual, dtype=torch.float64), expected[: len(actual)], rtol=1e-5, atol=1e-5
    )


def test_the_spectrum_is_taken_before_a_soft_cap(tokenizer):
    capped = make_model("gemma2")
    free = make_model("gemma2", final_logit_softcapping=None)
    assert OTHER_HEADS["gemma2"]["final_logit_softcapping"] == 1.0
    expected = torch.linalg.svdvals(response_logits(free, tokenizer, PAIRS))
    actual = logit_spectrum(capped, tokenizer, PAIRS, top=8)
    assert actual == pytest.approx(expected[:8].tolist(), rel=1e-5)
    # and not of what the model itself would return
    with_cap = torch.linalg.svdvals(response_logits(capped, tokenizer, PAIRS))
    assert actual != pytest.approx(with_cap[:8].tolist(), rel=1e-2)


def test_the_largest_values_come_first_and_no_more_than_asked(tokenizer):
    model = make_model("llama")
    whole = logit_spectrum(model, tokenizer, PAIRS)
    assert logit_spectrum(model, tokenizer, PAIRS, top=3) == whole[:3]
    assert whole == sorted(whole, reverse=True)
    assert all(type(value) is float for value in whole)


def test_of_many_tokens_evenly_spaced_ones_count(tokenizer):
    model = make_model("llama")
    logits = response_logits(model, tokenizer, PAIRS)
    kept = [i * len(logits) // 7 for i in range(7)]
    expected = torch.linalg.svdvals(logits[kept])
    actual = logit_spectrum(model.float(), tokenizer, PAIRS, max_tokens=7)
    assert actual == pytest.approx(expected.tolist(), rel=1e-5)
    # some rows hold none of two tokens
    kept = [0, len(logits) // 2]
    expected = torch.linalg.svdvals(logits[kept])
    actual = logit_spectrum(model.float(), tokenizer, PAIRS, max_tokens=2)
    assert actual == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("make", [adapted_model, anchored_model])
def test_the_spectrum_of_a_model_with_adapters_sees_them(make, tokenizer, rng):
    model = make("llama")
    before = logit_spectrum(make_model("llama"), tokenizer, PAIRS)
    assert logit_spectrum(model, tokenizer, PAIRS) == pytest.approx(before, rel=1e-5, abs=1e-4)
    train(model, make_batch("llama", rng))
    actual = logit_spectrum(model, tokenizer, PAIRS)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, PAIRS))
    assert actual == pytest.approx(expected[: len(actual)].tolist(), rel=1e-5, abs=1e-5)
    assert actual != pytest.approx(before, rel=1e-3)


def test_an_adapted_head_is_not_taken_for_the_pre_trained_one(tokenizer, rng):
    model = adapted_model("llama", target_modules=["lm_head", "q_proj"])
    train(model, make_batch("llama", rng))
    actual = logit_spectrum(model, tokenizer, PAIRS, top=16)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, PAIRS))
    assert actual == pytest.approx(expected[:16].tolist(), rel=1e-5)


def test_a_head_of_its_own_kind_is_measured_by_its_logits(tokenizer):
    model = make_model("llama")
    head = model.lm_head
    head.register_forward_hook(lambda module, args, logits: logits.tanh())
    actual = logit_spectrum(model, tokenizer, PAIRS, top=16)
    expected = torch.linalg.svdvals(response_logits(model, tokenizer, PAIRS))
    assert actual == pytest.approx(expected[:16].tolist(), rel=1e-5)


def test_the_spectrum_leaves_the_mode_and_needs_no_dropout(tokenizer):
    model = make_model("gpt2")  # its config has dropout 0.1
    expected = logit_spectrum(model, tokenizer, PAIRS)
    assert logit_spectrum(model.train(), tokenizer, PAIRS) == expected
    assert all(module.training for module in model.modules())


def test_a_spectrum_of_nothing_is_refused(tokenizer):
    model = make_model("llama")
    with pytest.raises(ValueError, match="`pairs` is empty"):
        logit_spectrum(model, tokenizer, [])
    for name in ("top", "max_tokens"):
        with pytest.raises(ValueError, match=f"`{name}` must be 1 or greater, got 0"):
            logit_spectrum(model, tokenizer, PAIRS, **{name: 0})


# the sizes of the updates


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


# samples


def test_samples_hold_both_answers_of_evenly_spaced_prompts(tokenizer):
    # their config has dropout 0.1
    tuned, base = make_model("gpt2", seed=1), make_model("gpt2", seed=2)
    pairs = [(f"{i} and {i}?", f"  {i} \n") for i in range(7)]
    tuned.train()
    samples = sample_pairs(tuned, base, tokenizer, pairs, num=3, max_new_tokens=6)
    assert tuned.training
    assert [sample["prompt"] for sample in samples] == ["0 and 0?", "2 and 2?", "4 and 4?"]
    assert [sample["gold"] for sample in samples] == ["0", "2", "4"]
    options = MeasureOptions(max_new_tokens=6)
    for name, model in (("before", base), ("after", tuned.eval())):
        texts = generate(model, tokenizer, [s["prompt"] for s in samples], options=options)
        assert [sample[name] for sample in samples] == [text.strip() for text in texts]
    assert samples[0]["before"] != samples[0]["after"]


def test_samples_of_few_pairs_are_all_of_them(tokenizer):
    model = make_model("llama")
    assert len(sample_pairs(model, model, tokenizer, PAIRS, max_new_tokens=2)) == 3
    assert sample_pairs(model, model, tokenizer, []) == []
    with pytest.raises(ValueError, match="`num` must be 1 or greater, got 0"):
        sample_pairs(model, model, tokenizer, PAIRS, num=0)


# curves


@pytest.mark.parametrize("objective", [LARGE, OFF, {**OFF, "svd_coef": 0.5}])
def test_the_curves_are_the_logged_losses(objective, tmp_path):
    trainer = make_trainer(tmp_path, objective=objective)
    trainer.train()
    trainer.save_state()
    terms = [name.replace("coef", "loss") for name, value in objective.items() if value]
    names = ["loss", "task_loss", *terms]
    expected = [
        {"step": row["step"], **{name: row[name] for name in names}} for row in loss_rows(trainer)
    ]
    curves = learning_curves(tmp_path)
    assert curves == expected
    assert [row["step"] for row in curves] == [1, 2, 3]


def test_rows_of_evaluations_and_of_the_end_are_no_curve(tmp_path):
    log = [
        {"step": 1, "loss": 2.0, "task_loss": 1.5, "task_coef": 1.0, "epoch": 0.1},
        {"step": 1, "eval_loss": 3.0},
        {"step": 1, "train_loss": 2.0, "train_runtime": 1.0},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert learning_curves(tmp_path) == [{"step": 1, "loss": 2.0, "task_loss": 1.5}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": []}))
    assert learning_curves(tmp_path) == []


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_a_run_without_a_log_is_refused(text, tmp_path):
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ConfigError, match=r"trainer_state\.json"):
        learning_curves(tmp_path)
