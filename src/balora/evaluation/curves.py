"""The losses that a run logged while it was trained."""

from __future__ import annotations

from pathlib import Path

from balora.errors import ConfigError
from balora.state import damaged, read_json

STATE_FILE = "trainer_state.json"
"""Transformers' own name for the log and the state of a run."""


def learning_curves(run: Path) -> list[dict[str, float]]:
    """Return the logged training losses of a run: the whole, the task's and each term's.

    Args:
        run: The folder that `balora train` left.

    Returns:
        One mapping a log row that holds a training loss, in order: ``step``, ``loss``,
        ``task_loss`` and the unweighted terms that were on (``consistency_loss``,
        ``diversity_loss``, ``svd_loss``). Empty when nothing was logged.

    Raises:
        ConfigError: If the folder has no such log, or one that cannot be read.
    """
    path = run / STATE_FILE
    if not path.is_file():
        raise ConfigError(f"`{run}` has no {STATE_FILE}; name the folder of a finished run.")
    fix = "Name the folder of another run, or train it again."
    history = read_json(path, fix, fields={"log_history": list})["log_history"]
    if not all(isinstance(row, dict) for row in history):
        raise damaged(path, "is damaged: `log_history` has no rows", fix)
    return [
        {"step": row["step"], **{n: row[n] for n in row if n == "loss" or n.endswith("_loss")}}
        for row in history
        if "loss" in row
    ]
