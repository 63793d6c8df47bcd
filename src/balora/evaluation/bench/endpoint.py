"""Answers of a model that a server has, such as vLLM's, llama.cpp's or `transformers serve`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm.auto import tqdm

from balora.evaluation.bench.server import Server
from balora.evaluation.generation import Generator, Sampling, cut_at


class EndpointBackend:
    """A server, whatever model it has: an adapter must be served by it. It is its own generator.

    Args:
        server: The model.
        workers: Requests at once.
    """

    def __init__(self, server: Server, *, workers: int) -> None:
        self.server, self.workers = server, workers

    def check(self) -> None:
        """Refuse a server that is not there or does not take the key.

        Raises:
            ConfigError: As `Server.check`.
        """
        self.server.check()

    def generator(self, run: Path | None) -> Generator:
        """Return what asks the server, whatever the run."""
        return self

    def close(self) -> None:
        """Nothing is held."""

    def generate(
        self, prompts: Sequence[str], sampling: Sampling
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of a prompt and its answers, as they come.

        Raises:
            BaloraError: If the server fails for good.
        """
        with ThreadPoolExecutor(self.workers) as pool:
            asked = {
                pool.submit(self._ask, prompt, sampling): number
                for number, prompt in enumerate(prompts)
            }
            try:
                with tqdm(total=len(asked), desc="Answers", leave=False) as bar:
                    for done in as_completed(asked):
                        yield asked[done], done.result()
                        bar.update()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, prompt: str, sampling: Sampling) -> list[str]:
        texts = self.server.complete(
            prompt,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=sampling.num_samples,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,
        )
        return [cut_at(text, sampling.stop) for text in texts]
