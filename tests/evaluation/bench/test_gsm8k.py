"""GSM8K: a number in any form is that number, and never another one."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.errors import DataError
from balora.evaluation.bench.benchmark import Problem
from balora.evaluation.bench.config import BenchConfig
from balora.evaluation.bench.gsm8k import Gsm8k, paper_number
from balora.evaluation.bench.markers import final_answer
from balora.evaluation.bench.numbers import the_number

# the gold answer is 1200
RIGHT = [
    *("1200", "1,200", "1200.", "1200.00", "+1200", "(1200)", "1200!", "1200th", "`1200`"),
    *("$1,200", "$1200.00.", "\\$1200", "USD 1200", "1200 USD", "Rs. 1200", "US$1,200"),
    *("\\boxed{1200}", "$\\boxed{1{,}200}$", "$1200$", "$$1200$$", "\\[1200\\]", "1\\,200"),
    *("x = 1200", "$x = 1200$", "= 1200", "12 * 100 = 1200", "$12 * $100 = $1200"),
    *("**1200**", "**$1,200**", "_1200_", "\n1200", "1 200"),
    *("2400/2", "\\frac{2400}{2}", "\\dfrac{2400}{2}", "1.2e3", "1.2 \\times 10^3"),
    *("1.2k", "1.2 thousand", "1200%", "1200\\%", "1200 (or 1,200)", "1200 m^2", "1200 m\u00b2"),
    *("about 1200", "approximately 1200 hours", "1200 dollars", "There are 1200 apples."),
    *("1200 square feet", "\\text{1200 apples}", "1200\\text{ cm}^2", "\u20ac1200"),
    *("1'200", "1\u2019200", "1_200", "1.2\u00b710^3", "12\u22c510^2", "$0.0012M", "$1.2 thousand"),
    *(
        "x_1 = 1200",
        "x_{10} = 1200",
        "f(2) = 1200",
        "P(3) = 1200 apples",
        "1200 feet squared",
        "1200^\\circ",
    ),
    *("1200, because 3*400 = 1200", "1200. She has 5 left.", "\uff11\uff12\uff10\uff10"),
]
WRONG = [
    *("1200.4", "1200.5", "1200.0001", "1199.999", "1,200,000", "12000", "120", "1201", "2400"),
    *("-1200", "$-1200", "-$1200", "\u22121200", "minus 1200", "1200 = 1300", "1.200.000"),
    *("1200 or 1300", "1200-1300", "between 1200 and 1300", "1200 and 5", "x = 1200, y = 5"),
    *("not 1200", "more than 1200", "$1200 - $300", "1200 hours and 30 minutes", "12:00"),
    *("1200/7", "\\frac{1200}{5}", "3 1200/2", "1200\u00bd", "12e3", "1200k", "1200 million"),
    *(
        "1200+1200",
        "1200 - 1200",
        "1200*1200",
        "1200 \\times 1200",
        "1200 \u00f7 1200",
        "1200 x 1200",
    ),
    *("1200 and a half", "1200 and one half", "1200 and a quarter", "$1200M", "\u20ac1200 bn"),
    *("1200 pi", "1200pi", "sqrt(1200)", "1200 squared", "1200 cubed", "1200 factorial"),
    *("1200^2", "1200\u00b2", "\\sqrt{1200}", "1200\\pi", "1200.50 dollars", "", "none"),
]
OTHERS = {
    "3 1/2": Fraction(7, 2),
    "3\\frac{1}{2}": Fraction(7, 2),
    "3\u00bd": Fraction(7, 2),
    "-3 1/2": Fraction(-7, 2),
    "3 and a half": Fraction(7, 2),
    "3 and three quarters": Fraction(15, 4),
    "two thirds": None,
    "$1.8M": Fraction(1_800_000),
    "$2 bn": Fraction(2 * 10**9),
    "9+9": None,
    "5'6": None,
    ".5": Fraction(1, 2),
    "\\frac12": Fraction(1, 2),
    "- 5": Fraction(-5),
    "1,20,000": Fraction(120_000),
    "5 apples and 5 pears": Fraction(5),
    "1e400000000": None,
    "5/0": None,
    "9" * 5000: None,
}


def judged(text, gold="1200"):
    gsm8k = Gsm8k(BenchConfig(benchmarks=["gsm8k"]))
    return gsm8k.judge([Problem("0", "?", {"gold": gold})], [text])[0].scores


@pytest.mark.parametrize(("forms", "expected"), [(RIGHT, 1.0), (WRONG, 0.0)], ids=["n", "not n"])
def test_a_form_is_the_number_or_is_not(forms, expected):
    verdicts = {form: judged(f"So 3 * 4 = 12. The answer is: {form}")["gsm8k"] for form in forms}
    assert [form for form, verdict in verdicts.items() if verdict != expected] == []


@pytest.mark.parametrize("form", OTHERS)
def test_forms_of_other_numbers(form):
    assert the_number(form) == OTHERS[form]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1,200", "1,200"),
        ("The final answer is $12$. I hope it is correct.", "$12$"),
        ("**Answer:** 7", "7"),
        ("the answer would be 7 cats. Fine.", "7 cats"),
        ("Therefore the answer is\n\\[ \\boxed{\\frac{1}{2}} \\]\nDone", "\\frac{1}{2}"),
        ("The answer is: 7. The answer is: 8", "8"),
        ("The answer is: 8 The answer is:", "8"),
        ("1200, I think", None),
        ("The answer is:", None),
        ("\\boxed{12", None),
    ],
)
def test_what_follows_the_last_marker_counts(text, answer):
    assert final_answer(text) == answer


def test_an_answer_without_a_marker_is_none_and_counts_as_unanswered():
    scores = judged("She has 1200")
    assert (scores["gsm8k"], scores["unanswered"], scores["gsm8k_flexible"]) == (0, 1, 1)
    assert judged("The answer is: 1200")["unanswered"] == 0


def test_the_authors_rule_rounds_and_reads_one_separator():
    """What their script does, faults included: it is reported beside ours, to be compared."""
    for text in ("1200.4", "1200.5", "1200 or 1300", "2400/2", "1,200"):
        assert paper_number(f"The answer is: {text}") == 1200, text
    assert paper_number("The answer is: 1,200,000") == 1200
    for text in ("\\boxed{1{,}200}", "1.2e3"):
        assert paper_number(f"The answer is: {text}") != 1200, text
    assert paper_number("#### 1200") is None
    assert paper_number("The answer is: 3/0") == 3
    assert paper_number("The answer is: " + "9" * 5000) is None


PLACES = [
    "{}", "{}.", "${}", "\\${}", "{} dollars", "**{}**", "\\boxed{{{}}}", "${}$", "x = {}",
    "about {}", "{}%", "USD {}", "{} km.", "It is {} in all.", "\\( {} \\)", "{}.00",
]  # fmt: skip
NUMBERS = st.integers(-(10**12), 10**12)


def written(number, style):
    return {
        "plain": str(number),
        "commas": f"{number:,}",
        "latex": f"{number:,}".replace(",", "{,}"),
        "point": f"{number}.0",
        "fraction": f"{3 * number}/3",
        "frac": f"\\frac{{{7 * number}}}{{7}}",
        "power": f"{number}e0",
    }[style]


STYLES = ["plain", "commas", "latex", "point", "fraction", "frac", "power"]


def forms(number, style, place):
    text = written(number, style)
    if place.endswith(".00") and style not in ("plain", "commas"):
        place = "{}"
    return f"The answer is: {place.format(text)}"


@given(NUMBERS, st.sampled_from(STYLES), st.sampled_from(PLACES))
def test_a_number_in_any_form_is_that_number(number, style, place):
    text = forms(number, style, place)
    assert judged(text, str(number))["gsm8k"] == 1.0, text


@given(NUMBERS, NUMBERS, st.sampled_from(STYLES), st.sampled_from(PLACES))
def test_a_number_is_never_another_one(number, other, style, place):
    text = forms(number, style, place)
    for wrong in {other, number + 1, number - 1, 10 * number, -number} - {number}:
        assert judged(text, str(wrong))["gsm8k"] == 0.0, (text, wrong)


@given(NUMBERS, NUMBERS)
def test_two_numbers_are_no_answer(number, other):
    if number != other:
        for between in (" or ", ", ", " and ", "; "):
            text = f"The answer is: {number}{between}{other}"
            for gold in (number, other):
                assert judged(text, str(gold))["gsm8k"] == 0.0, text


def problems_of(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = BenchConfig(benchmarks=["gsm8k"], gsm8k={"dataset_name": str(file)})
    return Gsm8k(config).problems()


def test_the_gold_answer_is_read_as_published(tmp_path):
    found = problems_of(tmp_path, {"question": "How many?", "answer": "2*600=1200\n#### 1,200"})
    assert [(one.instruction, one.row["gold"]) for one in found] == [("How many?", "1200")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "?", "answer": "12"}, "line 2: `answer` has no number after `####`"),
        ({"question": " ", "answer": "#### 12"}, "line 2: `question` is empty"),
        ({"question": "?", "answer": None}, "line 2: `answer` is missing or null"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_by_its_line(row, words, tmp_path):
    with pytest.raises(DataError, match=words):
        problems_of(tmp_path, {"question": "?", "answer": "#### 1"}, row)


@pytest.mark.slow
def test_every_published_answer_is_read(shared_data):
    lines = (shared_data / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()
    assert len(lines) > 7000
    for line in lines:
        answer = json.loads(line)["answer"]
        gold = Fraction(answer.split("#### ")[1].replace(",", ""))
        assert judged(answer, str(gold))["gsm8k"] == 1.0, answer
