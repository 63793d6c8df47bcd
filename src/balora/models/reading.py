"""What a library reads of a model: its files are looked at first, its errors are one sentence."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from peft import PeftType
from safetensors import SafetensorError

from balora.errors import BaloraError, ConfigError
from balora.state import damaged, open_tensors, read_json, read_torch

_OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    StrictDataclassError,
)
"""What transformers, PEFT and the hub's client raise for files of another shape."""

_OTHER_SHAPES = ("size mismatch", "loading state_dict", "ignore_mismatched_sizes")
_CUT_SHORT = ("PytorchStreamReader", "magic number", "unexpected EOF")
"""What a RuntimeError says where the files are to blame and not the machine."""


@contextmanager
def reading_model(name: str, setting: str, *, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong while a model, an adapter or a tokenizer is read into one sentence.

    Belongs around ``from_pretrained`` alone. The files are checked before the block runs.

    Args:
        name: Folder or hub id.
        setting: What the user gave it as, such as ```--base```; ticks included.
        revision: Of a hub id.

    Raises:
        ConfigError: Naming the setting, and the file that is damaged where one is.
    """
    folder = model_folder(name, revision)
    if folder is not None:
        check_files(folder, f"{setting} {name!r} cannot be loaded: ")
    try:
        yield
    except BaloraError:
        raise
    except (SafetensorError, pickle.UnpicklingError) as error:
        reason = "its weights are damaged, or hold something other than tensors"
        raise ConfigError(
            f"{setting} {name!r} cannot be loaded: {reason}; nothing in them was run. Save or "
            "download it again."
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(name, setting, error) from error
    except RuntimeError as error:
        if not _reason_of_runtime_error(error):
            raise
        raise _unreadable(name, setting, error) from error
    except Exception as error:
        # tokenizers raises plain exceptions, of no class of its own, for a file of another shape
        if type(error) is not Exception:
            raise
        raise _unreadable(name, setting, error) from error


def _unreadable(name: str, setting: str, error: Exception) -> ConfigError:
    first = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".: ")
    # a KeyError's text is the key alone
    reason = f"{type(error).__name__} {first}" if isinstance(error, LookupError) else first
    if isinstance(error, RuntimeError):
        reason = _reason_of_runtime_error(error)
    return ConfigError(
        f"{setting} {name!r} cannot be loaded: {reason}. Name a model that transformers can load, "
        "or save or download it again."
    )


def _reason_of_runtime_error(error: RuntimeError) -> str:
    """Return half a sentence on the files; empty where they are not to blame."""
    text = str(error)
    if any(words in text for words in _OTHER_SHAPES):
        lines = (line.strip() for line in text.splitlines())
        example = next((line.split(":")[0] for line in lines if "size mismatch" in line), "")
        where = f" ({example})" if example else ""
        return f"its weights have other shapes than its config says or the model has{where}"
    if any(words in text for words in _CUT_SHORT):
        return "its weights are damaged: a file is cut short"
    return ""


def model_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder with the files of a model, None for a hub id that is not in the cache."""
    if Path(name).is_dir():
        return Path(name)
    for file in ("config.json", "adapter_config.json"):
        try:
            found = try_to_load_from_cache(name, file, revision=revision)
        except (ValueError, OSError):  # no name that the hub takes
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def check_files(folder: Path, prefix: str = "") -> None:
    """Refuse a folder with damaged files of a model, an adapter or a tokenizer.

    Weights are not read; their headers are checked against the length of the files.

    Args:
        folder: The folder; files that are not there are not asked for, but an adapter's weights
            and the parts that an index names.
        prefix: Begins the sentence.

    Raises:
        ConfigError: Naming the file and what is wrong with it.
    """
    fix = "Save or download it again."
    try:
        for name in _OBJECTS:
            if (folder / name).is_file():
                read_json(folder / name, fix)
        if (folder / "tokenizer.json").is_file():
            read_json(folder / "tokenizer.json", fix, fields={"model": dict})
        _check_adapter(folder, fix)
        _check_parts(folder, fix)
        _check_weights(folder, fix)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _check_adapter(folder: Path, fix: str) -> None:
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    kind = read_json(config, fix, fields={"peft_type": str})["peft_type"]
    if kind not in PeftType.__members__:
        raise damaged(config, f"is damaged: `peft_type` is {kind!r}, which PEFT does not know", fix)
    weights = ("adapter_model.safetensors", "adapter_model.bin")
    if not any((folder / name).is_file() for name in weights):
        raise damaged(folder / weights[0], "is missing", fix)


def _check_parts(folder: Path, fix: str) -> None:
    """Ask for every part of weights that are in several files."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            parts = read_json(folder / index, fix, fields={"weight_map": dict})["weight_map"]
            for part in sorted({str(name) for name in parts.values()}):
                if not (folder / part).is_file():
                    raise damaged(folder / part, "is missing", fix)


def _check_weights(folder: Path, fix: str) -> None:
    for stem, other in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        safe = sorted(folder.glob(f"{stem}*.safetensors"))
        for path in safe:
            with open_tensors(path, fix):
                pass
        # not read where there are safetensors
        for path in () if safe else sorted(folder.glob(f"{other}*.bin")):
            _check_pickle(path, fix)


def _check_pickle(path: Path, fix: str) -> None:
    """Look at weights in torch's own format; an old one is left to be read, which takes long."""
    with path.open("rb") as file:
        head = file.read(1)
    if zipfile.is_zipfile(path) or head != b"\x80":
        read_torch(path, fix)
