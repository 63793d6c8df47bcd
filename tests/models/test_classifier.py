"""Classification models: what loading leaves random, padding, pooling, and the paper's layers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import AutoConfig

from balora.errors import ConfigError
from balora.models.classifier import (
    ClassifierHead,
    load_classifier,
)
from balora.models.targets import paper_target_modules
from support.classification import ARCHITECTURES, make_classifier, save_body
from support.models import make_tokenizer

NEW = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "deberta-v3": ("classifier", "pooler"),
    "gpt2": ("score",),
    "llama": ("score",),
}


def load(folder, class_names=("no", "yes", "perhaps"), **settings):
    tokenizer = settings.pop("tokenizer", None) or make_tokenizer()
    return load_classifier(str(folder), class_names=class_names, tokenizer=tokenizer, **settings)


# loading


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_modules_hold_exactly_what_the_checkpoint_does_not(tmp_path, architecture):
    model, new_modules = load(save_body(tmp_path, architecture))
    assert new_modules == NEW[architecture]
    config = model.config
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    assert config.label2id == {"no": 0, "yes": 1, "perhaps": 2}
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    again = load(tmp_path).model.state_dict()
    for name, weight in model.state_dict().items():
        is_new = name.startswith(new_modules)
        # a bias starts at zero in both
        assert torch.equal(weight, again[name]) == (not is_new or name.endswith("bias")), name


def test_an_encoder_without_its_pooler(tmp_path):
    model = make_classifier("bert").model
    model.bert.pooler = None
    model.bert.save_pretrained(tmp_path)
    assert load(tmp_path).new_modules == ("classifier", "bert.pooler")


@pytest.mark.parametrize("architecture", ["roberta", "deberta-v3", "llama"])
def test_a_head_that_is_there_is_trained_alone(tmp_path, architecture):
    saved = make_classifier(architecture).model
    saved.save_pretrained(tmp_path)
    model, new_modules = load(tmp_path, ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert new_modules == (NEW[architecture][0],)
    assert all(torch.equal(w, saved.state_dict()[n]) for n, w in model.state_dict().items())


def test_regression_has_one_output(tmp_path):
    model, _ = load(save_body(tmp_path, "bert"), None)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert model.classifier.out_features == 1


def test_a_head_for_other_classes_is_refused_unless_it_may_go(tmp_path):
    make_classifier("roberta").model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has a head for 3 classes already, .* need 2\. Name"):
        load(tmp_path, ("a", "b"))
    with pytest.raises(ConfigError, match="for 3 classes already, but the data need 1"):
        load(tmp_path, None)
    model, new_modules = load(tmp_path, ("a", "b"), ignore_mismatched_sizes=True)
    assert model.config.num_labels == 2
    assert new_modules == ("classifier",)


def test_classes_in_another_order_are_said(tmp_path, caplog):
    model = make_classifier("bert").model
    model.config.id2label = {0: "Yes", 1: "No", 2: "Perhaps"}
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "balora"):
        load(tmp_path, ("yes", "no", "perhaps"))
    assert "mixed up" not in caplog.text
    with caplog.at_level(logging.WARNING, "balora"):
        load(tmp_path)
    assert "classes in the order yes, no, perhaps, the data have no, yes, perhaps" in caplog.text


# padding and pooling


def test_a_tokenizer_without_a_pad_token_gets_its_end_of_text(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "left"
    model, _ = load(save_body(tmp_path, "gpt2"), tokenizer=tokenizer)
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("</s>", "right")
    assert model.config.pad_token_id == tokenizer.eos_token_id == 2


def test_without_a_tokenizer_it_is_the_one_of_the_model(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<unk>"
    save_body(tmp_path, "gpt2")
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_classifier(str(tmp_path), class_names=["no", "yes"])
    assert model.config.pad_token_id == tokenizer.unk_token_id


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_without_a_tokenizer_is_refused(architecture, tmp_path):
    save_body(tmp_path, architecture)
    with pytest.raises(ConfigError, match=r"tokenizer") as error:
        load_classifier(str(tmp_path), class_names=["no", "yes"])
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="neither a padding nor an end-of-text token"):
        load(save_body(tmp_path, "gpt2"), tokenizer=tokenizer)


ROWS = [[9, 8, 7], [4, 5, 6, 7, 8, 9, 10], [11]]


def features_alone(model, head, ids):
    """Return the input of the last linear layer for one unpadded row, by hand."""
    hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    kind = model.config.model_type
    if kind == "bert":
        return torch.tanh(model.bert.pooler.dense(hidden[0]))
    if kind == "roberta":
        return torch.tanh(model.classifier.dense(hidden[0]))
    if kind == "deberta-v2":
        return nn.functional.gelu(model.pooler.dense(hidden[0]))
    return hidden[-1]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pad_token", ["<pad>", None], ids=["own", "end of text"])
def test_features_and_logits_are_those_of_unpadded_rows(tmp_path, architecture, pad_token):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<unk>" if architecture == "roberta" and pad_token else pad_token
    model, _ = load(save_body(tmp_path, architecture), tokenizer=tokenizer)
    batch = tokenizer.pad({"input_ids": ROWS}, return_tensors="pt")
    head = ClassifierHead(model)
    output, features = head.run(model, dict(batch))
    assert torch.equal(model(**batch).logits, output.logits)
    for ids, row, logits in zip(ROWS, features, output.logits, strict=True):
        torch.testing.assert_close(row, features_alone(model, head, ids), rtol=1e-4, atol=1e-5)
        alone = model(input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    assert head.width("features") == features.shape[1] == 32
    assert head.width("logits") == 3


PADDED = {
    "on the left": ([[0, 0, 0, 0, 9, 8, 7], [4, 5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 0, 11]], 0),
    # the end of text pads, and stands between two turns as well
    "inside": ([[9, 2, 7, 2, 2], [4, 5, 6, 2, 8], [2, 2, 11, 2, 2]], 2),
}


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(("rows", "pad"), PADDED.values(), ids=PADDED)
def test_features_of_a_decoder_are_those_of_the_last_token_before_the_padding(
    rows, pad, architecture
):
    model, _ = make_classifier(architecture)
    model.config.pad_token_id = pad
    ids = torch.tensor(rows)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    hidden = model.base_model(**inputs).last_hidden_state
    last = [max(i for i, token in enumerate(row) if token != pad) for row in rows]
    expected = hidden[torch.arange(3), torch.tensor(last)]
    output, features = ClassifierHead(model).run(model, inputs)
    assert torch.equal(features, expected)
    torch.testing.assert_close(output.logits, model.score(expected))


@torch.no_grad()
def test_a_decoder_without_a_pad_token_takes_one_row():
    model, _ = make_classifier("gpt2")
    model.config.pad_token_id = None
    output, features = ClassifierHead(model).run(model, {"input_ids": torch.tensor([ROWS[1]])})
    torch.testing.assert_close(features[0], features_alone(model, None, ROWS[1]))
    torch.testing.assert_close(model.score(features), output.logits)


@pytest.mark.parametrize("architecture", ["roberta", "llama"])
def test_the_gradient_of_the_features_reaches_the_encoder(architecture):
    model, _ = make_classifier(architecture)
    _, features = ClassifierHead(model).run(model, {"input_ids": torch.tensor([[5, 6], [7, 8]])})
    features.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.base_model.parameters())


def test_no_hook_is_left_behind():
    model, _ = make_classifier()
    head = ClassifierHead(model)
    head.run(model, {"input_ids": torch.tensor([[5, 6]])})
    with pytest.raises(IndexError):
        head.run(model, {"input_ids": torch.tensor([[500]])})
    assert not any(module._forward_hooks for module in model.modules())


class Scaled(nn.Module):
    """A model that does something to its logits after the last linear layer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        output = self.model(**inputs)
        output.logits = output.logits * 2
        return output


