"""Workers submitted with submitit: to its local executor, and what is refused before anything."""

from __future__ import annotations

import sys

import pytest

from balora.compare import slurm
from balora.compare.command import compare
from balora.compare.slurm import Worker
from balora.errors import ConfigError
from balora.rows import read_rows

pytest.importorskip("submitit")
pytestmark = pytest.mark.usefixtures("script", "views")


def send(config, settings, **given):
    shown = []
    compare(config, {"slurm": settings, **given}, show=shown.append)
    return "\n".join(shown)


@pytest.mark.slow
def test_workers_run_as_jobs_of_the_local_executor(recipe, tmp_path, monkeypatch):
    import submitit

    jobs = []
    submitted = submitit.AutoExecutor.submit

    def submit(self, *args):
        jobs.append(submitted(self, *args))
        return jobs[-1]

    monkeypatch.setattr(submitit.AutoExecutor, "submit", submit)
    # the job is a new process, in which the cell is the real one: here it does not need to train
    code = "import sys; sys.exit('--worker' not in sys.argv)"
    command = [sys.executable, "-c", code]
    monkeypatch.setattr(
        slurm, "command_of_worker", lambda *where: [*command, "--worker", *map(str, where)]
    )
    out = tmp_path / "out"
    said = send(recipe(), "{cluster: local, workers: 2, timeout_min: 1}")
    assert said.startswith("Submitted 2 workers: ")
    assert f"Their logs are in {out / 'slurm'}; `balora compare --report_only" in said
    assert (out / "plan.json").is_file()
    assert [job.result() for job in jobs] == [None, None]


def test_a_job_that_is_preempted_submits_the_same_worker(tmp_path):
    marker = tmp_path / "ran"
    worker = Worker([sys.executable, "-c", f"open({str(marker)!r}, 'w').close()"])
    again = worker.checkpoint()
    again.function()
    assert marker.exists()
    assert again.function.command == worker.command


def test_the_worker_of_a_job_refuses_another_folder_of_its_name(tmp_path):
    verb, *words = slurm.command_of_worker(tmp_path, "1f0c2a9b7d3e")[3:]
    assert verb == "compare"
    given = dict(zip([word.removeprefix("--") for word in words[::2]], words[1::2], strict=True))
    with pytest.raises(ConfigError, match=r"is 1f0c2a9b7d3e, .* holds no study .* do not share it"):
        compare(None, given, show=print)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{partition: gpu}", "`--slurm` needs `timeout_min`, .* got None"),
        ("{timeout_min: 1.5}", "got 1.5"),
        ("{timeout_min: 5, workers: 0}", "`workers` must be 1 or greater, got 0"),
        ("gpu", "`--slurm` must be a mapping such as .{timeout_min: 600}., got .gpu"),
    ],
)
def test_settings_that_cannot_work_leave_nothing(recipe, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        send(recipe(), settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{timeout_min: 5}", "Could not detect .srun."),
        ("{cluster: local, timeout_min: 5, partitoin: gpu}", "argument 'partitoin'"),
        ("{cluster: moon, timeout_min: 5}", "executor named moon"),
    ],
)
def test_what_submitit_refuses_is_one_sentence(recipe, monkeypatch, settings, message):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=f"`--slurm` cannot submit: .*{message}") as error:
        send(recipe(), settings)
    assert "\n" not in str(error.value)


def test_without_submitit_there_is_one_sentence(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"not installed: `pip install 'balora\[slurm\]'`"):
        send(recipe(), "{timeout_min: 5}")
    assert not (tmp_path / "out").exists()


def test_nothing_is_submitted_where_every_cell_has_its_row(recipe, tmp_path):
    config = recipe()
    compare(config, {"worker": str(tmp_path / "out")}, show=lambda text: None)
    assert send(config, "{timeout_min: 5}") == "Every cell has its row."
    assert len(read_rows(tmp_path / "out")) == 2
    with pytest.raises(ConfigError, match="`--slurm` and `--overwrite` cannot both act"):
        send(config, "{timeout_min: 5}", overwrite="true")
