r"""How a plain instruction becomes a prompt, and what stands between prompt and response.

The boundary. A tokenizer reads prompt and response as one text, so the last token of the prompt may
swallow the first characters of the response: after ``### Response:`` the vocabulary of GPT-4 (most
of LLaMA-3's) has the tokens ``:The``, ``:def`` and ``:\n``. With nothing in between, the prompt's
tokens are then not a prefix of the row's tokens in 24% of GSM8K's answers and 82% of MBPP's
programs; with a newline in all of them; with one space in none, because byte-pair tokenizers and
sentencepiece alike start a new piece at a space that follows text. The completion therefore starts
with one space, unless the template itself ends in a newline.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SLOT = re.compile(r"\{(instruction|input)\}")


@dataclass(frozen=True)
class PromptTemplate:
    """A text with ``{instruction}`` and, for rows that have one, ``{input}``.

    Other braces are left as they are, and slots are filled in one pass, so that an instruction
    that itself holds ``{input}`` is safe.
    """

    text: str
    text_with_input: str | None = None
    separator: str = " "

    @property
    def takes_input(self) -> bool:
        """True when a row's input has a place in the prompt."""
        return self.text_with_input is not None

    def prompt(self, instruction: str, given_input: str = "") -> str:
        """Return the prompt of one row."""
        has_input = given_input.strip() and self.text_with_input is not None
        text = self.text_with_input if has_input and self.text_with_input else self.text
        slots = {"instruction": instruction, "input": given_input}
        return _SLOT.sub(lambda slot: slots[slot[1]], text)

    def completion(self, response: str) -> str:
        """Return the response as it is trained on, with what separates it from the prompt."""
        return self.separator + response


# Stanford Alpaca's wording; the paper's authors use the first one for all three of their data sets
ALPACA = PromptTemplate(
    text=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:"
    ),
    text_with_input=(
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ),
)
PLAIN = PromptTemplate(text="{instruction}", separator="")


def template_named(text: str) -> PromptTemplate:
    """Return the template that the setting `prompt_template` stands for.

    ``alpaca`` is `ALPACA`; ``none`` joins instruction and response as they are; any other text is
    the template itself, with the same text for rows with and without an input.
    """
    if text == "alpaca":
        return ALPACA
    if text == "none":
        return PLAIN
    separator = "" if text.endswith("\n") else " "
    return PromptTemplate(text, text if "{input}" in text else None, separator)
