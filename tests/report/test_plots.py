"""The plots of a comparison: the numbers behind them, the labels, the files."""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from balora.evaluation.metrics import METRICS
from balora.report import panels as drawings
from balora.report import plots
from balora.report.labels import ink, label_points, shortened, spread
from balora.report.panels import better, layer_groups, looks
from balora.report.plots import mean_curve, write_plots
from balora.report.study import read_study
from support.fake_comparison import CONDITIONS, LAYERS, row, write_comparison, write_rows


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return read_study(write_comparison(tmp_path_factory.mktemp("plots")))


@pytest.fixture(scope="module")
def drawn(study):
    return write_plots(study)


@functools.cache
def panels(kind, study):
    """Return the figures of a kind by condition; of the learning curves the last term's."""
    look = looks(study.trained)
    with drawings.style():
        return {c: f for c, _, _, f in plots._KINDS[kind](study, look)}


def test_each_kind_has_a_panel_per_condition_as_png_and_svg(drawn):
    number = len(CONDITIONS)
    kinds = [plot.kind for plot in drawn]
    assert {k: kinds.count(k) for k in kinds} == {
        "tradeoff": number,
        "curves": 4 * number,
        "spectra": number,
        "updates": number,
    }
    for plot in drawn:
        assert plot.stem.with_name(f"{plot.stem.name}.svg").read_text("utf-8").startswith("<?xml")
        with Image.open(plot.stem.with_name(f"{plot.stem.name}.png")) as image:
            assert image.width == round(200 * drawings.WIDTH)
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10
    assert len({plot.stem for plot in drawn}) == len(drawn)


def test_panels_are_small_enough_for_one_page(drawn):
    for plot in drawn:
        assert plot.stem.with_name(f"{plot.stem.name}.png").stat().st_size < 80_000


def test_pyplot_is_not_used():
    code = "import sys, balora.report.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_method_has_one_colour_in_all_plots(study):
    look = looks(study.trained)
    assert len({entry.colour for entry in look.values()}) == len(study.trained) == 8
    # the SVD term is on in two methods, which are not the first two
    lines = panels("curves", study)["clean"].axes[0].lines
    strong = [line.get_color() for line in lines if line.get_linewidth() == 1.6]
    assert strong == [look["balora"].colour, look["balora-consistency"].colour]
    bars = panels("tradeoff", study)["clean"].axes[0].containers
    means = [bar.lines[0].get_color() for bar in bars]
    assert means == [look[name].colour for name in study.trained]


def test_more_methods_than_colours_differ_in_dash_and_marker():
    look = looks([f"method-{i}" for i in range(27)])
    assert len(set(look.values())) == 27


def test_the_mean_curve_is_over_the_steps_that_all_seeds_span():
    lines = [
        (np.array([10.0, 20.0, 30.0]), np.array([1.0, 2.0, 3.0])),
        (np.array([20.0, 30.0, 40.0]), np.array([6.0, 7.0, 8.0])),
    ]
    curve = mean_curve(lines)
    assert curve.mean[0].tolist() == [20, 30]
    assert curve.mean[1].tolist() == [4.0, 5.0]


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    steps = np.arange(5000.0)
    curve = mean_curve([(steps, steps**2)], max_points=50)
    assert len(curve.mean[0]) == 50
    assert (curve.mean[0][0], curve.mean[0][-1]) == (0, 4999)
    assert curve.mean[1].tolist() == (curve.mean[0] ** 2).tolist()


def test_the_tradeoff_has_a_point_per_run_and_the_interval_of_the_mean(study):
    figure = panels("tradeoff", study)["clean"]
    axes = figure.axes[0]
    small = [line for line in axes.lines if line.get_markersize() == 3.5]
    assert len(small) == 8 * 5
    runs = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in small}
    assert (
        study.values("clean", "lora", "recall")[2],
        study.values("clean", "lora", "exact_match")[2],
    ) in runs
    bars = axes.containers[list(study.trained).index("lora")]
    across, along = (bar.get_segments()[0] for bar in bars.lines[2])
    kept = study.estimate("clean", "lora", "recall")
    score = study.estimate("clean", "lora", "exact_match")
    assert across[:, 0] == pytest.approx([kept.low, kept.high])
    assert along[:, 1] == pytest.approx([score.low, score.high])


