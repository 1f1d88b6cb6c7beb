"""A study that several processes work on: who is alive, who leads, and what becomes of the trials of the dead."""

import signal
import socket
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from bertdyn.errors import InputError
from bertdyn.steps.sweep import lead
from bertdyn.sweeping import studies
from bertdyn.sweeping.storage import open_storage
from bertdyn.tracking.tracker import Tracker
from tests.sweeping import processes

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
PROCESSES = get_context("spawn")


@pytest.fixture
def begin(tmp_path):
    """Makes a new study in a journal."""
    path = str(tmp_path / "optuna.journal")

    def begin(directions=("minimize",), setup=None):
        return studies.begin_study(open_storage(path), "thresholds", directions, setup or {})

    return begin


def opened_again(tmp_path):
    """The study as another process sees it."""
    return studies.find_study(open_storage(str(tmp_path / "optuna.journal")), "thresholds")


@pytest.fixture
def other():
    """Some other process of this machine, which sleeps."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def start():
    """Starts a process that has not ended by itself, and kills it in the end."""
    started = []

    def start(work, *arguments):
        process = PROCESSES.Process(target=work, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hangs(path):
    """Whether the process that was started is where it never comes to an end."""
    return Path(f"{path}.hangs").exists()


def states(study):
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


# The same study ------------------------------------------------------------------------------------------------------

SETUP = {"kind": "sweep-pruning", "budget": None, "space": {"x": {"low": 0.0, "high": 1.0}, "word": ["a", "b"]}}


def test_a_study_is_found_with_what_it_was_begun_with(tmp_path, begin):
    assert opened_again(tmp_path) is None
    begin(["minimize", "maximize"], SETUP)
    found = opened_again(tmp_path)
    assert [direction.name for direction in found.directions] == ["MINIMIZE", "MAXIMIZE"]
    studies.check_same(found, SETUP)
    assert studies.find_study(found._storage, "threshold") is None
    assert found.user_attrs[studies.LEADER]["process"] == studies.this_process()  # from the first moment on


def test_of_two_that_begin_a_study_at_once_one_does(begin):
    assert begin() is not None
    assert begin() is None


def test_all_trials_see_the_same_data(tmp_path, begin):
    """As whoever came first has them."""
    study = begin()
    for seen in (study, opened_again(tmp_path)):
        studies.check_data(seen, "0123456789abcdef")
        studies.check_data(seen, "0123456789abcdef")
    with pytest.raises(
        InputError, match=r"works on other data: their fingerprint is 0123456789ab, here it is 0123456x"
    ):
        studies.check_data(opened_again(tmp_path), "0123456x")


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (SETUP | {"budget": 0.5}, "has budget None, this command 0.5"),
        (SETUP | {"kind": "sweep-freezing"}, "has kind 'sweep-pruning', this command 'sweep-freezing'"),
        (SETUP | {"score": "kl"}, "has score None, this command 'kl'"),
        ({name: SETUP[name] for name in ("budget", "space")}, "has kind 'sweep-pruning', this command None"),
        (SETUP | {"space": SETUP["space"] | {"word": ["b", "a"]}}, r"has space {.*\['a', 'b'\]}, this .*\['b', 'a'\]}"),
    ],
)
def test_a_study_about_something_else_is_refused_by_name(tmp_path, begin, setup, said):
    begin(setup=SETUP)
    with pytest.raises(InputError, match=rf"^--study_name 'thresholds': that study {said}; give the same, or") as error:
        studies.check_same(opened_again(tmp_path), setup)
    assert len(str(error.value).splitlines()) == 1


def test_a_study_of_another_program_is_refused(tmp_path):
    study = optuna.create_study(study_name="theirs", storage=open_storage(str(tmp_path / "optuna.journal")))
    with pytest.raises(InputError, match=r"^--study_name 'theirs': that study was not made by bertdyn"):
        studies.check_same(study, {})


# Who is alive --------------------------------------------------------------------------------------------------------


def test_a_process_is_alive_until_it_ends(other):
    name = studies.process_name(other.pid)
    assert name.rsplit(":", 2)[:2] == [socket.gethostname(), str(other.pid)]
    assert name != studies.this_process() == studies.this_process()
    assert studies.is_alive(name) is True
    assert studies.is_alive(studies.this_process()) is True
    other.kill()
    wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
    assert studies.is_alive(name) is False  # ended, and nobody has asked how
    other.wait()
    assert studies.is_alive(name) is False


def test_a_process_id_that_was_given_out_again_is_somebody_else(other):
    name = studies.process_name(other.pid)
    host_and_pid, started = name.rsplit(":", 1)
    assert studies.is_alive(f"{host_and_pid}:{float(started) - 3600:.2f}") is False
    assert studies.is_alive(name) is True


def test_nothing_is_known_of_the_processes_of_another_machine(other):
    name = studies.process_name(other.pid)
    assert studies.is_alive(name.replace(socket.gethostname(), "gpu-17", 1)) is None
    assert studies.is_alive(f"10.0.0.1:8080:{other.pid}:1.00") is None


# Who leads -----------------------------------------------------------------------------------------------------------


def test_a_study_is_led_until_its_leader_dies(tmp_path, begin, start):
    study, path = begin(), str(tmp_path / "optuna.journal")
    assert studies.led_by_another(study) is None
    process = start(processes.lead_and_hang, path, "thresholds")
    wait_until(lambda: hangs(path))
    assert studies.led_by_another(study) == studies.process_name(process.pid)
    process.kill()
    process.join()
    assert studies.led_by_another(study) is None


def test_a_leader_on_another_machine_is_alive_while_it_says_so(begin, other):
    study = begin()
    name = studies.process_name(other.pid)
    for beat, expected in ((0, True), (studies.BEAT_SECONDS, True), (studies.DEAD_AFTER + 1, False)):
        elsewhere = "gpu-17:1:1.00"
        study.set_user_attr(studies.LEADER, {"process": elsewhere, "beat": time.time() - beat})
        assert studies.led_by_another(study) == (elsewhere if expected else None)
        # On this machine a process that is too busy to say so is known to be alive.
        study.set_user_attr(studies.LEADER, {"process": name, "beat": time.time() - beat})
        assert studies.led_by_another(study) == name
    assert studies.BEAT_SECONDS * 3 < studies.DEAD_AFTER


HERE = f"{studies.BEAT}{socket.gethostname()}"


@pytest.mark.parametrize("leads", [True, False])
def test_a_command_gives_signs_of_life_until_it_ends(tmp_path, begin, monkeypatch, leads):
    """From the first moment on, also while it is busy, and though one of them is lost."""
    monkeypatch.setattr(studies, "BEAT_SECONDS", 0.05)
    study, seen = begin(), opened_again(tmp_path)
    begun, set_user_attr, lost = seen.user_attrs[studies.LEADER], study.set_user_attr, []

    def fails_once(name, value):
        if len(lost) == 0 and first is not None:
            lost.append(name)
            raise OSError("no database")
        set_user_attr(name, value)

    first = None
    monkeypatch.setattr(study, "set_user_attr", fails_once)
    before = time.time()
    with pytest.raises(ZeroDivisionError), studies.beating(study, leads=leads):
        first = seen.user_attrs[HERE]
        assert before <= first <= time.time()
        wait_until(lambda: lost and seen.user_attrs[HERE] > first)
        second = seen.user_attrs[HERE]
        wait_until(lambda: seen.user_attrs[HERE] > second)
        leader = seen.user_attrs.get(studies.LEADER)
        if leads:
            assert leader["process"] == studies.this_process()
            assert first < leader["beat"] <= time.time()
        else:
            assert leader == begun
        assert studies.led_by_another(seen) is None  # but by this one
        raise ZeroDivisionError
    assert seen.user_attrs[studies.LEADER] == (None if leads else begun)
    last = seen.user_attrs[HERE]
    time.sleep(0.2)
    assert seen.user_attrs[HERE] == last


def test_who_joins_does_not_depose_the_leader(begin, other):
    study = begin()
    name = studies.process_name(other.pid)
    study.set_user_attr(studies.LEADER, {"process": name, "beat": time.time()})
    with studies.beating(study, leads=False):
        assert studies.led_by_another(study) == name
    assert studies.led_by_another(study) == name


def test_a_study_that_another_leads_is_not_led(begin, other, tmp_path):
    study = begin()
    name = studies.process_name(other.pid)
    study.set_user_attr(studies.LEADER, {"process": name, "beat": time.time()})
    with pytest.raises(InputError, match=f"--study_name 'thresholds': process {name} leads that study"):
        lead(None, None, None, Tracker(tmp_path / "run"), study)
    assert study.user_attrs[studies.LEADER]["process"] == name


def test_machines_that_fall_silent(begin, monkeypatch):
    """By the clock here: what they say is only compared with what they said before."""
    study, machines, now = begin(), studies.Watch(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    study.set_user_attr(f"{studies.BEAT}slow:clock", 1.0)
    study.set_user_attr(f"{studies.BEAT}fast.clock", 9e9)
    study.set_user_attr("something else", 1.0)
    assert machines.silent(study) == set()
    now[0] += studies.DEAD_AFTER - 1
    study.set_user_attr(f"{studies.BEAT}fast.clock", 9e9 + 1)
    assert machines.silent(study) == set()
    now[0] += 2
    assert machines.silent(study) == {"slow:clock"}
    assert studies.Watch().silent(study) == set()  # who has just come cannot know
    now[0] += studies.DEAD_AFTER
    study.set_user_attr(f"{studies.BEAT}slow:clock", 2.0)  # it was only out of reach
    assert machines.silent(study) == {"fast.clock"}


# The dead ------------------------------------------------------------------------------------------------------------


def told_nothing(run_id):
    pytest.fail(f"{run_id} was abandoned")


def killed_in_trial(study, start, path, named=True):
    """A worker that was killed by SIGKILL in a trial, and reaped."""
    process = start(processes.hang_in_trial, path, study.study_name, named)
    wait_until(lambda: hangs(path))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "minimize"]])
def test_the_trial_of_a_killed_process_is_queued_anew(tmp_path, begin, start, directions):
    study, path = begin(directions), str(tmp_path / "optuna.journal")
    study.enqueue_trial({"x": 0.125}, user_attrs={studies.ORIGIN: "a guess"})
    process = start(processes.hang_in_trial, path, "thresholds")
    wait_until(lambda: hangs(path))
    assert studies.bury(study, told_nothing, studies.Watch()) == []  # it lives
    assert states(study) == ["RUNNING"]

    process.kill()
    process.join()
    abandoned = []
    assert studies.bury(study, abandoned.append, studies.Watch()) == [0]
    assert abandoned == ["run-0"]
    old, new = study.get_trials()
    assert (old.state, new.state) == (TrialState.FAIL, TrialState.WAITING)
    assert old.user_attrs[studies.RUN] == "run-0"  # what was recorded stays
    assert new.params == old.params
    assert new.params["x"] == 0.125
    assert new.user_attrs == {studies.ORIGIN: "a guess", "cost": 0.125, "word": old.params["word"]}
    assert new.intermediate_values == {}
    assert (studies.retried(old), studies.retried(new)) == ([], [0])

    for again in (study, opened_again(tmp_path)):
        assert studies.bury(again, told_nothing, studies.Watch()) == []
    assert states(study) == ["FAIL", "WAITING"]
    # Who takes it has the same choices, though the sampler would make others.
    trial = opened_again(tmp_path).ask()
    assert trial.number == 1
    assert {
        "x": trial.suggest_float("x", 0, 1),
        "word": trial.suggest_categorical("word", ["a", "b", "c"]),
    } == old.params
    assert studies.bury(study, told_nothing, studies.Watch()) == []  # which has not said yet who it is


def test_a_trial_that_kills_every_process_is_given_up(tmp_path, begin, start):
    study, abandoned = begin(), []
    killed_in_trial(study, start, str(tmp_path / "optuna.journal"))
    assert studies.bury(study, abandoned.append, studies.Watch()) == [0]
    [*_, waiting] = study.get_trials()
    dead = study.trials[0].user_attrs[studies.WORKER]
    for number in range(1, studies.MAX_RETRIES + 1):  # by dead processes, which need not be killed each
        assert states(study) == ["FAIL"] * number + ["WAITING"]
        trial = study.ask()
        assert trial.params == waiting.params
        trial.set_user_attr(studies.WORKER, dead)
        trial.set_user_attr(studies.RUN, f"run-{number}")
        assert studies.bury(study, abandoned.append, studies.Watch()) == [number]
    assert states(study) == ["FAIL"] * (studies.MAX_RETRIES + 1)
    assert abandoned == [f"run-{number}" for number in range(studies.MAX_RETRIES + 1)]
    assert studies.bury(study, told_nothing, studies.Watch()) == []
    # As it is kept: each names those before it.
    kept = opened_again(tmp_path).get_trials()
    assert [studies.retried(trial) for trial in kept] == [list(range(n)) for n in range(studies.MAX_RETRIES + 1)]
    # Another one has its own tries.
    study.ask().set_user_attr(studies.WORKER, dead)
    assert studies.bury(study, told_nothing, studies.Watch()) == [studies.MAX_RETRIES + 1]
    assert states(study)[-1] == "WAITING"


def test_a_process_that_died_before_it_said_who_it_was(tmp_path, begin, start, monkeypatch):
    study = begin()
    killed_in_trial(study, start, str(tmp_path / "optuna.journal"), named=False)
    watch, now = studies.Watch(), time.monotonic()
    assert studies.bury(study, told_nothing, watch) == []  # it may be just about to
    monkeypatch.setattr(time, "monotonic", lambda: now + 3600)
    assert studies.bury(study, told_nothing, studies.Watch()) == []  # who has just come cannot know
    assert studies.bury(study, told_nothing, watch) == [0]  # there is no run to end
    assert states(study) == ["FAIL", "WAITING"]


def test_trials_of_other_machines_and_finished_ones_are_left_alone(begin, other):
    study = begin()
    dead = studies.process_name(other.pid)
    other.kill()
    other.wait()
    for worker in ("gpu-17:1:1.00", studies.this_process(), dead, dead, dead):
        study.ask().set_user_attr(studies.WORKER, worker)
    study.tell(2, 1.0)
    study.tell(3, state=TrialState.PRUNED)
    assert studies.bury(study, told_nothing, studies.Watch()) == [4]
    assert states(study) == ["RUNNING", "RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"]


def test_the_trials_of_a_silent_machine_are_queued_anew(begin, monkeypatch):
    study, abandoned = begin(), []
    for worker in ("gpu-17:1:1.00", "gpu-18:1:1.00", "gpu-17:2:1.00", studies.this_process()):
        trial = study.ask()
        trial.set_user_attr(studies.WORKER, worker)
        trial.set_user_attr(studies.RUN, f"run-{trial.number}")
    watch = studies.Watch()
    monkeypatch.setattr(watch, "silent", lambda study: {"gpu-17", socket.gethostname()})
    assert studies.bury(study, abandoned.append, watch, has_heartbeat=True) == []  # that decides then
    assert studies.bury(study, abandoned.append, watch) == [0, 2]  # this process is known to be alive
    assert abandoned == ["run-0", "run-2"]
    assert states(study) == ["FAIL", "RUNNING", "FAIL", "RUNNING", "WAITING", "WAITING"]


def test_of_two_that_bury_at_once_one_does(tmp_path, begin, other, monkeypatch):
    study, second = begin(), opened_again(tmp_path)
    trial = study.ask()
    trial.set_user_attr(studies.WORKER, studies.process_name(other.pid))
    trial.set_user_attr(studies.RUN, "run-0")
    other.kill()
    other.wait()
    seen, abandoned = second.get_trials(states=(TrialState.RUNNING,)), []
    assert studies.bury(study, abandoned.append, studies.Watch()) == [0]
    monkeypatch.setattr(second, "get_trials", lambda **options: seen)  # it looked before the first was done
    assert studies.bury(second, abandoned.append, studies.Watch()) == []
    assert abandoned == ["run-0"]
    assert states(study) == ["FAIL", "WAITING"]


def test_counts(begin):
    study = begin()
    assert (studies.taken(study), studies.finished(study), studies.concluded(study)) == (0, 0, 0)
    for _ in range(5):
        study.ask()
    study.tell(0, 1.0)
    study.tell(1, 1.0)
    study.tell(2, state=TrialState.PRUNED)
    study.tell(3, state=TrialState.FAIL)
    study.enqueue_trial({"x": 1})
    assert studies.finished(study) == 3  # what failed has no outcome
    assert studies.taken(study) == 4  # and somebody works on one
    assert studies.count(study, TrialState.WAITING) == 1
    studies.conclude(study, 3)
    study.tell(4, 1.0)
    assert (studies.concluded(study), studies.finished(study)) == (3, 4)
