"""Sweeps by command: real processes that join, are killed, and go on; PostgreSQL; a tiny model."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import optuna
import pandas as pd
import psutil
import psycopg2
import pytest
from mlflow.entities import Run
from optuna.storages._grpc.server import make_server
from optuna.trial import FrozenTrial, TrialState

from bertdyn.errors import InputError
from bertdyn.pruning.plan import load_plan
from bertdyn.sweeping.storage import open_storage
from sweeps import freeze_schedules, prune_thresholds
from tests.end_to_end.conftest import TINY, Workplace, artifacts, make_workplace
from tests.families import make_checkpoint
from tests.servers import POSTGRES_BIN, MlflowServer, free_port, postgresql
from tests.squad_files import write_squad

FREEZING, PRUNING = "sweeps.freeze_schedules", "sweeps.prune_thresholds"
SHORT = (*TINY, "--num_train_epochs", "2", "--seeds", "0", "--store_features", "False")
QUICK = (
    "--calibration_examples",
    "40",
    "--num_train_epochs",
    "1",
    "--latency_shapes",
    "none",
    "--export_onnx",
    "False",
)
STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
"""Of a trial → of its MLflow run."""


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Of each of the many processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@dataclass
class Sweep:
    """A study under way, as MLflow and Optuna see it."""

    workplace: Workplace
    storage: str
    name: str = "study"

    @property
    def options(self) -> tuple[str, ...]:
        return "--storage", self.storage, "--study_name", self.name

    @cached_property
    def study(self) -> optuna.Study:
        """Read anew whenever it is looked at; but one storage, since each keeps connections of a database."""
        return optuna.load_study(study_name=self.name, storage=open_storage(self.storage))

    @property
    def trials(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.trials if trial.state != TrialState.WAITING]

    def finished(self) -> int:
        return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in self.trials)

    def has_begun(self) -> bool:
        try:
            return self.study.user_attrs.get("bertdyn.leader") is not None
        except (KeyError, InputError):
            return False

    def of_stage(self, stage: str) -> list[Run]:
        return self.workplace.runs(filter_string=f"tags.bertdyn.stage = '{stage}'")

    def check(self, stage: str, trials: int) -> Run:
        """What must hold of every sweep that came to its end; returns its run."""
        [parent] = self.of_stage(stage)
        assert parent.info.status == "FINISHED"
        assert all(run.info.status != "RUNNING" for run in self.workplace.runs())
        assert [trial.number for trial in self.study.trials] == list(range(len(self.study.trials)))
        assert not [trial for trial in self.study.trials if trial.state == TrialState.RUNNING]
        assert trials <= self.finished() < trials + 4, "workers may begin a trial at the very same moment"
        runs = {int(run.data.tags["optuna.trial_number"]): run for run in self.of_stage(f"{stage}-trial")}
        assert len(runs) == len(self.of_stage(f"{stage}-trial")), "no trial has two"
        assert runs.keys() <= {trial.number for trial in self.trials}
        for trial in self.trials:
            run = runs.get(trial.number)
            if trial.state == TrialState.FAIL:  # its process may have died before there was a run, or it named it
                assert run is None or run.info.status in ("FAILED", "KILLED")
                continue
            assert trial.user_attrs["mlflow_run_id"] == run.info.run_id
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert run.info.status == STATUS[trial.state]
            shown = {name: run.data.params[name] for name in trial.params}
            assert shown == {name: str(value) for name, value in trial.params.items()}
        assert parent.data.tags["optuna.study"] == self.name
        return parent


def wait_for(what: Callable[[], bool], *processes: subprocess.Popen, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s in vain")


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The worker processes of a driver."""
    children = psutil.Process(process.pid).children(recursive=True)
    found = []
    for child in children:
        with suppress(psutil.NoSuchProcess):  # it has just ended, or is a zombie
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def one_at_work(sweep: Sweep, pids: list[int]) -> FrozenTrial | None:
    """A running trial of one of these processes, whose MLflow run has begun."""
    for trial in sweep.trials:
        begun = trial.state == TrialState.RUNNING and "mlflow_run_id" in trial.user_attrs and trial.params
        if begun and int(trial.user_attrs["worker"].split(":")[-2]) in pids:
            return trial
    return None


