"""Any server that speaks OpenAI's protocol: at OPENAI_BASE_URL, with the key OPENAI_API_KEY.

The key is read from the environment by the client and stands nowhere else: not in a message, a row
or a cache. What a server says of an error is not repeated either, because it may hold the key.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from balora.errors import BaloraError, ConfigError

if TYPE_CHECKING:
    from openai import OpenAI

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"


class Reply(NamedTuple):
    """What a server answered."""

    text: str
    model: str
    """As the server calls it."""
    usage: Mapping[str, Any]


@dataclass(frozen=True)
class Server:
    """A model of a server.

    Args:
        model: By the name that the server knows.
        setting: What the user named it with, ticks included.
        seconds: After which a request is given up, and tried again.
        max_retries: Of a request that failed for now: 408, 409, 429, 5xx, or no answer.
    """

    model: str
    setting: str
    seconds: float = 600.0
    max_retries: int = 6

    def check(self) -> None:
        """Refuse a server that is not there or does not take the key, before anything is run.

        Raises:
            ConfigError: If the package is not installed, or one of these.
        """
        if importlib.util.find_spec("openai") is None:
            raise ConfigError(
                f"{self.setting} is {self.model}, which is asked through the package openai, and "
                "that is not installed. Run `pip install 'balora[judge]'`."
            )
        if not (os.environ.get(URL) or os.environ.get(KEY)):
            raise ConfigError(
                f"{self.setting} is {self.model}, but the environment says no server: set {URL} to "
                f"its address, such as http://localhost:8000/v1, and {KEY} to your key."
            )
        import openai

        try:
            self.client.with_options(max_retries=1).models.list()
        except (openai.NotFoundError, openai.InternalServerError, openai.RateLimitError):
            return  # a server without a list of its models, or one that is busy
        except openai.OpenAIError as error:
            raise ConfigError(
                f"{self.setting} is {self.model}, but the server at {self.address} {_why(error)}. "
                f"Look at {URL} and {KEY}."
            ) from None

    @property
    def address(self) -> str:
        """Where it is."""
        return os.environ.get(URL) or "api.openai.com"

    @property
    def client(self) -> OpenAI:
        """The client, one for all requests of this process; it honours Retry-After."""
        return _client(
            os.environ.get(URL) or None,
            os.environ.get(KEY) or "none",  # a server of one's own asks for none
            self.seconds,
            self.max_retries,
        )

    def chat(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> Reply:
        """Return the likeliest reply to some messages.

        Raises:
            BaloraError: If the server gave none.
        """
        with self._failing():
            given: Any = list(messages)
            reply = self.client.chat.completions.create(
                model=self.model, messages=given, temperature=0.0, max_tokens=max_tokens
            )
            usage = reply.usage.model_dump(exclude_none=True) if reply.usage else {}
            text = reply.choices[0].message.content if reply.choices else None
            return Reply(text or "", reply.model or self.model, usage)

    def complete(self, prompt: str, **sampling: Any) -> list[str]:
        """Return texts that go on with a prompt.

        Raises:
            BaloraError: If the server gave none.
        """
        with self._failing():
            reply = self.client.completions.create(model=self.model, prompt=prompt, **sampling)
            return [choice.text for choice in sorted(reply.choices, key=lambda one: one.index)]

    @contextmanager
    def _failing(self) -> Iterator[None]:
        import openai

        try:
            yield
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a reply that is cut short
            raise BaloraError(
                f"{self.setting} {self.model}: the server at {self.address} {_why(error)}. What "
                "was answered is kept; the same command goes on."
            ) from None


@functools.cache
def _client(url: str | None, key: str, seconds: float, max_retries: int) -> OpenAI:
    import openai

    client = openai.OpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=max_retries)
    # the package loads what these need when they are first asked for: here, before threads do
    _ = client.chat.completions, client.completions
    return client


def _why(error: Exception) -> str:
    """Return what went wrong without a word of the server's own."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "does not answer in time"
    if isinstance(error, openai.APIConnectionError):
        return "cannot be reached, or breaks off"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return f"does not take the key (status {error.status_code})"
    if isinstance(error, openai.NotFoundError):
        return "knows no such model or address (status 404)"
    if isinstance(error, openai.APIStatusError):
        return f"answers with an error (status {error.status_code})"
    return "sends a reply that cannot be read"
