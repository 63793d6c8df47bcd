"""Tiny random models of every architecture of the paper, and a tokenizer, made on the spot."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import AutoConfig

VOCAB = 128
EXAMPLES = [
    ("2 and 3?", " The answer is: 5"),
    ("What is the number of hats in the box?", " 4 - 1 = 3. The answer is: 3"),
    ("Hm", " #### 1"),
]
"""Prompts and completions in what the tokenizer knows."""
_DECODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "num_labels": 3,
}
_DEBERTA = {
    **_ENCODER,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
}
CAUSAL = {
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": None},
    "gemma": {**_DECODER, "head_dim": 8},
    "qwen2": _DECODER,
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
_GEMMA = {**_DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
# heads with a soft cap, a scale or a bias; apart, so that not every suite grows by them
OTHER_HEADS = {
    "gemma2": {**_GEMMA, "final_logit_softcapping": 1.0},
    "gemma3_text": {**_GEMMA, "final_logit_softcapping": 1.0},
    "granite": {**_DECODER, "logits_scaling": 6.0},
    "cohere": {**_DECODER, "logit_scale": 0.25},
    "hyperclovax": {**_DECODER, "logits_scaling": 3.0},
    "gptj": {**CAUSAL["gpt2"], "rotary_dim": 4},
    "phi": _DECODER,
}
CLASSIFIERS = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "pad_token_id": 1},
    "deberta-v2": {**_DEBERTA, "share_att_key": False},
    # DeBERTa-v3 is this architecture with a shared position key
    "deberta-v3": _DEBERTA,
}
ARCHITECTURES = [*CAUSAL, *CLASSIFIERS]


def make_model(
    architecture: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: object
) -> PreTrainedModel:
    """Return a tiny random model in eval mode; its weights are larger than usual."""
    is_causal = architecture not in CLASSIFIERS
    settings = {**(CAUSAL | OTHER_HEADS | CLASSIFIERS)[architecture], **overrides}
    config = AutoConfig.for_model(architecture.replace("-v3", "-v2"), **settings)
    auto = AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 or name == "lm_head.bias":
                torch.nn.init.normal_(parameter, std=0.15)
    return model.to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 128 ASCII pieces; its chat template marks the assistant's turns."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocab |= {chr(i): i for i in range(4, VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    fast.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: "
        "{% generation %}{{ m.content }}</s>{% endgeneration %}"
        "{% else %}{{ m.role[0] }}: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    return fast