def test_logits_that_the_layer_does_not_return_are_refused():
    model, _ = make_classifier()
    with pytest.raises(ConfigError, match="the logits are not what `classifier` returns"):
        ClassifierHead(model).run(Scaled(model), {"input_ids": torch.tensor([[5, 6]])})


def test_a_model_without_a_head_is_refused():
    model, _ = make_classifier()
    model.config.num_labels = 5
    with pytest.raises(ConfigError, match="no linear layer with 5 outputs on top of its encoder"):
        ClassifierHead(model)


# the layers of the paper

ROBERTA_LARGE = {
    "vocab_size": 50265,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
DEBERTA_V3_BASE = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


def trained_on_meta(model_type, settings, choice):
    """Return the numbers of trained parameters: of the adapter, and of everything else."""
    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, num_labels=2, **settings)
        model = AutoModelForSequenceClassification.from_config(config)
        targets = paper_target_modules(model_type, choice)
        adapted = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=targets)
        )
    adapter = head = 0
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            adapter += parameter.numel()
        elif parameter.requires_grad:
            head += parameter.numel()
    return adapter, head


def test_roberta_large_is_query_and_value_plus_the_head():
    adapter, head = trained_on_meta("roberta", ROBERTA_LARGE, "query_value")
    assert (adapter, head) == (786_432, 1_051_650)
    assert round((adapter + head) / 1e6, 2) == 1.84


@pytest.mark.parametrize(
    ("choice", "expected", "millions"),
    [("query_key_value", 442_368, 0.44), ("all", 1_327_104, 1.33)],
)
def test_deberta_v3_base_without_the_head(choice, expected, millions):
    adapter, _ = trained_on_meta("deberta-v2", DEBERTA_V3_BASE, choice)
    assert adapter == expected
    assert round(adapter / 1e6, 2) == millions


def test_the_page_on_the_method_gives_the_counts():
    page = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
    for count in (786_432, 1_051_650, 1_327_104, 442_368):
        assert f"{count:,}" in page


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_is_every_linear_layer_of_the_encoder(architecture):
    model, new_modules = make_classifier(architecture)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    poolers = (*new_modules, "bert.pooler")
    expected = {name for name in linear if not name.startswith(poolers)}
    targets = paper_target_modules(model.config.model_type, "all")
    config = LoraConfig(
        task_type="SEQ_CLS", target_modules=targets, fan_in_fan_out=architecture == "gpt2"
    )
    adapted = get_peft_model(model, config).get_base_model()
    found = {name for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert found == expected


def test_choices_that_are_not_there():
    with pytest.raises(ConfigError, match="`query_value` is no choice of layers for `gpt2`, which"):
        paper_target_modules("gpt2")
    with pytest.raises(ConfigError, match=r"no named layers are known for `t5`\. Name them in"):
        paper_target_modules("t5")
