"""What counts as the answer of a text."""

from __future__ import annotations

import pytest

from balora.evaluation import extract_answer

ANSWERS = {
    "3 + 4 = 7. The answer is: 7": "7",
    "The answer is 7.": "7",
    "the ANSWER is:\n7": "7",
    "He has <<3+4=7>>7 apples.\n#### 7": "7",
    "#### 1,234,567": "1234567",
    "The answer is: $1,200.50": "1200.5",
    "The answer is: -$5": "-5",
    "The answer is: 7.0": "7",
    "The answer is: 007": "7",
    "The answer is: -0": "0",
    "The answer is: .5": "0.5",
    "The answer is: 100": "100",
    "The answer is: +4": "4",
    "The answer is: 72%": "72",
    "The answer is: 18 dollars.": "18",
    "The answer is: 12345678901234567890123": "12345678901234567890123",
    # the last marker, and only its line
    "The answer is: 3. No, the answer is: 4\n5 + 5": "4",
    "The answer is: 3\n#### 9": "9",
    # not a number with something around it: kept as text
    "The answer is: 3 1/2": "3 1/2",
    "The answer is: 1/2": "1/2",
    "The answer is: 3 + 4": "3 + 4",
    "The answer is: Blue.": "blue",
    r"The answer is: \frac{1}{2}": r"\frac{1}{2}",
    # nothing to take
    "The answer may be 7": None,
    "The answer is:": None,
    "####  \n": None,
    "": None,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_extract_answer(text):
    assert extract_answer(text) == ANSWERS[text]


def test_numbers_beyond_float_precision_stay_apart():
    assert extract_answer("#### 9007199254740993") != extract_answer("#### 9007199254740992")