def kill_one_at_work(sweep: Sweep, process: subprocess.Popen) -> FrozenTrial:
    """SIGKILL to a worker in the middle of a trial; the trial."""
    for _ in range(50):
        wait_for(lambda: one_at_work(sweep, [worker.pid for worker in workers_of(process)]) is not None, process)
        trial = one_at_work(sweep, [worker.pid for worker in workers_of(process)])
        if trial is None:
            continue
        os.kill(int(trial.user_attrs["worker"].split(":")[-2]), signal.SIGKILL)
        time.sleep(0.5)
        after = sweep.study.trials[trial.number]
        if after.state in (TrialState.RUNNING, TrialState.FAIL):
            return trial
    raise AssertionError("no trial was hit in the middle")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Workplace, Run]:
    """A fine-tuned encoder; what reads it adds runs to its store."""
    workplace = make_workplace(tmp_path_factory.mktemp("sweep"))
    workplace.run(*TINY, "--num_train_epochs", "3")
    [run] = workplace.runs()
    return workplace, run


@pytest.mark.skipif(POSTGRES_BIN is None, reason="PostgreSQL is not installed")
def test_four_workers_of_two_commands_on_postgresql_one_of_them_killed(tmp_path):
    """Optuna and an MLflow server on databases of their own; two commands; SIGKILL; then the study goes on."""
    with postgresql(tmp_path / "postgresql") as uri:
        connection = psycopg2.connect(uri.replace("postgresql+psycopg2", "postgresql"))
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE optuna")
        connection.close()
        server = MlflowServer(tmp_path, uri)
        try:
            server.start()
            workplace = Workplace(tmp_path, server.uri)
            sweep = Sweep(workplace, uri.removesuffix("postgres") + "optuna")
            options = (*SHORT, *sweep.options, "--workers", "2", "--n_trials", "60")
            leader = workplace.start(*options, module=FREEZING)
            wait_for(sweep.has_begun, leader)
            joined = workplace.start(*options, module=FREEZING)
            wait_for(lambda: len({t.user_attrs.get("worker") for t in sweep.trials} - {None}) == 4, leader, joined)
            killed = kill_one_at_work(sweep, leader)
            out, err = leader.communicate(timeout=400)
            assert leader.returncode == 0, err
            said, error = joined.communicate(timeout=100)
            assert joined.returncode == 0, error
            parent = sweep.check("sweep-freezing", 60)
            assert "joined study study: it has 6" in said
            assert f"in run {parent.info.run_id}" in said
            workers = {trial.user_attrs["worker"] for trial in sweep.trials}
            assert len(workers) >= 4, "and, if it came in time, the one that took the place of the dead"
            assert "SIGKILL" in err
            assert sweep.study.trials[killed.number].state == TrialState.FAIL
            assert workplace.client().get_run(killed.user_attrs["mlflow_run_id"]).info.status == "FAILED"
            [again] = [t for t in sweep.trials if t.system_attrs.get("retry_history") == [killed.number]]
            assert again.params.items() >= killed.params.items()  # it may have died before it had chosen all
            assert again.state in (TrialState.COMPLETE, TrialState.PRUNED)

            workplace.run(*SHORT, *sweep.options, "--n_trials", "66", module=FREEZING)
            assert sweep.check("sweep-freezing", 66).info.run_id == parent.info.run_id
            assert f"{len(sweep.trials)} trials" not in out
            note = workplace.client().get_run(parent.info.run_id).data.tags["mlflow.note.content"]
            given = sum("origin" in trial.user_attrs for trial in sweep.trials)
            assert f"{len(sweep.trials)} trials, {given} tried first, {len(sweep.trials) - given} by tpe" in note
            assert "1 took the place of trials whose process died" in note
        finally:
            server.kill()


def test_a_driver_that_is_told_to_stop_ends_its_runs_and_the_study_goes_on(workplace, tmp_path):
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"))
    options = (*SHORT, *sweep.options, "--workers", "2")
    driver = workplace.start(*options, "--n_trials", "40", module=FREEZING)
    wait_for(lambda: sweep.has_begun() and sweep.finished() >= 2, driver)
    workers = workers_of(driver)
    driver.send_signal(signal.SIGTERM)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 143, err
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    [parent] = sweep.of_stage("sweep-freezing")
    assert parent.info.status == "KILLED"
    statuses = {run.info.status for run in sweep.of_stage("sweep-freezing-trial")}
    assert statuses <= {"FINISHED", "KILLED", "FAILED"}
    assert not [trial for trial in sweep.trials if trial.state == TrialState.RUNNING]

    done = sweep.finished()
    workplace.run(*options, "--n_trials", str(done + 3), module=FREEZING)
    assert sweep.check("sweep-freezing", done + 3).info.run_id == parent.info.run_id


