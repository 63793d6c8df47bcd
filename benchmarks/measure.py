"""What the benchmarks share: times in turns, quantiles, peak memory, the machine, the rows."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balora.environment import git_commit
from balora.state import read_json_lines


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of one call and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def in_turns(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    budgets: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Time every function once per round, in a random order, so that all see the same machine.

    Returns:
        Seconds by name, one entry per round. A function with a budget, in seconds, sits out the
        rounds that would go beyond it, and has NaN there; everyone runs in the first.
    """
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name in order.sample(list(functions), len(functions)):
            times = seconds[name]
            budget = (budgets or {}).get(name, np.inf)
            has_time = not times or np.nansum(times) + times[0] <= budget
            times.append(timed(functions[name])[0] if has_time else np.nan)
    return seconds


def quantiles(values: Iterable[float]) -> dict[str, float | int]:
    """Return the 20th percentile, the median and the 80th percentile, leaving out NaN."""
    found = [value for value in values if not np.isnan(value)]
    p20, median, p80 = np.quantile(found, [0.2, 0.5, 0.8]).round(4).tolist()
    return {"p20": p20, "median": median, "p80": p80, "runs": len(found)}


def ratios(seconds: Mapping[str, list[float]], yardstick: str) -> dict[str, dict[str, float | int]]:
    """Return the quantiles of every function's ratio to the yardstick, taken round by round."""
    base = np.array(seconds[yardstick])
    return {name: quantiles(np.array(times) / base) for name, times in seconds.items()}


def synchronized(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Return ``function`` with the wait for what it has started on a GPU."""

    def call() -> Any:
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return call if device == "cuda" else function


def peak_extra_mib(function: Callable[[], Any], device: str = "cpu") -> float | None:
    """Return how far one call raises the memory in use; ``None`` where that cannot be told.

    On a CPU that is the resident memory: what earlier calls left in the allocator is given back
    to the system first. On a GPU it is what torch has allocated.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        return round((torch.cuda.max_memory_allocated() - held) / 2**20, 1)
    try:
        _trim()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):  # not Linux, not glibc, or not allowed
        return None
    before = status_mib("VmRSS")
    function()
    after = status_mib("VmHWM")
    return None if before is None or after is None else round(max(after - before, 0), 1)


def in_fresh_process(function: Callable[..., Any], *arguments: Any, preload: str) -> Any:
    """Return what ``function`` returns in a process of its own that has imported ``preload``.

    The processes are forked from a server that has imported it and computed nothing, so each
    starts at once, and with an allocator and thread pools of its own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _trim() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status_mib(field: str) -> float | None:
    """Return a field of this process's status, such as VmHWM; ``None`` where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.M) if status.exists() else 0
    return round(int(found[1]) / 1024, 1) if found else None


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the times depend on."""
    return {
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": git_commit(),
    }


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100),
        allow_abbrev=False,
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of JSON lines to write")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option of the benchmarks that run on a GPU too."""
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"] if has_gpu else ["cpu"], default="cpu")


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_rows` has left, none where it has not been called."""
    return read_json_lines(path, "") if path.is_file() else []


def write_rows(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Write all rows there are; called after every row, as the dear ones take minutes."""
    if path:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def interval(figures: Mapping[str, float | int], unit: str = "") -> str:
    """Return quantiles for a table: the median, in brackets the percentiles and the runs."""
    runs = "1 run" if figures["runs"] == 1 else f"{figures['runs']} runs"
    return f"{figures['median']:.3g}{unit} ({figures['p20']:.3g}-{figures['p80']:.3g}, {runs})"


def table_line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table_head(columns: list[str]) -> str:
    """Return the first two lines of a Markdown table."""
    return f"{table_line(columns)}\n|{'---|' * len(columns)}"
