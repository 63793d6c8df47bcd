"""The page: what it says, what it holds, and how it looks in a browser."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from balora.compare import report
from balora.compare.headline import findings, headline, leaders_of, matched
from balora.compare.plots import Plot
from balora.compare.report import MissingPackageError, write_report
from balora.compare.sections import samples, sweeps
from balora.compare.study import read_study
from balora.compare.table import format_console
from balora.errors import ConfigError
from fake_comparison import METHODS, SCRIPT, row, write_comparison, write_rows

LAPTOP, PHONE = 1280, 390


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("report"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return read(folder)


def read(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def told(folder, rows, **compare):
    """Return the headline of fabricated rows."""
    return headline(read_study(write_rows(folder, rows, **compare)))


def runs(method, scores, kept, condition=""):
    pairs = enumerate(zip(scores, kept, strict=True))
    return [row(method, s, condition, exact_match=x, recall=k) for s, (x, k) in pairs]


LORA = runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41))
BETTER = runs("pissa", (0.60, 0.62, 0.61), (0.30, 0.32, 0.31))
UNSURE = runs("full", (0.60, 0.45, 0.50), (0.35, 0.37, 0.36))


def test_the_page_loads_nothing(page):
    assert (
        re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]+|url\([^)]*\)|@import""", page)
        == []
    )
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_the_pictures_load_nothing_either(page):
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert pictures
    for picture in pictures:
        svg = base64.b64decode(picture).decode("utf-8")
        assert not re.search(r'href="(?!#|data:)', svg)


def test_the_page_is_under_three_megabytes(folder):
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_too_large_pictures_become_png_and_then_links(folder, monkeypatch):
    files = sorted((folder / "plots").glob("*.svg"))
    plots = [Plot("curves", "", "a panel", file.with_name(file.name[:-4])) for file in files]
    whole = sum(len(picture.source) for picture in report._pictures(plots))
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", whole - 1)
    kinds = [p.source.partition(";")[0] for p in report._pictures(plots)]
    assert kinds.count("data:image/png") == 1
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", 100_000)
    left = report._pictures(plots)
    assert sum(len(picture.source) for picture in left) <= 100_000
    assert "see plots/" in left[-1].alt


def test_samples_are_escaped(page):
    assert SCRIPT not in page
    assert html.escape(SCRIPT, quote=False).replace("'", "&#39;") in page


def test_names_and_errors_are_escaped(tmp_path):
    rows = [row("<i>", 0, exact_match=0.5), row("lora", 0, error="<img src=x> & more")]
    folder = write_rows(tmp_path, rows, methods=["<i>", "lora"], baseline="lora")
    write_report(folder)
    text = read(folder)
    assert "<i>" not in text
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt; &amp; more" in text


def test_the_page_has_every_part(page):
    headings = re.findall(r"<h2>([^<]+)</h2>", page)
    assert headings == [
        "Figures",
        *(title for title, _ in report._KINDS.values()),
        "Samples",
        "What was tried and chosen",
        "What was run",
    ]
    for name in METHODS:
        assert f"</i>{name}</span>" in page
    for text in ("fa4efa4e", "0.0.fake", "noise-40/full/seed-3", "killed by signal 9", "chosen"):
        assert text in page
    assert "balora compare --config comparison.yaml" in page
    assert "noise_rate: 0.2" in page
    assert page.count("<img ") == 21


def test_the_sweep_names_what_was_tried_and_what_was_chosen(page):
    rows = re.findall(r'<tr class="(chosen)?"><td>([\d.]+)</td><td>([\d.]+%)</td>', page)
    assert rows == [("", "0.001", "61.0%"), ("chosen", "0.002", "66.0%"), ("", "0.005", "57.0%")]
    assert "Within 0.02 of the best counts as equal" in page


def test_the_headline_names_who_is_better_beyond_the_interval(tmp_path):
    text = told(tmp_path, [*LORA, *BETTER], methods=["lora", "pissa"], baseline="lora")
    assert text == (
        "pissa has the best exact match, 61.0%, +10.0% against lora (95% interval +10.0% to "
        "+10.0%); lora keeps most (recall of facts), 41.0%, and is the baseline."
    )


def test_the_headline_says_when_there_is_no_difference(tmp_path):
    text = told(tmp_path, [*LORA, *UNSURE], methods=["lora", "full"], baseline="lora")
    assert text.startswith(
        "full has the best exact match, 51.7%, +0.7% against lora, no difference"
    )
    assert "beyond the interval (-2" in text


