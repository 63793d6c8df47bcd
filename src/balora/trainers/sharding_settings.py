"""How a run asks to be spread over processes: by its arguments, a launcher, or an accelerator."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balora.errors import ConfigError

USE_ANOTHER = "Use plain data parallelism (`accelerate launch --multi_gpu`), FSDP2 or DeepSpeed"
GATHER = "stage3_gather_16bit_weights_on_model_save"

_SHARDS = ("dp_shard_size", "PARALLELISM_CONFIG_DP_SHARD_SIZE")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a run splits its state over processes."""

    kind: str
    """``FSDP`` or ``DeepSpeed``."""
    setting: str
    """What switched it on, as the user gave it."""
    stage: int = 0
    """ZeRO's, 0 where it is unknown."""
    version: int = 2
    """FSDP's."""
    is_split_dict: bool = False
    """Whether checkpoints are to be written in shards."""
    reads_once: bool = False
    """Whether the first process alone is to read the weights."""
    gathers_on_save: bool = True
    """Whether a model that is saved is to be whole."""

    @property
    def words(self) -> str:
        """As a message names it."""
        return f"DeepSpeed ZeRO-{self.stage}" if self.stage else f"{self.kind}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return str(self.version) if self.kind == "FSDP" else ""


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
    """Return the sharding of a trainer that has been built, whatever has switched it on.

    Raises:
        ConfigError: If transformers has split the model while it was loaded.
    """
    if getattr(model, "is_distributed_loading_by_transformers", False):
        raise ConfigError(
            "`distributed_config` splits the model while it is loaded, but the start of the "
            f"adapter needs whole weights. {USE_ANOTHER}."
        )
    state = accelerator.state
    if (plugin := getattr(state, "fsdp_plugin", None)) is not None:
        return Sharding(
            kind="FSDP",
            setting="the accelerator",
            version=plugin.fsdp_version,
            is_split_dict="SHARDED" in str(plugin.state_dict_type),
            reads_once=bool(plugin.cpu_ram_efficient_loading),
        )
    if (plugin := getattr(state, "deepspeed_plugin", None)) is not None:
        zero = dict((plugin.deepspeed_config or {}).get("zero_optimization") or {})
        return Sharding(
            kind="DeepSpeed",
            setting="the accelerator",
            stage=int(plugin.zero_stage),
            gathers_on_save=is_on(zero.get(GATHER)),
        )
    return None


REPLAYED = "every process makes the reference of `replay` with them"
"""Why texts are not replayed where :func:`refuse_reading_once` is asked."""


def refuse_reading_once(sharding: Sharding | None, why: str) -> None:
    """Refuse to load the weights on one process, where that cannot work.

    Args:
        sharding: Of the run.
        why: What it does not go with; a clause.

    Raises:
        ConfigError: If the weights are to be loaded so.
    """
    if sharding is not None and sharding.reads_once:
        raise ConfigError(
            f"{sharding.words} is switched on by {sharding.setting} with "
            "`cpu_ram_efficient_loading`, by which the first process alone has weights until "
            f"training begins, but {why}. Set `fsdp_cpu_ram_efficient_loading: false` in the "
            "config of `accelerate` (`cpu_ram_efficient_loading: false` in `fsdp_config`)."
        )


def size_of(given: Mapping[str, Any], name: str, variable: str) -> Any:
    """Return a size of `parallelism_config`, which a launcher may have set; None without one."""
    config = given.get("parallelism_config")
    if config is None:
        is_set = is_on(os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG"))
        return int(os.environ.get(variable, "1")) if is_set else None
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _fsdp(given: Mapping[str, Any]) -> Sharding | None:
    setting = None
    if is_on(given.get("fsdp")):
        setting = f"`fsdp` {given['fsdp']!r}"
    elif is_on(os.environ.get("ACCELERATE_USE_FSDP")):
        setting = "`ACCELERATE_USE_FSDP`, which `accelerate launch` sets"
    elif (size := size_of(given, *_SHARDS)) not in (None, 1):
        setting = f"`dp_shard_size` {size}"
    if setting is None:
        return None
    settings = _settings(given.get("fsdp_config"), "fsdp_config")
    config = {name.removeprefix("fsdp_"): value for name, value in settings.items()}
    if not is_on(given.get("fsdp")) and is_on(os.environ.get("ACCELERATE_USE_FSDP")):
        config = {  # with what accelerate takes where its own config says nothing
            "version": os.environ.get("FSDP_VERSION", "1"),
            "state_dict_type": os.environ.get("FSDP_STATE_DICT_TYPE", ""),
            "cpu_ram_efficient_loading": os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", ""),
        }
    return Sharding(
        kind="FSDP",
        setting=setting,
        version=int(config.get("version", 2)),
        is_split_dict="SHARDED" in str(config.get("state_dict_type")).upper(),
        reads_once=is_on(config.get("cpu_ram_efficient_loading")),
    )


def _deepspeed(given: Mapping[str, Any]) -> Sharding | None:
    plugin, config = given.get("deepspeed_plugin"), deepspeed_config(given)
    if given.get("deepspeed"):
        setting = "`deepspeed`"
    elif is_on(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        setting = "`ACCELERATE_USE_DEEPSPEED`, which `accelerate launch` sets"
    elif plugin is not None:
        setting = "the accelerator"
    else:
        return None
    zero = dict(config.get("zero_optimization") or {})
    stage = getattr(plugin, "zero_stage", None)
    stage = zero.get("stage", 0) if stage is None else stage
    return Sharding(
        kind="DeepSpeed",
        setting=setting,
        stage=int(stage) if str(stage).isdigit() else 0,
        gathers_on_save=is_on(zero.get(GATHER)),
    )


def deepspeed_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's settings, as far as arguments, launcher and files tell them."""
    if given.get("deepspeed"):
        return _settings(given["deepspeed"], "deepspeed")
    if not is_on(os.environ.get("ACCELERATE_USE_DEEPSPEED")):
        return {}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    config = _settings(file if is_on(file) else None, "deepspeed_config_file")
    zero = {
        "stage": os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"),  # accelerate's default
        GATHER: os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", ""),
    }
    config.setdefault("zero_optimization", zero)
    return config


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


def is_on(value: Any) -> bool:
    """Say whether a switch is on that may be given as text, a truth value or a list."""
    if isinstance(value, str):
        text = value.strip().lower()
        return bool(text) and text not in ("0", "false", "no", "off", "none", "null", "n", "f")
    return bool(value)
