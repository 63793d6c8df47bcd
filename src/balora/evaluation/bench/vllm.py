"""Answers by vLLM, in a process of its own: it pins a torch that is not ours.

Not run by the authors of this package on a GPU; the protocol of the process is tested.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from balora.errors import BaloraError, ConfigError
from balora.evaluation.bench.line_process import LineProcess
from balora.evaluation.generation import Generator, Sampling, cut_at
from balora.models.adapter import is_adapter_folder, read_adapter
from balora.models.source import ModelSource
from balora.serving import VLLM_RANKS, room_for

_WORKER = Path(__file__).with_name("workers") / "vllm_worker.py"
_AT_ONCE = 256
"""Prompts that are handed over together; vLLM divides them itself."""


class VllmGenerator:
    """A process with vLLM and one model; text in, text out.

    Args:
        python: The interpreter of the environment with vLLM.
        start: What the process is told first.
    """

    def __init__(self, python: str, start: Mapping[str, Any]) -> None:
        self._process = LineProcess(python, _WORKER)
        self._ask(start)

    def generate(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of a prompt and its answers.

        Raises:
            BaloraError: If the process has ended.
        """
        told = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "n": sampling.num_samples,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
        }
        with tqdm(total=len(prompts), desc="Answers", leave=False) as bar:
            for start in range(0, len(prompts), _AT_ONCE):
                part = list(prompts[start : start + _AT_ONCE])
                texts = self._ask({"prompts": part, "sampling": told})["texts"]
                bar.update(len(part))
                for number, answers in enumerate(texts, start=start):
                    yield number, [cut_at(text, sampling.stop) for text in answers]

    def _ask(self, message: Mapping[str, Any]) -> Any:
        said = self._process.ask(message)
        if said is None:
            raise BaloraError(
                f"vLLM has ended with status {self._process.wait()}; what it says stands above. "
                "What was answered is kept; the same command goes on."
            )
        return said

    def close(self) -> None:
        """End the process."""
        self._process.stop()


class VllmBackend:
    """One process for each model, one after the other.

    Args:
        base: The pre-trained model.
        python: The interpreter of the environment with vLLM; None takes this one.
        seed: Of what is drawn.
    """

    def __init__(self, base: ModelSource, *, python: str | None, seed: int) -> None:
        self.base, self.python, self.seed = base, python or sys.executable, seed
        self._running: VllmGenerator | None = None

    def check(self) -> None:
        """Refuse an interpreter that cannot be started, or has no vLLM.

        Raises:
            ConfigError: Naming the setting.
        """
        command = [self.python, "-c", "import importlib.util as u; u.find_spec('vllm') or exit(3)"]
        try:
            found = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
        except OSError as error:
            raise ConfigError(
                f"`vllm_python` is {self.python}, which cannot be started: {error.strerror}. Name "
                "the interpreter of the environment that has vllm, such as /opt/vllm/bin/python."
            ) from error
        except subprocess.TimeoutExpired:
            found = -1
        if found != 0:
            raise ConfigError(
                f"`backend` is vllm, but {self.python} has no vllm. Install it in an environment "
                "of its own and name its interpreter with `--vllm_python`, or set `backend` to "
                "transformers."
            )

    def generator(self, run: Path | None) -> Generator:
        """Start the process of a model; the one before it is ended first.

        Raises:
            ConfigError: If the adapter has a rank that vLLM has no room for.
            BaloraError: If vLLM cannot load the model.
        """
        self.close()
        adapter = run if run is not None and is_adapter_folder(run) else None
        model = str(run) if run is not None and adapter is None else self.base.name
        start = {
            "model": model,
            "adapter": None if adapter is None else str(adapter.absolute()),
            "rank": None if adapter is None else _room_for(adapter),
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "seed": self.seed,
        }
        self._running = VllmGenerator(self.python, start)
        return self._running

    def close(self) -> None:
        """End the process."""
        if self._running is not None:
            self._running.close()
            self._running = None


def _room_for(adapter: Path) -> int:
    """Return the smallest rank of vLLM's that the adapter fits in."""
    config: Any = read_adapter(adapter).config
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    found = room_for(rank)
    if found is None:
        raise ConfigError(
            f"`backend` is vllm, which takes adapters of rank {VLLM_RANKS[-1]} at most, but that "
            f"of `{adapter}` has {rank}. Merge it first (`balora export {adapter} --base MODEL "
            "--merge`) and name the merged folder."
        )
    return found
