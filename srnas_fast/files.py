"""Files that are either the old one or the whole new one, whatever happens in between."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``, on failure it goes.

    Args:
        path: the file to write; missing parent folders are made. The temporary file keeps its suffix,
            since image writers choose their format by it.

    Raises:
        OSError: the folder cannot be written or the disk is full; an older file at ``path`` is untouched.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("whole or not at all")
    >>> (folder / "note.txt").read_text(), len(list(folder.iterdir()))
    ('whole or not at all', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # a crash after the rename must not leave an empty file
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide results from the user's group
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
