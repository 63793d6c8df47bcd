"""Settings of trl, of older transformers and of other tools, and the line of a recipe for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from balora.config.words import spelled_default

CALLED = {
    "alpha": "lora_alpha",
    "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    "dataset": "dataset_name",
    "evaluation_strategy": "eval_strategy",
    "lora_rank": "lora_r",
    "max_seq_length": "max_length",
    "model": "model_name_or_path",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "overwrite",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "dataset_streaming": "streaming",
    "rank": "lora_r",
    "target_modules": "lora_target_modules",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps",
}
"""Fields by the name that they have in another tool or version."""
_WITHOUT = {  # what a recipe has nothing for, and why
    "bnb_4bit_quant_storage": "4-bit weights are stored as bytes",
    "compute_loss_func": "it would replace the objective",
    "datasets": "one data set is trained on, which `dataset_name` names",
    "ignore_bias_buffers": "it is a setting of trl's own script",
    "logging_dir": "a tracker's own variable says it, such as TENSORBOARD_LOGGING_DIR",
    "lora_modules_to_save": "an adapter is trained in `lora_target_modules` alone",
    "lora_target_parameters": "an adapter is trained in `lora_target_modules` alone",
    "lora_task_type": "`task` says it",
    "save_safetensors": "weights are always saved so",
    "use_dora": "the adapter is LoRA",
}


class Here(NamedTuple):
    """What stands for a setting of another tool in a recipe."""

    fields: dict[str, Any]
    """To write in its place; none where it is to be left out."""
    why: str

    @property
    def sentence(self) -> str:
        """What is wrong, and the line that is right, to follow the name that was given."""
        lines = ", ".join(f"`{name}: {spelled_default(v)}`" for name, v in self.fields.items())
        fix = f"write {lines} in its place" if lines else "leave it out"
        return f"is no field of a recipe; {self.why}: {fix}"


def here(name: str, given: Mapping[str, Any]) -> Here | None:
    """Return what stands for a setting of another tool, None where there is no such setting.

    Args:
        name: The setting.
        given: What the recipe gives, this setting among it; of what it gives already, there is
            nothing more to write.
    """
    if name in _WITHOUT:
        return Here({}, _WITHOUT[name])
    value = given[name]
    if name in CALLED:
        fields, why = {CALLED[name]: value}, f"it is called `{CALLED[name]}` here"
    elif name == "use_peft":
        fields = {"method": "lora" if value else "full"}
        why = "`method` says what is trained, an adapter (lora, pissa, balora, ...) or all weights"
    elif name == "quantization_bit" and str(value) in ("4", "8"):
        fields, why = {f"load_in_{value}bit": True}, "the number of bits is in the name here"
    elif name == "gradient_checkpointing_use_reentrant":
        fields = {"gradient_checkpointing_kwargs": {"use_reentrant": value}}
        why = "it is an argument of `gradient_checkpointing`"
    else:
        return None
    return Here({name: value for name, value in fields.items() if name not in given}, why)
