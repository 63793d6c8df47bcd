"""What a resumed run may change, and the sentence for everything else.

A run that is resumed is the run that never stopped, or it is refused. So every setting that stood
in the checkpoint is compared with what it is now. **A setting that this file does not name must be
as it was**: one that a later version adds is covered without a line here.

| Settings                | May differ                                                         |
|-------------------------|--------------------------------------------------------------------|
| `KEPT_ELSEWHERE`        | yes: where results go, what is printed, sent and logged            |
| `SAVED_AND_EVALUATED`   | yes, unless the best checkpoint is chosen (`load_best_model_at_end`) |
| `LENGTH`                | yes, down to the steps that are done; a schedule stretches with it |
| `TOLD_BY_CONTENT`       | as names; the rows, weights and batches behind them may not        |
| versions and devices    | yes, with a warning: last digits may differ                        |
| every other one         | no                                                                 |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

KEPT_ELSEWHERE = frozenset(
    {
        "output_dir",
        "overwrite",
        "dry_run",
        "resume_from_checkpoint",
        "run_name",
        "project",
        "report_to",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
        "logging_dir",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "disable_tqdm",
        "include_num_input_tokens_seen",
        "skip_memory_metrics",
        "save_total_limit",
        "save_only_model",
        "save_on_each_node",
        "enable_jit_checkpoint",
        "out_of_domain",
        "glue_x_files",
        "glue_x_whole",
        "do_train",
        "do_eval",
        "do_predict",
        "local_rank",
        "ddp_timeout",
        "dataset_num_proc",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "torch_empty_cache_steps",
        "preset",
    }
)
"""Where results go, what is printed and sent; a preset is a name for fields that are compared."""

SAVED_AND_EVALUATED = frozenset(
    {
        "save_strategy",
        "save_steps",
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "per_device_eval_batch_size",
        "eval_accumulation_steps",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_packing",
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "bf16_full_eval",
        "fp16_full_eval",
    }
)
"""When and how a checkpoint is written and measured: training does not depend on it."""

LENGTH = frozenset({"max_steps", "num_train_epochs"})
"""How long a run is."""

TOLD_BY_CONTENT = {
    "dataset_name": "rows",
    "dataset_config": "rows",
    "class_names": "rows",
    "chat_template_path": "rows",
    "eval_dataset_name": "evaluation rows",
    "model_name_or_path": "weights",
    "model_revision": "weights",
}
"""Names of what the digests of a checkpoint tell better: a moved file is the same file."""

CONTENT = {
    "rows": "the training rows",
    "batches": "the batches that the data collator makes of the training rows",
    "evaluation rows": "the evaluation rows",
    "weights": "the weights of the pre-trained model",
    "config": "the config of the pre-trained model",
}
"""What is recorded as a digest, in words."""

_BEST = "load_best_model_at_end"
_VERSIONS = ("balora", "torch", "transformers", "peft", "trl", "accelerate", "cuda", "cpu threads")
_ABSENT = object()


class Difference(NamedTuple):
    """One setting that is not what it was."""

    name: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"`{self.name}` was {_shown(self.was)} and is {_shown(self.now)}"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON holds them, in the form in which they are compared."""
    kept = dict(settings)
    if isinstance(loading := kept.get("model_init_kwargs"), Mapping):  # told by the weights
        kept["model_init_kwargs"] = {k: v for k, v in loading.items() if k != "revision"}
    plain_settings: dict[str, Any] = json.loads(json.dumps(kept, default=_described))
    return plain_settings


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Return the settings that must be as they were and are not, in the order of ``now``.

    Args:
        recorded: Of the checkpoint, from :func:`plain`.
        now: Of the run that is to go on, likewise.
    """
    free = KEPT_ELSEWHERE | LENGTH | TOLD_BY_CONTENT.keys()
    if not (recorded.get(_BEST) or now.get(_BEST)):
        free |= SAVED_AND_EVALUATED
    found = []
    for name in [*now, *(name for name in recorded if name not in now)]:
        was, value = recorded.get(name, _ABSENT), now.get(name, _ABSENT)
        if name not in free and was != value:
            found.append(Difference(name, was, value))
    return found


def content_differences(
    recorded: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> list[str]:
    """Return half a sentence for each content that is not what it was.

    Args:
        recorded: Digests of the checkpoint by the names of :data:`CONTENT`; None where there is
            none, as for data that are streamed.
        now: Of the run that is to go on.
        settings: Those of the recipe, recorded and now, to name the fields behind a content.
    """
    was, is_now = settings
    found = []
    for content, words in CONTENT.items():
        if recorded.get(content) == now.get(content):
            continue
        fields = [name for name, told in TOLD_BY_CONTENT.items() if told == content]
        changed = [
            str(Difference(name, was.get(name), is_now.get(name)))
            for name in fields
            if was.get(name) != is_now.get(name)
        ]
        same = [f"`{name}` is still {_shown(was[name])}" for name in fields if was.get(name)]
        named = ", ".join(changed or same)
        found.append(f"{words} are others{f' ({named})' if named else ''}")
    return found


def other_versions(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return in words which libraries and devices are others, on which last digits depend."""
    return [
        f"{name} ({recorded.get(name, 'none')}, now {now.get(name, 'none')})"
        for name in _VERSIONS
        if recorded.get(name) != now.get(name)
    ]


def length_note(recorded: Mapping[str, Any], now: Mapping[str, Any], schedule: str) -> str | None:
    """Return what another length does to a run whose rates or coefficients follow a schedule.

    Args:
        recorded: The arguments of the checkpoint.
        now: The arguments of the run that is to go on.
        schedule: That of the coefficients.
    """
    changed = [name for name in sorted(LENGTH) if recorded.get(name) != now.get(name)]
    moving = []
    rate = str(now.get("lr_scheduler_type"))
    if not rate.startswith("constant") or 0 < float(now.get("warmup_steps") or 0) < 1:
        moving.append(f"the learning rate (`lr_scheduler_type` {rate})")
    if schedule != "constant":
        moving.append(f"the coefficients (`schedule` {schedule})")
    if not changed or not moving:
        return None
    named = ", ".join(str(Difference(n, recorded.get(n), now.get(n))) for n in changed)
    return (
        f"{named}: from here on {' and '.join(moving)} follow the new length, so the result is not "
        "that of a run that had this length from the start"
    )


def _described(value: Any) -> Any:
    """Return JSON for what has none: a set in order, anything else as text without addresses."""
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # both ends: of a path the last part tells it from another
    return text if len(text) <= 120 else f"{text[:57]}...{text[-60:]}"
