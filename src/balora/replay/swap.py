r"""Balanced replay: the words of a pair swapped, in a text and back in its distribution.

.. math::
    \tilde p(\cdot | x) = \tfrac12 \left( p(\cdot | x) + S\, p(\cdot | S x) \right)

with :math:`S` the swap of the tokens of every pair: what the pre-trained model says in the text and
in its counterfactual counts alike, so that a preference for one of two words is not replayed. The
mixture is symmetric: :math:`\tilde p(\cdot | S x) = S\, \tilde p(\cdot | x)`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from balora.errors import ConfigError

logger = logging.getLogger(__name__)

_BEFORE = "a"
"""A word before, so that the tokenizer sees a space and not the beginning of a text."""


def swap_of(pairs: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return the partner of every token that the swap moves, both ways.

    A word counts as it is given and with a capital, after a space and at the beginning of a line,
    wherever it and its partner are single tokens there. After a space and as given they must be.

    Args:
        pairs: Two words each.
        tokenizer: Of the model.

    Raises:
        ConfigError: If a word is several tokens, or stands in two pairs.
    """
    partners: dict[int, int] = {}
    dropped: list[str] = []
    for one, other in pairs:
        for words in ((one, other), (one.capitalize(), other.capitalize())):
            for before in (_BEFORE, ""):
                first, second = (_tokens(word, before, tokenizer) for word in words)
                if len(first) != 1 or len(second) != 1:
                    if words == (one, other) and before:
                        raise ConfigError(_not_single(one, other, first, second, tokenizer))
                    dropped += [f"{words[0]}/{words[1]}"] if before else []
                    continue
                _add(partners, first[0], second[0], words)
    if dropped:
        logger.info("Balanced replay drops %s: not single tokens.", ", ".join(dropped))
    return partners


def _tokens(word: str, before: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a word after another one and a space, or at the beginning of a line.

    Empty where the tokenizer does not know it.
    """

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    start = f"{before} " if before else "\n"
    without, whole = encoded(start), encoded(start + word)
    # a space of its own stays with what is before, one that joins the word goes with it
    same = takewhile(lambda pair: pair[0] == pair[1], zip(without, whole, strict=False))
    tokens = whole[len(list(same)) :]
    return [] if tokenizer.unk_token_id in tokens else tokens


def _add(partners: dict[int, int], first: int, second: int, words: Sequence[str]) -> None:
    for token, partner in ((first, second), (second, first)):
        if token == partner or partners.get(token, partner) != partner:
            raise ConfigError(
                f"`replay_swap` has {words[0]}/{words[1]}, but one of the two stands in another "
                "pair, or they are one word. Give each word one partner."
            )
    partners[first], partners[second] = second, first


def _not_single(
    one: str,
    other: str,
    first: Sequence[int],
    second: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    word, tokens = (one, first) if len(first) != 1 else (other, second)
    pieces = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(tokens))))
    what = f"{len(tokens)} tokens of this model ({pieces})" if tokens else "unknown to this model"
    return (
        f"`replay_swap` has {one}/{other}, but `{word}` is {what}, and only single tokens can be "
        "swapped. Leave the pair out."
    )
