"""The prompt's wording, and the boundary between prompt and response in real kinds of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from balora.data.templates import ALPACA, PLAIN, PromptTemplate, template_named

RESPONSES = [
    "The answer is 4.",
    "def f(x):\n    return x",
    "```python\nprint(1)\n```",
    '"Yes", he said.',
    "(a) first",
    "\nnew line first",
    " space first",
    "42",
    "-1",
    "\\frac{1}{2}",
    "/usr/bin",
    "://",
]
# LLaMA-3, GPT-4 and Qwen split like this; GPT-2 like the second one
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def glued(template: PromptTemplate, separator: str) -> list[str]:
    """Return rows as text, many times over, so that a tokenizer learns every merge in them."""
    return [template.prompt("Add.") + separator + response for response in RESPONSES] * 50


def byte_pair(pattern: str) -> Tokenizer:
    """Train a BPE tokenizer on rows with nothing in between: it has the tokens that merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rows = [row for separator in ("", " ", "\n") for row in glued(ALPACA, separator)]
    tokenizer.train_from_iterator(rows, trainer)
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """Train a BPE tokenizer as sentencepiece does: a space opens a piece and is part of it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=["<unk>"], show_progress=False)
    rows = [row for separator in ("", " ", "\n") for row in glued(ALPACA, separator)]
    tokenizer.train_from_iterator(rows, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    """Encoders by name: two byte-pair ones, and one as LLaMA-2 has."""
    built = {
        "llama3": byte_pair(LLAMA3),
        "gpt2": byte_pair(GPT2),
        "sentencepiece": sentence_pieces(),
    }
    return {
        name: lambda text, tokenizer=tokenizer: tokenizer.encode(text).ids
        for name, tokenizer in built.items()
    }


def is_prefix(encode, template: PromptTemplate, response: str) -> bool:
    prompt = template.prompt("Add 2 and 2.")
    prompt_ids = encode(prompt)
    return encode(prompt + template.completion(response))[: len(prompt_ids)] == prompt_ids


@pytest.mark.parametrize("name", ["llama3", "gpt2", "sentencepiece"])
@pytest.mark.parametrize("response", RESPONSES)
def test_prompt_tokens_are_a_prefix_of_the_rows_tokens(tokenizers, name, response):
    assert is_prefix(tokenizers[name], ALPACA, response)


@given(response=st.text(min_size=1, max_size=20).filter(str.strip))
def test_prompt_tokens_are_a_prefix_for_any_response(tokenizers, response):
    assert all(is_prefix(encode, ALPACA, response) for encode in tokenizers.values())


@pytest.mark.parametrize("name", ["llama3", "gpt2", "sentencepiece"])
def test_with_nothing_in_between_the_boundary_breaks(tokenizers, name):
    glue = PromptTemplate(ALPACA.text, separator="")
    assert not all(is_prefix(tokenizers[name], glue, response) for response in RESPONSES)


@pytest.mark.parametrize("name", ["llama3", "sentencepiece"])
def test_with_a_newline_in_the_completion_the_boundary_breaks(tokenizers, name):
    glue = PromptTemplate(ALPACA.text, separator="\n")
    assert not all(is_prefix(tokenizers[name], glue, response) for response in RESPONSES)


def test_a_template_that_ends_in_a_newline_needs_no_space(tokenizers):
    template = template_named("### Question:\n{instruction}\n\n### Answer:\n")
    assert template.separator == ""
    solid = [response for response in RESPONSES if response[0].strip()]
    for encode in tokenizers.values():
        assert all(is_prefix(encode, template, response) for response in solid)


def test_alpaca_is_worded_as_published():
    assert ALPACA.prompt("Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:"
    )
    assert ALPACA.prompt("Add.", "2 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:"
    )
    assert ALPACA.prompt("Add.", "  ") == ALPACA.prompt("Add.")
    assert ALPACA.completion("4") == " 4"


def test_named_templates():
    assert template_named("alpaca") is ALPACA
    assert template_named("none") is PLAIN
    assert (PLAIN.prompt("a b"), PLAIN.completion("c")) == ("a b", "c")
    assert not PLAIN.takes_input


def test_own_template():
    template = template_named('Q: {instruction} ({input}) {"json": {}}\nA:')
    assert template.takes_input
    assert template.prompt("why {input}?", "{instruction}") == (
        'Q: why {input}? ({instruction}) {"json": {}}\nA:'
    )
    assert template.prompt("x") == 'Q: x () {"json": {}}\nA:'
    assert template.completion("y") == " y"
    assert not template_named("{instruction} =>").takes_input
