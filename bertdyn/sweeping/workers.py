"""Worker processes of this machine: started, watched, replaced when something kills them, stopped with the driver."""

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from transformers.utils import logging as transformers_logging

from bertdyn.errors import InputError

logger = logging.getLogger(__name__)

REPLACEMENTS = 3
"""How many killed processes are replaced for each that was asked for; memory that is too small kills all of them."""
_TICK = 1.0
_SECONDS_TO_STOP = 30.0

# A new interpreter each: threads and CUDA do not survive a fork.
_PROCESSES = get_context("spawn")


class WorkersFailed(RuntimeError):
    """Worker processes ended with errors, which they have written to the error stream."""


def supervise(work: Callable[..., None], arguments: tuple[Any, ...], workers: int, tick: Callable[[], None]) -> None:
    """Run `workers` processes of `work(*arguments, index, refused)` to their ends.

    Parameters
    ----------
    work
        An importable function. What is wrong with the user's input it puts into `refused`, as a line.
    tick
        Called about once a second, and when all processes are gone, however that came.

    Raises
    ------
    InputError
        What a worker has put into `refused`.
    WorkersFailed
        If workers ended with errors, or too many were killed.
    """
    refused = _PROCESSES.SimpleQueue()
    begun, failed = 0, []
    running: list[BaseProcess] = []

    def start() -> None:
        nonlocal begun
        process = _PROCESSES.Process(target=work, args=(*arguments, begun, refused), daemon=True)
        process.start()
        running.append(process)
        begun += 1

    try:
        for _ in range(workers):
            start()
        while running:
            wait([process.sentinel for process in running], timeout=_TICK)
            for process in [process for process in running if process.exitcode is not None]:
                running.remove(process)
                if process.exitcode:
                    failed.append(process)
                    logger.warning("worker %d ended with %s", process.pid, _reason(process))
                if (process.exitcode or 0) < 0 and begun < workers * (1 + REPLACEMENTS):
                    failed.remove(process)
                    start()
            tick()
            if not refused.empty():
                raise InputError(refused.get())
    finally:
        stop(running)
        tick()
    if failed:
        reasons = ", ".join(sorted({_reason(process) for process in failed}))
        raise WorkersFailed(f"{len(failed)} of {begun} workers ended with {reasons}; what they said stands above")


def stop(processes: list[BaseProcess]) -> None:
    """SIGTERM, which lets a process end its runs, and SIGKILL to those that have not ended after a while."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def quiet() -> None:
    """Optuna's line a trial would run through the progress bar, and that a heartbeat is experimental is no news."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", ExperimentalWarning)


def prepare_worker(workers: int, index: int) -> None:
    """Settings of a worker process: its share of the cores, its GPU; Ctrl-C is the driver's, which sends SIGTERM."""
    devices = torch.cuda.device_count()  # does not begin to use one
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index % devices)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet()
    transformers_logging.set_verbosity_error()  # that a head is new is no news here
    transformers_logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def is_orphan() -> bool:
    """Whether the driver of this worker process is gone."""
    driver = parent_process()
    return driver is not None and not driver.is_alive()


def _reason(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
