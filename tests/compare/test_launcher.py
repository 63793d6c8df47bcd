"""A cell that a launcher starts in two processes: the row of one process with the same batches."""

from __future__ import annotations

import shlex
import sys

import pytest

from balora.compare.folder import Folder
from balora.compare.plan import Plan
from balora.compare.runner import Runner
from balora.rows import read_rows

pytestmark = pytest.mark.slow
TORCHRUN = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc_per_node 2"


def test_two_processes_give_the_row_of_one(comparison, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = {}
    for name, size, launcher in (("one", 2, None), ("two", 1, TORCHRUN)):
        found = comparison(
            {"methods": ["balora"], "seeds": [0], "launcher": launcher, "max_new_tokens": 4},
            model_name_or_path=model_folder,
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=size,
            learning_rate=1e-2,
            max_steps=4,
        )
        folder = Folder(found.folder)
        folder.path.mkdir()
        cells = Plan(found).final()
        Runner(folder, found.config).run(cells, cells, title="Comparing")
        (rows[name],) = read_rows(folder.path)
        assert rows[name]["error"] is None, (folder.of(cells[0]) / "log.txt").read_text()
        assert not folder.held_cells()
    one, two = rows["one"], rows["two"]
    assert one["metrics"]["kl"] > 1e-4
    measured = [{k: v for k, v in row["metrics"].items() if v is not None} for row in (one, two)]
    assert measured[1] == pytest.approx(measured[0], rel=1e-3, abs=1e-6)
    assert two["num_trainable_parameters"] == one["num_trainable_parameters"]
    assert two["cell"] == one["cell"]
