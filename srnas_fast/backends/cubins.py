"""Device code compiled once per machine: what is in the cache is read, the rest is compiled in parallel and kept."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from srnas_fast.backends import nvrtc
from srnas_fast.backends.build import CACHE, cache_folder
from srnas_fast.backends.nvrtc import Image, Nvrtc
from srnas_fast.files import replacing

TOLD_FROM = 1.0  # seconds; what takes less nobody notices

_told: set[str] = set()


class Source(NamedTuple):
    """CUDA C++, and the headers that it includes by their names."""

    text: str
    headers: dict[str, str]


def cubins(sources: Sequence[Source], capability: tuple[int, int]) -> list[Image]:
    """The code of each source for a card, from the cache, where it is put if it was not there.

    Args:
        sources: what to compile, each on its own.
        capability: the card's.

    Processes that need the same code at the same time each compile it, and the last one to finish stays. A file that is
    not as it was written is written anew. Without a cache that can be written it goes on, with one line on stderr.

    Raises:
        Unavailable: no NVRTC, or one that does not compile for this card.
        RuntimeError: an error in a source, with NVRTC's log.
    """
    compiler = nvrtc.find()
    target = compiler.target(capability)
    try:
        folder = cache_folder()
    except RuntimeError as error:  # there is no home folder
        folder = None
        _tell_of_cache(error)
    keys = [_key(source, target, compiler.version) for source in sources]
    paths = {key: folder and folder / f"srnas_fast_{target}-{key}.image" for key in keys}
    found = {key: _read(path) for key, path in paths.items()}
    missing = [key for key, image in found.items() if image is None]
    if missing:
        began = time.monotonic()
        given = dict(zip(keys, sources, strict=True))
        found |= _compile(compiler, {key: (given[key], paths[key]) for key in missing}, capability)
        seconds = time.monotonic() - began
        if seconds > TOLD_FROM:
            print(f"srnas_fast: compiled {len(missing)} pieces of GPU code in {seconds:.1f} s", file=sys.stderr)
    return [found[key] for key in keys]


def _key(source: Source, target: str, version: tuple[int, int]) -> str:
    """What decides over the code: the same key, the same code."""
    everything = json.dumps([source.text, source.headers, target, version, nvrtc.OPTIONS], sort_keys=True)
    return hashlib.sha256(everything.encode()).hexdigest()[:32]


def _compile(
    compiler: Nvrtc, missing: dict[str, tuple[Source, Path | None]], capability: tuple[int, int]
) -> dict[str, Image]:
    """Compile and keep; an error or Ctrl-C waits for what has begun and begins nothing more."""

    def one(source: Source, path: Path | None) -> tuple[Image, OSError | None]:
        image = compiler.compile(source.text, source.headers, capability)
        return image, _write(path, image)

    with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
        futures = {key: pool.submit(one, *given) for key, given in missing.items()}
        try:
            results = {key: future.result() for key, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the end of the block waits
            raise
    for _, failure in results.values():
        if failure:
            _tell_of_cache(failure)
    return {key: image for key, (image, _) in results.items()}


def _read(path: Path | None) -> Image | None:
    """The code in a file of the cache; None if there is none, or it is not what was written."""
    if not path:
        return None
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(content).hexdigest():
        return None
    about, _, code = content.partition(b"\n")
    return Image(code, **json.loads(about))


def _write(path: Path | None, image: Image) -> OSError | None:
    """Keep code in the cache; what went wrong, if something did."""
    if not path:
        return None
    content = json.dumps({"kind": image.kind, "log": image.log}).encode() + b"\n" + image.code
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as failure:
        return failure
    return None


def _tell_of_cache(error: Exception) -> None:
    """Say once in a process that code is not kept."""
    if CACHE not in _told:
        _told.add(CACHE)
        print(
            f"srnas_fast: GPU code cannot be kept ({error}): it is compiled for this process alone. Remedy: name a "
            f"folder that can be written and has room in {CACHE}",
            file=sys.stderr,
        )
