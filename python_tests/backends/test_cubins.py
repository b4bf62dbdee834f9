"""Device code is compiled once, also where files are damaged, disks full or processes many."""

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from srnas_fast.backends import cubins, nvrtc
from srnas_fast.backends.cubins import Source
from srnas_fast.backends.toolchain import Unavailable

CARD = (8, 6)
SOURCES = [Source(f'#include "x.h"\nextern "C" __global__ void k{i}() {{ F }}', {"x.h": "#define F\n"}) for i in "abc"]

MANY = """
import os, sys
from srnas_fast.backends.cubins import Source, cubins
texts = [f'extern "C" __global__ void k{i}(float* x) {{ x[0] = sinf(x[{i}]); }}' for i in range(int(sys.argv[1]))]
sources = [Source(text, {}) for text in texts]
first = [image.code for image in cubins(sources[:1], (8, 6))]  # NVRTC has been at work before the fork
child = os.fork()
images = [image.code for image in cubins(sources, (8, 6))]
if not child:
    os._exit(len(set(images)) != len(texts))
print(os.waitpid(child, 0)[1], images[:1] == first, len(set(images)))
"""


class Compiler:
    """Stands in for NVRTC: counts, and takes its time."""

    version = (12, 9)

    def __init__(self):
        self.compiled, self.seconds, self.failure = [], 0.0, None
        self.together = None  # a barrier for so many at a time

    def target(self, capability):
        if capability < (5, 0):
            raise Unavailable("NVRTC is too new", "take another")
        return "sm_{}{}".format(*capability)

    def compile(self, source, headers, capability):
        self.compiled.append(source)
        if self.together:
            self.together.wait()
        time.sleep(self.seconds)
        if self.failure in source.split():
            raise RuntimeError("error: identifier")
        return nvrtc.Image(f"{source}{sorted(headers.items())}{capability}\n\0".encode(), "cubin", "one\ntwo")


@pytest.fixture
def compiler(monkeypatch, cache):
    stand_in = Compiler()
    monkeypatch.setattr(nvrtc, "find", lambda: stand_in)
    monkeypatch.setattr(cubins, "_told", set())
    return stand_in


def files(cache):
    return sorted(cache.iterdir())


def test_compiled_once_then_cached(compiler, cache, capsys):
    first = cubins.cubins(SOURCES, CARD)
    assert sorted(compiler.compiled) == [source.text for source in SOURCES] and len(files(cache)) == 3
    assert [image.code.split(b"[")[0].decode() for image in first] == [source.text for source in SOURCES]
    assert cubins.cubins(SOURCES[::-1], CARD) == first[::-1]
    assert cubins.cubins([], CARD) == []
    assert len(compiler.compiled) == 3 and capsys.readouterr().err == ""
    assert all(path.name.startswith("srnas_fast_sm_86-") for path in files(cache))


def test_the_same_source_twice_is_compiled_once(compiler):
    first, second = cubins.cubins([SOURCES[0], SOURCES[0]], CARD)
    assert first == second and len(compiler.compiled) == 1


def test_only_what_is_missing_is_compiled(compiler):
    cubins.cubins(SOURCES[:1], CARD)
    cubins.cubins(SOURCES, CARD)
    assert len(compiler.compiled) == 3 and len(set(compiler.compiled)) == 3


def test_everything_that_matters_is_in_the_key(compiler, cache, monkeypatch):
    text, headers = SOURCES[0]
    cubins.cubins([Source(text, headers)], CARD)
    cubins.cubins([Source(text + " ", headers)], CARD)
    cubins.cubins([Source(text, {"x.h": "#define F ;\n"})], CARD)
    cubins.cubins([Source(text, {"y.h": headers["x.h"]})], CARD)
    cubins.cubins([Source(text, headers)], (8, 9))
    monkeypatch.setattr(Compiler, "version", (13, 0))
    cubins.cubins([Source(text, headers)], CARD)
    monkeypatch.setattr(nvrtc, "OPTIONS", ("--std=c++20",))
    cubins.cubins([Source(text, headers)], CARD)
    assert len(compiler.compiled) == len(files(cache)) == 7


