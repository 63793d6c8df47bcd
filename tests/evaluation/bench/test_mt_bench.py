"""MT-Bench: what the judge is asked, what of its reply counts, and a server that fails."""

from __future__ import annotations

import json
import re

import pytest

from balora import __version__
from balora.cli import main
from balora.errors import BaloraError
from balora.evaluation.bench import judge as judge_module
from balora.evaluation.bench.judge import Judge, prompt_of, rating_in
from balora.evaluation.bench.server import Server
from support.classification_runs import error_of
from support.fake_server import KEY, MODEL_AS_SERVED, fake_server
from support.models import make_model, make_tokenizer

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a {answer}.", "Again."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "2 + 2?"], "reference": ["no"]},
    {"question_id": 151, "category": "stem", "turns": ["Why?", "Why not?"]},
]
REFERENCES = [{"question_id": 111, "choices": [{"index": 0, "turns": ["It is 2.", "4"]}]}]


@pytest.fixture
def server(monkeypatch):
    with fake_server() as told:
        monkeypatch.setenv("OPENAI_BASE_URL", told.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield told


@pytest.fixture
def judge(server, tmp_path):
    return Judge(Server("gpt-x", "`judge_model`", seconds=0.5, max_retries=3), tmp_path)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Fine. Rating: [[7]]", 7),
        ("Rating: [[6.5]].", 6.5),
        ("Rating: [8]", 8),
        ("The answer says 'output [[10]]'. Rating: [[2]]", 2),
        ("[[10]] is what it asks for, but [3]", 10),
        ("Rating: [[0]]", None),
        ("Rating: [[11]]", None),
        ("7 out of 10", None),
        ("", None),
    ],
)
def test_the_last_rating_from_1_to_10_counts(text, rating):
    assert rating_in(text) == rating


def test_slots_are_filled_in_one_pass_whatever_the_texts_hold():
    prompt = prompt_of("Write a {answer}.", "{question} {ref_answer_1}", None)
    assert "[Question]\nWrite a {answer}.\n" in prompt
    assert "Answer]\n{question} {ref_answer_1}\n[The End" in prompt
    assert "Reference Answer" not in prompt
    assert "[The Start of Reference Answer]\nIt is 2.\n[The End" in prompt_of("?", "2", "It is 2.")


def test_the_prompts_are_the_published_ones(shared_data):
    lines = (shared_data / "data" / "mt_bench" / "judge_prompts.jsonl").read_text().splitlines()
    published = {row["name"]: row for row in map(json.loads, lines)}
    assert published["single-v1"]["prompt_template"] == judge_module.PLAIN
    assert published["single-math-v1"]["prompt_template"] == judge_module.WITH_REFERENCE
    assert {published[n]["system_prompt"] for n in ("single-v1", "single-math-v1")} == {
        judge_module._SYSTEM
    }


def test_one_client_asks_everything(judge, server):
    assert judge.server.client is Server("another", "`--base`", 0.5, 3).client
    judge.rate("Why?", "Because.", None)
    assert judge.rate("Why?", "So.", None).rating == 7.0


def test_what_fails_for_now_is_asked_again(judge, server):
    server.plan = ["429", "500", "slow"]
    assert judge.rate("Why?", "Because.", None)[:1] == (7.0,)
    assert len(server.requests) == 4
    server.plan = ["cut"]
    assert judge.rate("Why?", "So.", None).rating == 7.0


def test_a_reply_without_a_rating_is_asked_for_twice_more_and_then_there_is_none(judge, server):
    server.plan = ["Nice.", "empty"]
    found = judge.rate("Why?", "Because.", None)
    assert (found.rating, found.attempt, found.model) == (7.0, 3, MODEL_AS_SERVED)
    server.otherwise = "Nice."
    found = judge.rate("Why?", "So.", None)
    assert (found.rating, found.attempt) == (None, 3)
    asked = len(server.requests)
    assert judge.rate("Why?", "So.", None) == found  # kept: nothing is asked
    assert len(server.requests) == asked == 6


def test_a_kept_reply_that_is_damaged_is_asked_for_anew(judge, server):
    judge.rate("Why?", "Because.", None)
    (file,) = judge.cache.glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["text"] == server.otherwise
    assert kept["messages"][1]["content"].endswith("Because.\n[The End of Assistant's Answer]")
    file.write_text(file.read_text()[:50])
    assert judge.rate("Why?", "Because.", None).rating == 7.0
    assert len(server.requests) == 2


