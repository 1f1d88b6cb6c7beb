"""What a study found: the front is what comparing all pairs finds, the knee where a curve bends, a table what was."""

import math

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from bertdyn.sweeping import studies
from bertdyn.sweeping.outcome import area_history, complete, front, importances, is_feasible, knee, trials_table

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
optuna.logging.set_verbosity(optuna.logging.WARNING)
FINISHED = (TrialState.COMPLETE, TrialState.FAIL)


def make_study(trials):
    """A study of two low values; trials are (value, value, over the limit by, state)."""
    study = optuna.create_study(directions=["minimize", "minimize"])
    for first, second, over, state in trials:
        trial = study.ask()
        if over is not None:
            trial.set_constraint("cost", over)
        study.tell(trial, [first, second] if state == TrialState.COMPLETE else None, state=state)
    study.ask()  # somebody works on one
    return study


few = st.integers(0, 5).map(float)  # so that there are equals
drawn_trials = st.lists(
    st.tuples(
        few, few, st.sampled_from([None, None, -1.0, 0.0, 0.5]), st.sampled_from([*FINISHED[:1] * 4, FINISHED[1]])
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(drawn_trials)
def test_the_front_is_what_no_other_beats(trials):
    study = make_study(trials)
    allowed = [
        (number, *trial[:2])
        for number, trial in enumerate(trials)
        if trial[3] == TrialState.COMPLETE and (trial[2] is None or trial[2] <= 0)
    ]
    assert [trial.number for trial in complete(study)] == [number for number, *_ in allowed]

    def beaten(x, y):
        return any(a <= x and b <= y and (a, b) != (x, y) for _, a, b in allowed)

    best = {}
    for number, x, y in allowed:
        if not beaten(x, y):
            best.setdefault((x, y), number)  # of equals the first
    found = front(study)
    assert [trial.number for trial in found] == [best[point] for point in sorted(best, key=lambda point: point[1])]
    costs, divergences = [t.values[1] for t in found], [t.values[0] for t in found]
    assert costs == sorted(costs)
    assert divergences == sorted(divergences, reverse=True)


def test_limits_of_several_constraints():
    study = optuna.create_study()
    for limits, feasible in (({}, True), ({"a": 0.0, "b": -1.0}, True), ({"a": -1.0, "b": 1e-9}, False)):
        trial = study.ask()
        for name, value in limits.items():
            trial.set_constraint(name, value)
        study.tell(trial, 1.0)
        assert is_feasible(study.trials[-1]) == feasible
    assert [trial.number for trial in complete(study)] == [0, 1]


whole = st.integers(0, 6)


@given(st.lists(st.tuples(whole, whole), max_size=9), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_the_area_that_a_front_beats_is_what_counting_cells_finds(points, reference):
    values = np.array(points, dtype=float).reshape(-1, 2)
    found = area_history(values, reference)
    assert len(found) == len(points)
    for seen, share in enumerate(found, start=1):
        beaten = sum(
            any(x <= i and y <= j for x, y in points[:seen]) for i in range(reference[0]) for j in range(reference[1])
        )
        assert share == pytest.approx(beaten / (reference[0] * reference[1]), abs=1e-12)
    finer = area_history(values * [1e-3, 1e5], (reference[0] * 1e-3, reference[1] * 1e5))  # whatever the units
    assert finer == pytest.approx(found, abs=1e-12)


# The knee ------------------------------------------------------------------------------------------------------------


def test_the_knee_of_shapes_that_are_known():
    corner = np.array([[0, 1], [0.02, 0.5], [0.05, 0.1], [0.5, 0.05], [1, 0]])
    assert knee(corner) == 2
    x = np.geomspace(0.1, 10, 41)  # of 1/x between 1/10 and 10, where it crosses the diagonal
    assert x[knee(np.stack([x, 1 / x], axis=1))] == pytest.approx(1)
    x = np.linspace(0, 1, 101)  # where the slope of (1 - x)² is that of the line between its ends
    assert x[knee(np.stack([x, (1 - x) ** 2], axis=1))] == pytest.approx(0.5)
    assert x[knee(np.stack([x, (1 - x) ** 3], axis=1))] == pytest.approx(1 - 3**-0.5, abs=0.01)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=9),
    st.sampled_from([1e-3, 0.5, 7.0, 1e4]),
    st.sampled_from([-3.0, 0.0, 100.0]),
)
def test_the_knee_does_not_depend_on_units_or_direction(steps, scale, shift):
    rights, downs = np.array(steps).T
    points = np.stack([np.cumsum([0, *rights]), np.cumsum([0, *downs])[::-1]], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    x, y = ((points - low) / (high - low)).T
    # Below the line between (0, 1) and (1, 0): a point above it is no bargain, however far it lies.
    distance = (1 - x - y) / math.sqrt(2)
    assume(distance.max() > 1e-9)
    ranked = np.sort(distance)
    assume(ranked[-1] - ranked[-2] > 1e-9)
    assert knee(points) == distance.argmax()
    assert knee(points * [scale, 1] + [0, shift]) == distance.argmax()
    assert knee(points[:, ::-1]) == distance.argmax()
    assert knee(points[::-1]) == len(points) - 1 - distance.argmax()


@pytest.mark.parametrize("points", [[[1, 2]], [[0, 1], [1, 0]], [[0, 1], [0, 0.5], [0, 0]], [[2, 2]] * 4])
def test_without_a_bend_it_is_the_last(points):
    assert knee(np.array(points, dtype=float)) == len(points) - 1


# Tables --------------------------------------------------------------------------------------------------------------


def test_a_row_for_every_trial_that_was_begun():
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5}, user_attrs={studies.ORIGIN: "uniform 0.5"})
    told = study.ask()
    told.set_user_attr(studies.WORKER, "here:1:1.00")
    told.set_user_attr(studies.RUN, "run-0")
    studies.note(told, parameters=0.5)
    studies.note(told, cost=0.25)
    told.set_constraint("cost", 0.25 - 0.2)
    told.suggest_float("x", 0, 1)
    study.tell(told, 1.5)
    stopped = study.ask()
    stopped.suggest_categorical("word", ["a"])
    stopped.report(3.0, 1)
    stopped.report(2.0, 2)
    study.tell(stopped, state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    studies.retry(lambda run_id: None, study, study.trials[2])
    study.ask()  # the one that takes its place, and goes on
    study.enqueue_trial({"x": 0.1})  # nobody has begun this one

    table = trials_table(study, ["kl"])
    assert table["number"].tolist() == [0, 1, 2, 3]
    assert table["state"].tolist() == ["complete", "pruned", "fail", "running"]
    assert table["kl"].tolist() == pytest.approx([1.5, 2.0, np.nan, np.nan], nan_ok=True)
    assert table["feasible"].tolist() == [False, True, True, True]
    assert table["origin"].tolist() == ["uniform 0.5", "sampler", "sampler", "sampler"]
    assert table["retry_of"].tolist() == pytest.approx([np.nan, np.nan, np.nan, 2], nan_ok=True)
    assert table["run_id"].tolist()[0] == "run-0"
    assert table["run_id"].isna().tolist() == [False, True, True, True]
    assert table["seconds"].isna().tolist() == [False, False, False, True]
    assert (table["seconds"][:3] >= 0).all()
    assert table["param/x"].tolist() == pytest.approx([0.5, np.nan, np.nan, np.nan], nan_ok=True)
    assert table["param/word"].tolist()[1] == "a"
    assert table["noted/cost"].tolist() == pytest.approx([0.25, np.nan, np.nan, np.nan], nan_ok=True)
    assert [name for name in table if name.startswith("noted/")] == ["noted/parameters", "noted/cost"]


def test_values_by_their_names():
    table = trials_table(
        make_study([(1.0, 2.0, 0.5, TrialState.COMPLETE), (0, 0, None, TrialState.FAIL)]), ["kl", "flops"]
    )
    assert table[["kl", "flops"]].iloc[0].tolist() == [1.0, 2.0]
    assert table[["kl", "flops"]].iloc[1:].isna().all(axis=None)
    assert not table["feasible"][0]


# What matters --------------------------------------------------------------------------------------------------------


def searched(objective, trials=60, directions=("minimize",)):
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=trials, catch=(ArithmeticError,))
    return study


def test_what_a_value_depends_on_is_what_matters_for_it():
    def objective(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.suggest_categorical("idle", ["a", "b"])
        if trial.number % 10 == 9:
            raise ArithmeticError
        return (x - 0.3) ** 2, y

    found = importances(searched(objective, 100, ["minimize", "minimize"]), ["kl", "flops"])
    assert set(found["value"]) == {"kl", "flops"}
    for value, of in found.groupby("value"):
        share = of.set_index("parameter")["importance"]
        assert set(share.index) == {"x", "y", "idle"}
        assert share.sum() == pytest.approx(1)
        assert share["x" if value == "kl" else "y"] > 0.8


def test_without_trials_nothing_is_said_to_matter():
    found = importances(optuna.create_study(), ["kl"])
    assert isinstance(found, pd.DataFrame)
    assert found.empty
    assert list(found.columns) == ["value", "parameter", "importance"]
