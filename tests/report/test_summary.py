"""Summaries: one line a model and method, the average, and what others report beside it."""

from __future__ import annotations

import csv

import pytest

from balora.report.columns import column_of
from balora.report.page import _page
from balora.report.plots import write_plots
from balora.report.study import read_study
from balora.report.summary import summaries
from balora.report.tables import format_console, write_tables
from support.fake_comparison import row, write_rows

MODELS = {"A": {"model_name_or_path": "a"}, "B": {"model_name_or_path": "b"}}
REFERENCE = {
    "source": "a paper, Table 2.",
    "values": {"A": {"lora": {"gsm8k": 42.47, "average": 20.5}, "dora": {"gsm8k": 1.0}}},
}


@pytest.fixture
def study(tmp_path):
    """Two models under two conditions; of model B nobody has judged the chat."""
    rows = [
        *(row("lora", s, "A/math", gsm8k=x, kl=1.0) for s, x in enumerate((0.4, 0.5))),
        *(row("lora", s, "A/chat", mt_bench=x) for s, x in enumerate((5.0, 6.0))),
        *(row("full", s, "A/math", gsm8k=0.6) for s in (0, 1)),
        row("full", 0, "A/chat", mt_bench=8.0),
        row("full", 1, "A/chat", error="killed by signal 9"),
        *(row("lora", s, "B/math", gsm8k=0.0) for s in (0, 1)),
        *(row("lora", s, "B/chat", kl=1.0) for s in (0, 1)),
    ]
    return read_study(
        write_rows(
            tmp_path,
            rows,
            methods=["full", "lora"],
            seeds=[0, 1],
            baseline="lora",
            models=MODELS,
            conditions={"math": {}, "chat": {}},
            summary={"Table 2": ["gsm8k", "chat/mt_bench"]},
            reference=REFERENCE,
        )
    )


def test_models_and_conditions_are_places_in_the_order_of_the_recipe(study):
    assert study.conditions == ("A/math", "A/chat", "B/math", "B/chat")
    wanted = [
        f"B/{condition}/full/seed-{seed}" for condition in ("math", "chat") for seed in (0, 1)
    ]
    assert list(study.missing) == wanted


def test_a_condition_has_the_metric_of_its_own_task(study):
    assert study.task == "gsm8k"
    assert [study.task_of(name) for name in study.conditions] == [
        *("gsm8k", "mt_bench", "gsm8k", None),
    ]
    assert study.main("A/chat") == ("mt_bench",)
    assert study.main("A/math") == ("gsm8k", "kl")


def test_averages_are_of_seeds_that_have_every_column(study):
    (summary,) = summaries(study)
    chat = "chat: MT-Bench, first turn (1 to 10)"
    assert summary.heads == ("model", "method", "GSM8K", chat, "average")
    lines = [summary.cells(line) for line in summary.lines]
    # seed 0: (60 + 8) / 2; seed 1 of the chat has failed
    assert lines[0] == ("A", "full", "60.00", "8.00 (1 of 2)", "34.00 (1 of 2)")
    # (40 + 5) / 2 and (50 + 6) / 2; the interval is 12.706 * 3.889 / sqrt(2)
    assert lines[1][-1] == "25.25 +- 34.94"
    # the average that is reported is of other columns as well
    assert lines[2] == ("A", "lora (reported)", "42.47", "-", "-")
    assert lines[3] == ("B", "full", "-", "-", "-")
    assert lines[4] == ("B", "lora", "0.00", "-", "-")
    assert len(lines) == 5
    assert "lora on B has no average: chat/mt_bench not measured." in summary.notes
    assert any(note.endswith("a paper, Table 2.") for note in summary.notes)


def test_what_others_report_is_no_figure_of_the_study(study):
    assert "42.47" in format_console(study)
    assert study.best("A/math", "gsm8k", study.trained) == ("full",)
    assert study.values("A/math", "lora", "gsm8k") == {0: 0.4, 1: 0.5}
    write_tables(study)
    with (study.folder / "summary.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (reported,) = [
        one for one in lines if one["is_reported"] == "true" and one["column"] == "gsm8k"
    ]
    assert (reported["mean"], reported["n"], reported["model"]) == ("42.47", "", "A")
    text = (study.folder / "table.csv").read_text()
    assert "42.47" not in text
    for name in ("table.md", "table.tex"):
        assert "lora (reported)" in (study.folder / name).read_text()


def test_a_panel_for_each_column_has_our_bars_and_the_mark_of_others(study):
    drawn = [plot for plot in write_plots(study) if plot.kind == "summary"]
    assert len(drawn) == 3  # two columns and the average
    assert all(plot.condition == "Table 2" for plot in drawn)
    text = _page(study, [])
    assert "lora (reported)" in text
    assert "42.47" in text


def test_means_out_of_domain_say_over_what_they_are(tmp_path):
    outside = {"hans:accuracy": 0.5, "scitail:accuracy": 0.7, "out_of_domain:accuracy": 0.6}
    rows = [row("lora", 0, "rte", accuracy=0.8, **outside), row("lora", 0, "mnli", accuracy=0.9)]
    columns = {"ID": ["rte", "mnli"], "OOD": ["rte/out_of_domain:accuracy"]}
    conditions = {"rte": {"task": "rte"}, "mnli": {"task": "mnli"}}
    write_rows(tmp_path, rows, methods=["lora"], seeds=[0], conditions=conditions, summary=columns)
    within, without = summaries(read_study(tmp_path))
    assert within.cells(within.lines[0]) == ("lora", "80.00", "90.00", "85.00")
    assert without.cells(without.lines[0]) == ("lora", "60.00", "60.00")
    assert "rte/out_of_domain:accuracy is the mean over hans, scitail." in without.notes


def test_an_average_that_is_reported_stands_with_its_columns_or_alone(study):
    def reported(**figures):
        study.settings["reference"]["values"]["A"]["lora"] = figures
        (summary,) = summaries(study)
        return summary.cells(summary.lines[2])[2:]

    known = {"gsm8k": 42.47, "chat/mt_bench": 4.62}
    assert reported(**known, average=23.5) == ("42.47", "4.62", "23.50")
    assert reported(average=23.5) == ("-", "-", "23.50")


def test_a_name_of_a_metric_and_a_condition_is_the_metric():
    assert column_of("math", ["math", "rte"]) == ("math", None, "math")
    assert column_of("rte", ["math", "rte"]) == ("rte", "rte", None)
    assert column_of("rte/hans:accuracy", ["rte"]) == ("rte/hans:accuracy", "rte", "hans:accuracy")
    assert column_of("gsm8k/unanswered", ["rte"]).metric == "gsm8k/unanswered"
