"""What worker processes of the tests do; a new interpreter each imports this file, so it imports little."""

import os
import signal
import sys
import time
from pathlib import Path


def note(folder: Path, index: int) -> None:
    """Say that worker `index` was here, and who it is."""
    (folder / f"{index}.txt").write_text(str(os.getpid()))


def end(folder, index, refused):
    note(folder, index)


def sleep(folder, index, refused):
    note(folder, index)
    time.sleep(60)


def sleep_through_sigterm(folder, index, refused):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(folder, index, refused)


def first_is_killed(folder, index, refused):
    note(folder, index)
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(folder, index, refused):
    note(folder, index)
    os.kill(os.getpid(), signal.SIGKILL)


def second_fails(folder, index, refused):
    note(folder, index)
    if index == 1:
        raise RuntimeError("no memory")


def second_exits(folder, index, refused):
    note(folder, index)
    if index == 1:
        sys.exit(3)


def second_refuses(folder, index, refused):
    if index == 1:
        while not (folder / "0.txt").exists():
            time.sleep(0.02)
        refused.put("--dataset 'x': accepted are others")
        return
    sleep(folder, index, refused)


def prepared(folder, index, refused):
    """Threads and Ctrl-C as a worker has them."""
    import torch

    from bertdyn.sweeping.workers import is_orphan, prepare_worker

    del os.environ["OMP_NUM_THREADS"]
    prepare_worker(2, 0)
    os.kill(os.getpid(), signal.SIGINT)
    share = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "2"
    torch.set_num_threads(2)  # as the library does when it is loaded
    prepare_worker(2, 0)
    (folder / f"{index}.txt").write_text(f"{share} {torch.get_num_threads()} {is_orphan()}")


def wait_for_orphanhood(folder):
    from bertdyn.sweeping.workers import is_orphan

    (folder / "before.txt").write_text(str(is_orphan()))
    deadline = time.monotonic() + 60
    while not is_orphan() and time.monotonic() < deadline:
        time.sleep(0.05)
    (folder / "after.txt").write_text(str(is_orphan()))


def hang(path: str) -> None:
    """Say so in a file of its own: who is killed while it writes to a journal keeps the others waiting for its lock."""
    Path(f"{path}.hangs").write_text(str(os.getpid()))
    time.sleep(60)


def hang_in_trial(path: str, name: str, named: bool = True) -> None:
    """Begin a trial as `run_trial` does, choose, report, and never come to an end."""
    import optuna

    from bertdyn.sweeping import studies
    from bertdyn.sweeping.storage import open_storage

    study = optuna.load_study(study_name=name, storage=open_storage(path))
    trial = study.ask()
    if named:
        trial.set_user_attr(studies.WORKER, studies.this_process())
        trial.set_user_attr(studies.RUN, f"run-{trial.number}")
    trial.set_user_attr("cost", trial.suggest_float("x", 0, 1))
    trial.set_user_attr("word", trial.suggest_categorical("word", ["a", "b", "c"]))
    if len(study.directions) == 1:
        trial.report(0.5, 1)
    hang(path)


def lead_and_hang(path: str, name: str) -> None:
    """Lead a study, as another command on this machine does."""
    import optuna

    from bertdyn.sweeping import studies
    from bertdyn.sweeping.storage import open_storage

    with studies.beating(optuna.load_study(study_name=name, storage=open_storage(path)), leads=True):
        hang(path)
