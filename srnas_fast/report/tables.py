"""Tables on the terminal and as CSV files."""

import csv
import math
import os
from collections.abc import Sequence
from numbers import Integral, Real

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srnas_fast.errors import InputError
from srnas_fast.files import replacing


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence], console: Console | None = None) -> None:
    """Print a table, numbers to the right, words to the left.

    Integers get thousands separators. Floats of one column get the same decimals, such that its largest has
    four digits: 27.31 dB, 0.8345. None is a dash.

    Args:
        title: the line above.
        columns: the headers, with their units.
        rows: one value per column.
        console: where to print; the standard output by default.

    Raises:
        InputError: a row has more or fewer values than there are columns.

    >>> from rich.console import Console
    >>> console = Console(width=60, color_system=None)
    >>> rows = [["boat", 26.5], ["man", 9.25]]
    >>> show_table("Set12", ["image", "PSNR, dB"], rows, console)  # doctest: +NORMALIZE_WHITESPACE
          Set12
    ┏━━━━━━━┳━━━━━━━━━━┓
    ┃ image ┃ PSNR, dB ┃
    ┡━━━━━━━╇━━━━━━━━━━┩
    │ boat  │    26.50 │
    │ man   │     9.25 │
    └───────┴──────────┘
    """
    _check(columns, rows)
    table = Table(title=escape(title))
    texts = []
    for position, name in enumerate(columns):
        values = [row[position] for row in rows]
        numeric = [_is_number(value) for value in values if value is not None]
        table.add_column(escape(name), justify="right" if numeric and all(numeric) else "left")
        texts.append(_texts(values))
    for row in zip(*texts, strict=True):
        table.add_row(*map(escape, row))
    if console is None:
        console = Console()
        if not console.is_terminal:  # a file or a pipe has no 80 columns to keep to
            console = Console(width=200)
    console.print(table)


def save_table(file: str | os.PathLike, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Write a table as CSV (UTF-8, full precision, None as an empty field); the file is replaced whole.

    Raises:
        InputError: a row has more or fewer values than there are columns.
        OSError: the file cannot be written.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "psnr.csv"
    >>> save_table(file, ["image", "PSNR, dB"], [["boat", 26.5]])
    >>> print(file.read_text().strip())
    image,"PSNR, dB"
    boat,26.5
    """
    _check(columns, rows)
    with replacing(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _check(columns: Sequence[str], rows: Sequence[Sequence]) -> None:
    for row in rows:
        if len(row) != len(columns):
            raise InputError(f"a row of {len(row)} values for {len(columns)} columns: {list(row)}; give one for each")


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _texts(values: Sequence) -> list[str]:
    """The values of one column as they are shown."""
    floats = [abs(v) for v in values if _is_number(v) and not isinstance(v, Integral) and math.isfinite(v)]
    largest = max(floats, default=0)
    before = len(str(int(largest))) if largest >= 1 else 0
    style = f",.{max(0, 4 - before)}f" if largest >= 0.01 or largest == 0 else ".3e"

    def text(value) -> str:
        if value is None:
            return "–"
        if not _is_number(value):
            return str(value)
        return format(int(value), ",") if isinstance(value, Integral) else format(float(value), style)

    return [text(value) for value in values]
