"""A model that rates answers from 1 to 10, after MT-Bench's published prompts, with a cache.

The prompts are FastChat's ``single-v1`` and ``single-math-v1`` (Apache License 2.0).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from balora.errors import ConfigError
from balora.evaluation.bench.server import Reply, Server
from balora.files import write_json
from balora.folders import made_folder
from balora.state import read_json

_SYSTEM = "You are a helpful assistant."
_TASK = (
    "[Instruction]\n"
    "Please act as an impartial judge and evaluate the quality of the response provided by an AI "
    "assistant to the user question displayed below. "
)
_FORM = (
    ' on a scale of 1 to 10 by strictly following this format: "[[rating]]", for example: "Rating: '
    '[[5]]".\n\n[Question]\n{question}\n\n'
)
_ANSWER = "[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
PLAIN = (
    f"{_TASK}Your evaluation should consider factors such as the helpfulness, relevance, accuracy, "
    "depth, creativity, and level of detail of the response. Begin your evaluation by providing a "
    "short explanation. Be as objective as possible. After providing your explanation, you must "
    f"rate the response{_FORM}{_ANSWER}"
)
WITH_REFERENCE = (
    f"{_TASK}Your evaluation should consider correctness and helpfulness. You will be given a "
    "reference answer and the assistant's answer. Begin your evaluation by comparing the "
    "assistant's answer with the reference answer. Identify and correct any mistakes. Be as "
    "objective as possible. After providing your explanation, you must rate the response"
    f"{_FORM}[The Start of Reference Answer]\n{{ref_answer_1}}\n[The End of Reference Answer]\n\n"
    f"{_ANSWER}"
)
_SLOT = re.compile(r"\{(question|answer|ref_answer_1)\}")
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
_ATTEMPTS, _MAX_TOKENS = 3, 2048
_SETTING = "`judge_cache`"


class Rating(NamedTuple):
    """What a judge says of an answer."""

    rating: float | None
    """From 1 to 10; None where it gave none, however often it was asked."""
    text: str
    """Its last reply."""
    model: str
    """As the server calls it."""
    attempt: int
    """How often it was asked."""


def rating_in(text: str) -> float | None:
    """Return the last rating in a judge's reply, None where there is none from 1 to 10.

    The last: before it the judge may quote an answer that asks for a rating.
    """
    for form in _RATINGS:
        if found := form.findall(text):
            rating = float(found[-1])
            return rating if 1 <= rating <= 10 else None
    return None


def prompt_of(question: str, answer: str, reference: str | None) -> str:
    """Return what the judge is asked; slots are filled in one pass, whatever an answer holds."""
    slots = {"question": question, "answer": answer, "ref_answer_1": reference or ""}
    template = PLAIN if reference is None else WITH_REFERENCE
    return _SLOT.sub(lambda slot: slots[slot[1]], template)


@dataclass(frozen=True)
class Judge:
    """A judge whose replies are kept: asked the same again, it says the same and costs nothing."""

    server: Server
    cache: Path

    def rate(self, question: str, answer: str, reference: str | None) -> Rating:
        """Return the rating of an answer; a reply without one is asked for again, twice.

        Raises:
            BaloraError: If the server fails for good.
        """
        prompt = prompt_of(question, answer, reference)
        messages = [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": prompt},
        ]
        for attempt in range(1, _ATTEMPTS + 1):
            reply = self._reply(messages, attempt)
            rating = rating_in(reply.text)
            if rating is not None:
                break
        return Rating(rating, reply.text, reply.model, attempt)

    def _reply(self, messages: list[dict[str, str]], attempt: int) -> Reply:
        asked = {
            "server": self.server.address,
            "model": self.server.model,
            "messages": messages,
            "attempt": attempt,
        }
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        file = self.cache / f"{name}.json"
        if file.is_file() and (kept := _kept(file)) is not None:
            return kept
        reply = self.server.chat(messages, max_tokens=_MAX_TOKENS)
        said = {"text": reply.text, "model_as_served": reply.model, "usage": dict(reply.usage)}
        with made_folder(self.cache, _SETTING):
            write_json(file, {**asked, **said}, name=_SETTING)
        return reply


def _kept(file: Path) -> Reply | None:
    """Return a reply that is kept; a file that is damaged is asked for anew."""
    fields: Mapping[str, type] = {"text": str, "model_as_served": str, "usage": dict}
    try:
        found = read_json(file, "", fields=fields)
    except ConfigError:
        return None
    return Reply(found["text"], found["model_as_served"], found["usage"])
