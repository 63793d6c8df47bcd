"""What writes the answers of each model: the base loaded once, with one adapter after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from peft import PeftModel
from transformers import PreTrainedModel

from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.endpoint import EndpointBackend
from balora.evaluation.bench.server import Server
from balora.evaluation.bench.vllm import VllmBackend
from balora.evaluation.generation import Generator, TransformersGenerator
from balora.models.adapter import is_adapter_folder
from balora.models.load import accelerator, attach_adapter, load_model, load_tokenizer
from balora.models.run_folder import load_run
from balora.models.source import ModelSource


class Backend(Protocol):
    """Makes the generator of a model."""

    def check(self) -> None:
        """Refuse what this back end lacks here, before a model is loaded.

        Raises:
            ConfigError: Such as for a package that is not installed.
        """

    def generator(self, run: Path | None) -> Generator:
        """Return what writes the answers of a run, or of the pre-trained model (None)."""

    def close(self) -> None:
        """Let go of what was loaded or started."""


class TransformersBackend:
    """Models in this process.

    Args:
        base: The pre-trained model of all runs.
        batch_size: Answers at once.
    """

    def __init__(self, base: ModelSource, *, batch_size: int) -> None:
        self.base, self.batch_size = base, batch_size
        self._base: PreTrainedModel | None = None
        self._adapted: PeftModel | None = None

    def check(self) -> None:
        """Nothing is needed beside what the package needs."""

    def generator(self, run: Path | None) -> Generator:
        """Return the generator; the adapter of the run before is taken off first."""
        if self._adapted is not None:
            self._base, self._adapted = self._adapted.unload(), None
        name = "base" if run is None else run.name
        tokenizer = load_tokenizer(self.base, run)
        if run is not None and not is_adapter_folder(run):
            self._base = None  # makes room for a whole model
            model = load_run(run, self.base, device=accelerator()).model
        else:
            if self._base is None:
                self._base = load_model(self.base, device=accelerator())
            model = self._base
            if run is not None:
                model = self._adapted = attach_adapter(model, run)
        return TransformersGenerator(
            model, tokenizer, batch_size=self.batch_size, title=f"Answers of {name}"
        )

    def close(self) -> None:
        """Let go of the models."""
        self._base = self._adapted = None


def make_backend(base: ModelSource, config: BenchConfig) -> Backend:
    """Return the back end that the settings name."""
    if config.backend == "endpoint":
        named = config.endpoint_model
        setting = "`--base`" if named is None else "`--endpoint_model`"
        server = Server(named or base.name, setting)
        return EndpointBackend(server, workers=config.eval_batch_size)
    if config.backend == "vllm":
        return VllmBackend(base, python=config.vllm_python, seed=config.seed)
    return TransformersBackend(base, batch_size=config.eval_batch_size)
