"""Every method trained by one process, and by two that split their weights: what tests compare.

    python -m support.sharded FOLDER ENGINE...

An engine is a name of :data:`ENGINES`. ``one`` is a process by itself; the others are two that talk
over gloo. The libraries are imported once, then each engine runs in forks of this process, and rank
R of it leaves ``FOLDER/ENGINE/rank-R.pt``.

accelerate takes ranks on a CPU for plain data parallelism whatever it is asked for, so its check is
turned: each run leaves what its weights were while they were trained, for the tests to see.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from transformers import BitsAndBytesConfig, TrainerCallback

from balora.anchored import model as anchored
from balora.config.replay import ReplayConfig
from balora.fused import objective
from support import classification, training
from support.models import make_model
from support.process import environments_of_two, run_forks
from support.training import LARGE, OFF

NUM_STEPS, SAVED_AT = 5, 3
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def _zero(stage: int) -> dict[str, Any]:
    zero = {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,  # so that small weights are split too
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    return {
        "deepspeed": {
            "zero_optimization": zero,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
    }


ENGINES: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": {},
    "fsdp": FSDP,
    **{f"zero-{stage}": _zero(stage) for stage in (1, 2, 3)},
}

ZERO = [engine for engine in ENGINES if engine.startswith("zero")]

REPLAY = {
    "replay": "generated",
    "replay_num_texts": 6,
    "replay_length": 12,
    "replay_batch_size": 3,  # of which one process has two, the other one
    "replay_every": 1,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"objective": {**OFF, "adapter_init": "lora"}},
    "pissa": {"objective": OFF},
    "balora": {"objective": LARGE},
    "replay": {"objective": LARGE, "options": {"replay_config": ReplayConfig(**REPLAY)}},
    "full": {"objective": {**OFF, "diversity_coef": 0.3, "svd_coef": 0.5}},
}
FURTHER: dict[str, dict[str, Any]] = {
    "best": {
        "objective": LARGE,
        "gradient_accumulation_steps": 2,
        "options": {"eval_dataset": training.make_rows(5)},  # the second process has too few
        "eval_strategy": "steps",
        "eval_steps": 1,
        "per_device_eval_batch_size": 2,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that it is the first
    },
    "packed": {"objective": LARGE, "packing": True, "max_length": 24, "learning_rate": 0.01},
    "checkpointed": {"objective": LARGE, training.CHECKPOINTING: True},
    "in 16 bits": {"objective": LARGE, "bf16": True},
    "split checkpoint": {"objective": LARGE},
    "classifier": {},
    "read once": {"objective": LARGE},
    "full read once": METHODS["full"],
    "4 bits": {"objective": LARGE, "in_4_bits": True},
    "residual": {"objective": {**LARGE, "pissa_residual": True}, "in_4_bits": True},
}
"""What is trained beside the methods."""

OF_FSDP = {
    "split checkpoint": {"state_dict_type": "SHARDED_STATE_DICT"},
    "read once": {"cpu_ram_efficient_loading": True},
    "full read once": {"cpu_ram_efficient_loading": True},
    "classifier": {"transformer_layer_cls_to_wrap": ["BertLayer"]},
}
"""What of them is another setting of FSDP."""

KINDS = {**METHODS, **FURTHER}
_OF_FSDP_ALONE = ("split checkpoint", "read once", "full read once")
_REFUSED = {"zero-3": ("classifier",)}


def kinds_of(engine: str) -> list[str]:
    """Return what is trained by an engine: all that is not refused, by DDP the methods alone."""
    if engine == "ddp":
        return [*METHODS, "4 bits", "residual"]
    left_out = [*_REFUSED.get(engine, ()), *(_OF_FSDP_ALONE if engine in ZERO else [])]
    return [kind for kind in KINDS if kind not in left_out]


class _Witness(TrainerCallback):  # type: ignore[misc]
    """Notes the kinds of the weights during training."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.kinds = {
            name.replace("_fsdp_wrapped_module.", ""): _kind(p)
            for name, p in model.named_parameters()
        }


def _kind(parameter: Any) -> str:
    split = hasattr(parameter, "ds_id") and parameter.ds_tensor.numel() < parameter.ds_numel
    return "ZeRO" if split else type(parameter.data).__name__


