"""``balora compare --slurm``: submit workers to SLURM with submitit, which is an extra."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.compare.folder import Folder
from balora.errors import ConfigError

_OWN = ("workers", "cluster")
_SHARED = (
    *("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"),
    *("tasks_per_node", "stderr_to_stdout"),
)
"""What submitit takes for every kind of cluster; all others are sbatch's own, such as partition."""
_FOLDER = "slurm"


class Worker:
    """What a job runs; submitit submits it anew when SLURM preempts it or its time is over."""

    def __init__(self, command: Sequence[str]) -> None:
        """Take the command of a worker."""
        self.command = list(command)

    def __call__(self) -> None:
        """Run it; its exit status is the job's."""
        subprocess.run(self.command, check=True)

    def checkpoint(self) -> Any:
        """Return what goes on in its place: finished cells stay, the cell at work is run anew."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what cannot work before anything is written.

    Raises:
        ConfigError: If submitit is missing, or a setting of ours is wrong.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "`--slurm` needs submitit, which is not installed: `pip install 'balora[slurm]'`."
        ) from error
    minutes, workers = settings.get("timeout_min"), settings.get("workers", 1)
    if type(minutes) is not int or minutes < 1:
        raise ConfigError(
            "`--slurm` needs `timeout_min`, the minutes that a worker may take, such as "
            f"`timeout_min: 600`; got {minutes}."
        )
    if type(workers) is not int or workers < 1:
        raise ConfigError(f"`--slurm`: `workers` must be 1 or greater, got {workers!r}.")


def command_of_worker(out: Path, study: str) -> list[str]:
    """Return the command of a worker in a folder, which refuses another folder of its name."""
    command = [sys.executable, "-m", "balora", "compare"]
    return [*command, "--worker", str(out), "--study", study]


def submit(folder: Folder, settings: Mapping[str, Any], num_cells: int) -> str:
    """Submit workers and return a sentence on them.

    Args:
        folder: Of a comparison that was begun; on a disk that the nodes share.
        settings: ``workers``, by default one for each cell; ``cluster``, ``local`` to run them on
            this machine; the rest as submitit and sbatch take it.
        num_cells: How many cells are not finished.

    Raises:
        ConfigError: If submitit refuses them.
    """
    import submitit

    out, study = folder.path.resolve(), str(folder.study)
    asked = {
        name if name in _SHARED else f"slurm_{name}": value
        for name, value in {"name": "balora", **settings}.items()
        if name not in _OWN
    }
    try:
        executor = submitit.AutoExecutor(out / _FOLDER, cluster=settings.get("cluster", "slurm"))
        executor.update_parameters(**asked)
        with executor.batch():
            number = settings.get("workers", num_cells)
            jobs = [executor.submit(Worker(command_of_worker(out, study))) for _ in range(number)]
    except (RuntimeError, NameError, ValueError, AssertionError) as error:
        said = str(error).splitlines()[0].rstrip(".?")
        raise ConfigError(f"`--slurm` cannot submit: {said}. Mend it, or leave it out.") from error
    numbers = ", ".join(job.job_id for job in jobs)
    return (
        f"Submitted {len(jobs)} workers: {numbers}. Their logs are in {out / _FOLDER}; `balora "
        f"compare --report_only --output_dir {out}` shows what is finished."
    )
