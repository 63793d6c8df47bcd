"""Sharded training: what of it is refused, because today it would train or save something else.

FSDP and DeepSpeed split weights, optimizer and checkpoints over processes. Under either a resumed
run loads its state past the adapter's anchor and goes on from another point; FSDP and ZeRO-3 hand
shards to what computes the start, the objective and the saved adapter; a sharded state dict leaves
no adapter at all. Each is one sentence before a weight is loaded, wherever the arguments tell it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a run splits its state over processes."""

    kind: str
    """``FSDP`` or ``DeepSpeed``."""
    setting: str
    """What switched it on, as the user gave it."""
    stage: int = 0
    """ZeRO's, 0 where it is unknown."""
    is_split_dict: bool = False
    """Whether checkpoints are to be written in shards."""

    @property
    def words(self) -> str:
        """As a message names it."""
        return f"DeepSpeed ZeRO-{self.stage}" if self.stage else self.kind


def sharding_of(arguments: Any) -> Sharding | None:
    """Return the sharding that a run asks for, None where there is none.

    Args:
        arguments: The fields of a recipe, or the trainer's arguments; what ``accelerate launch``
            has put into the environment counts as well.

    Raises:
        ConfigError: If a file of settings cannot be read.
    """
    given = arguments if isinstance(arguments, Mapping) else vars(arguments)
    return _fsdp(given) or _deepspeed(given)


def sharding_of_accelerator(accelerator: Any, model: Any) -> Sharding | None:
    """Return the sharding of a trainer that has been built, whatever has switched it on."""
    state = accelerator.state
    if (plugin := getattr(state, "fsdp_plugin", None)) is not None:
        is_split = "SHARDED" in str(plugin.state_dict_type)
        return Sharding(kind="FSDP", setting="the accelerator", is_split_dict=is_split)
    if (plugin := getattr(state, "deepspeed_plugin", None)) is not None:
        return Sharding(kind="DeepSpeed", setting="the accelerator", stage=int(plugin.zero_stage))
    if getattr(model, "is_distributed_loading_by_transformers", False):
        return Sharding(kind="FSDP", setting="`distributed_config`")
    return None


def check_sharding(sharding: Sharding | None, *, has_adapter: bool, is_resumed: bool) -> None:
    """Refuse what a sharded run would do wrong without a word.

    Raises:
        ConfigError: For FSDP with an adapter, a sharded state dict, ZeRO-3, and resuming.
    """
    if sharding is None:
        return
    asked = f"{sharding.words} is switched on by {sharding.setting}"
    if sharding.stage >= 3:
        raise ConfigError(
            f"{asked}, but the start, the objective and the checks need whole weights. Use ZeRO-1 "
            "or ZeRO-2, or plain data parallelism."
        )
    if sharding.kind == "FSDP" and has_adapter:
        raise ConfigError(
            f"{asked}, but the objective and the saved adapter need whole weights. Use plain data "
            "parallelism (`accelerate launch --multi_gpu`) or DeepSpeed ZeRO-1 or ZeRO-2, or set "
            "`method: full`."
        )
    if sharding.is_split_dict:
        raise ConfigError(
            f"{asked} with SHARDED_STATE_DICT, which leaves no model in `output_dir`. Set "
            "`state_dict_type: FULL_STATE_DICT` in `fsdp_config` (`FSDP_STATE_DICT_TYPE`)."
        )
    if is_resumed:
        raise ConfigError(
            f"`resume_from_checkpoint` is set and {asked}: its state is loaded past ours, and "
            "training would resume from another point. Start from the beginning, or train with "
            "plain data parallelism from the start."
        )


def _fsdp(given: Mapping[str, Any]) -> Sharding | None:
    setting = None
    if _is_on(given.get("fsdp")):
        setting = f"`fsdp` {given['fsdp']!r}"
    elif _is_on(os.environ.get("ACCELERATE_USE_FSDP")):
        setting = "`ACCELERATE_USE_FSDP`, which `accelerate launch` sets"
    elif (size := _shard_size(given)) not in (None, 1):
        setting = f"`dp_shard_size` {size}"
    if setting is None:
        return None
    config = _settings(given.get("fsdp_config"), "fsdp_config")
    named = config.get("state_dict_type", config.get("fsdp_state_dict_type"))
    named = named or os.environ.get("FSDP_STATE_DICT_TYPE") or ""
    return Sharding(kind="FSDP", setting=setting, is_split_dict="SHARDED" in str(named).upper())


def _shard_size(given: Mapping[str, Any]) -> Any:
    config = given.get("parallelism_config")
    if config is None and _is_on(os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG")):
        return int(os.environ.get("PARALLELISM_CONFIG_DP_SHARD_SIZE", "1"))
    if isinstance(config, Mapping):
        return config.get("dp_shard_size")
    return getattr(config, "dp_shard_size", None)


def _deepspeed(given: Mapping[str, Any]) -> Sharding | None:
    config = given.get("deepspeed")
    plugin = given.get("deepspeed_plugin")
    if config:
        setting, config = "`deepspeed`", _settings(config, "deepspeed")
    elif _is_on(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        setting = "`ACCELERATE_USE_DEEPSPEED`, which `accelerate launch` sets"
        file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        config = _settings(file if _is_on(file) else None, "deepspeed_config_file")
        named = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")  # accelerate's own default
        config.setdefault("zero_optimization", {"stage": named})
    elif plugin is not None:
        setting, config = "the accelerator", {}
    else:
        return None
    stage = getattr(plugin, "zero_stage", None)
    if stage is None:
        stage = dict(config.get("zero_optimization") or {}).get("stage", 0)
    return Sharding(
        kind="DeepSpeed", setting=setting, stage=int(stage) if str(stage).isdigit() else 0
    )


def _settings(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping of settings that may be given as the name of its JSON file."""
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    path = Path(str(value))
    if not path.is_file():
        raise ConfigError(f"`{name}` {str(value)!r} does not exist; name a JSON file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"`{name}` {str(value)!r} is no JSON that can be read.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"`{name}` {str(value)!r} holds no JSON object.")
    return content


def _is_on(value: Any) -> bool:
    """Say whether a switch is on that may be given as text, a truth value or a list."""
    if isinstance(value, str):
        text = value.strip().lower()
        return bool(text) and text not in ("0", "false", "no", "off", "none", "null", "n", "f")
    return bool(value)
