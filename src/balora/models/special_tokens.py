"""A tokenizer as training needs it: what closes a text, what pads, and the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase, trainer_utils
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from balora.errors import ConfigError
from balora.models.load import load_tokenizer, silenced
from balora.models.source import ModelSource

SETTING = "`chat_template_path`"
_FILE_ENDINGS = (".jinja", ".j2")
_MARKERS = "{% generation %} ... {% endgeneration %}"


def settle_special_tokens(
    tokenizer: PreTrainedTokenizerBase,
    source: ModelSource,
    *,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> None:
    """Make sure that a tokenizer can close a text and pad, with the tokens that a recipe names.

    Args:
        tokenizer: Changed in place.
        source: The model it belongs to.
        eos_token: In place of its own end-of-text token.
        pad_token: In place of its own padding token; without either the end-of-text token pads.

    Raises:
        ConfigError: If a token is none of the vocabulary, or nothing closes a text.
    """
    for name, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise ConfigError(
                f"`{name}` is {token!r}, which is no token of {source.words}. Name one of its "
                "vocabulary."
            )
        setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of {source.words} has no end-of-text token, so no response could end. "
            "Set `eos_token` to a token of its vocabulary."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def apply_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Give a tokenizer the chat template of a file, or of another model with its end of a turn.

    Args:
        tokenizer: Changed in place; no token is added.
        path: A Jinja file, or the folder or hub id of a model.

    Raises:
        ConfigError: If there is no such template, it is broken, or needs tokens that are missing.
    """
    if path.endswith(_FILE_ENDINGS):
        tokenizer.chat_template = _text_of(path)
        check_syntax(tokenizer, path)
        return
    donor = load_tokenizer(ModelSource(name=path, setting=SETTING))
    if donor.chat_template is None:
        raise ConfigError(f"{SETTING} {path!r} has no chat template. Name a chat model, or a file.")
    vocabulary = tokenizer.get_vocab()
    tokens = [str(token) for token in donor.added_tokens_decoder.values()]
    missing = [token for token in (*tokens, str(donor.eos_token)) if token not in vocabulary]
    if missing:
        named = ", ".join(f"`{token}`" for token in dict.fromkeys(missing))
        raise ConfigError(
            f"{SETTING} {path!r} brings tokens that the model does not have: {named}. Its "
            "embedding would grow and train with the head, which the regularizers compare with. "
            "Write a template with the model's own tokens into a .jinja file and name that."
        )
    tokenizer.chat_template, tokenizer.eos_token = donor.chat_template, donor.eos_token
    check_syntax(tokenizer, path)


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{SETTING} {path!r} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{SETTING} {path!r} cannot be read: {error}.") from error


def check_syntax(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a chat template that is no Jinja.

    Raises:
        ConfigError: Naming the file or model, and the line.
    """
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{SETTING} {where!r} is broken in line {error.lineno}: {error.message}. Correct it."
        ) from error
    except TemplateError:
        pass  # a template may refuse this chat, and take those of the data


def check_marks_turns(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a chat template that does not say which tokens are the assistant's.

    Raises:
        ConfigError: Naming the way out.
    """
    if has_generation_markers(tokenizer.chat_template):
        return
    try:
        get_training_chat_template(tokenizer)  # trl knows the marked form of some templates
    except ValueError as error:
        raise ConfigError(
            f"the chat template of {where} does not mark the assistant's turns, and only these are "
            f"scored. Put {_MARKERS} around them and name the file in {SETTING}."
        ) from error


def align_special_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a model's configs the special tokens of its tokenizer, before a trainer reports it."""
    with silenced("transformers.trainer_utils", "new PAD/BOS/EOS tokens"):
        trainer_utils.align_special_tokens(model, tokenizer)