def test_the_headline_takes_the_smaller_loss_for_the_better(tmp_path):
    rows = [row(m, 0, response_loss=x, retention_loss=1 / x) for m, x in (("lora", 2), ("full", 1))]
    text = told(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    assert text.startswith("full has the best response loss (nats/token), 1.0000, -1.0000 against")
    assert "lora keeps most (loss on retained text (nats/token)), 0.5000" in text
    assert "on one seed, which says nothing about the next" in text


def test_the_pre_trained_model_does_not_win_at_keeping(tmp_path):
    rows = [row("base", None, exact_match=0.0, recall=0.99), *LORA, *BETTER]
    text = told(tmp_path, rows, methods=["base", "lora", "pissa"], baseline="lora")
    assert "base" not in text.replace("baseline", "")


def test_the_headline_over_conditions(tmp_path):
    rows = [
        *(r for c in ("a", "b") for r in runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41), c)),
        *runs("pissa", (0.60, 0.62, 0.61), (0.30, 0.32, 0.31), "a"),
        *runs("pissa", (0.60, 0.45, 0.53), (0.30, 0.32, 0.31), "b"),
    ]
    asked = {"methods": ["lora", "pissa"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    assert told(tmp_path / "1", rows, **asked) == (
        "pissa has the best exact match in all 2 conditions, ahead of lora beyond the 95% interval "
        "in a only; lora keeps most (recall of facts) in all 2 conditions, the baseline."
    )
    rows[-3:] = runs("pissa", (0.4, 0.4, 0.4), (0.9, 0.1, 0.9), "b")
    text = told(tmp_path / "2", rows, **asked)
    assert text == (
        "Best exact match: pissa in a, lora in b (ahead of lora beyond the 95% interval in a "
        "only); keeping most (recall of facts): lora in a, pissa in b (with no difference to "
        "lora beyond the 95% interval)."
    )
    untried = [row for row in rows if row["method"] != "lora"]
    failed = [{**row, "error": "died", "metrics": {}} for row in rows if row["method"] == "lora"]
    text = told(tmp_path / "3", [*failed, *untried], **asked)
    assert text.startswith("pissa has the best exact match in all 2 conditions; pissa keeps most")
    assert "interval" not in text
    for one in rows:
        del one["metrics"]["exact_match"]
    text = told(tmp_path / "4", rows, **asked)
    assert text.startswith("Keeping most (recall of facts): lora in a, pissa in b (with no")


def test_who_keeps_most_and_learned_less_is_told_so(tmp_path):
    rows = [*LORA, *runs("full", (0.1, 0.12, 0.11), (0.9, 0.92, 0.91))]
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    (sentences,) = findings(read_study(folder)).values()
    assert sentences[1].startswith("full keeps most (recall of facts), 91.0%, +50.0% against lora")
    assert sentences[1].endswith("; its exact match differs by -40.0%.")


def test_the_best_at_no_more_forgetting_than_the_baseline(tmp_path):
    modest = runs("full", (0.54, 0.56, 0.55), (0.41, 0.43, 0.42))
    rows = [*LORA, *BETTER, *modest]
    folder = write_rows(tmp_path, rows, methods=["lora", "pissa", "full"], baseline="lora")
    assert matched(read_study(folder)) == {
        "": "Of the methods no worse than lora in recall of facts, full has the best exact match, "
        "55.0%, +4.0% against lora (95% interval +4.0% to +4.0%)."
    }
    write_report(folder)
    assert read(folder).count("Of the methods no worse than lora") == 1


def test_what_keeps_as_much_and_learns_less_does_not_beat_the_baseline(tmp_path):
    rows = [*LORA, *runs("full", (0.1, 0.12, 0.11), (0.40, 0.42, 0.41))]
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    (sentence,) = matched(read_study(folder)).values()
    assert sentence.endswith("lora has the best exact match, 51.0%, and is the baseline.")


def test_less_loss_is_more_kept(tmp_path):
    figures = {"lora": (0.5, 2.0), "pissa": (0.9, 2.1), "full": (0.6, 1.9)}
    rows = [row(m, 0, exact_match=x, retention_loss=y) for m, (x, y) in figures.items()]
    folder = write_rows(tmp_path, rows, methods=[*figures], baseline="lora")
    (sentence,) = matched(read_study(folder)).values()
    assert "full has the best exact match, 60.0%" in sentence


def test_nothing_keeps_as_much_or_nothing_can_be_held_against_the_baseline(tmp_path):
    asked = {"methods": ["lora", "pissa"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    rows = [
        *runs("lora", (0.5,), (0.4,), "a"),
        *runs("pissa", (0.6,), (0.3,), "a"),
        *runs("lora", (0.5,), (0.4,), "b"),
    ]
    found = matched(read_study(write_rows(tmp_path, rows, **asked)))
    assert found == {"a": "No method is as good as lora in recall of facts."}


def test_the_best_is_of_the_methods_of_its_condition(tmp_path):
    rows = [*runs("lora", (0.5,), (0.4,), "a"), *runs("full", (0.9,), (0.1,), "b")]
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], baseline="lora")
    assert [(x.condition, x.methods) for x in leaders_of(read_study(folder), "exact_match")] == [
        ("a", ("lora",)),
        ("b", ("full",)),
    ]


@pytest.mark.parametrize("lost", [0, 2])
def test_a_method_with_a_failed_run_is_not_ranked(tmp_path, lost):
    diverged = runs("pissa", (0.9, 0.95, 0.9), (0.9, 0.9, 0.9))
    diverged[lost] = row("pissa", lost, error="the loss is NaN")
    rows = [*LORA, *UNSURE, *diverged]
    folder = write_rows(tmp_path, rows, methods=["lora", "full", "pissa"], baseline="lora")
    told = headline(read_study(folder))
    assert told.startswith("full has the best exact match, 51.7%")
    assert told.endswith(" Not ranked where figures of a run are missing: pissa.")
    assert "pissa" not in "".join(matched(read_study(folder)).values())


def test_what_the_baseline_lost_is_no_lead(tmp_path):
    """Means over other seeds would rank pissa first, while seed by seed it is behind."""
    conditions = ("a", "b")
    rows = []
    for condition in conditions:
        lora = runs("lora", (0.6, 0.6, 0.6), (0.4, 0.4, 0.4), condition)
        lora[2] = row("lora", 2, condition, error="no memory")
        rows += [*lora, *runs("pissa", (0.5, 0.501, 0.95), (0.4, 0.4, 0.4), condition)]
    asked = {"methods": ["lora", "pissa"], "baseline": "lora"}
    text = told(tmp_path, rows, conditions={name: {} for name in conditions}, **asked)
    assert "ahead" not in text
    assert text.endswith(" Not ranked where figures of a run are missing: lora.")


def test_the_pre_trained_model_as_baseline_can_be_the_best(tmp_path):
    base = row("base", None, exact_match=0.9, recall=0.3)
    asked = {"methods": ["base", "lora"], "baseline": "base"}
    (found,) = matched(read_study(write_rows(tmp_path / "1", [base, *LORA], **asked))).values()
    assert found.endswith("base has the best exact match, 90.0%, and is the baseline.")
    base = row("base", None, exact_match=0.9, recall=0.8)
    (found,) = matched(read_study(write_rows(tmp_path / "2", [base, *LORA], **asked))).values()
    assert found == "No method is as good as base in recall of facts."


def test_one_seed_over_conditions_has_no_interval_to_speak_of(tmp_path):
    rows = [row(m, 0, c, exact_match=x) for c in "ab" for m, x in (("lora", 0.1), ("full", 0.9))]
    asked = {"methods": ["lora", "full"], "baseline": "lora", "conditions": {"a": {}, "b": {}}}
    text = told(tmp_path, rows, **asked)
    assert "interval" not in text
    assert text.endswith("against lora on one seed, which says nothing about the next.")


def test_where_every_method_lost_a_run_none_is_the_best(tmp_path):
    rows = [row("lora", 0, exact_match=0.5), row("lora", 1, error="no memory")]
    assert told(tmp_path, rows, methods=["lora"]) == (
        "No method has the figure of every seed, so none is named the best."
    )


def test_equals_share_the_lead(tmp_path):
    rows = [
        *runs("lora", (0.0, 0.0), (0.1, 0.3)),
        *runs("full", (0.0, 0.0), (0.2, 0.1)),
        *runs("pissa", (0.0, 0.0), (0.3, 0.1)),
    ]
    methods = ["lora", "full", "pissa"]
    assert told(tmp_path / "1", rows, methods=methods, baseline="lora") == (
        "All 3 methods share the best exact match, 0.0%; lora and pissa keep equally much (recall "
        "of facts), 20.0%."
    )
    both = [{**r, "condition": c} for c in ("a", "b") for r in rows]
    asked = {"methods": methods, "baseline": "full", "conditions": {"a": {}, "b": {}}}
    assert told(tmp_path / "2", both, **asked) == (
        "All 3 methods share the best exact match in all 2 conditions; lora and pissa keep equally "
        "much (recall of facts) in all 2 conditions, with no difference to full beyond the 95% "
        "interval."
    )


def test_a_mean_over_the_runs_that_went_well_does_not_lead_and_says_so(tmp_path):
    lost = runs("pissa", (0.9, 0.9, 0.9), (0.3, 0.3, 0.3))
    lost[2]["metrics"]["exact_match"] = None
    rows = [*LORA, *lost, *UNSURE]
    folder = write_rows(tmp_path, rows, methods=["lora", "pissa", "full"], baseline="lora")
    assert headline(read_study(folder)).startswith("full has the best exact match, 51.7%")
    assert "90.0% +- 0.0% (2 of 3)" in format_console(folder)
    assert "[+38.0%, +40.0%]" not in format_console(folder)
    write_report(folder)
    page = read(folder)
    assert re.search(r"90.0% ± 0.0% \(2 of 3\)", page)
    best = re.findall(r'<td class="[a-z]* best">([^<]+)', page)
    assert any(text.startswith("51.7%") for text in best)
    assert not any(text.startswith("90.0%") for text in best)


def test_a_sweep_that_chose_nothing_marks_nothing_as_chosen(tmp_path):
    tried = [
        {**row("lora", 0, error="oom"), "stage": "choose", "fields": {"learning_rate": r}}
        for r in (0.1, 0.2)
    ]
    final = {**row("lora", 0, error="its sweep chose nothing"), "fields": {"learning_rate": 0.1}}
    folder = write_rows(tmp_path, [*tried, final], methods=["lora"])
    (sweep,) = sweeps(read_study(folder))
    assert [line[2] for line in sweep.lines] == [False, False]


def test_conditions_whose_names_read_alike_have_pictures_of_their_own(tmp_path):
    rows = [*runs("lora", (0.5,), (0.4,), "n<100"), *runs("lora", (0.9,), (0.1,), "n>100")]
    folder = write_rows(tmp_path, rows, methods=["lora"], conditions={"n<100": {}, "n>100": {}})
    write_report(folder)
    pictures = re.findall(r'<img src="([^"]+)"', read(folder))
    assert len(pictures) == len(set(pictures)) == 2


def test_the_spectrum_of_a_model_that_was_lost_is_left_out(tmp_path):
    spectrum = {"before": [3.0, 2.0, 1.0], "after": [None, None, None]}
    good = {"before": [3.0, 2.0, 1.0], "after": [4.0, 2.0, 1.0]}
    details = {"lora/seed-0": {"spectrum": spectrum}, "pissa/seed-0": {"spectrum": good}}
    rows = [*runs("lora", (0.5,), (0.4,)), *runs("pissa", (0.5,), (0.4,))]
    folder = write_rows(tmp_path, rows, details, methods=["lora", "pissa"])
    write_report(folder)
    assert "singular values" in read(folder)


FAILED = [row("lora", s, error="killed by signal 9 (out of memory?)") for s in (0, 1)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (FAILED, "No cell finished: 2 of 2 failed."),
        ([], "No cell has run."),
        ([row("base", None, exact_match=0.5)], "No method that trains has a figure to compare."),
        (
            [row("lora", 0, exact_match=0.5)],
            "lora has the best exact match, 50.0%, and is the baseline.",
        ),
        ([row("lora", 0, accuracy=0.5)], "lora has the best accuracy, 50.0%, and is the baseline."),
        ([row("lora", 0)], "No method that trains has a figure to compare."),
    ],
    ids=["all failed", "no rows", "only base", "one run", "classification", "no metrics"],
)
def test_a_page_with_missing_parts_renders(tmp_path, rows, expected):
    folder = write_rows(tmp_path, rows, methods=["lora"], baseline="lora")
    write_report(folder)
    text = read(folder)
    assert html.escape(expected, quote=False) in text
    assert "What was run" in text
    assert "Samples" not in text


def test_a_page_without_comparison_yaml_renders(tmp_path):
    folder = write_rows(tmp_path, LORA)
    (folder / "comparison.yaml").unlink()
    write_report(folder)
    assert "lora" in read(folder)


def test_a_sample_that_is_too_long_is_cut_and_says_so(tmp_path):
    made = {"samples": [{"prompt": "p", "gold": "g", "before": "b" * 5000, "after": None}]}
    folder = write_rows(tmp_path, LORA, {"lora/seed-0": made}, methods=["lora"])
    write_report(folder)
    assert "b" * 701 not in read(folder)
    assert "[... 4300 more characters]" in read(folder)


def test_samples_of_many_conditions_and_methods_stay_within_their_budget(tmp_path):
    text = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 1000
    conditions, methods = [f"c{i}" for i in range(12)], [f"m{i}" for i in range(9)]
    made = [{"prompt": f"{i}{text}", "gold": text, "before": text, "after": text} for i in range(5)]
    rows = [row(m, 0, c, exact_match=0.5) for c in conditions for m in methods]
    details = {r["cell"]: {"samples": made} for r in rows}
    study = read_study(write_rows(tmp_path, rows, details, methods=methods))
    found = samples(study, study.details())
    assert sum(map(len, found.values())) == 60
    assert 300_000 < len(json.dumps(found, ensure_ascii=False).encode()) < 700_000


def test_versions_that_differ_are_all_named(tmp_path):
    rows = [row("lora", s, exact_match=0.5) for s in range(3)]
    rows[2]["versions"] = {"torch": "9.9"}
    folder = write_rows(tmp_path, rows, methods=["lora"])
    write_report(folder)
    assert "0.0.fake (2 cells), 9.9 (1 cells)" in read(folder)


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no rows yet"):
        write_report(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingPackageError, match=rf"needs {package}.*pip install 'balora\[report\]'"
    ):
        write_report(write_rows(tmp_path, LORA, methods=["lora"]))
    assert issubclass(MissingPackageError, ConfigError)


@pytest.fixture(scope="module")
def browser():
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if found is None:
        if os.environ.get("BALORA_REQUIRE_BROWSER") == "1":
            pytest.fail("BALORA_REQUIRE_BROWSER is 1, and there is no chromium on PATH")
        pytest.skip("no chromium on PATH")
    return found


def open_page(browser, profile, *options):
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def colours(image):
    return len(image.getcolors(1 << 24))


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_the_page_is_drawn_in_a_browser(folder, browser, tmp_path, width):
    shot = tmp_path / "shot.png"
    address = (folder / "report.html").as_uri()
    options = (f"--window-size={width},5000", f"--screenshot={shot}", address)
    open_page(browser, tmp_path / "profile", *options)
    with Image.open(shot) as image:
        whole = image.convert("RGB")
    assert whole.size == (width, 5000)
    # text, tables and plots all the way down, not one screen above an empty page
    for top in range(0, 5000, 1000):
        assert colours(whole.crop((0, top, width, top + 1000))) > 20, f"blank below {top} px"


PROBE = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const images = [...document.images];
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
  root.dataset.wide = [...document.querySelectorAll("body *")].filter((e) =>
    !e.closest(".scroll") && !e.closest("pre") && e.getBoundingClientRect().right > innerWidth + 1
  ).length;
  root.dataset.images = images.filter((i) => i.complete && i.naturalWidth > 100).length;
  root.dataset.scrolls = [...document.querySelectorAll("#figures > .scroll")].filter(
    (e) => e.scrollWidth > e.clientWidth).length;
});
</script></body>"""


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_nothing_is_wider_than_the_page(page, browser, tmp_path, width):
    # the page itself forbids scripts: the probe goes into a copy that does not
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy = tmp_path / "probed.html"
    copy.write_text(probed.replace("</body>", PROBE), encoding="utf-8")
    options = (f"--window-size={width},900", "--dump-dom", copy.as_uri())
    dom = open_page(browser, tmp_path / "profile", *options)
    found = dict(re.findall(r'data-(\w+)="(\d+)"', dom[:500]))
    assert found["overflow"] == "0"
    assert found["wide"] == "0"
    assert found["images"] == "21"
    # the main tables fit a laptop; on a phone they scroll within their own box
    assert found["scrolls"] == ("3" if width == PHONE else "0")


def test_the_templates_are_in_the_package():
    templates = Path(report.__file__).parent / "templates"
    assert {file.name for file in templates.iterdir()} == {"report.html.jinja", "report.css"}
