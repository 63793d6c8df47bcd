r"""Are two answers to a problem of MATH the same? By math-verify, and by the rule of the paper.

math-verify reads LaTeX and compares what it means, so that ``\frac{2}{4}`` is ``0.5``. It is given
only what stands after the marker: of a whole text it accepts two answers at once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from types import TracebackType

from balora.errors import BaloraError, ConfigError
from balora.evaluation.bench.line_process import LineProcess

_WORKER = Path(__file__).with_name("workers") / "math_verify_worker.py"
_SECONDS, _START_SECONDS = 10.0, 300.0
"""For a comparison, and for the first one, which loads sympy."""


def check_math_verify() -> None:
    """Refuse to go on without math-verify.

    Raises:
        ConfigError: If it is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            "`benchmarks` has math, which is judged by math-verify, and that is not installed. Run "
            "`pip install 'balora[math]'`, or set `math_scorer` to paper."
        )


def math_verify_version() -> str:
    """Return the version of math-verify that is installed."""
    return importlib.metadata.version("math-verify")


class MathVerify:
    """math-verify in a process of its own, for use in a ``with`` block.

    What a model writes may take sympy for ever, and only a process can be stopped.
    """

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self.seconds = seconds
        self._worker: LineProcess | None = None

    def __enter__(self) -> MathVerify:
        """Return the object; the process starts with the first question."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self._stop()

    def equal(self, gold: str, answer: str) -> bool | None:
        """Say whether an answer is the gold one; None where that took longer than the limit.

        Raises:
            BaloraError: If math-verify does not work at all.
        """
        if self._worker is None:
            self._worker = LineProcess(sys.executable, _WORKER, is_quiet=True)
            if not self._ask("1", "1", _START_SECONDS):
                raise BaloraError(
                    "math-verify does not work here: it does not say that 1 is 1. Run `python -c "
                    "'import math_verify'` to see why, or set `math_scorer` to paper."
                )
        return self._ask(gold, answer, self.seconds)

    def _ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        assert self._worker is not None
        said = self._worker.ask({"gold": gold, "answer": answer}, seconds=seconds)
        if said is None:  # too long, or the process has died of it
            self._stop()
            return None
        return bool(said["equal"])

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def paper_answer(text: str) -> str | None:
    """Return what the authors' script takes for the answer, None where it finds none."""
    parts = text.split("The answer is: ")
    if len(parts) < 2:
        return None
    return parts[-1].split(".\n")[0].strip().removesuffix(".").strip()


def paper_equal(gold: str, answer: str) -> bool:
    """Compare two answers as the authors' script does: as text, after Hendrycks' clean-up.

    It takes no dollar signs and no box: ``$5$`` is not ``5``.
    """
    return _cleaned(gold) == _cleaned(answer)


def _cleaned(text: str) -> str:
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for word in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(word, "")
    text = text.split("\\text{ ")[0].replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    name, _, value = text.partition("=")
    if text.count("=") == 1 and len(name) <= 2:
        text = value
    text = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(?!\{)(.)(?!\{)(.)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(?!\{)(.)\{", r"\\frac{\1}{", text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)