def test_the_learning_curves_of_a_term_share_their_axes(study):
    found = [figure.axes[0] for figure in panels("curves", study).values()]
    assert len({axes.get_ylim() for axes in found}) == 1


def test_a_panel_of_the_tradeoff_is_filled_by_its_own_runs(study):
    for condition, figure in panels("tradeoff", study).items():
        axes = figure.axes[0]
        runs = [study.values(condition, method, "exact_match") for method in study.trained]
        values = [value for of_method in runs for value in of_method.values()]
        low, high = axes.get_ylim()
        assert low < min(values) <= max(values) < high
        assert max(values) - min(values) > 0.6 * (high - low)


def test_no_label_of_the_tradeoff_overlaps_another_or_leaves_the_axes(study):
    for figure in panels("tradeoff", study).values():
        axes = figure.axes[0]
        renderer = figure.canvas.get_renderer()
        names = [text for text in axes.texts if text.get_text() in study.trained]
        boxes = [text.get_window_extent(renderer) for text in names]
        assert len(boxes) == 8
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frame = axes.get_window_extent()
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)


def test_labels_of_coinciding_points_do_not_overlap():
    figure = Figure(figsize=(4, 3))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    points = {f"method-{i}": (0.5, 0.5) for i in range(6)}
    label_points(axes, points, dict.fromkeys(points, "#332288"), bars=[], others=[])
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_labels_at_the_right_stay_within_the_figure_and_apart(study):
    for kind in ("curves", "spectra"):
        for figure in panels(kind, study).values():
            renderer = figure.canvas.get_renderer()
            texts = [t for axes in figure.axes for t in axes.texts if t.get_text() in study.trained]
            boxes = [text.get_window_extent(renderer) for text in texts]
            assert boxes
            assert all(box.x1 <= figure.bbox.x1 for box in boxes)
            ordered = sorted(boxes, key=lambda box: box.y0)
            # extents of texts include room for descenders, so they may touch
            assert all(b.y0 - a.y0 > 0.9 * 8 for a, b in itertools.pairwise(ordered))


def test_spread_moves_as_little_as_it_must():
    assert spread([0.1, 0.9], 0.1, 0, 1) == [0.1, 0.9]
    assert spread([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    assert spread([0.0, 0.0], 0.1, 0, 1) == pytest.approx([0.0, 0.1])
    assert spread([1.0, 1.0, 1.0], 0.1, 0, 1) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.9, 0.1], 0.1, 0, 1) == [0.9, 0.1]
    assert spread([], 0.1, 0, 1) == []


def test_spread_takes_a_smaller_gap_where_there_is_no_room():
    assert spread([0.5] * 5, 0.5, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("x", "y", "arrow"),
    [
        ("recall", "exact_match", "\N{NORTH EAST ARROW}"),
        ("retention_loss", "exact_match", "\N{NORTH WEST ARROW}"),
        ("recall", "response_loss", "\N{SOUTH EAST ARROW}"),
        ("kl", "response_loss", "\N{SOUTH WEST ARROW}"),
        ("stereotype_score", "exact_match", None),
    ],
)
def test_the_arrow_points_to_the_better_corner(x, y, arrow):
    assert better(METRICS[x], METRICS[y]) == arrow


