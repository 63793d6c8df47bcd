"""The tables of a comparison, from fabricated rows."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats

from balora.errors import ConfigError
from balora.report.study import read_study
from balora.report.tables import format_console, main_table, other_table, write_tables
from support.fake_comparison import CONDITIONS, METHODS, row, write_comparison, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("tables"))
    write_tables(read_study(folder))
    return folder


@pytest.fixture
def small(tmp_path):
    """Two methods and three seeds, one of them failed, with round numbers."""
    rows = [
        row("base", None, exact_match=0.0, recall=0.9, kl=0.0),
        *(row("lora", s, exact_match=x, recall=0.5, kl=2.0) for s, x in enumerate((0.1, 0.2, 0.3))),
        *(row("my_own", s, exact_match=x, recall=0.6) for s, x in enumerate((0.3, 0.4))),
        row("my_own", 2, error="killed by signal 9 (out of memory?)"),
    ]
    return write_rows(tmp_path, rows, methods=["my_own", "lora", "base"], baseline="lora")


def lines_of(table):
    return {line[0]: dict(zip(table.heads, line, strict=True)) for line in table.lines}


def read_csv(folder):
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_stand_in_the_order_of_the_recipe(small):
    table = main_table(read_study(small), "")
    assert [line[0] for line in table.lines] == ["my_own", "lora", "base"]


def test_means_intervals_and_paired_differences(small):
    table = main_table(read_study(small), "")
    assert table.heads[:3] == ("method", "exact match", "difference to lora")
    assert table.heads[3:5] == ("recall of facts", "difference to lora")
    mine, lora, base = table.lines
    # 0.1, 0.2, 0.3: s = 0.1, half = 4.302653 * 0.1 / sqrt(3) = 24.8%
    assert lora[1:3] == ("20.0% +- 24.8%", "-")
    # seeds 0 and 1 of both: 0.2 and 0.2, up to rounding
    assert mine[1] == "35.0% +- 63.5%"
    assert mine[2] == "+20.0% (same)"
    assert mine[3:5] == ("60.0% (same)", "+10.0% (same)")
    assert base[2] == "-20.0% [-44.8%, +4.8%]"
    assert base[1] == "0.0%"


def test_failed_cells_are_left_out_and_counted(small):
    lines = lines_of(main_table(read_study(small), ""))
    assert lines["my_own"]["seeds"] == "2 (1 failed)"
    assert lines["lora"]["seeds"] == "3"
    mine = next(
        line
        for line in read_csv_after(small)
        if (line["method"], line["metric"]) == ("my_own", "recall")
    )
    assert (mine["n"], mine["num_failed"], mine["num_pairs"]) == ("2", "1", "2")


def test_what_a_failed_cell_has_measured_does_not_count(tmp_path):
    rows = [row("lora", seed, exact_match=0.5) for seed in (0, 1)]
    rows[1]["error"] = "killed while it was evaluated"
    study = read_study(write_rows(tmp_path, rows, methods=["lora"]))
    assert study.values("", "lora", "exact_match") == {0: 0.5}
    assert study.num_failed("", "lora") == 1


def read_csv_after(folder):
    write_tables(read_study(folder))
    return read_csv(folder)


def test_costs_are_shown_and_a_dash_where_nothing_was_trained(small):
    lines = lines_of(main_table(read_study(small), ""))
    assert lines["lora"]["trainable parameters"] == "123,456"
    assert lines["lora"]["training (s)"] == "31.2"
    assert lines["lora"]["peak memory (MiB)"] == "911"
    assert lines["base"]["trainable parameters"] == "-"


def test_what_the_main_table_leaves_out_has_a_table_of_its_own(small, tmp_path):
    assert other_table(read_study(small), "").heads == (
        "method",
        "KL to the pre-trained model (nats/token)",
    )
    rows = [row("lora", 0, exact_match=0.5, retention_loss=1.0)]
    folder = write_rows(tmp_path / "few", rows, methods=["lora"], baseline="lora")
    assert other_table(read_study(folder), "") is None


def test_the_console_shows_the_main_metrics_aligned(folder):
    text = format_console(read_study(folder))
    block = text.split("Condition noise-20:")[1].split("Condition")[0].strip().splitlines()
    assert block[0].split()[:3] == ["method", "exact", "match"]
    assert len({len(line) for line in block}) == 1
    assert [line.split()[0] for line in block[2:]] == list(METHODS)
    assert "distinct" not in text
    assert max(map(len, text.split("Mean over")[0].splitlines())) < 150
    assert text.isascii()
    assert "95% interval" in text


def test_a_star_marks_exactly_the_intervals_without_zero(folder):
    for line in read_csv(folder):
        assert (line["p_value"] == "") == (line["excludes_zero"] == "")
        if line["excludes_zero"]:
            assert (float(line["p_value"]) < 0.05) == (line["excludes_zero"] == "True")
            low, high = float(line["difference_low"]), float(line["difference_high"])
            assert line["excludes_zero"] == str(low > 0 or high < 0)
    table = main_table(read_study(folder), "noise-40")
    texts = [text for line in table.lines for text in (line[2], line[4]) if "[" in text]
    for text in texts:
        low, high = text.split("[")[1].split("]")[0].split(", ")
        assert text.endswith("*") == (low[0] == high[0])


def test_a_second_star_is_for_what_holds_for_all_methods_together(folder):
    line = {(x["condition"], x["method"], x["metric"]): x for x in read_csv(folder)}
    table = lines_of(main_table(read_study(folder), "clean"))
    trained = [name for name in METHODS if name not in ("base", "lora")]
    p_values = {m: float(line["clean", m, "exact_match"]["p_value"]) for m in trained}
    assert len(p_values) == 7
    smallest = min(p_values, key=p_values.get)
    corrected = float(line["clean", smallest, "exact_match"]["corrected_p_value"])
    assert corrected == pytest.approx(7 * p_values[smallest])
    for method in trained:
        corrected = float(line["clean", method, "exact_match"]["corrected_p_value"])
        stars = table[method]["difference to lora"]
        assert stars.endswith(" **") == (corrected <= 0.05)


def test_no_star_where_every_seed_has_the_same_difference(tmp_path):
    rows = [row("lora", s, exact_match=x) for s, x in enumerate((0.92, 0.94))]
    rows += [row("full", s, exact_match=x) for s, x in enumerate((0.94, 0.96))]
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    assert lines_of(main_table(read_study(folder), ""))["full"]["difference to lora"] == (
        "+2.0% (same)"
    )
    assert "from which no interval follows" in format_console(read_study(folder))
    (line,) = [
        x for x in read_csv_after(folder) if x["difference"] and x["metric"] in "exact_match"
    ]
    assert (line["difference_low"], line["excludes_zero"], line["p_value"]) == ("", "", "")


def test_the_majority_class_is_the_first_line_of_classification(tmp_path):
    rows = [row(m, s, accuracy=0.7 + s / 10, ece=0.1) for m in ("lora", "full") for s in (0, 1)]
    for one in rows:
        one["majority"] = {"accuracy": 0.542, "macro_f1": 0.351}
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], seeds=[0, 1], baseline="lora")
    study = read_study(folder)
    first = main_table(study, "").lines[0]
    assert first[:3] == ("majority class", "54.2%", "-20.8% [-84.3%, +42.7%]")
    assert first[-1] == "-"
    assert "majority class" not in study.trained
    write_tables(read_study(folder))
    assert "| majority class | 54.2% |" in (folder / "table.md").read_text(encoding="utf-8")


def test_cells_that_have_not_run_are_counted_and_named(tmp_path):
    asked = {"methods": ["base", "lora", "full"], "seeds": [0, 1], "baseline": "lora"}
    folder = write_rows(tmp_path, [row("lora", 0, exact_match=0.5)], **asked)
    lines = lines_of(main_table(read_study(folder), ""))
    assert [line["seeds"] for line in lines.values()] == [
        "0 (1 missing)",
        "1 (1 missing)",
        "0 (2 missing)",
    ]
    assert "Not finished: 4 of 5 cells have not run (base, lora/seed-1," in format_console(
        read_study(folder)
    )


def test_csv_has_a_line_for_each_condition_method_and_metric(folder):
    lines = read_csv(folder)
    keys = [(line["condition"], line["method"], line["metric"]) for line in lines]
    study = read_study(folder)
    assert len(set(keys)) == len(keys) == len(CONDITIONS) * len(METHODS) * (len(study.metrics) + 5)
    found = next(x for x in lines if keys[lines.index(x)] == ("clean", "balora", "recall"))
    values = study.values("clean", "balora", "recall")
    baseline = study.values("clean", "lora", "recall")
    expected = stats.ttest_rel(list(values.values()), list(baseline.values()))
    interval = expected.confidence_interval(0.95)
    assert float(found["difference_low"]) == pytest.approx(interval.low)
    assert float(found["difference_high"]) == pytest.approx(interval.high)
    assert (found["n"], found["num_pairs"], found["baseline"]) == ("5", "5", "lora")


def test_the_figures_of_kept_rows_stay_what_they_are(tmp_path):
    kept = Path(__file__).parents[2] / "benchmarks" / "results" / "lab-large"
    for name in ("comparison.yaml", "results.jsonl"):
        shutil.copy(kept / name, tmp_path)
    lines, expected = read_csv_after(tmp_path), read_csv(kept)
    assert len(lines) == len(expected) == 120
    for line, wanted in zip(lines, expected, strict=True):
        for name, text in wanted.items():
            is_number = re.fullmatch(r"-?\d[\d.e+-]*", text)
            figure = pytest.approx(float(text), rel=1e-9, abs=1e-12) if is_number else text
            assert (float(line[name]) if is_number else line[name]) == figure, (name, wanted)


def test_differences_are_within_a_condition(folder):
    """The baseline of another condition would give other differences."""
    lines = {(x["condition"], x["method"], x["metric"]): x for x in read_csv(folder)}
    for condition in CONDITIONS:
        mine = lines[condition, "pissa", "exact_match"]
        lora = lines[condition, "lora", "exact_match"]
        assert float(mine["difference"]) == pytest.approx(float(mine["mean"]) - float(lora["mean"]))


def test_a_metric_that_a_cell_lacks_is_empty(folder):
    lines = {(x["condition"], x["method"], x["metric"]): x for x in read_csv(folder)}
    noise = lines["clean", "lora", "memorised_noise"]
    assert (noise["mean"], noise["n"], noise["difference"]) == ("", "0", "")
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert "| lora | " in text


def test_markdown_has_the_same_number_of_cells_in_every_line(folder):
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text.count("### ") == len(CONDITIONS)
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace(r"\|", "").count("|") for line in block.splitlines()}) == 1
    assert "\N{PLUS-MINUS SIGN}" in text
    assert "+-" not in text


def test_names_are_escaped(small):
    write_tables(read_study(small))
    assert r"my\_own" in (small / "table.md").read_text(encoding="utf-8")
    latex = (small / "table.tex").read_text(encoding="utf-8")
    assert r"my\_own & 35.0\% $\pm$ 63.5\% & +20.0\% (same)" in latex
    assert r"base & 0.0\% & $-$20.0\% [$-$44.8\%, +4.8\%]" in latex
    for word in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(word) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a<b>|c", r"a\textless{}b\textgreater{}\textbar{}c"),
        ("[2pt]", "{}[2pt]"),
        ("*", "{}*"),
        ("a&b%c", r"a\&b\%c"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        ("kl=1e-4", "kl=1e-4"),
    ],
)
def test_latex_escapes_what_it_would_read_as_markup(tmp_path, name, expected):
    folder = write_rows(tmp_path, [row(name, 0, exact_match=0.5)], methods=[name])
    write_tables(read_study(folder))
    assert f"\n{expected} & " in (folder / "table.tex").read_text(encoding="utf-8")


def test_all_cells_failed(tmp_path):
    rows = [row("lora", seed, error="no memory") for seed in (0, 1)]
    folder = write_rows(tmp_path, rows, methods=["lora"], seeds=[0, 1], baseline="lora")
    write_tables(read_study(folder))
    assert format_console(read_study(folder)).splitlines()[2].split() == [
        "lora",
        "0",
        "(2",
        "failed)",
    ]
    assert {line["n"] for line in read_csv(folder)} == {"0"}


def test_one_seed_has_no_interval(tmp_path):
    rows = [row("lora", 0, exact_match=0.5), row("pissa", 0, exact_match=0.75)]
    folder = write_rows(tmp_path, rows, methods=["lora", "pissa"], baseline="lora")
    (lora, pissa) = main_table(read_study(folder), "").lines
    assert (lora[1], pissa[1], pissa[2]) == ("50.0%", "75.0%", "+25.0%")
    assert format_console(read_study(folder)).endswith(
        "Metrics of one seed: they have no interval, and say nothing about the next seed. "
        "Differences are to lora."
    )


def test_classification_compares_with_the_task_metric_of_another_origin(tmp_path):
    figures = {"accuracy": 0.9, "matthews_correlation": 0.8, "mismatched:accuracy": 0.6}
    figures |= {"mismatched:matthews_correlation": 0.4, "ece": 0.1}
    folder = write_rows(tmp_path, [row("lora", 0, **figures)], methods=["lora"])
    study = read_study(folder)
    assert study.main("") == ("matthews_correlation", "mismatched:matthews_correlation")
    assert set(study.metrics) == set(figures)


def test_macro_f1_stands_beside_the_accuracy(tmp_path):
    figures = {"accuracy": 0.9, "macro_f1": 0.5, "ece": 0.1}
    folder = write_rows(tmp_path, [row("lora", 0, **figures)], methods=["lora"])
    assert read_study(folder).main("") == ("accuracy", "macro_f1")


def test_the_metric_that_was_asked_for_is_in_the_main_table(tmp_path):
    rows = [row("lora", 0, exact_match=0.5, response_loss=0.1, kl=1.0, retention_loss=2.0)]
    for metric, main in {
        "response_loss": ("response_loss", "retention_loss"),
        "kl": ("kl", "exact_match", "retention_loss"),
    }.items():
        folder = write_rows(tmp_path / metric, rows, methods=["lora"], metric=metric)
        assert read_study(folder).main("") == main


def test_without_a_metric_of_forgetting_the_drift_stands_in(tmp_path):
    folder = write_rows(tmp_path, [row("lora", 0, exact_match=0.5, kl=1.0)], methods=["lora"])
    assert read_study(folder).retention == "kl"


def test_a_metric_that_this_version_does_not_know_is_shown_as_a_plain_number(tmp_path):
    figures = {"exact_match": 0.5, "of_a_later_version": 0.123456, "gsm8k/exact_match": 0.25}
    folder = write_rows(tmp_path, [row("lora", 0, **figures)], methods=["lora"])
    study = read_study(folder)
    assert study.metrics == ("exact_match", "gsm8k/exact_match", "of_a_later_version")
    assert study.retention == "gsm8k/exact_match"
    write_tables(read_study(folder))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert "exact match, gsm8k" in table
    assert "| lora | 0.1235 |" in table


def test_the_note_says_what_judged_a_benchmark_and_where_that_differs(tmp_path):
    judges = {
        "math": [{"math_verify": "0.8.0"}, {"math_verify": "0.9.0"}, {"math_verify": "0.9.0"}],
        "humaneval": [{"sandbox": "none", "python": "3.12.1"}] * 3,
    }
    rows = [
        {
            **row("lora", seed, math=0.5, humaneval=0.5),
            "bench": {"judged_by": {name: facts[seed] for name, facts in judges.items()}},
        }
        for seed in range(3)
    ]
    lost = row("lora", 3, error="out of memory")
    study = read_study(write_rows(tmp_path, [*rows, lost], methods=["lora"]))
    write_tables(study)
    for text in (format_console(study), (tmp_path / "table.md").read_text().replace("\\", "")):
        assert "humaneval is judged with sandbox none, python 3.12.1." in text
        assert (
            "math is not judged alike, so its scores cannot be compared: 1 of 3 with math_verify "
            "0.8.0, 2 of 3 with math_verify 0.9.0." in text
        )


def test_runs_of_a_sweep_are_not_in_the_table(folder):
    study = read_study(folder)
    assert len(study.tried) == 3
    assert study.num_finished("clean", "lora") == 5


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no rows yet: there is no results\.jsonl"):
        format_console(read_study(tmp_path))


def test_tables_need_neither_matplotlib_nor_jinja2(small):
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None\n"
        "from pathlib import Path\n"
        "from balora.report.study import read_study\n"
        "from balora.report.tables import format_console, write_tables\n"
        f"study = read_study(Path({str(small)!r})); write_tables(study)\n"
        "print(format_console(study))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "my_own" in done.stdout
