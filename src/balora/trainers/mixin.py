"""What both trainers do around the objective: its start, its normaliser, its coefficients."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from balora.anchored import anchor_adapter
from balora.anchored.beside import is_anchored_model
from balora.config import BALoraConfig
from balora.config.replay import ReplayConfig
from balora.models.adapter import inner_model
from balora.objective import Coefficients, Normalizer, coefficients_at
from balora.regularizers.spectral import ratio_is_constant
from balora.trainers.arguments import holding
from balora.trainers.memory import ReportMemory
from balora.trainers.sharding import computing
from balora.usage import absolute_name

logger = logging.getLogger(__name__)


class ObjectiveMixin:
    """The part of a trainer that does not depend on what its model predicts."""

    balora_config: BALoraConfig
    _said_constant_svd = False

    def _anchor(self) -> None:
        """Make the adapter an anchored one where its start is, and report its memory."""
        trainer: Any = self
        self._name_the_base()
        if self.balora_config.is_anchored and not is_anchored_model(trainer.model):
            anchor_adapter(trainer.model, self.balora_config)
        # first, so that its line comes before the progress bar
        trainer.callback_handler.callbacks.insert(0, ReportMemory())

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> AbstractContextManager[Any]:
        """Return the context of a pass: mixed precision, where accelerate does not see to it."""
        return computing(self)

    def _settle_search(self) -> None:
        """Switch off DDP's search for weights without a gradient, which costs time in each step.

        Only a mixture of experts has any; the user's own setting stays.
        """
        args: Any = self.args  # type: ignore[attr-defined]
        if args.ddp_find_unused_parameters is None:
            config = inner_model(self.model).config.get_text_config()  # type: ignore[attr-defined]
            args.ddp_find_unused_parameters = any("experts" in name for name in vars(config))

    def _name_the_base(self) -> None:
        """Let a saved adapter name the folder of its base by the whole path."""
        for config in self.model.peft_config.values():  # type: ignore[attr-defined]
            name = config.base_model_name_or_path
            config.base_model_name_or_path = name and absolute_name(name)

    def _coefficients(self) -> Coefficients:
        """Return the coefficients of the step that is being trained."""
        state: Any = self.state  # type: ignore[attr-defined]
        return coefficients_at(self.balora_config, state.global_step / max(state.max_steps, 1))

    def _normalizer(self, num_items_in_batch: Tensor | int) -> Normalizer:
        """Return what the sums of a micro-step of the training loop are divided by.

        Args:
            num_items_in_batch: The items of the optimizer step, of all processes unless they are
                not averaged.
        """
        trainer: Any = self
        # without averaging, the count is this process's own
        is_global = trainer.args.average_tokens_across_devices
        return Normalizer(
            num_items_in_batch,
            trainer.accelerator.num_processes if is_global else 1,
            trainer.current_gradient_accumulation_steps,
        )

    def _say_constant_svd(self, num_rows: int, of: str, limits: Mapping[str, int]) -> None:
        """Say once in a run that ``svd_k`` has reached the rank, where the ratio is always 1.

        Args:
            num_rows: Rows that the SVD term saw in this micro-step, 1 or more.
            of: What a row is, in the plural.
            limits: What else bounds the rank, by name.
        """
        config = self.balora_config
        is_batch = num_rows < config.svd_max_tokens
        rows = f"{of} in this micro-step" if is_batch else "rows that `svd_max_tokens` leaves"
        bounds = {rows: num_rows, **limits}
        what, rank = min(bounds.items(), key=lambda item: item[1])
        is_constant = ratio_is_constant(config.svd_k, rank, denominator=config.svd_denominator)
        if self._said_constant_svd or not is_constant:
            return
        self._said_constant_svd = True
        if not self.is_world_process_zero():  # type: ignore[attr-defined]
            return
        lower = f"set `svd_k` to a count below {rank} or to a fraction such as 0.3"
        fixes = ["use larger batches"] * (what == rows and is_batch) + [lower] * (rank > 1)
        logger.warning(
            "step %d: `svd_k` is %s, but there are at most %d singular values, the number of %s: "
            "the ratio of the SVD term is the constant 1, without a gradient. To let it act, %s; "
            "else set `svd_coef: 0`. This is said once.",
            self.state.global_step + 1,  # type: ignore[attr-defined]
            config.svd_k,
            rank,
            what,
            " or ".join(fixes) or "raise `svd_max_tokens`",
        )


def own_arguments(args: Any, *parts: BALoraConfig | ReplayConfig) -> Any:
    """Return arguments that hold ``parts`` and may be changed without the caller's changing too."""
    own = holding(args, *parts)
    if own.ddp_broadcast_buffers is None:
        own.ddp_broadcast_buffers = False  # the anchors never change
    return own


def default_output_dir(model: Any) -> str:
    """Return the folder of a run that was given none: the model's name with ``-BALoRA``."""
    name = model if isinstance(model, str) else model.config.name_or_path or "model"
    return f"{name.rstrip('/').split('/')[-1]}-BALoRA"