def _force(engine: str) -> None:
    """Let accelerate shard on CPU ranks."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        if engine in ZERO:
            kwargs["cpu"] = False
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]
    if engine in ZERO:
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None  # would be compiled for minutes
        partial_init = PartialState.__init__

        def partial(self: Any, cpu: bool = False, **kwargs: Any) -> None:
            partial_init(self, False, **kwargs)

        PartialState.__init__ = partial  # type: ignore[method-assign]


def _model(folder: Path) -> Path:
    """Return the folder of the pre-trained model, which :func:`_run_engine` has made."""
    return folder.parent / "model"


def _make_classifier(folder: Path, settings: dict[str, Any]) -> Any:
    return classification.make_trainer(
        folder,
        model=classification.make_classifier(num_labels=3),
        rows=classification.make_rows(16, num_labels=3),
        num_labels=3,
        **(settings | {"adam_epsilon": 0.1, "learning_rate": 0.03}),
    )


def _nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"
    )


def _make(folder: Path, engine: str, kind: str) -> Any:
    own = dict(KINDS[kind])
    parts = int(os.environ.get("WORLD_SIZE", "1")) * own.get("gradient_accumulation_steps", 1)
    settings = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 8 // parts,
        "train_sampling_strategy": "sequential",
        "save_strategy": "steps",
        "save_steps": SAVED_AT,
        "ddp_backend": None if engine == "one" else "gloo",
        "adam_epsilon": 1e-3,  # or a gradient that is all rounding moves its weight by a whole step
        **ENGINES[engine],
        **own,
    }
    if engine in ZERO and settings.pop("bf16", False):
        autocast = {"enabled": True, "dtype": "bfloat16"}
        settings["deepspeed"] = {**settings["deepspeed"], "torch_autocast": autocast}
    if engine == "fsdp":
        settings["fsdp_config"] = {**FSDP["fsdp_config"], **OF_FSDP.get(kind, {})}
    torch.manual_seed(0)
    if kind == "classifier":
        trainer = _make_classifier(folder, settings)
    else:
        options = settings.pop("options", {})
        options |= {"peft_config": None} if kind.startswith("full") else {}
        options |= {"quantization_config": _nf4()} if settings.pop("in_4_bits", False) else {}
        # by its folder: ZeRO-3 splits a model while it is loaded
        model, rows = str(folder.parent / "model"), training.make_rows(16)
        trainer = training.make_trainer(folder, model=model, rows=rows, options=options, **settings)
    trainer.devices = {parameter.device.type for parameter in _base_weights(trainer.model)}
    trainer.witness = _Witness()
    trainer.add_callback(trainer.witness)
    return trainer


def _base_weights(model: Any) -> list[torch.Tensor]:
    """Return the weights of the pre-trained model."""
    return [weight for name, weight in model.named_parameters() if ".lora_" not in name]


@contextmanager
def _counted(calls: dict[str, int]) -> Iterator[None]:
    """Count the factors of a head, and the starts of an adapter, that this process computes."""
    made, started = objective.HeadFactor, anchored.start_of

    def factor(head: Any) -> Any:
        calls["factors"] += 1
        return made(head)

    def start(*args: Any) -> Any:
        calls["starts"] += 1
        return started(*args)

    objective.HeadFactor, anchored.start_of = factor, start  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        objective.HeadFactor, anchored.start_of = made, started  # type: ignore[misc]


def _run(output: Path, engine: str, method: str) -> dict[str, Any]:
    """Train, save, go on from the checkpoint, and return what is to be the same."""
    trainer = _make(output / method, engine, method)
    calls = {"factors": 0, "starts": 0}
    with _counted(calls):
        rows = training.run(trainer)
    trainer.save_model()
    found: dict[str, Any] = {"rows": rows, "kinds": trainer.witness.kinds}
    found["calls"], found["devices"] = calls, trainer.devices
    found["evaluations"] = [row for row in trainer.state.log_history if "eval_loss" in row]
    resumed = _make(output / method, engine, method)
    checkpoint = output / method / f"checkpoint-{SAVED_AT}"
    found["resumed"] = training.run(resumed, resume_from_checkpoint=str(checkpoint))
    resumed.save_model(str(output / f"{method}-resumed"))
    return found


def saved_weights(folder: Path | None, kind: str) -> dict[str, torch.Tensor]:
    """Return the weights of a saved model, those of an adapter as plain PEFT merges them.

    Of the pre-trained model where there is no folder.
    """
    if kind == "classifier":
        model: Any = classification.make_classifier(num_labels=3, head_seed=9).model
    else:
        model = make_model("llama")
    if kind.startswith("full") and folder is not None:
        model = type(model).from_pretrained(folder)
    elif folder is not None:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return dict(model.state_dict())


def _process(output: Path, engine: str, environment: dict[str, str]) -> None:
    os.environ |= {**environment, "BALORA_CACHE": str(output / "cache")}
    torch.set_num_threads(1)
    _force(engine)
    rank = os.environ.get("RANK", "0")
    found = {kind: _run(output, engine, kind) for kind in kinds_of(engine)}
    torch.save(found, output / f"rank-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def _run_engine(folder: Path, engine: str) -> None:
    folder.mkdir(parents=True)
    make_model("llama").save_pretrained(folder / "model")
    environments: list[dict[str, str]] = [{}]
    if engine != "one":
        environments = environments_of_two()
    if engine in ZERO:
        of_engine = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
        environments = [{**environment, **of_engine} for environment in environments]
    calls = [(folder, engine, environment) for environment in environments]
    run_forks(_process, calls, name=engine, timeout=900)


if __name__ == "__main__":
    if set(ZERO) & set(sys.argv[2:]):
        os.environ["DS_ACCELERATOR"] = "cpu"
        importlib.import_module("deepspeed")  # once, before the processes are forked
    importlib.import_module("bitsandbytes")
    for engine in sys.argv[2:]:
        _run_engine(Path(sys.argv[1]) / engine, engine)