def test_the_spectrum_is_drawn_after_over_before(study):
    figure = panels("spectra", study)["clean"]
    upper, lower = figure.axes
    assert upper.get_yscale() == "log"
    rows = study.details("clean", "full", "spectrum")
    assert len(rows) == 5
    expected = np.mean([r["after"] for r in rows], axis=0) / np.array(rows[0]["before"])
    line = next(x for x in lower.lines if x.get_color() == looks(study.trained)["full"].colour)
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_the_map_of_updates_has_a_row_per_method_and_a_column_per_layer(study):
    figure = panels("updates", study)["clean"]
    table = figure.axes[0].images[0].get_array()
    assert table.shape == (8, len(LAYERS) + 2)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == list(study.trained)
    assert np.isnan(table.filled(np.nan)[names.index("lora"), 0])
    assert not np.isnan(table.filled(np.nan)[names.index("full")]).any()


def test_layers_are_grouped_by_block():
    layers = ["model.embed_tokens", "model.layers.0.a", "model.layers.0.b", "model.layers.1.a"]
    expected = [(0, 1, "emb"), (1, 3, "0"), (3, 4, "1"), (4, 5, "head")]
    assert layer_groups([*layers, "lm_head"]) == expected
    assert layer_groups(["transformer.h.11.attn.c_attn"]) == [(0, 1, "11")]


@pytest.mark.parametrize("colour", ["#DDCC77", "#88CCEE", "#332288", "#CC6677"])
def test_text_in_the_colour_of_a_method_can_be_read_on_white(colour):
    red, green, blue = ink(colour)
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in (red, green, blue)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 4.4


def test_a_long_name_is_cut():
    assert shortened("lora") == "lora"
    assert len(shortened("m" * 60)) == 26


def draw(folder, rows, details=None):
    study = read_study(write_rows(folder, rows, details, methods=["lora"], baseline="lora"))
    return [plot.kind for plot in write_plots(study)]


def test_what_is_not_there_is_not_drawn(tmp_path):
    assert draw(tmp_path / "failed", [row("lora", 0, error="no memory")]) == []
    assert draw(tmp_path / "task", [row("lora", 0, exact_match=0.5)]) == []
    assert draw(tmp_path / "bare", [row("lora", 0, exact_match=0.5, kl=1.0)]) == ["tradeoff"]
    empty = {"lora/seed-0": {"curves": [], "spectrum": {}, "updates": [], "samples": []}}
    assert draw(tmp_path / "empty", [row("lora", 0, exact_match=0.5)], empty) == []


def many(folder, number):
    """Return a study of so many methods, with curves, of two seeds each."""
    names = [f"method {i}" for i in range(number)]
    rows = [
        row(name, seed, exact_match=0.9 + 0.01 * seed, recall=0.5 + 0.01 * i)
        for i, name in enumerate(names)
        for seed in (0, 1)
    ]
    curve = {"curves": [{"step": s, "task_loss": 1.0 / (1 + s)} for s in range(3)]}
    details = {own["cell"]: curve for own in rows}
    return read_study(write_rows(folder, rows, details, methods=names, baseline=names[0]))


def test_intervals_wider_than_the_runs_do_not_set_the_axes(tmp_path):
    # two seeds that differ by one point have an interval of 6.4 points to either side
    (axes,) = panels("tradeoff", many(tmp_path, 2))[""].axes
    assert np.ptp(axes.get_ylim()) == pytest.approx(0.01 * 1.2)
    assert np.ptp(axes.get_xlim()) == pytest.approx(0.01 * 1.2)


