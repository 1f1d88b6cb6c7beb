"""`bertdyn.steps`: every command as a documented function, which its example shows at work without MLflow."""

import doctest
import inspect
from pathlib import Path

import pytest
import yaml

from bertdyn import steps

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = {
    name.replace("-", "_")
    for name in yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    if name not in ("main", "explore")
} | {"pipeline"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_a_documented_function(name):
    function = getattr(steps, name)
    parameters = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in parameters[:2]] == ["config", "tracker"]
    assert all(parameter.default is not parameter.empty for parameter in parameters[2:])
    assert "Raises\n" in inspect.getdoc(function)
    assert parameters[0].annotation in [getattr(steps, kind) for kind in steps.__all__ if kind.endswith("Config")]


def test_every_name_is_there_and_what_is_not_is_said():
    assert set(COMMANDS) <= set(dir(steps))
    assert set(steps.__all__) == set(steps._WHERE)
    assert all(hasattr(steps, name) for name in steps.__all__)
    with pytest.raises(AttributeError, match=r"module 'bertdyn.steps' has no attribute 'finetune'"):
        steps.finetune  # noqa: B018
    with pytest.raises(ImportError):
        from bertdyn.steps import finetune  # noqa: F401


@pytest.mark.slow
def test_the_example(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody may ask
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failed, tried = doctest.testmod(steps)
    assert failed == 0
    assert tried > 15
