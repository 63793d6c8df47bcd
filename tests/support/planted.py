"""A causal language model that says what it is told to: after a text, planted probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from support.models import VOCAB, make_tokenizer

BOS, EOS, PAD = 1, 2, 0


class PlantedLM(PreTrainedModel, GenerationMixin):
    """After ``<s>`` and a text it has the probabilities that ``table`` gives by the text.

    A text that is not in the table is ended: ``</s>`` with a probability of almost 1. Padding to
    the left or to the right is no part of a text.
    """

    config_class = LlamaConfig

    def __init__(self, table: Mapping[str, Mapping[str, float]], *, size: int = 256) -> None:
        super().__init__(
            LlamaConfig(
                vocab_size=VOCAB,
                max_position_embeddings=size,
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                use_cache=False,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
            )
        )
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.table, self.tokenizer = table, make_tokenizer()
        self.modes: set[bool] = set()
        self.tokens = torch.nn.Embedding(VOCAB, 1)  # only its size is asked for

    def get_input_embeddings(self):
        return self.tokens

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        # a text says what comes next, its last token alone does not: there is no cache
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, **_):
        self.modes.add(self.training)
        logits = torch.full((*input_ids.shape, VOCAB), -30.0)
        for row, ids in enumerate(input_ids.tolist()):
            text = ""
            for position, token in enumerate(ids):
                if token in (PAD, EOS):
                    continue
                text += "" if token == BOS else chr(token)
                for piece, probability in self.table.get(text, {"": 1.0}).items():
                    following = ord(piece) if piece else EOS
                    logits[row, position, following] = math.log(probability)
        return CausalLMOutput(logits=logits)


def says(prompts: Mapping[str, str], *, sure: float = 0.9) -> dict[str, dict[str, float]]:
    """Return a table that completes each prompt letter by letter, the rest for a ``~``."""
    rest = {"~": 1 - sure} if sure < 1 else {}
    return {
        prompt + answer[:position]: {letter: sure, **rest}
        for prompt, answer in prompts.items()
        for position, letter in enumerate(answer)
    }
