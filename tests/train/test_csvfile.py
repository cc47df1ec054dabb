from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchdfa.train.csvfile import to_csv


def read(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")'])
def test_formulas_are_shown_not_run(text):
    assert read(to_csv(["a"], [[text]])) == [["a"], [f"'{text}"]]


def test_numbers_and_empty_cells_are_left_alone():
    assert to_csv(["a", "b"], [[-1.5, None], [3, "x=1"]]) == b"a,b\r\n-1.5,\r\n3,x=1\r\n"


def test_names_that_are_no_utf8_are_escaped():
    assert to_csv(["a"], [["caf\udce9.jpg"]]) == b"a\r\ncaf\\udce9.jpg\r\n"


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)))
def test_every_text_comes_back_and_none_is_a_formula(rows):
    found = read(to_csv(["a", "b"], rows))
    assert [[text.removeprefix("'") for text in row] for row in found[1:]] == [
        [text.removeprefix("'") for text in row] for row in rows
    ]
    assert not any(text.startswith(("=", "+", "-", "@", "\t", "\r")) for row in found for text in row)