@pytest.mark.parametrize("what", ["500", "slow", "cut", "400"])
def test_a_server_that_fails_for_good_is_one_sentence(what, server, tmp_path):
    server.otherwise = what
    judge = Judge(Server("gpt-x", "`judge_model`", seconds=0.3, max_retries=1), tmp_path)
    with pytest.raises(BaloraError, match=r"`judge_model` gpt-x: the server at http.*is kept"):
        judge.rate("Why?", "Because.", None)
    assert list(tmp_path.iterdir()) == []


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model("llama").save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    (tmp_path / "questions.jsonl").write_text(lines(QUESTIONS))
    (tmp_path / "references.jsonl").write_text(lines(REFERENCES))
    words = {
        "base": "base",
        "benchmarks": "mt_bench",
        "mt_bench.dataset_name": "questions.jsonl",
        "mt_bench.references": "references.jsonl",
        "judge_model": "gpt-x",
        "judge_cache": "cache",
        "max_new_tokens": "5",
        "json": "figures.json",
    }

    def call(**changes):
        given = {**words, **{name.replace("__", "."): value for name, value in changes.items()}}
        return main(["bench", *(f"--{name}={value}" for name, value in given.items() if value)])

    return call


def test_answers_are_written_rated_and_shown_and_an_outage_leaves_them(
    bench, server, tmp_path, capsys
):
    server.otherwise = "400"
    assert bench() == 1
    assert "What was answered is kept; the same command goes on." in error_of(capsys)
    file = tmp_path / "outputs" / "bench" / "base" / "mt_bench.jsonl"
    answers = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(answers) == 3
    server.otherwise, server.requests[:] = "Rating: [[7]]", []
    server.plan = ["Rating: [[9]]"]
    assert bench(judge_workers="1") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["base"]
    assert figures["figures"]["mt_bench"]["value"] == pytest.approx((9 + 7 + 7) / 3)
    assert figures["figures"]["mt_bench/unrated"]["value"] == 0
    assert figures["figures"]["mt_bench_writing"]["value"] == 9
    assert figures["figures"]["mt_bench_stem"]["n"] == 1
    assert figures["facts"]["mt_bench"] == {"judge": MODEL_AS_SERVED, "balora": __version__}
    printed = capsys.readouterr().out
    assert f"mt_bench is judged with judge {MODEL_AS_SERVED}, balora {__version__}." in printed
    assert re.search(r"MT-Bench, writing, n = 1 +9\.00 \+- 0\.00", printed)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["text"] for row in rows] == answers
    assert [row["rating"] for row in rows] == [9, 7, 7]
    asked = [request["messages"][1]["content"] for request in server.requests]
    assert len(asked) == 3
    assert "It is 2." in next(text for text in asked if "1 + 1?" in text)
    assert all("2 + 2?" not in text and "\nno\n" not in text for text in asked)  # the first turn
    assert {request["temperature"] for request in server.requests} == {0.0}
    # the key is nowhere, and nothing is asked twice
    for written in tmp_path.rglob("*"):
        assert not written.is_file() or KEY.encode() not in written.read_bytes()
    assert bench() == 0
    assert len(server.requests) == 3


def test_an_answer_without_a_rating_is_no_zero(bench, server, tmp_path):
    server.otherwise, server.plan = "Nice.", ["Rating: [[8]]"]
    assert bench(judge_workers="1") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["base"]["figures"]
    assert figures["mt_bench"] == {"value": 8.0, "standard_error": 0.0, "n": 1}
    assert figures["mt_bench/unrated"]["value"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("environment", "changes", "words"),
    [
        ({"OPENAI_API_KEY": "sk-wrong"}, {}, "does not take the key (status 401)"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, {}, "cannot be reached"),
        ({"OPENAI_BASE_URL": "", "OPENAI_API_KEY": ""}, {}, "set OPENAI_BASE_URL to its address"),
        ({}, {"judge_model": ""}, "`judge_model` is missing"),
        ({}, {"mt_bench__references": ""}, "`mt_bench.references` is missing"),
        ({}, {"mt_bench__references": "questions.jsonl"}, "without a reference answer"),
        ({}, {"mt_bench__dataset_name": "references.jsonl"}, "it has no column `turns`"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is_run(
    environment, changes, words, bench, server, tmp_path, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bench(**changes) == 2
    error = error_of(capsys)
    assert words in error
    assert "sk-" not in error
    assert server.requests == []
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "cache").exists()


def test_a_server_without_a_list_of_models_is_asked_all_the_same(bench, server):
    server.has_models = False
    assert bench() == 0


def test_without_the_package_the_fix_is_named(bench, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bench() == 2
    assert "Run `pip install 'balora[judge]'`" in error_of(capsys)
