"""The method by name, and the low-rank adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from balora.config.fields import field_problems
from balora.config.objective import Preset
from balora.config.parts import Count, refuse
from balora.config.rules import Form, Interval, Named, NotEmpty, Pattern

Method = Literal["full", "lora", "pissa", "olora", "mica", "balora"]

_TARGETS = Form("[q_proj, v_proj]")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """The method by name, and the low-rank adapter."""

    method: Method = "balora"
    """What is trained: all weights, an adapter by its start, or PiSSA with the terms (balora)."""

    preset: Preset | None = None
    """Terms of method balora: published numbers, or recommended, which is replay; null: paper."""

    lora_r: Count = 128
    """Rank r, at most the smaller side of every adapted matrix."""

    lora_alpha: Count = 128
    """Scale of the adapter: its output is multiplied by alpha / r."""

    lora_target_modules: Annotated[
        str | list[str],
        Named(("all-linear",)),
        Pattern(),
        NotEmpty("write all-linear or a list of names"),
        _TARGETS,
    ] = "all-linear"
    """Layers to adapt: all-linear, a list of name endings, or a regular expression."""

    lora_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout before the adapter, where `adapter_init` is lora, gaussian, orthogonal or mica."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r."""

    def __post_init__(self) -> None:
        refuse("adapter", field_problems(self, self._method_problems))

    def _method_problems(self) -> list[str]:
        if self.preset is None or self.method == "balora":
            return []
        return [
            f"`preset` is {self.preset}, but it only acts with method balora, and `method` is "
            f"{self.method}; leave `preset` out"
        ]
