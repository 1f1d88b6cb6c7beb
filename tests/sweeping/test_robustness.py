"""Found by testing, each once a bug: trials given up while they run, values that are no numbers, clocks, bad files."""

import itertools
from contextlib import suppress

import optuna
import psutil
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from bertdyn.errors import InputError
from bertdyn.steps.sweep_worker import run_trials
from bertdyn.sweeping import studies
from bertdyn.sweeping.outcome import importances, trials_table
from bertdyn.sweeping.space import Number, Space, Words, read_space
from bertdyn.sweeping.storage import check_not_same, open_storage, without_password
from tests.pruning.test_agreement import Setting


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_trial_that_was_given_up_while_it_ran_does_not_end_the_worker(ends):
    study = optuna.create_study()

    def trial_function(trial):
        if trial.number == 0:
            study.tell(0, state=TrialState.FAIL)  # as bury, or a missed heartbeat, does
            if ends == "raises":
                trial.set_user_attr("cost", 1.0)
        return 1.0

    run_trials(study, enough(study, 2), trial_function)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_values_that_are_no_numbers_are_failures(tmp_path):
    study, count = optuna.create_study(), itertools.count()

    def diverged(trial):
        if next(count) >= 20:
            raise SystemExit("for ever")
        return float("nan")

    with pytest.raises(RuntimeError, match="3 trials failed in a row"):
        run_trials(study, enough(study, 2), diverged)


def test_burying_does_not_change_what_is_known_of_the_dead(tmp_path):
    study = studies.begin_study(open_storage(str(tmp_path / "j")), "s", ["minimize"], {})
    dead = studies.this_process().rsplit(":", 1)[0] + ":1.00"
    for _ in range(2):
        study.ask().set_user_attr(studies.WORKER, dead)
        studies.bury(study, print, studies.Watch())
    assert studies.retried(study.trials[1]) == [0]
    assert trials_table(study, ["kl"])["retry_of"].tolist()[1] == 0


def test_a_trial_that_is_given_up_is_not_said_to_be_tried_again(tmp_path, caplog):
    study = studies.begin_study(open_storage(str(tmp_path / "j")), "s", ["minimize"], {})
    dead = studies.this_process().rsplit(":", 1)[0] + ":1.00"
    for _ in range(3):
        study.ask().set_user_attr(studies.WORKER, dead)
        studies.bury(study, print, studies.Watch())
    assert not studies.count(study, TrialState.WAITING)
    assert "tried again" not in caplog.messages[-1]


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch):
    name, boot = studies.this_process(), psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 1)  # btime of /proc/stat after NTP has stepped
    assert studies.is_alive(name)


def enough(study, trials):
    return lambda: studies.taken(study) >= trials


KINDS = {
    "freeze_layers": Number(0, 6, whole=True),
    "rate": Number(0, float("inf"), above=True),
    "criterion": Words(("a", "b")),
}


@pytest.mark.parametrize(
    "text",
    [
        "freeze_layers: {low: 0, high: 6, step: 0.5}",
        "freeze_layers: {low: 0, high: 6, step: 1.5}",
        "rate: {low: 0.1, high: 1, step: .nan}",
        "rate: {low: 0.1, high: 1, step: true}",
        "rate: {low: 0.1, high: .inf}",
        "rate: {low: 0.1, high: 1, log: 'false'}",
        "rate: {low: 0.1, high: 1, layers: same}",
        "criterion: 2020-13-45",
    ],
)
def test_bad_ranges_are_refused(tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError):
        read_space(tmp_path / "s.yaml", None, KINDS)


def test_steps_are_written_as_low_and_high_are(tmp_path):
    (tmp_path / "s.yaml").write_text("rate: {low: 1e-1, high: 1, step: 1e-1}")
    assert read_space(tmp_path / "s.yaml", None, KINDS).free == {"rate": FloatDistribution(0.1, 1, step=0.1)}


def test_grid_values_lie_in_their_range():
    [values] = Space({"x": FloatDistribution(0.1, 0.7, step=0.1)}, {}).grid().values()
    assert max(values) <= 0.7


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:pa/ss@h/db",
        "postgresql://u:pa#ss@h/db",
        "postgresql://u:pa?ss@h/db",
        "postgresql://h/db?user=u&password=pass",
    ],
)
def test_passwords_are_never_shown(url):
    assert "ss" not in without_password(url).replace("password", "")


@pytest.mark.parametrize("name", ["postgresql://h:abc/db", "postgresql://[::1/db", "grpc://[::1:1"])
def test_malformed_urls(name):
    with pytest.raises(InputError):
        open_storage(name)


@pytest.mark.parametrize("name", ["://x", "postgresql://h:abc/db"])
def test_malformed_urls_beside_mlflows(name):
    with suppress(InputError):
        check_not_same(name, "sqlite:///mlflow.db")


@pytest.mark.parametrize("content", ["42\n", "[1]\n", "hello\n"])
def test_files_that_are_no_journal(tmp_path, content):
    (tmp_path / "notes").write_text(content)
    with pytest.raises(InputError):
        open_storage(str(tmp_path / "notes"))


@pytest.mark.parametrize("trials", [1, 20])
def test_importances_are_empty_where_all_trials_are_alike(trials):
    study = optuna.create_study()
    study.optimize(lambda t: t.suggest_float("x", 0, 1) * 0 + t.suggest_float("y", 0, 1) * 0, n_trials=trials)
    assert importances(study, ["kl"]).empty


def test_scored_leaves_the_model_in_its_mode(checkpoints):
    setting = Setting(checkpoints["bert"], "classification")
    setting.pruned.eval()
    setting.scored(setting.pruned)
    assert not setting.pruned.training
