"""The linear layers that the paper adapts, by the names that each architecture gives them."""

from __future__ import annotations

from balora.errors import ConfigError

_BERT = {
    "query_value": ["query", "value"],
    "query_key_value": ["query", "key", "value"],
    "all": ["query", "key", "value", "intermediate.dense", "output.dense"],
}
_LLAMA = {
    "query_value": ["q_proj", "v_proj"],
    "query_key_value": ["q_proj", "k_proj", "v_proj"],
    "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
_TARGETS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "deberta-v2": {
        "query_value": ["query_proj", "value_proj"],
        "query_key_value": ["query_proj", "key_proj", "value_proj"],
        "all": ["query_proj", "key_proj", "value_proj", "intermediate.dense", "output.dense"],
    },
    # one matrix holds query, key and value
    "gpt2": {"query_key_value": ["c_attn"], "all": ["c_attn", "c_proj", "c_fc"]},
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma"), _LLAMA),
}


def paper_target_modules(model_type: str, choice: str = "query_value") -> list[str]:
    """Return the linear layers to adapt, by the architecture's own names for them.

    At rank 8, the paper's counts of trained parameters are those of ``query_value`` plus the head
    for RoBERTa-large (1.84M), and of ``all`` without the head for DeBERTa-v3-base (1.33M), where
    its text says query, key and value (0.44M).

    Args:
        model_type: As in the model's config, such as ``roberta`` or ``deberta-v2``.
        choice: ``query_value``, ``query_key_value``, or ``all`` for every linear layer of the
            encoder.

    Returns:
        Name endings for ``LoraConfig.target_modules``.

    Raises:
        ConfigError: If the architecture is not known, or does not have the choice.
    """
    if model_type not in _TARGETS:
        raise ConfigError(
            f"no named layers are known for `{model_type}`. Name them in `lora_target_modules`, "
            f"or use all-linear. Known are {', '.join(_TARGETS)}."
        )
    if choice not in _TARGETS[model_type]:
        raise ConfigError(
            f"`{choice}` is no choice of layers for `{model_type}`, which has "
            f"{', '.join(_TARGETS[model_type])}."
        )
    return list(_TARGETS[model_type][choice])
