"""How a run ends, told truthfully.

`with mlflow.start_run()` calls `sys.exit(0)` a failure, Ctrl-C a failure, and leaves a run that got
SIGTERM RUNNING for ever. Here SIGTERM becomes an exception, and every way to leave the block has
its own end state.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(SystemExit):
    """Raised in the main thread on SIGTERM; uncaught, the process exits with 143 as a shell expects."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def run_status(error: BaseException | None) -> str:
    """The MLflow status of a run whose block was left with this exception (None: it ran to its end)."""
    if error is None:
        return "FINISHED"
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        return "KILLED"
    if isinstance(error, SystemExit):
        return "FINISHED" if error.code in (None, 0) else "FAILED"
    # A trial that Optuna stopped early has not failed. Compared by name, so that Optuna is not needed.
    if any(base.__name__ == "TrialPruned" for base in type(error).__mro__):
        return "KILLED"
    return "FAILED"


class SigtermRaises:
    """Makes SIGTERM raise `Terminated` between `install` and `restore`; only the main thread can do that."""

    def __init__(self) -> None:
        self._previous: Any = None
        self._installed = False

    def install(self) -> None:
        """Installs the handler, in the main thread; elsewhere does nothing."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, _raise_terminated)
            self._installed = True

    def restore(self) -> None:
        """Puts the previous handler back."""
        if self._installed and threading.current_thread() is threading.main_thread():
            # None stands for a handler that was not installed from Python; it cannot be put back.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._previous is None else self._previous)
            self._installed = False


@contextmanager
def signals_held() -> Iterator[None]:
    """Lets a request to the store end before Ctrl-C or SIGTERM takes effect; a second one does not wait.

    An exception in the middle of a transaction leaves a SQLite store locked against this very
    process, which then could not even record how the run ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, previous[number])
            signal.raise_signal(number)
        received.append(number)

    previous: dict[int, Any] = {n: signal.signal(n, hold) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for held, handler in previous.items():
            signal.signal(held, handler)
        if received:
            signal.raise_signal(received[0])


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
