"""What the fields of trl's and transformers' training arguments take beyond their types.

Those classes declare types and a few choices; ranges show in the middle of a run, or never. They
are listed here, in one table, so that a recipe is refused when it is read. A field that is not in
the table is checked by its type alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from balora.config.rules import Allowed, Checked, Form, Interval, OneOf, PathTo, Rule

_POSITIVE, _NOT_NEGATIVE, _COUNT = Interval(gt=0), Interval(ge=0), Interval(ge=1)
_BELOW_1 = Interval(ge=0, lt=1)
_SEED = Interval(ge=0, le=2**32 - 1)


def _is_backend(value: Any) -> str | None:
    import torch

    known = tuple(torch.compiler.list_backends(exclude_tags=()))
    return OneOf(known).problem(value)


_MAPPING = dict[str, Any] | None
DECLARED: Mapping[str, Any] = {
    "activation_checkpointing_kwargs": _MAPPING,
    "dataset_kwargs": _MAPPING,
    "gradient_checkpointing_kwargs": _MAPPING,
    "lr_scheduler_kwargs": _MAPPING,
    "model_init_kwargs": _MAPPING,
    "resume_from_checkpoint": bool | str | None,
}
"""What a recipe takes where the arguments' class declares less than it reads, or JSON text too."""

_LIMITS: dict[str, tuple[Rule, ...]] = {
    "per_device_train_batch_size": (_COUNT,),
    "per_device_eval_batch_size": (_COUNT,),
    "gradient_accumulation_steps": (_COUNT,),
    "num_train_epochs": (_POSITIVE,),
    "max_steps": (Interval(ge=1, also=(-1,)),),
    "learning_rate": (_NOT_NEGATIVE,),
    "lr_scheduler_kwargs": (Form("{num_cycles: 2}"),),
    "warmup_steps": (_NOT_NEGATIVE,),
    "weight_decay": (_NOT_NEGATIVE,),
    "adam_beta1": (_BELOW_1,),
    "adam_beta2": (_BELOW_1,),
    "adam_epsilon": (_NOT_NEGATIVE,),
    "max_grad_norm": (_NOT_NEGATIVE,),
    "label_smoothing_factor": (_NOT_NEGATIVE, Allowed((0,), "changes the task loss")),
    "loss_type": (Allowed(("nll", "chunked_nll"), "replaces the task loss"),),
    "use_liger_kernel": (Allowed((False,), "replaces the model's loss"),),
    "neftune_noise_alpha": (_NOT_NEGATIVE,),
    "torch_empty_cache_steps": (_COUNT,),
    "activation_checkpointing_kwargs": (Form("{use_reentrant: false}"),),
    "gradient_checkpointing_kwargs": (Form("{use_reentrant: false}"),),
    "torch_compile_backend": (Checked(_is_backend),),
    "torch_compile_mode": (
        OneOf(("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")),
    ),
    "liger_kernel_config": (Form("{rope: true}"),),
    "logging_steps": (_POSITIVE,),
    "eval_steps": (_POSITIVE,),
    "save_steps": (_POSITIVE,),
    "eval_delay": (_NOT_NEGATIVE,),
    "eval_accumulation_steps": (_COUNT,),
    "save_total_limit": (_COUNT,),
    "include_num_input_tokens_seen": (OneOf(("all", "non_padding", "no")),),
    "include_for_metrics": (OneOf(("inputs", "loss")),),
    "debug": (OneOf(("underflow_overflow", "tpu_metrics_debug")),),
    "seed": (_SEED,),
    "data_seed": (_SEED,),
    "accelerator_config": (PathTo("file"), Form("{split_batches: true}")),
    "fsdp_config": (PathTo("file"), Form("{min_num_params: 1000}")),
    "deepspeed": (PathTo("file"), Form("{zero_optimization: {stage: 2}}")),
    "dataloader_num_workers": (_NOT_NEGATIVE,),
    "dataloader_prefetch_factor": (_COUNT,),
    "ddp_bucket_cap_mb": (_COUNT,),
    "ddp_timeout": (Interval(ge=1, le=10**9),),
    "local_rank": (Interval(ge=-1),),
    "model_init_kwargs": (Form("{device_map: cpu}"),),
    "router_aux_loss_coef": (_NOT_NEGATIVE,),
    "dataset_kwargs": (Form("{skip_prepare_dataset: false}"),),
    "dataset_num_proc": (_COUNT,),
    "max_length": (_COUNT,),
    "pad_to_multiple_of": (_COUNT, OneOf(("auto",))),
}


@cache
def limits() -> Mapping[str, tuple[Rule, ...]]:
    """Return the rules by field; where a library keeps a list of choices, they are its own."""
    from transformers.integrations import integration_utils

    trackers = ("none", "all", *integration_utils.INTEGRATION_TO_CALLBACK)
    return {**_LIMITS, "report_to": (OneOf(trackers),)}
