"""Figures in prose are those of the rows: README and docs against `benchmarks/results`."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.claims import claims

ROOT = Path(__file__).parents[1]
CLAIMS = [(page, piece) for page, pieces in claims().items() for piece in pieces]


@pytest.mark.parametrize(("page", "piece"), CLAIMS)
def test_a_page_says_what_the_rows_say(page, piece):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert piece in text


@pytest.mark.parametrize("page", ["README.md", "docs/findings.md", "docs/experiments.md"])
@pytest.mark.parametrize(
    "claim", ["do nothing that shows,", "is PiSSA**:", "change nothing that shows;", "is PiSSA;"]
)
def test_no_difference_is_claimed_of_all_columns_where_some_were_looked_at(page, claim):
    assert claim not in " ".join((ROOT / page).read_text(encoding="utf-8").split())
