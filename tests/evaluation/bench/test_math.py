"""MATH: an answer in any of its forms is the reference, and a near one is not."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from balora.errors import ConfigError, DataError
from balora.evaluation.bench.benchmark import Problem
from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.markers import last_boxed
from balora.evaluation.bench.math_answers import MathVerify, paper_answer, paper_equal
from balora.evaluation.bench.math_problems import Math

GOLDS = [
    *("42", "-50", "2220", "\\frac{14}{3}", "-\\frac{35}{9}", "\\frac43", "3\\sqrt{13}", "1.25"),
    *("\\left( 3, \\frac{\\pi}{2} \\right)", "90^\\circ", "6 - 5i", "(3,4]", "\\text{Evelyn}"),
    *("x^3+3x-6", "\\begin{pmatrix} -2 \\\\ -14 \\\\ -7 \\end{pmatrix}", "p - q", "204_5"),
    *("\\$32,\\!348", "1 \\pm \\sqrt{19}", ".0000672", "3, 5, 7", "\\frac{\\sqrt{3}}{3}"),
]


def forms(gold):
    """Yield texts that say the reference, by the form."""
    yield "plain", f"So. The answer is: {gold}"
    yield "full stop", f"The answer is: {gold}."
    yield "marker twice", f"The answer is: 3. The answer is: {gold}\nThe answer is: {gold}"
    yield "dollars", f"The answer is: ${gold}$."
    yield "boxed", f"Thus $\\boxed{{{gold}}}$."
    yield "is boxed", f"The answer is: $\\boxed{{{gold}}}$."
    yield "Minerva", f"Final Answer: The final answer is ${gold}$. I hope it is correct."
    if "frac" in gold:
        as_d = gold.replace("\\dfrac", "\\frac").replace("\\frac", "\\dfrac")
        yield "dfrac", f"The answer is: {as_d}"
    if found := re.fullmatch(r"(-?)\\d?frac\{(\d+)\}\{(\d+)\}", gold):
        sign, above, below = found.groups()
        doubled = f"\\frac{{{2 * int(above)}}}{{{2 * int(below)}}}"
        yield "unreduced", f"The answer is: {sign}{doubled}"
        yield "a/b", f"The answer is: {sign}{above}/{below}"
    if re.fullmatch(r"-?\d+", gold):
        yield "n.0", f"The answer is: {gold}.0"
        yield "thousands", f"The answer is: {int(gold):,}"
        yield "x = n", f"The answer is: x = {gold}"
        yield "unit in text", f"The answer is: {gold} \\text{{ cm}}"
        yield "unit in words", f"The answer is: {gold} square meters."
        yield "sentence", f"The answer is that the area is ${gold}$ square meters."


def near(gold):
    """Yield texts that say something else, of a reference that is a whole number."""
    if re.fullmatch(r"-?\d+", gold):
        n = int(gold)
        others = (n + 1, n - 1, f"{n}7", -n or 1, 12345, f"{n} or {n + 3}", f"{n}, {n + 3}")
        others += (f"${n}$ or ${n + 3}$", f"${n}$, ${n + 3}$", f"{n} and {n + 3}", f"{n}.5")
        yield from (f"The answer is: {other}" for other in others)


def judged(golds_and_texts, **settings):
    config = BenchConfig(benchmarks=["math"], **settings)
    problems = [Problem(str(i), "?", {"gold": gold}) for i, (gold, _) in enumerate(golds_and_texts)]
    return Math(config).judge(problems, [text for _, text in golds_and_texts])


def wrong_verdicts(golds):
    """Return forms that are refused, near answers that are taken, and neighbours that are."""
    right = [(gold, text) for gold in golds for _, text in forms(gold)]
    wrong = [(gold, text) for gold in golds for text in near(gold)]
    wrong += [
        (gold, f"The answer is: {other}")
        for gold, other in pairwise(golds)
        if gold != other.removeprefix("x=")
    ]
    verdicts = judged([*right, *wrong])
    expected = [1.0] * len(right) + [0.0] * len(wrong)
    pairs = zip([*right, *wrong], verdicts, expected, strict=True)
    return [pair for pair, verdict, score in pairs if verdict.scores["math"] != score]


def test_a_reference_in_any_form_is_itself_and_no_near_answer_is():
    assert wrong_verdicts(GOLDS) == []


# forms of a reference that a reader would take for it, and some that only look like it
SAME = [
    *[("2500", "2 500"), ("5", "5 cm^2"), ("5", "5 square cm."), ("5", "approximately 5")],
    *[("2\\pi", "2 pi"), ("3\\sqrt{13}", "3 sqrt(13)"), ("\\frac{3}{2}", "1 1/2")],
    *[("500", "5 hundred"), ("2000000", "2 million"), ("25", "5 squared"), ("120", "5 factorial")],
    *[("204_5", "204_{5}"), ("204_5", "204"), ("10", "\\binom{5}{2}"), ("-3", "(-3)")],
    *[("(3,4]", "\\left(3, 4\\right]"), ("1,2,3", "3, 2 and 1"), ("x \\le 3", "3 \\ge x")],
    *[("\\text{(C)}", "C"), ("\\{1,2\\}", "\\{2, 1\\}"), ("2x+1", "y = 2x+1"), ("5", "5 times")],
]
OTHER = [
    *[
        ("2", "2 pi"),
        ("13", "sqrt(13)"),
        ("5", "5 hundred"),
        ("5", "5 million"),
        ("5", "5 squared"),
    ],
    *[
        ("5", "5 factorial"),
        ("5", "5 or more"),
        ("5", "5 plus"),
        ("204_5", "204_6"),
        ("204", "204_5"),
    ],
    *[("(3,4]", "[3,4]"), ("(1,2)", "(2,1)"), ("\\{1,2\\}", "\\{1,3\\}"), ("1,2,3", "1,2")],
    *[("\\sqrt{2}", "1.414"), ("2\\pi", "6.28"), ("\\frac13", "0.333"), ("x \\le 3", "x < 3")],
    *[("6-5i", "6+5i"), ("2:3", "3:2"), ("12:30", "12:31"), ("5", "5!"), ("5", ""), ("5", "five?")],
    *[("1 \\pm \\sqrt{19}", "1+\\sqrt{19}"), ("\\text{odd}", "even"), ("\\infty", "-\\infty")],
]


def test_odd_forms_of_a_reference_and_what_only_looks_like_one():
    pairs = [(gold, f"The answer is: {answer}") for gold, answer in (*SAME, *OTHER)]
    scores = [verdict.scores["math"] for verdict in judged(pairs)]
    expected = [1.0] * len(SAME) + [0.0] * len(OTHER)
    assert [p for p, s, e in zip((*SAME, *OTHER), scores, expected, strict=True) if s != e] == []


@pytest.mark.slow
def test_all_published_references(shared_data):
    lines = (shared_data / "data" / "math" / "test_250.jsonl").read_text().splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    assert len(golds) == 250
    assert wrong_verdicts(golds) == []


def test_no_marker_is_unanswered_and_the_authors_rule_stands_beside_ours():
    boxed, bare, none = judged(
        [("5", "So $\\boxed{5}$"), ("5", "The answer is: 5."), ("5", "It is 5")]
    )
    assert boxed.scores == {"math": 1.0, "math_paper": 0.0, "unanswered": 0.0}
    assert bare.scores == {"math": 1.0, "math_paper": 1.0, "unanswered": 0.0}
    assert none.scores == {"math": 0.0, "math_paper": 0.0, "unanswered": 1.0}
    assert none.shown["status"].startswith("no answer")


def test_the_paper_alone_judges_where_that_is_asked_for():
    (one,) = judged([("5", "The answer is: 5")], math_scorer="paper")
    assert one.scores == {"math_paper": 1.0, "unanswered": 0.0}
    assert one.shown["status"] == "right"


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("\\frac{1}{2}", "\\dfrac12", True),
        ("\\frac{1}{2}", "1/2", True),
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{x}", "\\frac1{x}", True),
        ("\\frac{2}{x}", "\\frac2x", True),
        ("\\sqrt{3}", "\\sqrt3", True),
        ("5", "x = 5", True),
        ("5", "5\\text{ cm}", True),
        ("10080", "10,\\!080", False),
        ("90", "90^\\circ", True),
        ("0.5", ".5", True),
        ("5", "$5$", False),
        ("5", "5.0", False),
        ("10", "2 \\cdot 5", False),
    ],
)
def test_the_authors_rule_compares_cleaned_text(gold, answer, expected):
    assert paper_equal(gold, answer) is expected


def test_the_authors_rule_takes_what_follows_its_own_marker():
    assert paper_answer("The answer is: 3. The answer is: 5.\nMore") == "5"
    assert paper_answer("the answer is 5") is None


def test_a_comparison_that_takes_too_long_is_stopped_and_the_next_one_goes_on():
    endless = "9^{9^{9^{9^{9}}}} + \\sum_{k=1}^{10^{9}} k^{k}"
    with MathVerify(seconds=1.0) as library:
        assert library.equal(endless, f"{endless} + 1") is not True
        library.seconds = 60.0
        assert library.equal("\\frac12", "0.5") is True
        worker = library._worker
    assert worker is not None
    assert worker.returncode is not None


def test_without_math_verify_the_fix_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed\. Run `pip install 'balora"):
        Math(BenchConfig(benchmarks=["math"])).check()
    Math(BenchConfig(benchmarks=["math"], math_scorer="paper")).check()


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so $\\boxed{\\frac{1}{2}}$, not \\boxed{3}.", "3"),
        ("\\boxed{\\left\\{ 1, 2 \\right\\}}", "\\left\\{ 1, 2 \\right\\}"),
        ("\\boxed 5.", "5"),
        ("no box", None),
    ],
)
def test_the_answer_of_a_solution_is_boxed(solution, answer):
    assert last_boxed(solution) == answer


def test_rows_with_a_solution_alone_are_read_and_one_without_a_box_is_refused(tmp_path):
    file = tmp_path / "math.jsonl"
    rows = [{"problem": "1+1?", "solution": "\\boxed{2}", "type": "Algebra", "level": "Level 1"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    math = Math(BenchConfig(benchmarks=["math"], math={"dataset_name": str(file)}))
    assert math.problems()[0].row == {"gold": "2", "subject": "Algebra", "level": "Level 1"}
    rows.append({**rows[0], "solution": "2"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="line 2: `solution` has no answer in"):
        math.problems()
