"""Benchmarks in a comparison: asked in the cell, judged by a server when all have answered."""

from __future__ import annotations

import json

import pytest

import balora
from balora.compare.benchmarks import judge_answers
from balora.compare.cell import main
from balora.compare.folder import Folder
from balora.compare.plan import Plan
from balora.errors import BaloraError, ConfigError
from support.comparison import ROWS, write_rows
from support.fake_server import KEY, MODEL_AS_SERVED, fake_server

PROBLEMS = [{"question": f"{i} and {i}?", "answer": f"It is. #### {2 * i}"} for i in range(3)]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 151, "category": "stem", "turns": ["Why?", "Why not?"]},
]
BENCH = {"max_new_tokens": 4, "eval_batch_size": 2, "gsm8k": {"dataset_name": "gsm8k.jsonl"}}
CHAT = {"benchmarks": ["mt_bench"], "judge_model": "gpt-x", "judge_cache": "cache"}


@pytest.fixture
def asked(comparison, tmp_path, model_folder):
    """Return a comparison of two models, which are one, and of skills with a chat."""

    def read(compare=None, **fields):
        write_rows(tmp_path / "train.jsonl", ROWS)
        write_rows(tmp_path / "gsm8k.jsonl", PROBLEMS)
        write_rows(tmp_path / "questions.jsonl", QUESTIONS)
        write_rows(tmp_path / "references.jsonl", [])
        data = {"dataset_name": "questions.jsonl", "references": "references.jsonl"}
        asks = {
            "methods": ["base", "lora"],
            "models": {"one": {"model_name_or_path": model_folder}},
            "conditions": {
                "skills": {"bench": {"benchmarks": ["gsm8k"]}},
                "chat": {"prompt_template": "none", "bench": {**CHAT, "mt_bench": data}},
            },
            "bench": BENCH,
            "max_new_tokens": 4,
            "num_rows": 2,
        }
        return comparison(
            {**asks, **(compare or {})}, model_name_or_path=None, disable_tqdm=True, **fields
        )

    return read


def run(cells, folder):
    for cell in cells:
        assert main([str(folder.prepare(cell))]) == 0
    return {cell.key: folder.row(cell) for cell in cells}


def answers(folder, cell, name):
    file = folder.of(cell) / "bench" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_model_is_asked_under_every_condition(asked, model_folder):
    found = asked({"models": {n: {"model_name_or_path": model_folder} for n in ("one", "two")}})
    cells = Plan(found).final()
    assert [cell.key for cell in cells] == [
        f"{model}/{condition}/{run}"
        for model in ("one", "two")
        for condition in ("skills", "chat")
        for run in ("base", "lora/seed-0")
    ]
    assert cells[0].bench == {**BENCH, "benchmarks": ["gsm8k"]}
    # what is said of gsm8k is nothing to a chat
    assert cells[2].bench.keys() == BENCH.keys() - {"gsm8k"} | CHAT.keys() | {"mt_bench"}
    assert "bench.gsm8k.dataset_name" in cells[0].contents
    assert "bench.mt_bench.references" in cells[2].contents


def test_a_benchmark_takes_no_part_in_a_choice(asked):
    found = asked({"sweep": {"lora": {"learning_rate": [1e-4, 1e-3]}}})
    plan = Plan(found)
    assert {cell.key.split("/")[2] for cell in plan.choosing()} == {"skills"}
    assert all(cell.bench == {} for cell in plan.choosing())
    assert not any("bench" in name for cell in plan.choosing() for name in cell.identity())
    with pytest.raises(ConfigError, match="`metric` is gsm8k, but `sweep` chooses on held-out"):
        asked({"sweep": {"lora": {"learning_rate": [1e-4, 1e-3]}}, "metric": "gsm8k"})


def test_a_changed_problem_or_setting_makes_a_cell_another(asked, tmp_path):
    cell = Plan(asked()).final()[0]
    write_rows(tmp_path / "gsm8k.jsonl", PROBLEMS[:2])
    # the fixture writes the rows anew, so the plan is made of the same comparison
    found = asked({"bench": {**BENCH, "num_rows": 2}})
    now = Plan(found).final()[0].identity()
    assert {n for n in now if now[n] != cell.identity().get(n)} == {"bench.num_rows"}
    write_rows(tmp_path / "gsm8k.jsonl", PROBLEMS[:2])
    changed = Plan(found).final()[0].identity()
    assert {n for n in now if now[n] != changed[n]} == {"contents of.bench.gsm8k.dataset_name"}
    slower = Plan(asked({"bench": {**BENCH, "judge_workers": 1}})).final()
    assert slower[2].identity() == Plan(asked()).final()[2].identity()


