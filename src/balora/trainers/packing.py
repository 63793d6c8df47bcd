"""Rows packed into one sequence must not see each other; not every model keeps them apart.

Packed rows come without an attention mask: where one ends is told by position ids that start again
at 0. A model that ignores them (ALiBi, learned offsets, state space models) would train each row
on the rows before it, with no error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from balora.errors import ConfigError
from balora.models.head import agree


def is_packed(inputs: dict[str, Any]) -> bool:
    """Return whether a micro-batch holds rows that only their position ids keep apart."""
    has_positions = inputs.get("position_ids") is not None
    return has_positions and inputs.get("attention_mask") is None  # PEFT passes it as None


@torch.no_grad()
def check_packing(model: PreTrainedModel, input_ids: Tensor) -> None:
    """Refuse a model in which a row that comes second in a packed sequence sees the first.

    Args:
        model: A transformers causal language model, in eval mode.
        input_ids: A few real tokens, shape ``(1, S)``.

    Raises:
        ConfigError: If the row comes out differently alone and packed.
    """
    row, vocab_size = input_ids[0].tolist(), model.config.get_text_config().vocab_size
    # other tokens: near-uniform attention over the same ones twice would come out the same
    first = [(token + 1) % vocab_size for token in row]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    packed = collate([{"input_ids": first}, {"input_ids": row}])
    del packed["labels"]
    on_device = {
        name: value.to(input_ids.device) if isinstance(value, Tensor) else value
        for name, value in packed.items()
    }
    together = model.base_model(**on_device, use_cache=False).last_hidden_state
    alone = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    if not agree(together[:, len(row) :], alone):
        raise ConfigError(
            f"packed rows see each other in `{type(model).__name__}`, which does not start again "
            "where `position_ids` do. Set `packing: false` and `padding_free: false`, or try "
            "another `attn_implementation`."
        )