def test_a_driver_that_is_killed_leaves_no_workers_behind_and_the_study_goes_on(workplace, tmp_path):
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"))
    driver = workplace.start(*SHORT, *sweep.options, "--n_trials", "500", module=FREEZING)
    wait_for(lambda: sweep.has_begun() and sweep.finished() >= 1, driver)
    [worker] = workers_of(driver)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, seconds=60)
    [parent] = sweep.of_stage("sweep-freezing")
    assert parent.info.status == "RUNNING", "nobody was left to end it"

    done = sweep.finished()
    workplace.run(*SHORT, *sweep.options, "--n_trials", str(done + 2), module=FREEZING)
    assert sweep.check("sweep-freezing", done + 2).info.run_id == parent.info.run_id


def test_pruning_by_mlflow_run(tuned, tmp_path):
    """The frontier, the winner beside its controls, the registered model; then more trials by name."""
    workplace, source = tuned
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"))
    options = {
        "source_run_id": source.info.run_id, "n_trials": 14, "storage": sweep.storage, "study_name": sweep.name,
        "seeds": "0,1", "num_train_epochs": 1, "register_as": "swept@best", "calibration_examples": 40,
        "latency_shapes": "none", "export_onnx": False,
    }  # fmt: skip
    command = ["mlflow", "run", ".", "-e", "sweep-pruning", "--env-manager", "local"]
    for name, value in options.items():
        command += ["-P", f"{name}={value}"]
    ended = subprocess.run(command, env=workplace.environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    parent = sweep.check("sweep-pruning", 14)
    assert parent.info.run_name.startswith("sweep-pruning-")
    folder = artifacts(parent)
    table = pd.read_parquet(folder / "trials.parquet")
    assert list(table["number"]) == list(range(14))
    assert {"unpruned", "uniform 0.5", "System 4, published", "sampler"} <= set(table["origin"])
    whole = table[table["origin"] == "unpruned"].iloc[0]
    assert whole["kl"] == 0
    assert whole["flops"] == 1
    for row in table.itertuples():
        run = workplace.client().get_run(row.run_id)
        assert run.data.metrics["eval/kl"] == row.kl
        plan = load_plan(artifacts(run) / "plan.json")
        assert run.data.metrics["cost/flops"] == pytest.approx(row.flops)
        assert (plan.result == plan.shape) == (row.flops == 1)
    for name in ("pareto", "history", "parallel_coordinates", "importances"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 10_000
    references = pd.read_parquet(folder / "references.parquet").set_index(["name", "part"])
    cost = references.loc[("winner", "test"), "cost"]
    assert (references["cost"] <= cost + 1e-9).all()
    winners = [run for run in sweep.of_stage("prune") if run.data.tags["mlflow.parentRunId"] == parent.info.run_id]
    assert {run.data.params["seed"] for run in winners} == {"0", "1"}
    best = int(parent.data.tags["optuna.best_trial"])
    assert all(run.info.run_name.startswith(f"winner-{best:04d}-s") for run in winners)
    assert parent.data.metrics["best/kl"] == table.loc[best, "kl"]
    version = workplace.client().get_model_version_by_alias("swept", "best")
    assert int(version.version) == 1
    note = parent.data.tags["mlflow.note.content"]
    assert "knee of the front" in note
    assert "paired seeds" in note

    assert parent.data.metrics["test/accuracy_minus_dense_low"] <= parent.data.metrics["test/accuracy_minus_dense"]
    err = workplace.run(
        "--source_run_id", source.info.run_id, *sweep.options, "--n_trials", "14", "--seeds", "0,1", *QUICK,
        status=2, module=PRUNING,
    )  # fmt: skip
    assert "has its 14 trials and its report; give a larger --n_trials" in err


def test_within_a_budget_with_recovery_bad_trials_stop(tuned, tmp_path):
    """constrained: what costs too much is infeasible and not trained; the others report every epoch."""
    workplace, source = tuned
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"), "recovered")
    options = ("--source_run_id", source.info.run_id, *sweep.options, *QUICK, "--seeds", "0", "--n_trials", "12")
    options += ("--objective", "constrained", "--budget", "0.6", "--trial_epochs", "2", "--trial_train_samples", "64")
    workplace.run(*options, "--recover", "False", module=PRUNING)
    trials = sweep.trials
    feasible = [trial for trial in trials if all(value <= 0 for value in trial.constraints.values())]
    assert 0 < len(feasible) < len(trials)
    for trial in trials:
        run = workplace.client().get_run(trial.user_attrs["mlflow_run_id"])
        assert run.info.status == STATUS[trial.state]
        points = workplace.points(run.info.run_id)
        epochs = {step for key, step in points if key == "eval/kl"}
        if trial not in feasible:
            assert trial.state == TrialState.COMPLETE
            assert not trial.intermediate_values
            assert epochs == {0}
        else:
            assert sorted(trial.intermediate_values) == sorted(epochs)
            if trial.state == TrialState.COMPLETE:
                assert trial.value == min(v for epoch, v in trial.intermediate_values.items() if epoch)
    best = min((t for t in feasible if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    [parent] = [r for r in sweep.of_stage("sweep-pruning") if r.data.tags["optuna.study"] == "recovered"]
    assert parent.data.tags["optuna.best_trial"] == str(best.number)


def test_absolute_thresholds_on_a_grid_by_two_workers(tuned, tmp_path):
    """Every point once; where nothing would be left, the trial ends early, and the sweep goes on."""
    workplace, source = tuned
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"), "grid")
    space = "{attention_thresholds: {low: 0, high: 1e9, step: 1e9, layers: same}, criterion: magnitude, "
    space += "ffn_thresholds: {low: 0, high: 1e9, step: 1e9, layers: same}, compensation: mean}"
    options = ("--threshold_kind", "absolute", "--sampler", "grid", "--space_overrides", space, "--workers", "2")
    workplace.run(
        "--source_run_id", source.info.run_id, *sweep.options, *options, *QUICK, "--seeds", "0", "--recover", "False",
        module=PRUNING,
    )  # fmt: skip
    states = {tuple(trial.params[f"{kind}_thresholds"] for kind in ("attention", "ffn")): trial.state
              for trial in sweep.trials}  # fmt: skip
    kept = [(0, 0), (0, 1e9), (1e9, 0)]
    assert states == dict.fromkeys(kept, TrialState.COMPLETE) | {(1e9, 1e9): TrialState.PRUNED}
    assert len(sweep.trials) == 4


def test_measured_latency_through_a_proxy_while_a_worker_is_killed(tuned, tmp_path):
    """The table of latencies is measured once, by who begins the study, and is the same for all workers."""
    workplace, source = tuned
    port = free_port()
    proxy = make_server(open_storage(str(tmp_path / "optuna.journal")), "127.0.0.1", port)
    proxy.start()
    try:
        sweep = Sweep(workplace, f"grpc://127.0.0.1:{port}", "latency")
        options = ("--source_run_id", source.info.run_id, *sweep.options, *QUICK, "--seeds", "0", "--recover", "False")
        options += ("--objective", "constrained", "--budget_of", "latency", "--budget", "0.95", "--controls", "none")
        driver = workplace.start(*options, "--n_trials", "24", "--workers", "2", module=PRUNING)
        wait_for(sweep.has_begun, driver)
        killed = kill_one_at_work(sweep, driver)
        said, error = driver.communicate(timeout=300)
        assert driver.returncode == 0, error
        assert "SIGKILL" in error
        assert sweep.study.trials[killed.number].state == TrialState.FAIL
        [again] = [t for t in sweep.trials if t.system_attrs.get("retry_history") == [killed.number]]
        assert again.params.items() >= killed.params.items()  # it may have died before it had chosen all
        assert sweep.study.user_attrs["bertdyn.latency_table"]
        costs = [trial.user_attrs["noted"]["cost"] for trial in sweep.trials if trial.state == TrialState.COMPLETE]
        assert 0 < min(costs) < max(costs) == 1
        [parent] = [r for r in sweep.of_stage("sweep-pruning") if r.data.tags["optuna.study"] == "latency"]
        assert parent.data.metrics["best/cost"] <= 0.95
        assert "within 0.95 of the latency" in said
    finally:
        proxy.stop(0)


@pytest.mark.parametrize("kind", ["albert", "questions"])
def test_shared_layers_and_questions(workplace, tmp_path, kind):
    """ALBERT has one threshold a kind of block; questions are scored by F1, with the threshold of validation."""
    if kind == "albert":
        (tmp_path / "albert").mkdir()
        model = ("--model_name_or_path", str(make_checkpoint("albert", tmp_path / "albert")), *TINY[4:])
    else:
        model = (*TINY[:4], "--dataset", "squad_v2", "--data_dir", str(write_squad(tmp_path / "squad")))
        model += ("--max_length", "96", "--doc_stride", "32")
    workplace.run(*model, "--num_train_epochs", "1")
    [source] = workplace.runs()
    sweep = Sweep(workplace, str(tmp_path / "optuna.journal"))
    options = ("--source_run_id", source.info.run_id, *sweep.options, *QUICK, "--seeds", "0", "--n_trials", "4")
    options += ("--controls", "none", "--enqueue", "False")
    if kind == "albert":  # a front of models that have recovered
        options += ("--trial_epochs", "1", "--trial_train_samples", "64")
    workplace.run(*options, module=PRUNING)
    parent = sweep.check("sweep-pruning", 4)
    score = "accuracy" if kind == "albert" else "f1"
    assert {f"test/{score}", f"test/{score}_minus_dense_before", "test/kl"} <= parent.data.metrics.keys()
    thresholds = {name for trial in sweep.trials for name in trial.params if "threshold" in name}
    references = pd.read_parquet(artifacts(parent) / "references.parquet")
    assert set(references["name"]) == {"winner", "uniform", "divided"}
    if kind == "albert":
        assert thresholds == {"attention_threshold_01", "ffn_threshold_01"}, "one each"
    else:
        test = references[references["part"] == "test"].set_index("name")
        assert test["f1"].between(0, 100).all()
        validation = references[references["part"] == "validation"].set_index("name")
        pd.testing.assert_series_equal(test["null_threshold"], validation["null_threshold"])


@pytest.fixture
def pruning(tuned, run_here):
    workplace, source = tuned
    return lambda *argv: run_here(workplace, prune_thresholds, "--source_run_id", source.info.run_id, *argv)


@pytest.fixture
def freezing(tuned, run_here):
    return lambda *argv: run_here(tuned[0], freeze_schedules, *argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--space_overrides", "{thresholds: {low: 0, high: 1}}"], "unknown parameter 'thresholds'"),
        (["--space_overrides", "{ffn_thresholds: {low: 0.5, high: 0.1}}"], "the range from 0.5 to 0.1 is empty"),
        (["--space_overrides", "{ffn_thresholds: [0, 0, 0.8, 0.8]}"], "a list for 4 layers; accepted are 2 entries"),
        (["--space_overrides", "{ffn_thresholds: {low: 0, high: 1.5}}"], "1.5; accepted are numbers from 0 to 1"),
        (["--space", "nowhere.yaml"], "--space"),
        (["--sampler", "grid"], "is a range without steps"),
        (["--criterion", "wanda"], "the trials choose it; to fix it, give --space_overrides '{criterion: wanda}'"),
        (["--attention_thresholds", "0.5"], "the trials choose thresholds"),
        (["--storage", "postgresql+psycopg2://nobody@127.0.0.1:9/none"], "does not answer"),
        (["--storage", "grpc://127.0.0.1:9"], "does not answer"),
        (["--threshold_kind", "absolute"], "share no scale"),
    ],
)
def test_bad_input_ends_with_one_line(pruning, tuned, argv, said):
    before = len(tuned[0].runs())
    status, err = pruning(*argv)
    assert status == 2
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert len(tuned[0].runs()) == before, "no run was begun"


def test_a_study_about_something_else_is_not_joined(pruning, freezing, tuned, tmp_path):
    sweep = Sweep(tuned[0], str(tmp_path / "optuna.journal"))
    tuned[0].run(*SHORT, *sweep.options, "--n_trials", "2", module=FREEZING)
    status, err = pruning(*sweep.options)
    assert status == 2
    assert "that study has " in err
    changed = ("--space_overrides", "{freeze_epochs: 0}")
    status, err = freezing(*SHORT, *sweep.options, *changed, "--n_trials", "9")
    assert status == 2
    assert "that study has space" in err


def test_optuna_is_not_given_mlflows_database(pruning, tuned):
    status, err = pruning("--storage", tuned[0].uri)
    assert status == 2
    assert "is the database of MLFLOW_TRACKING_URI" in err


def test_a_sweep_is_no_source_and_an_extract_run_none_for_it(tuned, run_here):
    workplace, source = tuned
    workplace.run("--source_run_id", source.info.run_id, "--rows", "first", module="entrypoints.extract")
    [extracted] = workplace.runs(filter_string="tags.bertdyn.stage = 'extract'")
    status, err = run_here(workplace, prune_thresholds, "--source_run_id", extracted.info.run_id)
    assert status == 2
    assert "is of stage extract; accepted are runs of fine-tune or prune" in err
