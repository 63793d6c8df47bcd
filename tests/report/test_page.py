"""The page: what it says, what it holds, and how it looks in a browser."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from balora.report import page as report
from balora.report.page import MissingPackageError, write_report
from balora.report.plots import Plot
from balora.report.sections import around, samples, sweeps
from balora.report.study import read_study
from balora.report.tables import format_console
from support.browser import found_browser, open_page
from support.fake_comparison import METHODS, SCRIPT, row, runs, write_comparison, write_rows

LAPTOP, PHONE = 1280, 390
LORA = runs("lora", (0.50, 0.52, 0.51), (0.40, 0.42, 0.41))
UNSURE = runs("full", (0.60, 0.45, 0.50), (0.35, 0.37, 0.36))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("report"))
    write_report(read_study(folder))
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return read(folder)


def read(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


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

    def pictures():
        (kind,) = report._by_kind(plots)
        return kind["pictures"]

    whole = sum(len(source) for source, _ in pictures())
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", whole - 1)
    assert {source.partition(";")[0] for source, _ in pictures()} == {"data:image/png"}
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", 100_000)
    assert sum(len(source) for source, _ in pictures()) <= 100_000
    assert "see plots/" in pictures()[-1][1]


def test_samples_are_escaped(page):
    assert SCRIPT not in page
    assert html.escape(SCRIPT, quote=False).replace("'", "&#39;") in page


def test_names_and_errors_are_escaped(tmp_path):
    rows = [row("<i>", 0, exact_match=0.5), row("lora", 0, error="<img src=x> & more")]
    folder = write_rows(tmp_path, rows, methods=["<i>", "lora"], baseline="lora")
    write_report(read_study(folder))
    text = read(folder)
    assert "<i>" not in text
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt; &amp; more" in text


def test_the_page_has_every_part(page):
    headings = re.findall(r"<h2>([^<]+)</h2>", page)
    assert headings == [
        "Results",
        *(title for kind, (title, _) in report._KINDS.items() if kind != "summary"),
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


def test_a_mean_over_the_runs_that_went_well_is_not_in_bold(tmp_path):
    lost = runs("pissa", (0.9, 0.9, 0.9), (0.3, 0.3, 0.3))
    lost[2]["metrics"]["exact_match"] = None
    rows = [*LORA, *lost, *UNSURE]
    folder = write_rows(tmp_path, rows, methods=["lora", "pissa", "full"], baseline="lora")
    assert "90.0% (same) (2 of 3)" in format_console(read_study(folder))
    write_report(read_study(folder))
    page = read(folder)
    assert "90.0% (same) (2 of 3)" in page
    best = re.findall(r'<td class="best"[^>]*>([^<]+)', page)
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


def test_the_sweep_of_each_model_is_told_apart(tmp_path):
    def of(place, rate, *, stage):
        one = {**row("lora", 0, exact_match=rate), "condition": place}
        return {**one, "cell": f"{stage}/{place}/{rate}", "stage": stage, "fields": {"lr": rate}}

    tried = [of(f"{m}/a", rate, stage="choose") for m in ("one", "two") for rate in (0.1, 0.2)]
    final = [
        of(f"{m}/{c}", rate, stage="final")
        for m, rate in (("one", 0.1), ("two", 0.2))
        for c in "ab"
    ]
    models = {name: {"model_name_or_path": f"x/{name}"} for name in ("one", "two")}
    settings = {"methods": ["lora"], "models": models, "conditions": {"a": {}, "b": {}}}
    folder = write_rows(tmp_path, [*tried, *final], **settings)
    found = {sweep.name: [line[2] for line in sweep.lines] for sweep in sweeps(read_study(folder))}
    assert found == {"one/lora": [True, False], "two/lora": [False, True]}


def test_a_comparison_that_is_not_finished_says_what_is_missing(tmp_path):
    asked = {"methods": ["lora", "pissa"], "seeds": [0, 1], "baseline": "lora"}
    folder = write_rows(tmp_path, [row("lora", 0, exact_match=0.5)], **asked)
    write_report(read_study(folder))
    page = read(folder)
    assert "<b>3</b> missing cells" in page
    assert "<dt>seeds</dt><dd>0, 1</dd>" in page
    assert "lora/seed-1, pissa/seed-0, pissa/seed-1" in page
    assert "best" not in re.sub(r"<style>.*?</style>|<p class.*?</p>", "", page, flags=re.S)


def test_the_majority_class_is_a_line_of_the_table(tmp_path):
    rows = [row(m, s, accuracy=a) for m, a in (("lora", 0.5), ("full", 0.9)) for s in (0, 1)]
    for one in rows:
        one["majority"] = {"accuracy": 0.6}
    folder = write_rows(tmp_path, rows, methods=["lora", "full"], seeds=[0, 1], baseline="lora")
    write_report(read_study(folder))
    line = re.search(r'<tr class="aside">.*?majority class.*?</tr>', read(folder), re.S)[0]
    assert re.findall(r"<td[^>]*>([^<]*)", line)[:2] == ["60.0%", "+10.0% (same)"]
    assert "<b>2</b> methods" in read(folder)


def test_where_there_are_no_learning_curves_a_word_says_why(tmp_path, page):
    folder = write_rows(tmp_path, LORA, methods=["lora"], baseline="lora")
    write_report(read_study(folder))
    assert "fewer steps than <code>logging_steps</code>" in read(folder)
    assert "logging_steps" not in page


def test_conditions_whose_names_read_alike_have_pictures_of_their_own(tmp_path):
    rows = [*runs("lora", (0.5,), (0.4,), "n<100"), *runs("lora", (0.9,), (0.1,), "n>100")]
    folder = write_rows(tmp_path, rows, methods=["lora"], conditions={"n<100": {}, "n>100": {}})
    write_report(read_study(folder))
    pictures = re.findall(r'<img src="([^"]+)"', read(folder))
    assert len(pictures) == len(set(pictures)) == 2


def test_the_spectrum_of_a_model_that_was_lost_is_left_out(tmp_path):
    spectrum = {"before": [3.0, 2.0, 1.0], "after": [None, None, None]}
    good = {"before": [3.0, 2.0, 1.0], "after": [4.0, 2.0, 1.0]}
    details = {"lora/seed-0": {"spectrum": spectrum}, "pissa/seed-0": {"spectrum": good}}
    rows = [*runs("lora", (0.5,), (0.4,)), *runs("pissa", (0.5,), (0.4,))]
    folder = write_rows(tmp_path, rows, details, methods=["lora", "pissa"])
    write_report(read_study(folder))
    assert "singular values" in read(folder)


FAILED = [row("lora", s, error="killed by signal 9 (out of memory?)") for s in (0, 1)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (FAILED, "No cell finished: 2 of 2 failed."),
        ([], "No cell has run."),
        ([row("base", None, exact_match=0.5)], "<h1>Exact match</h1>"),
        ([row("lora", 0, exact_match=0.5)], "<h1>Exact match</h1>"),
        ([row("lora", 0, accuracy=0.5)], "<h1>Accuracy</h1>"),
        ([row("lora", 0)], "<h1>No metrics yet</h1>"),
    ],
    ids=["all failed", "no rows", "only base", "one run", "classification", "no metrics"],
)
def test_a_page_with_missing_parts_renders(tmp_path, rows, expected):
    folder = write_rows(tmp_path, rows, methods=["lora"], baseline="lora")
    write_report(read_study(folder))
    text = read(folder)
    assert expected in text
    assert "What was run" in text
    assert "Samples" not in text


def test_a_page_without_comparison_yaml_renders(tmp_path):
    folder = write_rows(tmp_path, LORA)
    (folder / "comparison.yaml").unlink()
    write_report(read_study(folder))
    assert "lora" in read(folder)


def test_the_template_of_the_prompts_is_told_once(tmp_path):
    questions = ["How many pens?\n\nTom has 2.", "How many hats?\n\nAda has 3."]
    made = [
        {"prompt": f"Answer briefly.\n\n### Q:\n{q}\n\n### A:\n", "gold": "", "before": ""}
        for q in questions
    ]
    folder = write_rows(tmp_path, LORA, {"lora/seed-0": {"samples": made}}, methods=["lora"])
    study = read_study(folder)
    ((template, found),) = samples(study).values()
    assert template == "Answer briefly.\n\n### Q:\n[...]\n\n### A:\n"
    assert [sample.prompt for sample in found] == questions
    assert around(["the same\nprompt"] * 2) == around(["one\nprompt"]) == ("", "")
    write_report(read_study(folder))
    assert read(folder).count("Answer briefly.") == 1


def test_a_sample_that_is_too_long_is_cut_and_says_so(tmp_path):
    made = {"samples": [{"prompt": "p", "gold": "g", "before": "b" * 5000, "after": None}]}
    folder = write_rows(tmp_path, LORA, {"lora/seed-0": made}, methods=["lora"])
    write_report(read_study(folder))
    assert "b" * 701 not in read(folder)
    assert "[... 4300 more characters]" in read(folder)


def test_samples_of_many_conditions_and_methods_stay_within_their_budget(tmp_path):
    text = "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 1000
    conditions, methods = [f"c{i}" for i in range(12)], [f"m{i}" for i in range(9)]
    made = [{"prompt": f"{i}{text}", "gold": text, "before": text, "after": text} for i in range(5)]
    rows = [row(m, 0, c, exact_match=0.5) for c in conditions for m in methods]
    details = {r["cell"]: {"samples": made} for r in rows}
    study = read_study(write_rows(tmp_path, rows, details, methods=methods))
    found = samples(study)
    assert sum(len(made) for _, made in found.values()) == 60
    assert 300_000 < len(json.dumps(found, ensure_ascii=False).encode()) < 700_000


def test_versions_that_differ_are_all_named(tmp_path):
    rows = [row("lora", s, exact_match=0.5) for s in range(3)]
    rows[2]["versions"] = {"torch": "9.9"}
    folder = write_rows(tmp_path, rows, methods=["lora"])
    write_report(read_study(folder))
    assert "0.0.fake (2 cells), 9.9 (1 cells)" in read(folder)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rf"{package} is not installed, .*: `pip install 'balora\[report\]'`\."
    with pytest.raises(MissingPackageError, match=sentence):
        write_report(read_study(write_rows(tmp_path, LORA, methods=["lora"])))


@pytest.fixture(scope="module")
def browser():
    return found_browser()


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
    # the shadow at the edge of a table says that it goes on; the main tables do not
    edge = [whole.getpixel(((374 if width == PHONE else 1248) - 3, y)) for y in range(1500)]
    darker = sum(160 < red < 225 and red == green == blue for red, green, blue in edge)
    assert darker < 10
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
  root.dataset.scrolls = [...document.querySelectorAll("#metrics > .scroll")].filter(
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
    # the main tables fit; on a phone they have a figure a line
    assert found["scrolls"] == "0"


def test_the_templates_are_in_the_package():
    templates = Path(report.__file__).parent / "templates"
    assert {file.name for file in templates.iterdir()} == {"report.html.jinja", "report.css"}
