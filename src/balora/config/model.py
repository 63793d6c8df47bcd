"""Which model a run starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from balora.config.fields import field_problems
from balora.config.parts import refuse
from balora.config.rules import PathTo

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model to start from, and how to load it."""

    model_name_or_path: Annotated[str, PathTo("model")]
    """The pre-trained model to fine-tune: a Hugging Face hub id or a local folder."""

    model_revision: str = "main"
    """Branch, tag or commit of the model on the hub."""

    dtype: Dtype = "float32"
    """Type the weights are loaded in; auto takes the checkpoint's own, the paper uses float32."""

    attn_implementation: str | None = None
    """Attention kernel for transformers, such as sdpa or flash_attention_2; null lets it choose."""

    def __post_init__(self) -> None:
        refuse("model", field_problems(self))
