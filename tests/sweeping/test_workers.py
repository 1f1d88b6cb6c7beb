"""Worker processes: replaced when something kills them, stopped with the driver; and what a worker does with trials."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from bertdyn.errors import InputError
from bertdyn.steps import sweep, sweep_worker
from bertdyn.steps.sweep_worker import FAILURES_IN_A_ROW, Parent, run_trial, run_trials
from bertdyn.sweeping import studies, workers
from bertdyn.sweeping.samplers import is_exhausted, make_pruner, make_sampler
from bertdyn.sweeping.space import Number, Space, Switch, read_space
from bertdyn.sweeping.storage import open_storage
from bertdyn.sweeping.workers import REPLACEMENTS, WorkersFailed, supervise
from bertdyn.tracking.endings import SigtermRaises, Terminated
from tests.sweeping import processes

ROOT = Path(__file__).resolve().parents[2]
optuna.logging.set_verbosity(optuna.logging.CRITICAL)


def begun(folder):
    """The numbers of the workers that were started."""
    return sorted(int(path.stem) for path in folder.glob("*.txt"))


def alive(folder):
    return [path.stem for path in folder.glob("*.txt") if psutil.pid_exists(int(path.read_text() or 0))]


def nothing():
    pass


def enough(study, trials):
    """When a worker need not begin another one."""
    return lambda: studies.taken(study) >= trials


def test_workers_run_to_their_ends(tmp_path):
    ticks = []
    supervise(processes.end, (tmp_path,), 3, lambda: ticks.append(len(alive(tmp_path))))
    assert begun(tmp_path) == [0, 1, 2]
    assert alive(tmp_path) == []
    assert ticks[-1] == 0  # also when all are gone


def test_a_killed_worker_is_replaced(tmp_path, caplog):
    supervise(processes.first_is_killed, (tmp_path,), 2, nothing)
    assert begun(tmp_path) == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records if record.name == workers.__name__] == [
        f"worker {(tmp_path / '0.txt').read_text()} ended with signal SIGKILL"
    ]


def test_where_every_worker_is_killed_they_are_given_up(tmp_path):
    with pytest.raises(WorkersFailed, match=rf"^1 of {1 + REPLACEMENTS} workers ended with signal SIGKILL; what they"):
        supervise(processes.killed, (tmp_path,), 1, nothing)
    assert begun(tmp_path) == list(range(1 + REPLACEMENTS))


@pytest.mark.parametrize(("work", "status"), [(processes.second_fails, 1), (processes.second_exits, 3)])
def test_a_worker_that_fails_is_not_replaced_and_the_others_go_on(tmp_path, work, status, capfd):
    with pytest.raises(
        WorkersFailed, match=rf"^1 of 2 workers ended with status {status}; what they said stands above$"
    ):
        supervise(work, (tmp_path,), 2, nothing)
    assert begun(tmp_path) == [0, 1]
    assert ("RuntimeError: no memory" in capfd.readouterr().err) == (status == 1)


def test_what_a_worker_refuses_is_the_users_to_read(tmp_path):
    ticks, started = [], time.monotonic()
    with pytest.raises(InputError, match=r"^--dataset 'x': accepted are others$"):
        supervise(processes.second_refuses, (tmp_path,), 2, lambda: ticks.append(alive(tmp_path)))
    assert time.monotonic() - started < 30  # the other one sleeps for a minute
    assert begun(tmp_path) == [0]
    assert alive(tmp_path) == []
    assert ticks[-1] == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_workers_end_with_their_driver(tmp_path, error):
    """Ctrl-C, or a database that is gone."""

    def tick():
        if begun(tmp_path) == [0, 1] and all(path.read_text() for path in tmp_path.iterdir()):
            seen.append(alive(tmp_path))
            raise error("gone")

    seen = []
    with pytest.raises(error, match="gone"):
        supervise(processes.sleep, (tmp_path,), 2, tick)
    assert len(seen[0]) == 2
    assert seen[-1] == alive(tmp_path) == []


def test_a_worker_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_SECONDS_TO_STOP", 0.5)

    def tick():
        assert not alive(tmp_path), "begun"

    with pytest.raises(AssertionError, match="begun"):
        supervise(processes.sleep_through_sigterm, (tmp_path,), 1, tick)
    assert begun(tmp_path) == [0]
    assert alive(tmp_path) == []


def test_workers_share_the_cores_and_leave_ctrl_c_to_the_driver(tmp_path, monkeypatch):
    """Unless the user has said how many threads there shall be."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    supervise(processes.prepared, (tmp_path,), 1, nothing)
    share, given, orphan = (tmp_path / "0.txt").read_text().split()
    assert int(share) == max(1, len(os.sched_getaffinity(0)) // 2)  # of two workers
    assert int(given) == 2
    assert orphan == "False"


def test_a_worker_whose_driver_was_killed_knows(tmp_path):
    script = f"""
from multiprocessing import get_context
from pathlib import Path
from tests.sweeping.processes import wait_for_orphanhood
if __name__ == "__main__":
    process = get_context("spawn").Process(target=wait_for_orphanhood, args=(Path({str(tmp_path)!r}),))
    process.start()
    process.join()
"""
    (tmp_path / "driver.py").write_text(script)
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path
    )
    try:
        wait_for(tmp_path / "before.txt")
        assert (tmp_path / "before.txt").read_text() == "False"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_for(tmp_path / "after.txt")
    assert (tmp_path / "after.txt").read_text() == "True"
    assert not workers.is_orphan()  # this process is nobody's worker


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Trial after trial ---------------------------------------------------------------------------------------------------


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def outcomes(*said):
    """What the trials do, one after the other: an exception is raised, a number returned; then numbers for ever."""
    coming = iter(said)

    def trial_function(trial):
        trial.suggest_float("x", 0, 1)
        outcome = next(coming, 1.0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return trial_function


def test_trials_until_there_are_as_many_as_are_wanted():
    study = optuna.create_study()
    run_trials(study, enough(study, 4), outcomes())
    assert states(study) == ["COMPLETE"] * 4
    run_trials(study, enough(study, 4), outcomes())  # gone on with, and nothing is left to do
    assert states(study) == ["COMPLETE"] * 4
    run_trials(study, enough(study, 6), outcomes(optuna.TrialPruned(), ValueError()))
    assert states(study) == ["COMPLETE"] * 4 + ["PRUNED", "FAIL", "COMPLETE"]  # what failed does not count


def test_trials_that_others_run_count():
    study = optuna.create_study()
    others = [study.ask() for _ in range(3)]
    study.enqueue_trial({"x": 0.5})
    run_trials(study, enough(study, 5), outcomes())
    assert states(study) == ["RUNNING"] * 3 + ["COMPLETE"] * 2
    assert study.trials[3].params == {"x": 0.5}  # who queued it is served first
    study.tell(others[0], 1.0)
    study.tell(others[1], state=TrialState.FAIL)
    run_trials(study, enough(study, 5), outcomes())
    assert states(study) == ["COMPLETE", "FAIL", "RUNNING", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_failures_in_a_row_end_a_worker():
    assert FAILURES_IN_A_ROW == 3
    study = optuna.create_study()
    errors = (ValueError(), RuntimeError(), OSError())
    with pytest.raises(RuntimeError, match=r"^3 trials failed in a row: this worker gives up$"):
        run_trials(study, enough(study, 10), outcomes(1.0, *errors))
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


def test_failures_between_which_others_succeed_do_not():
    """One that is stopped early has not failed, nor does it come between failures as one."""
    study = optuna.create_study()
    two, stopped = (ValueError(), ValueError()), optuna.TrialPruned()
    run_trials(study, enough(study, 7), outcomes(*two, 1.0, *two, stopped, *two, stopped, stopped, stopped, stopped))
    assert states(study).count("FAIL") == 6
    assert states(study).count("PRUNED") == 5
    assert states(study)[-1] == "COMPLETE"
    with pytest.raises(RuntimeError, match="3 trials failed in a row"):
        run_trials(study, enough(study, 99), outcomes(stopped, *two, ValueError()))


def test_a_signal_ends_trials_at_once():
    """As SIGTERM does; the trial stays for the driver to bury."""
    study = optuna.create_study()

    def stopped_by_sigterm(trial):
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_trials(study, enough(study, 10), stopped_by_sigterm)
    assert states(study) == ["RUNNING"]


def test_a_trial_is_its_processs_before_a_signal_takes_effect():
    """Else it would be nobody's, and RUNNING, after its worker was told to stop."""

    class Stopping(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            os.kill(os.getpid(), signal.SIGTERM)  # the trial is there, and nothing is known of it

    study, handler = optuna.create_study(sampler=Stopping(seed=0)), SigtermRaises()
    handler.install()
    try:
        with pytest.raises(Terminated):
            run_trials(study, enough(study, 3), lambda trial: 1.0)
    finally:
        handler.restore()
    [trial] = study.trials
    assert (trial.state, trial.user_attrs[studies.WORKER]) == (TrialState.RUNNING, studies.this_process())


@pytest.mark.parametrize("leads", [True, False])
def test_which_runs_under_a_study_nobody_writes_any_more(monkeypatch, leads):
    study = optuna.create_study()
    for run_id in ("named", None):
        trial = study.ask()
        if run_id:
            trial.set_user_attr(studies.RUN, run_id)
    told = {}
    monkeypatch.setattr(sweep, "end_abandoned_children", lambda run_id, is_abandoned: told.update(judge=is_abandoned))
    sweep._end_abandoned(study, Parent("parent", ""), leads=leads)

    def judged(run_id, process):
        tags = {sweep_worker.PROCESS: process} if process else {}
        return told["judge"](SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=tags)))

    dead = studies.this_process().rsplit(":", 1)[0] + ":1.00"
    assert judged("any", dead)
    assert not judged("any", studies.this_process())
    assert judged("winner", None) == leads, "who leads trains winners; who joins must leave them alone"
    assert not judged("named", "elsewhere:1:1.00")
    assert not judged("any", "elsewhere:1:1.00"), "it may be that of the trial that has just begun"
    study.tell(1, state=TrialState.FAIL)
    assert judged("any", "elsewhere:1:1.00") == leads
    assert not judged("named", "elsewhere:1:1.00")


def test_a_grid_of_several_processes_one_of_which_fails(tmp_path):
    """Every point once, whichever process takes it; what failed is taken again."""
    (tmp_path / "space.yaml").write_text("layers: {low: 0, high: 4}\nembeddings: [false, true]")
    space = read_space(tmp_path / "space.yaml", None, {"layers": Number(0, 9, whole=True), "embeddings": Switch()})
    storage = open_storage(str(tmp_path / "optuna.journal"))
    optuna.create_study(study_name="grid", storage=storage)
    several = [
        optuna.load_study(study_name="grid", storage=storage, sampler=make_sampler("grid", space, 3)) for _ in range(3)
    ]
    for number in range(11):
        study = several[number % 3]
        assert not is_exhausted(study, "grid", space)
        if number == 4:
            trial = study.ask()
            space.suggest(trial)
            trial.set_user_attr(studies.WORKER, studies.this_process().rsplit(":", 1)[0] + ":1.00")
            driver = optuna.load_study(study_name="grid", storage=storage)
            assert studies.bury(driver, str, studies.Watch()) == [4]
        else:
            study.optimize(lambda trial: float(len(space.suggest(trial))), n_trials=1)
    assert is_exhausted(several[0], "grid", space)
    done = [tuple(t.params.values()) for t in several[0].trials if t.state == TrialState.COMPLETE]
    assert sorted(done) == sorted((layers, embeddings) for layers in range(5) for embeddings in (False, True))


def test_a_grid_ends_when_it_is_exhausted(tmp_path):
    (tmp_path / "space.yaml").write_text("layers: {low: 0, high: 2}\nembeddings: [false, true]\nrate: [0.5, 0.25]")
    kinds = {"layers": Number(0, 9, whole=True), "embeddings": Switch(), "rate": Number(0, 1)}
    space = read_space(tmp_path / "space.yaml", None, kinds)
    study = optuna.create_study(sampler=make_sampler("grid", space, 0))
    seen = []

    def look(trial):
        seen.append(tuple(space.suggest(trial).values()))
        return 1.0

    run_trials(study, lambda: is_exhausted(study, "grid", space), look)
    every = {(layers, embeddings, rate) for layers in range(3) for embeddings in (False, True) for rate in (0.5, 0.25)}
    assert len(seen) == len(every)
    assert set(seen) == every


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random"])
def test_the_seed_of_a_process_is_its_own(name):
    space = Space({}, {})

    def first(seed):
        return optuna.create_study(sampler=make_sampler(name, space, seed)).ask().suggest_float("x", 0, 1)

    assert len({first(seed) for seed in range(4)}) == 4
    assert first(2) == first(2)


@pytest.mark.parametrize(("name", "stops"), [("median", True), ("successive_halving", True), ("none", False)])
def test_trials_that_do_not_promise_are_stopped(name, stops):
    study = optuna.create_study(pruner=make_pruner(name))
    for value in [*range(6), 99]:
        trial = study.ask()
        trial.report(value, 1)
        told = trial.should_prune()
        study.tell(trial, value)
    assert told == stops


# One trial -----------------------------------------------------------------------------------------------------------


class Runs:
    """What opens runs, and how each of them ended."""

    def __init__(self):
        self.opened = []

    @contextmanager
    def __call__(self, name, tags):
        ended = {"name": name, "tags": dict(tags)}
        self.opened.append(ended)
        try:
            yield SimpleNamespace(run_id=f"id-{len(self.opened)}")
        except BaseException as error:
            ended["error"] = type(error)
            raise


def test_a_trial_says_whose_it_is_and_has_a_run_that_ends_as_it_does(tmp_path):
    storage, runs, known = open_storage(str(tmp_path / "optuna.journal")), Runs(), []
    study = studies.begin_study(storage, "freezing", ["minimize"], {})
    study.enqueue_trial({"x": 0.5}, user_attrs={studies.ORIGIN: "nothing frozen"})
    end = outcomes(2.0, optuna.TrialPruned(), ValueError(), 1.0)

    def objective(trial, tracker):
        [running] = study.get_trials(states=(TrialState.RUNNING,))  # whoever looks meanwhile
        known.append((running.user_attrs[studies.WORKER], running.user_attrs[studies.RUN], tracker.run_id))
        return end(trial)

    run_trials(study, enough(study, 3), lambda trial: run_trial("sweep-freezing", objective, runs, trial))
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert known == [(studies.this_process(), f"id-{i}", f"id-{i}") for i in (1, 2, 3, 4)]
    assert [run["name"] for run in runs.opened] == ["trial-0000", "trial-0001", "trial-0002", "trial-0003"]
    assert [run.get("error") for run in runs.opened] == [None, optuna.TrialPruned, ValueError, None]
    tags = {"bertdyn.stage": "sweep-freezing-trial", "optuna.study": "freezing"}
    tags |= {"bertdyn.process": studies.this_process()}
    assert runs.opened[0]["tags"] == tags | {"optuna.trial_number": "0", "optuna.origin": "nothing frozen"}
    assert runs.opened[1]["tags"] == tags | {"optuna.trial_number": "1"}
