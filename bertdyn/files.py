"""Folders and files that are either complete or not there.

A reader of a run's folder (another step, a person, an upload) must never meet half a file, so
everything is written under a temporary name next to its place and renamed when it is complete.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bertdyn.errors import InputError


def cache_folder(*parts: str) -> Path:
    """The folder `$BERTDYN_CACHE/<parts>`, made when it is missing (default `~/.cache/bertdyn`).

    Raises
    ------
    InputError
        If it cannot be made or written.
    """
    root = Path(os.environ.get("BERTDYN_CACHE") or Path.home() / ".cache" / "bertdyn").expanduser()
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"BERTDYN_CACHE: {folder} cannot be made ({error}); set it to a writable folder") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"BERTDYN_CACHE: {folder} is not writable; set it to a writable folder")
    return folder.resolve()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a file or folder; it takes the place of `path` when the block ends without an exception.

    Otherwise nothing half-written is left, and `path` is what it was. One process writes at a time; what a
    killed one left under the temporary name is cleared away by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be renamed over another that has content
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes `path` at the end, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes 0700, which other users of a shared store could not read
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes sorted, indented JSON atomically; what JSON does not know (paths, enums) as its text."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n")
