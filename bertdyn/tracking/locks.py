"""Locks between processes of one machine, released by the operating system however a process dies."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from bertdyn.errors import InputError
from bertdyn.files import cache_folder


class RunLock:
    """The right to write one run.

    Parameters
    ----------
    run_id
        The run.

    Raises
    ------
    InputError
        If another process, or another tracker of this one, is writing it.
    """

    def __init__(self, run_id: str):
        path = cache_folder("locks") / run_id
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise InputError(
                f"run {run_id} is still being written by process {holder}; wait for it or end it"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        # Workers forked by a data loader would keep the lock of a run whose process was killed.
        os.register_at_fork(after_in_child=self._file.close)

    def release(self) -> None:
        """Lets others write the run."""
        self._file.close()


@contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """One process at a time: MLflow fails when several make the tables of a new SQLite store at once."""
    name = "store-" + hashlib.sha256(uri.encode()).hexdigest()[:16]
    with (cache_folder("locks") / name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
