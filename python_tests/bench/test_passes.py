"""bench/passes.py: what is counted without a GPU."""

import pytest

from srnas_fast.backends import nvrtc
from srnas_fast.backends.toolchain import Unavailable


def test_what_fits_on_a_multiprocessor(bench):
    result = bench("""
from passes import CARDS, Built, blocks_that_fit
pascal, ampere, hopper = (CARDS[capability] for capability in ((6, 1), (8, 6), (9, 0)))
result = [
    blocks_that_fit(pascal, Built(128, 0, 24 << 10), 4),  # registers and shared memory of four
    blocks_that_fit(pascal, Built(129, 0, 0), 4),  # each partition has registers for three such warps
    blocks_that_fit(ampere, Built(32, 0, 24 << 10), 4),  # a KiB more is taken of each
    blocks_that_fit(ampere, Built(32, 0, 25 << 10), 4),
    blocks_that_fit(ampere, Built(32, 0, 0), 1),  # blocks
    blocks_that_fit(hopper, Built(20, 0, 0), 4),  # warps
]
""")
    assert result == [4, 3, 4, 3, 16, 16]


def test_multiply_adds_are_those_of_the_convolutions(bench):
    result = bench("""
from cases import Mixed, MIXED, hinas
from passes import launches_of, program_of
case = MIXED["hinas"]
program = program_of(case)
found = [[name, kernel, grid, work.bytes, work.macs] for name, kernel, grid, work in launches_of(case, program)]
result = [found, program.made.macs((24, 12, 64, 64), -1)]
""")
    rows, macs = result
    forward = [row for row in rows if row[0] == "forward"]
    assert [kernel for _, kernel, *_ in forward] == ["first", "statistics", "second", "statistics", "sum"]
    maps = sum(work for _, kernel, _, _, work in forward if kernel != "sum")
    assert maps == macs  # tiles and chunks are full
    x = 24 * 12 * 64 * 64 * 4
    assert forward[0][3] > 6 * x and forward[-1][3] >= 5 * x
    weights = [kernel for name, kernel, *_ in rows if name == "weight step"]
    assert "kernels" in weights and "kernels" not in [kernel for name, kernel, *_ in rows if name[0] == "a"]


@pytest.mark.slow
def test_a_case_for_one_kind_of_gpu(bench, tmp_path):
    try:
        nvrtc.find()
    except Unavailable as failure:
        pytest.skip(failure.reason)
    result = bench(f"""
import sys
import passes
sys.argv = ["passes.py", "--case", "hinas", "--capability", "8.6", "--out", "{tmp_path}"]
passes.main()
from rows import read
result = read(passes.Path("{tmp_path}/passes.csv"))
""")
    assert {row["pass"] for row in result} == {"forward", "weight step", "architecture step"}
    for row in result:
        assert float(row["limit, us"]) < float(row["estimate, us"])
        if row["kernel"] != "all":
            assert int(row["registers"]) > 0 and int(row["blocks/SM"]) > 0
