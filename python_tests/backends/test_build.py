import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from srnas_fast.backends import build, cpu, toolchain
from srnas_fast.backends.build import Unavailable

FLAGS = ("-O0", "-fopenmp")

pytestmark = pytest.mark.skipif(build.sys.platform != "linux", reason="the kernels are built on Linux only")


def made(sources, flags=FLAGS):
    return build.build(cpu.recipe("_fake", sources, flags))


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_torch_builds_it_and_shares_its_openmp(sources, cache, capsys):
    """The one test of the real builder on sources of its own: paths with spaces, and torch's own set of threads."""
    result = made(sources)
    assert result.module.answer == 42 and result.seconds > 0
    assert result.folder.parent == cache
    before = torch.get_num_threads()
    try:
        for threads in (3, 2):
            torch.set_num_threads(threads)
            assert result.module.threads() == threads
    finally:
        torch.set_num_threads(before)
    assert capsys.readouterr().err.splitlines()[0].startswith("srnas_fast: building the CPU kernels, once for this")


def test_built_once_then_cached(sources, builds, cache, capsys):
    first = made(sources)
    assert builds() == 1 and first.seconds is not None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1].startswith("srnas_fast: built in ")
    second = made(sources)
    assert builds() == 1 and second.seconds is None and second.module.answer == 42
    assert second.folder == first.folder
    assert capsys.readouterr().err == ""
    record = json.loads((first.folder / "build_params.json").read_text())
    assert record["flags"] == list(FLAGS) and record["torch"] == torch.__version__
    assert set(record["sources"]) == {"bindings.cpp", "cpu/threads.cpp", "cpu/answer.h"}
    assert folders(cache) == [first.folder]  # no temporary folder is left


