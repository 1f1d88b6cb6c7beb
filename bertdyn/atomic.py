"""Files and folders that are whole or absent."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(target: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file or folder under a temporary name beside `target`, then rename it.

    An existing target is replaced. Whatever fails, nothing half-written is left, and a target that
    is a file is what it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".writing-{target.name}")
    _remove(temporary)
    try:
        write(temporary)
        if target.is_dir():  # a folder cannot be renamed over another that has content
            shutil.rmtree(target)
        os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
