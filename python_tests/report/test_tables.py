"""Tables as they are shown and stored."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from srnas_fast.errors import InputError
from srnas_fast.report import save_table, show_table


def shown(columns, rows):
    out = io.StringIO()
    show_table("title [x]", columns, rows, Console(file=out, width=100, color_system=None))
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "title [x]"
    return [line.strip("│").split("│") for line in lines if line.startswith("│")]


def test_numbers_stand_to_the_right_with_the_decimals_of_their_column():
    rows = shown(
        ["image [y]", "PSNR, dB", "SSIM", "parameters"],
        [["boat", 26.514, 0.83449, 319069], ["man [z]", np.float32(9.25), None, np.int64(7)]],
    )
    assert rows[0] == [" boat      ", "    26.51 ", " 0.8345 ", "    319,069 "]
    assert rows[1] == [" man [z]   ", "     9.25 ", "      – ", "          7 "]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1234.5, 2.0], ["1,234", "2"]),
        ([100.0, 1.25], ["100.0", "1.2"]),
        ([0.0], ["0.0000"]),
        ([0.001234], ["1.234e-03"]),
        ([float("inf"), 1.5], ["inf", "1.500"]),
        ([float("nan")], ["nan"]),
        ([True], ["True"]),
        ([None], ["–"]),
    ],
)
def test_formats(values, texts):
    assert [row[0].strip() for row in shown(["value"], [[v] for v in values])] == texts


def test_a_column_with_a_word_stands_to_the_left():
    rows = shown(["a long header"], [[1], ["word"]])
    assert rows[0][0].startswith(" 1 ")


def test_an_empty_table():
    assert shown(["a", "b"], []) == []


def test_rows_must_fit(tmp_path):
    for call in (
        lambda r: show_table("t", ["a", "b"], r),
        lambda r: save_table(tmp_path / "t.csv", ["a", "b"], r),
    ):
        with pytest.raises(InputError, match="1 values for 2 columns"):
            call([[1, 2], [3]])
    assert not list(tmp_path.iterdir())


def test_csv_keeps_every_digit(tmp_path):
    rows = [["a, b", 1 / 3, None], ['"é"', 2, "x\ny"]]
    save_table(tmp_path / "t.csv", ["name", "value, dB", "c"], rows)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as stream:
        back = list(csv.reader(stream))
    assert back == [["name", "value, dB", "c"], ["a, b", repr(1 / 3), ""], ['"é"', "2", "x\ny"]]
