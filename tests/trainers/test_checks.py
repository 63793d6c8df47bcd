"""Settings that would train something else than asked are refused by name."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import AutoConfig

from balora.errors import ConfigError
from balora.trainers import BALoraSFTTrainer, BALoraTrainer
from support.models import CAUSAL, make_model, make_tokenizer
from support.training import lora_config, make_rows, make_trainer, run

TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
SETTINGS = {
    "dft": (
        {"loss_type": "dft"},
        "`loss_type` is dft, which replaces the task loss; set it to nll",
    ),
    "smoothing": (
        {"label_smoothing_factor": 0.1},
        "`label_smoothing_factor` is 0.1, which changes the task loss; set it to 0",
    ),
    "liger": (
        {"use_liger_kernel": True},
        "`use_liger_kernel` is true, which replaces the model's loss; set it to false",
    ),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_replace_the_loss(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_trainer(tmp_path, **settings)
    assert error.value.exit_status == 2


def test_a_loss_function_of_the_users(tmp_path):
    with pytest.raises(ConfigError, match="`compute_loss_func` replaces the objective; leave it"):
        make_trainer(tmp_path, options={"compute_loss_func": lambda *_: 0})


def test_all_problems_in_one_message(tmp_path):
    with pytest.raises(ConfigError, match=r"`label_smoothing_factor` .*; `loss_type` is dft.*"):
        make_trainer(tmp_path, loss_type="dft", label_smoothing_factor=0.1)


@TIED
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_trained_head(tmp_path, architecture):
    peft_config = lora_config(
        target_modules=["q_proj", "c_attn"],
        modules_to_save=["lm_head"],
        fan_in_fan_out=architecture == "gpt2",
    )
    with pytest.raises(ConfigError, match=r"output layer is trained.* out of .*modules_to_save"):
        make_trainer(tmp_path, model=make_model(architecture), options={"peft_config": peft_config})


def test_an_adapted_head(tmp_path):
    peft_config = lora_config(target_modules=["q_proj", "lm_head"])
    # trl's own sentence: it looks before we do
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        make_trainer(tmp_path, options={"peft_config": peft_config})


EMBEDDING = "the input embedding is trained and the output layer is tied to it"
TRAINED_EMBEDDINGS = {
    "saved": ({"modules_to_save": ["embed_tokens"]}, EMBEDDING),
    "adapted": ({"target_modules": ["q_proj", "embed_tokens"]}, EMBEDDING),
    # PEFT wraps the tied head too
    "tokens": (
        {"trainable_token_indices": {"embed_tokens": [5, 6]}},
        r"`trainable_token_indices` is \{'embed_tokens': \[5, 6\]\}, .*Leave it out",
    ),
    "tokens, by default of the embedding": (
        {"trainable_token_indices": [5, 6]},
        r"`trainable_token_indices` is \[5, 6\], .*Leave it out",
    ),
}


@TIED
@pytest.mark.parametrize(
    ("settings", "message"), TRAINED_EMBEDDINGS.values(), ids=TRAINED_EMBEDDINGS
)
def test_a_head_tied_to_a_trained_embedding(tmp_path, settings, message):
    model = make_model("llama", tie_word_embeddings=True)
    peft_config = lora_config(**({"target_modules": ["q_proj"]} | settings))
    with pytest.raises(ConfigError, match=f"^{message}"):
        make_trainer(
            tmp_path,
            model=model,
            options={"peft_config": peft_config},
            objective={"adapter_init": "lora"},
        )


def test_a_trained_embedding_of_its_own_is_fine(tmp_path):
    peft_config = lora_config(target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    trainer = make_trainer(tmp_path, options={"peft_config": peft_config}, max_steps=1)
    assert len(run(trainer)) == 1


def make_mixtral():
    settings = {**CAUSAL["llama"], "num_local_experts": 4, "output_router_logits": True}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **settings)).eval()


def test_the_auxiliary_loss_of_experts(tmp_path):
    options = {"peft_config": lora_config(target_modules=["q_proj", "v_proj"])}
    with pytest.raises(ConfigError, match=r"auxiliary loss .* Set `router_aux_loss_coef: 0`"):
        make_trainer(tmp_path, model=make_mixtral(), options=options)
    trainer = make_trainer(
        tmp_path,
        model=make_mixtral(),
        options=options,
        objective={"adapter_init": "lora"},
        router_aux_loss_coef=0.0,
        max_steps=1,
    )
    (row,) = run(trainer)
    assert row["consistency_loss"] == 0.0


WRONG_KINDS = {
    "a mapping": ({"balora_config": {"svd_k": 1}}, "`balora_config` is a dict, not a `BALora"),
    "prompt tuning": (
        {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
        "`peft_config` is a PromptTuningConfig, but balora trains a LoRA",
    ),
    "ranks that change": (
        {"peft_config": AdaLoraConfig(task_type="CAUSAL_LM", total_step=9)},
        "`peft_config` is a AdaLoraConfig, but balora trains a LoRA",
    ),
    "no such layer": (
        {"peft_config": LoraConfig(target_modules=["nope"])},
        r"`target_modules` of `peft_config` .*, \['nope'\], match no linear layer",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_KINDS.values(), ids=WRONG_KINDS)
@pytest.mark.parametrize("trainer", [BALoraSFTTrainer, BALoraTrainer])
def test_an_argument_of_another_kind_is_named(trainer, arguments, message):
    model = make_model("llama" if trainer is BALoraSFTTrainer else "bert")
    options = {"peft_config": lora_config()} | arguments
    with pytest.raises(ConfigError, match=message):
        trainer(model, train_dataset=make_rows(), processing_class=make_tokenizer(), **options)


def test_an_adapter_that_is_trained_already(tmp_path):
    model = get_peft_model(make_model("llama"), lora_config())
    layer = model.get_base_model().model.layers[1].mlp.up_proj
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    options = {"peft_config": None}
    with pytest.raises(ConfigError, match="trained already, and its start would overwrite"):
        make_trainer(tmp_path, model=model, options=options)
    trainer = make_trainer(
        tmp_path, model=model, options=options, objective={"adapter_init": "lora"}, max_steps=1
    )
    (row,) = run(trainer)
    assert row["consistency_loss"] > 0.01  # the reference is the base, not the adapter's start


def test_a_fresh_peft_model_is_taken(tmp_path):
    model = get_peft_model(make_model("llama"), lora_config())
    rows = run(make_trainer(tmp_path, model=model, options={"peft_config": None}))
    assert rows == run(make_trainer(tmp_path))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_that_changes_the_base_weights(tmp_path, init):
    options = {"peft_config": LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=init)}
    with pytest.raises(ConfigError, match=f"`init_lora_weights` is '{init}', which changes"):
        make_trainer(tmp_path, options=options, objective={"adapter_init": "lora"})
    objective = {"adapter_init": "lora", "consistency_coef": 0.0}
    assert run(make_trainer(tmp_path, options=options, objective=objective, max_steps=1))


def test_weights_that_lie_elsewhere_are_not_trained_beside(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    devices = {"model.layers.1": "disk", "model.layers.0": "cpu", "model.embed_tokens": "cpu"}
    devices |= dict.fromkeys(("model.norm", "model.rotary_emb", "lm_head"), "cpu")
    settings = {"device_map": devices, "offload_folder": str(tmp_path / "away")}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **settings)
    with pytest.raises(ConfigError, match=r"`device_map` leaves parts .* on the disk \(`model\.l"):
        make_trainer(tmp_path, model=model)
    with pytest.raises(ConfigError, match=r"`device_map` leaves parts of the model on the disk"):
        make_trainer(tmp_path, model=get_peft_model(model, lora_config()), options=NO_ADAPTER)
    whole = {"device_map": {"": "cpu"}}
    make_trainer(tmp_path, model=AutoModelForCausalLM.from_pretrained(tmp_path / "model", **whole))


NO_ADAPTER = {"peft_config": None}
