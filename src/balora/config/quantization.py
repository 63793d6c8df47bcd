"""How the base model is quantised: the fields of a recipe. Standard library only.

The names are those of trl's ``ModelConfig``, and of transformers where trl has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from balora.config.fields import field_problems
from balora.config.parts import refuse
from balora.config.words import spelled_default

SCHEMES = ("load_in_4bit", "load_in_8bit", "torchao")
"""Fields that quantise the base, each by itself."""
_OF_4_BITS = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "use_bnb_nested_quant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How the base model is quantised, under an adapter that stays in float32.

    Raises:
        ConfigError: If a value has the wrong type or cannot act; all problems in one message.
    """

    load_in_4bit: bool = False
    """Quantise the layers of the base to 4 bits when it is loaded (bitsandbytes)."""

    load_in_8bit: bool = False
    """Quantise the layers of the base to 8 bits, activations included (bitsandbytes, LLM.int8)."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of 4-bit weights: for normally distributed ones (nf4), or floats (fp4)."""

    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type that 4-bit weights are multiplied in; null takes `dtype`, or the checkpoint's."""

    use_bnb_nested_quant: bool = False
    """Quantise the scales of 4-bit weights as well, which saves 0.4 bits a weight."""

    torchao: Literal["int8_weight_only"] | None = None
    """Quantise the weights of the layers to 8 bits when the base is loaded (torchao); null: no."""

    def __post_init__(self) -> None:
        refuse("quantization", field_problems(self, self._scheme_problems, self._inert_problems))

    def __str__(self) -> str:
        """Return the settings as a recipe has them, in one line."""
        return ", ".join(f"{name}: {spelled_default(value)}" for name, value in self.acting.items())

    def __bool__(self) -> bool:
        """Return whether the base is quantised."""
        return self.scheme is not None

    @property
    def scheme(self) -> str | None:
        """The field that quantises the base; None where nothing does."""
        return next((name for name in SCHEMES if getattr(self, name)), None)

    @property
    def setting(self) -> str:
        """The scheme and its value, as the subject of a sentence; there must be one."""
        return self._said(str(self.scheme))

    def _said(self, name: str) -> str:
        return f"`{name}` is {spelled_default(getattr(self, name))}"

    @property
    def acting(self) -> dict[str, Any]:
        """The fields that may be written down: those that act, by name."""
        if self.scheme is None:
            return {}
        names = (self.scheme, *(_OF_4_BITS if self.load_in_4bit else ()))
        return {k: v for k, v in asdict(self).items() if k in names and v is not None}

    @classmethod
    def of(cls, recipe: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Quantization:
        """Return the settings among the fields of a recipe.

        Args:
            recipe: Any fields; those of other parts are passed over.
            given: Schemes in place of the recipe's, by name; ``None`` is left to the recipe. One
                that is given, on or off, takes the place of the recipe's own.
        """
        names = [field.name for field in fields(cls)]
        own = {name: recipe[name] for name in names if recipe.get(name) is not None}
        chosen = {k: v for k, v in (given or {}).items() if k in names and v is not None}
        if chosen:
            own = {name: value for name, value in own.items() if name not in SCHEMES} | chosen
        if not own.get("load_in_4bit"):
            own = {name: value for name, value in own.items() if name not in _OF_4_BITS}
        return cls(**own)

    def _scheme_problems(self) -> list[str]:
        given = [name for name in SCHEMES if getattr(self, name)]
        if len(given) < 2:
            return []
        named = " and ".join(map(self._said, given))
        return [f"{named}, but a weight is quantised once; keep one of them"]

    def _inert_problems(self) -> list[str]:
        if self.load_in_4bit:
            return []
        defaults = {field.name: field.default for field in fields(self)}
        return [
            f"{self._said(name)}, but `load_in_4bit` is false and so it cannot act; set "
            "`load_in_4bit: true`, or leave it out"
            for name in _OF_4_BITS
            if getattr(self, name) != defaults[name]
        ]
