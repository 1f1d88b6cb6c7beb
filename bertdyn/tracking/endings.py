"""How a run ends, told truthfully.

`with mlflow.start_run()` calls `sys.exit(0)` a failure, Ctrl-C a failure, and leaves a run that got
SIGTERM RUNNING for ever. Here SIGTERM becomes an exception, and every way to leave the block has
its own end state.
"""

import signal
import threading
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


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise Terminated