def test_a_cell_answers_with_the_prompt_that_it_was_trained_with(asked):
    found = asked()
    folder = Folder(found.folder)
    cells = Plan(found).final()[:2]
    rows = run(cells, folder)
    for row in rows.values():
        assert row["metrics"]["gsm8k"] == 0.0
        assert row["metrics"]["gsm8k/unanswered"] == 1.0
        assert row["metrics"]["response_loss"] > 0
        assert row["bench"]["figures"]["gsm8k"] == {"standard_error": 0.0, "n": 3}
    prompts = [[row["prompt"] for row in answers(folder, cell, "gsm8k")] for cell in cells]
    # rows of prompt and completion have no template; the pre-trained model is asked alike
    assert (
        prompts[0]
        == prompts[1]
        == [f"{one['question']} Let's think step by step." for one in PROBLEMS]
    )
    assert all(len(row["text"]) > 0 for row in answers(folder, cells[1], "gsm8k"))


def test_the_judge_is_asked_when_all_have_answered_and_an_outage_leaves_the_answers(
    asked, tmp_path, monkeypatch
):
    found = asked()
    folder = Folder(found.folder)
    cells = Plan(found).final()[2:]
    with fake_server() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        rows = run(cells, folder)
        assert server.requests == []
        assert all("mt_bench" not in row["metrics"] for row in rows.values())
        server.otherwise = "400"
        with pytest.raises(BaloraError, match="`judge_model` gpt-x: the server at"):
            judge_answers(folder, cells)
        assert all(folder.is_finished(cell) for cell in cells)
        server.otherwise, server.requests[:] = "Rating: [[7]]", []
        judge_answers(folder, cells)
        judged = [folder.row(cell) for cell in cells]
        assert [row["metrics"]["mt_bench"] for row in judged] == [7.0, 7.0]
        assert judged[0]["bench"]["judged_by"] == {
            "mt_bench": {"judge": MODEL_AS_SERVED, "balora": balora.__version__}
        }
        assert judged[1]["bench"]["figures"]["mt_bench_stem"]["n"] == 1
        assert judged[1]["metrics"]["kl"] == rows[cells[1].key]["metrics"]["kl"]
        num_asked = len(server.requests)
        judge_answers(folder, cells)
        assert len(server.requests) == num_asked
    assert answers(folder, cells[1], "mt_bench")[0]["rating"] == 7.0
    assert KEY not in (folder.of(cells[1]) / "result.json").read_text()


def test_answers_that_were_judged_otherwise_are_judged_anew_and_not_written_anew(asked):
    """Another version of what judges, or another isolation: the answers that are there suffice."""
    found = asked({"conditions": None, "bench": {**BENCH, "benchmarks": ["gsm8k"]}})
    folder = Folder(found.folder)
    cell = Plan(found).final()[0]
    row = run([cell], folder)[cell.key]
    judged = row["bench"]["judged_by"]
    assert judged == {"gsm8k": {"balora": balora.__version__}}
    file = folder.of(cell) / "bench" / "gsm8k.jsonl"
    texts = [one["text"] for one in answers(folder, cell, "gsm8k")]
    known = {**row["bench"], "judged_by": {"gsm8k": {"balora": "0.0.1"}}}
    old = {**row, "metrics": {**row["metrics"], "gsm8k": 1.0}, "bench": known}
    folder.write_row(cell, old)
    judge_answers(folder, [cell])
    assert folder.row(cell) == row
    assert [one["text"] for one in answers(folder, cell, "gsm8k")] == texts
    written = file.stat().st_mtime_ns
    judge_answers(folder, [cell])  # what is judged as it would be now is left alone
    assert file.stat().st_mtime_ns == written
    # without the answers the row stays what it is, and says by what
    folder.write_row(cell, old)
    file.unlink()
    judge_answers(folder, [cell])
    assert folder.row(cell) == old


@pytest.mark.parametrize(
    ("bench", "sentence"),
    [
        ({"gsm8k": {"dataset_name": "nowhere.jsonl"}}, "`bench`: `gsm8k.dataset_name` is"),
        ({"gsm8k": {"dataset_name": "questions.jsonl"}}, "has no column `question`"),
        ({"gsm8k": {"dataset_name": "gsm8k.jsonl", "dataset_split": "tset"}}, "tset"),
        ({"gsm8k": None, "backend": "vllm", "vllm_python": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(bench, sentence, asked):
    settings = {**BENCH, "benchmarks": ["gsm8k"], **bench}
    found = asked({"conditions": None, "bench": settings})
    with pytest.raises(BaloraError) as caught:
        Plan(found).check_files()
    assert sentence in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_judge_without_an_address_is_refused_before_anything_runs(asked, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="`bench`: `judge_model` is gpt-x, but the environment"):
        Plan(asked()).check_files()
