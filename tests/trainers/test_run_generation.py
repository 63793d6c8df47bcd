"""`balora train` of text generation: what cannot be trained names its setting, before training."""

from __future__ import annotations

import json
import re

import pytest
from transformers import AutoModelForCausalLM, BertForMaskedLM
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.bert.configuration_bert import BertConfig

from balora.cli import main
from support.classification_runs import error_of
from support.models import CLASSIFIERS, make_model, make_tokenizer

# trl will take the token from the tokenizer only, where balora puts it already
pytestmark = pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")

ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(4)
]


def with_token(token, **special):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([token])
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return tokenizer


def without_end():
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def not_finite():
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    return model


def mixture():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes, **heads))


MODELS = {
    "llama": lambda: (make_model("llama"), make_tokenizer()),
    "short": lambda: (make_model("gpt2", n_positions=32), make_tokenizer()),
    "tool": lambda: (make_model("llama"), with_token("<tool>")),
    "padded": lambda: (make_model("llama"), with_token("<p>", pad_token="<p>")),
    "endless": lambda: (make_model("llama"), without_end()),
    "nan": lambda: (not_finite(), make_tokenizer()),
    "masked": lambda: (BertForMaskedLM(BertConfig(**CLASSIFIERS["bert"])), make_tokenizer()),
    "experts": lambda: (mixture(), make_tokenizer()),
    "donor": lambda: (make_model("llama"), with_token("<|turn|>")),
}
FILES = {
    "rows.jsonl": ROWS,
    "long.jsonl": [*ROWS, {"prompt": "a" * 50, "completion": "b" * 10}],
    "tool.jsonl": [*ROWS, {"prompt": "a<tool>", "completion": "b"}],
    "chats.jsonl": CHATS,
}
_TURNS = "{% generation %}{{ m.content }}{% endgeneration %}"
TEMPLATES = {
    "broken.jinja": "{% for m in messages %}\n{{ m.content }\n{% endfor %}",
    "unmarked.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "strict.jinja": "{% for m in messages %}{% if m.content == 'q2' %}"
    "{{ raise_exception('no q2') }}{% endif %}" + _TURNS + "{% endfor %}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for name, rows in FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TEMPLATES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def train(place, monkeypatch):
    monkeypatch.chdir(place)

    def run(model, data, **fields):
        if model in MODELS and not (place / model).exists():
            base, tokenizer = MODELS[model]()
            base.save_pretrained(place / model)
            tokenizer.save_pretrained(place / model)
        words = {
            "model_name_or_path": model,
            "dataset_name": data,
            "lora_r": 2,
            "lora_alpha": 2,
            "max_steps": 1,
            "output_dir": "out",
            "overwrite": "true",
            "save_strategy": "no",
            "disable_tqdm": "true",
            **fields,
        }
        return main(["train", *(f"--{name}={value}" for name, value in words.items())])

    return run


REFUSED = {
    "another kind": ("masked", "rows.jsonl", {}, "no causal language model.* set `task`"),
    "a long row": ("short", "long.jsonl", {}, "long.jsonl, line 5: .*61 tokens.* 32 positions"),
    "a long evaluation row": (
        "short",
        "rows.jsonl",
        {"eval_dataset_name": "long.jsonl"},
        "long.jsonl, line 5: .* 32 positions",
    ),
    "wrapped rows": (
        "short",
        "rows.jsonl",
        {"packing": "true", "packing_strategy": "wrapped", "max_length": 40},
        "`max_length` is 40, .* 32 positions",
    ),
    "an unknown token": ("tool", "tool.jsonl", {}, "tool.jsonl, line 5: .*`<tool>`.* 128"),
    "an unknown padding token": ("padded", "rows.jsonl", {}, "pads with `<p>`.*Set `pad_token`"),
    "no end of text": ("endless", "rows.jsonl", {}, "no end-of-text token.*Set `eos_token`"),
    "a token that is none": (
        "llama",
        "rows.jsonl",
        {"pad_token": "<nope>"},
        "`pad_token` is '<nope>'",
    ),
    "padding": (
        "llama",
        "rows.jsonl",
        {"pad_to_multiple_of": "1000000"},
        "`pad_to_multiple_of` is 1000000, .* made for .* positions. Lower it",
    ),
    "every turn of a chat": (
        "llama",
        "chats.jsonl",
        {"assistant_only_loss": "false"},
        "`assistant_only_loss` is false, .* the assistant's turns alone.*Leave it out",
    ),
    "a weight": ("nan", "rows.jsonl", {}, "NaN or infinite, in `model.layers.1.mlp.up_proj"),
    "the hub": ("llama", "rows.jsonl", {"push_to_hub": "true"}, "`push_to_hub` is true"),
    "a template that is not there": (
        "llama",
        "rows.jsonl",
        {"chat_template_path": "no_such_folder"},
        "`chat_template_path` 'no_such_folder'",
    ),
    "a broken template": (
        "llama",
        "chats.jsonl",
        {"chat_template_path": "broken.jinja"},
        "`chat_template_path` 'broken.jinja' is broken in line 2",
    ),
    "a template without marks": (
        "llama",
        "chats.jsonl",
        {"chat_template_path": "unmarked.jinja"},
        "'unmarked.jinja' does not mark",
    ),
    "a chat that the template refuses": (
        "llama",
        "chats.jsonl",
        {"chat_template_path": "strict.jinja"},
        "chats.jsonl, line 3: the chat template refuses it: no q2",
    ),
    "a template with tokens": (
        "llama",
        "chats.jsonl",
        {"chat_template_path": "donor"},
        r"`chat_template_path` 'donor' brings tokens.*`<\|turn\|>`",
    ),
    "experts": ("experts", "rows.jsonl", {}, r"the experts .*\[q_proj, k_proj, v_proj, o_proj\]"),
    "attention": (
        "llama",
        "rows.jsonl",
        {"attn_implementation": "flash_attention_2"},
        "`attn_implementation` is 'flash_attention_2'",
    ),
    "a count of tokens": ("llama", "rows.jsonl", {"entropy_top_k": 999}, "`entropy_top_k` is 999"),
    "a model that is not there": ("gone", "rows.jsonl", {}, "`model_name_or_path` 'gone' cannot"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_names_its_setting(case, train, place, capsys):
    model, data, fields, sentence = REFUSED[case]
    if case == "a template with tokens":
        _, tokenizer = MODELS["donor"]()
        tokenizer.save_pretrained(place / "donor")
    assert train(model, data, **fields, output_dir="refused") == 2
    told = error_of(capsys)
    assert re.search(sentence, told), told
    assert not (place / "refused").exists()


TRAINED = {
    "short rows": ("short", "rows.jsonl", {}),
    "packed rows": ("short", "rows.jsonl", {"packing": "true", "max_length": 40}),
    "tokens that do not occur": ("tool", "rows.jsonl", {}),
    "another end of text": ("endless", "rows.jsonl", {"eos_token": "</s>"}),
    "another padding": ("padded", "rows.jsonl", {"pad_token": "</s>"}),
    "chats": ("llama", "chats.jsonl", {}),
    "the template of a model": ("llama", "chats.jsonl", {"chat_template_path": "llama"}),
    "experts left out": (
        "experts",
        "rows.jsonl",
        {"lora_target_modules": "[q_proj, v_proj]", "router_aux_loss_coef": 0},
    ),
}


@pytest.mark.parametrize("case", TRAINED)
def test_what_can_be_trained_is(case, train):
    model, data, fields = TRAINED[case]
    assert train(model, data, **fields) == 0


def test_a_run_records_its_base_and_another_vocabulary_is_refused(train, place, capsys):
    assert train("llama", "rows.jsonl", output_dir="recorded") == 0
    make_model("llama", vocab_size=200).save_pretrained(place / "wide")
    make_tokenizer().save_pretrained(place / "wide")
    capsys.readouterr()
    for command in (["eval"], ["export", "--to", "exported"]):
        words = [command[0], "recorded", "--base", "wide", *command[1:]]
        assert main(words) == 2
        assert "`vocab_size` 128, but `--base` 'wide' has 200" in error_of(capsys)
