"""A small byte-level BPE tokenizer in which every digit is a piece of its own."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

_PIECES = Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+")

INSTRUCTION_WORDING = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n\n### Response:",
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context.\n\n### Input:\n",
    "The answer is: ",
)
"""Wording of instruction data, so that it costs words rather than single letters.

The tokenizer sees it; the pre-training text does not contain it.
"""


def build_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer: any text can be written, the words of ``texts`` in few pieces.

    Texts are split into words, each with the space before it, runs of punctuation, and single
    digits. Encoding puts ``<s>`` first, as LLaMA's tokenizer does.

    Raises:
        ValueError: If ``vocab_size`` leaves no room for the 256 bytes and 3 special tokens.
    """
    if vocab_size < 256 + 3:
        raise ValueError(
            f"`vocab_size` is {vocab_size}, but the 256 bytes and 3 special tokens need 259."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
