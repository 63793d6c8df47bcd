"""What a text of a model begins with: the token its authors begin with, a prompt, a user's turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import ConfigError
from balora.replay.texts import decoded

CHAT = "chat"
"""The value of `replay_prompt` for the opening of the user's turn."""

_MARKER = "balora-replay-marker"


@dataclass(frozen=True)
class Start:
    """The tokens that each text begins with; they are not scored."""

    input_ids: tuple[int, ...]
    """At least one."""
    description: str
    """For the log: which tokens they are, and why these."""
    between: tuple[int, ...] | None = None
    """Of a chat: what closes the user's turn and opens the answer."""


def start_of(
    prompt: str | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Start:
    """Return what texts begin with.

    Args:
        prompt: ``None`` for the beginning of a text, ``chat``, or the prompt itself.
        tokenizer: Of the model.
        model: Its config may name a beginning that the tokenizer does not add (Qwen).

    Raises:
        ConfigError: If the model has no such beginning, or no chat template.
    """
    if prompt is None:
        return _beginning(tokenizer, model)
    if prompt == CHAT:
        return _chat(tokenizer)
    input_ids = _without_end(tokenizer(prompt)["input_ids"], tokenizer)
    return Start(input_ids, f"`replay_prompt` {prompt!r}")


def _beginning(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Start:
    """Return the first of: what the tokenizer adds itself, its BOS, the config's BOS, its EOS."""
    own = _without_end(tokenizer("")["input_ids"], tokenizer)
    from_config = model.config.get_text_config().bos_token_id
    for input_ids, reason in (
        (own, "which the tokenizer begins every text with"),
        (_one(tokenizer.bos_token_id), "the tokenizer's beginning-of-text token"),
        (_one(from_config), "the beginning-of-text token of the model's config"),
        (_one(tokenizer.eos_token_id), "the end-of-text token, which the text before ends with"),
    ):
        if input_ids:
            return Start(input_ids, f"{decoded(tokenizer, input_ids)!r}, {reason}")
    raise ConfigError(
        "`replay` is generated, but the tokenizer has neither a beginning-of-text nor an "
        "end-of-text token that a text could begin with. Set `replay_prompt` to a text."
    )


def _chat(tokenizer: PreTrainedTokenizerBase) -> Start:
    if tokenizer.chat_template is None:
        raise ConfigError(
            "`replay_prompt` is chat, but the tokenizer has no chat template. Set it to null or to "
            "a text."
        )
    turns = [{"role": "user", "content": _MARKER}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    opening, found, between = str(text).partition(_MARKER)
    parts = [
        tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (opening, between)
    ]
    if not found or not all(parts):
        raise ConfigError(
            "`replay_prompt` is chat, but the chat template does not put the user's words between "
            "marks. Set it to null or to a text."
        )
    return Start(parts[0], f"{opening!r}, the opening of the user's turn", between=parts[1])


def _one(token: Any) -> tuple[int, ...]:
    return () if token is None else (int(token),)


def _without_end(input_ids: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return tokens without an end-of-text token that the tokenizer closes every text with."""
    ids = tuple(int(token) for token in input_ids)
    is_closed = len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    is_only_end = ids == (tokenizer.eos_token_id,) and tokenizer.bos_token_id != ids[0]
    return () if is_only_end else ids[:-1] if is_closed else ids
