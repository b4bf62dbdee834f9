"""The pages in docs/ run as printed."""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_there_are_pages():
    assert [page.name for page in PAGES] == ["drop-in.md", "own-space.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run_and_print_what_the_page_says(page):
    """Every ``python`` block, in order and in one namespace; a ``text`` block is what the one before it printed."""
    text, scope, printed = page.read_text("utf-8"), {"__name__": page.stem}, ""
    check = doctest.OutputChecker().check_output
    for block in BLOCK.finditer(text):
        language, content = block.groups()
        line = text.count("\n", 0, block.start()) + 2
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (line - 1) + content, str(page), "exec"), scope)
            printed = out.getvalue()
        elif language == "text":
            same = check(content, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            assert same, f"{page.name}, line {line}: the page says\n{content}\nand printed was\n{printed}"
            printed = ""
        assert language in ("python", "text", "sh"), f"{page.name}, line {line}: ```{language}"