def test_seconds_run_on_a_terminal(sources, builds, monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(build.sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    threading.Timer(1.3, (tmp_path / "go").touch).start()
    made(sources)
    said = terminal.getvalue()
    assert said.count("\n") == 1 and said.endswith("s\n")
    assert "\rsrnas_fast: building the CPU kernels, once for this machine ... 1 s" in said


def test_a_changed_source_is_built_anew_and_named(sources, builds, capsys):
    made(sources)
    capsys.readouterr()
    (sources / "cpu" / "answer.h").write_text("#define ANSWER 43\n")
    assert made(sources).module.answer == 43
    assert builds() == 2
    assert "changed since the last build: sources (cpu/answer.h)\n" in capsys.readouterr().err


def test_changed_flags_are_built_anew_and_named(sources, builds, capsys):
    first = made(sources)
    capsys.readouterr()
    second = made(sources, ("-O1", "-fopenmp"))
    assert first.folder != second.folder and builds() == 2
    assert "changed since the last build: flags (without -O0 with -O1)\n" in capsys.readouterr().err
    made(sources)  # the first one is still there
    assert builds() == 2


@pytest.mark.parametrize(
    ("place", "name", "value", "shown"),
    [
        (cpu, "find_compiler", lambda: ("g++", "/usr/bin/g++: g++ 99"), "-> /usr/bin/g++: g++ 99)"),
        (cpu, "processor_features", lambda: "x86_64 amx", "with amx)"),
        (cpu, "pybind11_version", lambda: "9.9", "-> 9.9)"),
        (torch, "__version__", "9.9.9", "-> 9.9.9)"),
        (cpu.sysconfig, "get_config_var", lambda name: "cpython-999", "-> cpython-999)"),
    ],
)
def test_everything_that_matters_is_in_the_key(sources, builds, capsys, monkeypatch, place, name, value, shown):
    first = made(sources)
    capsys.readouterr()
    monkeypatch.setattr(place, name, value)
    assert made(sources).folder != first.folder
    [line] = [line for line in capsys.readouterr().err.splitlines() if "changed" in line]
    assert shown in line


def overwrite(library, content):
    library.unlink()  # this process has mapped the old file: written in place, the damage would hit itself
    library.write_bytes(content)


def cut(folder):
    content = (folder / "_fake.so").read_bytes()
    overwrite(folder / "_fake.so", content[: len(content) // 2])


def flip(folder):
    content = bytearray((folder / "_fake.so").read_bytes())
    content[len(content) // 2] ^= 0xFF
    overwrite(folder / "_fake.so", content)


def half_made(folder):
    (folder / "build_params.json").unlink()
    (folder / "lock").touch()  # as older versions of torch leave it, and then wait for ever


def garble(folder):
    (folder / "build_params.json").write_text('{"library": ')


@pytest.mark.parametrize("damage", [cut, flip, half_made, garble])
def test_damage_is_noticed_and_built_anew(sources, builds, cache, capsys, damage):
    folder = made(sources).folder
    damage(folder)
    capsys.readouterr()
    assert made(sources).module.answer == 42
    assert builds() == 2
    assert "they are damaged" in capsys.readouterr().err
    assert folders(cache) == [folder]
    assert made(sources).seconds is None


def test_a_library_that_does_not_import_is_built_anew(sources, builds, cache, start, use):
    """As when a home folder moves to a system with other libraries: it is what was built, and yet of no use."""
    assert start(use, sources).communicate(timeout=60)[0] == "42\n"  # elsewhere: dlopen knows a file by its name
    [folder] = folders(cache)
    overwrite(folder / "_fake.so", b"nothing")
    record = json.loads((folder / "build_params.json").read_text())
    record["library"] = build._fingerprint(folder / "_fake.so")
    (folder / "build_params.json").write_text(json.dumps(record))
    assert made(sources).module.answer == 42
    assert builds() == 2


def in_parallel(start, use, sources, tmp_path):
    """What two processes print that need one module at the same time; the build ends when both have asked for it."""
    processes = [start(use, sources, GO=str(tmp_path / "go")) for _ in range(2)]
    first, second = sorted(process.stderr.readline() for process in processes)
    assert first.startswith("srnas_fast: building")
    assert second.startswith("srnas_fast: waiting for another process")
    (tmp_path / "go").touch()
    return [process.communicate(timeout=60)[0] for process in processes]


def test_parallel_processes_wait_for_one_build(sources, builds, start, use, tmp_path):
    assert in_parallel(start, use, sources, tmp_path) == ["42\n"] * 2
    assert builds() == 1


def test_parallel_processes_share_one_failure(sources, builds, start, use, tmp_path):
    (sources / "cpu" / "answer.h").write_text('#error "not this one"\n')
    for said in in_parallel(start, use, sources, tmp_path):
        assert said.startswith("unavailable: building them failed") and "not this one" in said
    assert builds() == 1


def test_a_killed_build_leaves_nothing_to_wait_for(sources, builds, cache, start, use, tmp_path):
    killed = start(use, sources, GO=str(tmp_path / "go"))
    while not builds():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(folders(cache)) == 1  # half a build
    began = time.monotonic()
    result = made(sources)
    assert result.module.answer == 42 and time.monotonic() - began < 10
    assert folders(cache) == [result.folder]


def test_an_interrupt_ends_the_build_with_all_its_processes(sources, builds, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("GO", str(tmp_path / "never"))

    def interrupt():
        while not builds():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            made(sources)
    finally:
        signal.signal(signal.SIGINT, before)
    assert folders(cache) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "count").read_text()), 0)


def test_a_build_that_hangs_is_ended(sources, builds, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("GO", str(tmp_path / "never"))
    monkeypatch.setattr(build, "PATIENCE", 0.1)
    with pytest.raises(Unavailable, match="building them failed .*ended with status -9 after 1 s"):
        made(sources)


def test_a_failed_build_names_the_error_and_keeps_the_log(sources, builds, cache):
    (sources / "cpu" / "threads.cpp").write_text("int threads() { return nonsense; }\n")
    with pytest.raises(Unavailable) as failure:
        made(sources)
    assert "building them failed" in failure.value.reason and "nonsense" in failure.value.reason
    [log] = cache.glob("*.log")
    assert str(log) in failure.value.remedy and "nonsense" in log.read_text()
    assert folders(cache) == []
    (sources / "cpu" / "threads.cpp").write_text("int threads() { return 1; }\n")
    assert made(sources).module.threads() == 1


def test_sources_that_change_while_they_are_compiled_do_not_get_into_the_cache(
    sources, builds, cache, monkeypatch, tmp_path
):
    monkeypatch.setenv("GO", str(tmp_path / "go"))

    def edit():
        while not builds():
            time.sleep(0.02)
        (sources / "cpu" / "answer.h").write_text("#define ANSWER 43\n")
        (tmp_path / "go").touch()

    threading.Thread(target=edit).start()
    with pytest.raises(Unavailable, match="changed while they were compiled"):
        made(sources)
    assert folders(cache) == []


def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(sources, builds, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SRNAS_FAST_CACHE", str(tmp_path / "file" / "cache"))
    result = made(sources)
    assert result.module.answer == 42
    assert result.folder.parent.parent == Path(build.tempfile.gettempdir())
    assert f"the cache {tmp_path}/file/cache cannot be written (Not a directory)" in capsys.readouterr().err
    build.shutil.rmtree(result.folder.parent)


def test_a_cache_that_cannot_be_written_still_serves(sources, builds, cache, capsys, monkeypatch):
    made(sources)
    capsys.readouterr()
    monkeypatch.setattr(build, "_writable", lambda *_: pytest.fail("nothing is to be written"))
    assert made(sources).seconds is None


def test_no_room_at_all_is_unavailable(sources, builds, monkeypatch):
    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.tempfile, "mkdtemp", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        made(sources)


def test_where_the_cache_is(monkeypatch, tmp_path):
    for name in ("SRNAS_FAST_CACHE", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "srnas_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert build.cache_folder() == tmp_path / ".cache" / "srnas_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_folder() == tmp_path / "xdg" / "srnas_fast"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    assert build.cache_folder() == tmp_path / "torch" / "srnas_fast"
    monkeypatch.setenv("SRNAS_FAST_CACHE", "mine")
    assert build.cache_folder() == Path.cwd() / "mine"


def script(path, body):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler on PATH \(c\+\+, g\+\+, clang\+\+\)"):
        toolchain.find_compiler()
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(Unavailable, match="no-such-compiler"):
        toolchain.find_compiler()


def test_a_compiler_that_does_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "c++", "exit 3")))
    with pytest.raises(Unavailable, match=r"does not run \(status 3\)"):
        toolchain.find_compiler()


def test_the_compiler_is_named_with_its_version(monkeypatch, tmp_path):
    script(tmp_path / "bin" / "clang++", "echo 'clang 99'; echo more")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain, "path_with_ninja", lambda: toolchain.os.defpath + f":{tmp_path / 'ninja'}")
    script(tmp_path / "ninja" / "ninja", "true")
    assert toolchain.find_compiler() == ("clang++", f"{tmp_path}/bin/clang++: clang 99")


def test_no_ninja(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "c++", "echo 1")))
    monkeypatch.setattr(toolchain, "path_with_ninja", lambda: str(tmp_path))
    with pytest.raises(Unavailable, match="ninja") as failure:
        toolchain.find_compiler()
    assert failure.value.remedy == "pip install ninja"


def test_no_headers_of_python(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(script(tmp_path / "bin" / "c++", "echo 1")))
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda *names: str(tmp_path))
    with pytest.raises(Unavailable, match="Python.h"):
        toolchain.find_compiler()


def test_clang_does_not_get_gccs_openmp(monkeypatch):
    monkeypatch.setattr(toolchain, "loaded_by_torch", lambda: "/torch/lib/libgomp-a1.so.1")
    assert toolchain.link_flags("g++ (Debian) 12")[-1] == "/torch/lib/libgomp-a1.so.1"
    assert toolchain.link_flags("Debian clang version 14")[-1] == "-fopenmp"
    monkeypatch.setattr(toolchain, "loaded_by_torch", lambda: "/conda/lib/libiomp5.so")
    assert toolchain.link_flags("Debian clang version 14")[-1] == "/conda/lib/libiomp5.so"
    monkeypatch.setattr(toolchain, "loaded_by_torch", lambda: None)
    assert toolchain.link_flags("g++ (Debian) 12")[-1] == "-fopenmp"
