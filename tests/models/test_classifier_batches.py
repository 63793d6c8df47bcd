"""A classifier's figures do not depend on which rows share a batch, whatever it pools."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import AutoConfig

from balora.errors import ConfigError
from balora.models.classifier import load_classifier
from support.classification import ARCHITECTURES, save_body
from support.models import make_tokenizer

_XLNET = {"vocab_size": 128, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32}
_FLAUBERT = {"vocab_size": 128, "emb_dim": 32, "n_layers": 1, "n_heads": 4}
NAMES = ("no", "yes", "perhaps")


def save(folder, architecture, **settings):
    config = AutoConfig.for_model(architecture, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "xlnet"])
def test_a_short_row_has_the_logits_alone_that_it_has_beside_a_long_one(architecture, tmp_path):
    if architecture == "xlnet":
        save(tmp_path, architecture, **_XLNET)
    else:
        save_body(tmp_path, architecture)
    tokenizer = make_tokenizer()
    model = load_classifier(str(tmp_path), class_names=NAMES, tokenizer=tokenizer).model
    texts = ["red", "a much longer text than that"]
    with torch.no_grad():
        alone, together = (
            model(**{k: v for k, v in tokens.items() if k != "token_type_ids"}).logits[0]
            for tokens in (
                tokenizer(texts[:1], return_tensors="pt"),
                tokenizer(texts, padding=True, return_tensors="pt"),
            )
        )
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["last", "mean"])
def test_a_model_that_classifies_padding_is_refused(kind, tmp_path):
    folder = save(tmp_path, "flaubert", **_FLAUBERT, summary_type=kind)
    with pytest.raises(ConfigError, match=f"`flaubert` with `summary_type` '{kind}' takes padding"):
        load_classifier(folder, class_names=NAMES, tokenizer=make_tokenizer())