def cut(content):
    return content[:-1]


def flip(content):
    return content[:-2] + b"!" + content[-1:]


def forget(content):
    return content.replace(b'"cubin"', b'"none"')


@pytest.mark.parametrize("damage", [cut, flip, forget, lambda content: b"", lambda content: b"\xff" * 99])
def test_damage_is_noticed_and_compiled_anew(compiler, cache, damage):
    images = cubins.cubins(SOURCES, CARD)
    path = files(cache)[1]
    path.write_bytes(damage(path.read_bytes()))
    assert cubins.cubins(SOURCES, CARD) == images and len(compiler.compiled) == 4
    assert cubins.cubins(SOURCES, CARD) == images and len(compiler.compiled) == 4


def full(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_once(compiler, cache, capsys, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full)
    for _ in range(2):
        assert len(cubins.cubins(SOURCES, CARD)) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("srnas_fast: GPU code cannot be kept ([Errno 28] No space left on device): it is compiled")
    assert line.endswith("SRNAS_FAST_CACHE")
    assert files(cache) == [] and len(compiler.compiled) == 6
    monkeypatch.undo()


def test_a_cache_that_is_no_folder_is_told_once(compiler, cache, capsys):
    cache.write_text("a file")
    assert len(cubins.cubins(SOURCES, CARD)) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_a_home(compiler, monkeypatch, capsys):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cubins, "cache_folder", homeless)
    for _ in range(2):
        assert len(cubins.cubins(SOURCES, CARD)) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert "Could not determine home directory." in line


def test_several_at_a_time(compiler, monkeypatch):
    monkeypatch.setattr(cubins.os, "cpu_count", lambda: 3)
    compiler.together = threading.Barrier(3, timeout=20)
    assert len(cubins.cubins(SOURCES, CARD)) == 3


def test_what_takes_long_is_told_in_one_line(compiler, capsys, monkeypatch):
    monkeypatch.setattr(cubins, "TOLD_FROM", 0.05)
    compiler.seconds = 0.1
    cubins.cubins(SOURCES[:2], CARD)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("srnas_fast: compiled 2 pieces of GPU code in 0.") and line.endswith(" s")
    cubins.cubins(SOURCES[:2], CARD)
    assert capsys.readouterr().err == ""


def test_an_error_is_raised_and_the_rest_kept(compiler, cache, monkeypatch):
    monkeypatch.setattr(cubins.os, "cpu_count", lambda: 1)
    compiler.failure = "kb()"
    with pytest.raises(RuntimeError, match="error: identifier"):
        cubins.cubins(SOURCES, CARD)
    assert len(files(cache)) <= 2
    compiler.failure = None
    assert len(cubins.cubins(SOURCES, CARD)) == 3


def test_what_cannot_be_compiled_for(compiler, cache):
    with pytest.raises(Unavailable, match="too new"):
        cubins.cubins(SOURCES, (3, 0))
    assert not cache.exists()


def test_an_interrupt_leaves_nothing_half_written(compiler, cache, monkeypatch):
    monkeypatch.setattr(cubins.os, "cpu_count", lambda: 1)
    compiler.seconds = 0.3

    def interrupt():
        while not compiler.compiled:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cubins.cubins(SOURCES, CARD)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(compiler.compiled) == len(files(cache)) < 3  # what had begun is whole, and not all began
    compiler.seconds = 0.0
    assert len(cubins.cubins(SOURCES, CARD)) == 3 and len(compiler.compiled) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="NVRTC is looked for on Linux only")
def test_processes_and_forks_with_one_cache(cache, start):
    try:
        compiler = nvrtc.find()
    except Unavailable as failure:
        pytest.skip(str(failure))
    processes = [start(MANY, 6) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out == "0 True 6\n", err
    assert len(files(cache)) == 6
    for path in files(cache):
        image = cubins._read(path)
        assert image.kind == ("cubin" if 86 in compiler.architectures else "ptx") and image.code.startswith(b"\x7fELF")