def test_many_points_have_numbers_and_a_key_below(tmp_path):
    study = many(tmp_path, 33)
    figure = panels("tradeoff", study)[""]
    (axes,), (key,) = figure.axes, figure.legends
    assert {text.get_text() for text in axes.texts} == {str(i) for i in range(1, 34)}
    texts = [text.get_text() for text in key.get_texts()]
    assert texts == [f"{i} {name}" for i, name in enumerate(study.trained, start=1)]
    figure.canvas.draw()  # labels of axes find their place when they are drawn
    renderer = figure.canvas.get_renderer()
    label = axes.xaxis.label.get_window_extent(renderer)
    boxes = [text.get_window_extent(renderer) for text in key.get_texts()]
    assert all(0 <= box.y0 and box.y1 < label.y0 and box.x1 < figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_many_curves_have_room_for_their_names(tmp_path):
    (axes,) = panels("curves", many(tmp_path, 33))[""].axes
    renderer = axes.figure.canvas.get_renderer()
    boxes = sorted((t.get_window_extent(renderer) for t in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 33
    assert all(b.y0 - a.y0 > 0.9 * 8 for a, b in itertools.pairwise(boxes))


def test_names_are_no_mathematics(tmp_path):
    rows = [row("lora", 0, "$x^{$", exact_match=0.5, kl=1.0)]
    assert draw(tmp_path, rows) == ["tradeoff"]


def test_values_without_any_spread_are_drawn(tmp_path):
    made = {
        "curves": [{"step": 0, "task_loss": 0.0}],
        "spectrum": {"before": [1.0, 0.0], "after": [1.0, 0.5]},
        "updates": [{"layer": "head", "relative": 0.5}, {"layer": "other", "relative": 0.0}],
    }
    rows = [row("lora", 0, exact_match=0.0, recall=0.0)]
    kinds = draw(tmp_path, rows, {"lora/seed-0": made})
    assert kinds == ["tradeoff", "curves", "spectra", "updates"]


def test_where_every_run_has_nothing_the_axes_start_there(tmp_path):
    rows = [row("lora", seed, exact_match=0.0, recall=0.0) for seed in (0, 1)]
    study = read_study(write_rows(tmp_path, rows, methods=["lora"], baseline="lora"))
    (axes,) = panels("tradeoff", study)[""].axes
    assert axes.get_ylim() == axes.get_xlim() == (-0.05, 1.0)
    assert axes.yaxis.get_major_formatter()(0.5) == "50%"


def test_a_spectrum_without_a_before_is_drawn_alone(tmp_path):
    made = {"spectrum": {"after": [3.0, 2.0]}}
    assert draw(tmp_path, [row("lora", 0, exact_match=0.5)], {"lora/seed-0": made}) == ["spectra"]


def test_the_same_rows_give_the_same_files(tmp_path):
    contents = []
    for name in ("one", "two"):
        rows = [row("lora", s, exact_match=0.5 + s / 10, kl=1.0) for s in (0, 1)]
        draw(tmp_path / name, rows)
        contents.append((tmp_path / name / "plots" / "tradeoff.svg").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    "limits",
    [(0.0, 1e-4), (-0.974, -0.967), (-2.315, -2.30), (5.35001, 5.35004), (1e-3, 12.0), (0.0, 0.0)],
)
def test_the_ticks_of_a_curve_are_whole_and_within_the_figure(limits):
    steps = np.arange(3.0)
    line = np.linspace(*limits, 3)
    curve = drawings.Curve([(steps, line)], (steps, line))
    with drawings.style():
        figure = drawings.curves_panel(
            {"lora": curve}, looks(["lora"]), title="noise", quantity="a term", limits=limits
        )
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "noise: a term"
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert len({tick.get_text() for tick in axes.get_yticklabels()}) > 1
    assert axes.yaxis.get_tightbbox(figure.canvas.get_renderer()).x0 >= 0


def test_bars_below_zero_are_drawn_from_zero_to_the_left():
    bars = [
        drawings.Bar("", "lora", -20.0, None, None),
        drawings.Bar("", "balora", -12.0, 1.0, None),
    ]
    axes = drawings.bars_panel(bars, {}, title="", quantity="").axes[0]
    assert axes.get_xlim()[0] < -20
    above = [bar._replace(mean=12.0) for bar in bars]
    assert drawings.bars_panel(above, {}, title="", quantity="").axes[0].get_xlim()[0] == 0
