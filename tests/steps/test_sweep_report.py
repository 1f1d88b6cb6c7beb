"""What the report of a sweep says of what matters, and what it does not."""

import optuna
import pytest

from bertdyn.steps.sweep_report import importance_lines, record_trials
from bertdyn.sweeping import studies
from bertdyn.tracking.tracker import Tracker


def study(given: int, sampled: int):
    """Trials that were given, and trials of the sampler."""
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    for number in range(given):
        made.enqueue_trial({"x": number / given, "y": 0.5}, user_attrs={studies.ORIGIN: f"given {number}"})

    def objective(trial):
        return trial.suggest_float("x", 0, 1) + 0.1 * trial.suggest_float("y", 0, 1)

    made.optimize(objective, n_trials=given + sampled)
    return made


@pytest.mark.parametrize(("given", "sampled"), [(20, 0), (2, 30)])
def test_of_given_trials_nothing_is_said_to_matter(tmp_path, given, sampled):
    table, found = record_trials(study(given, sampled), ["loss"], False, "made up", Tracker(tmp_path))
    assert len(table) == given + sampled
    drawn = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"trials.parquet", "history.png", "parallel_coordinates.png"} <= drawn
    assert ({"importances.parquet", "importances.png"} <= drawn) == bool(sampled)
    told = "\n".join(importance_lines(found, ["loss"]))
    if sampled:
        assert "lowest validation loss of an epoch: x " in told
    else:
        assert told.startswith("Nothing can be said")
