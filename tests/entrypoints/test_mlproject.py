"""MLproject, conda.yaml and pyproject.toml say the same as the code."""

import dataclasses
import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from bertdyn.steps.config import CompareConfig, ExtractConfig, FineTuneConfig
from bertdyn.steps.pipeline_config import PipelineConfig
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig
from explorer.config import ExploreConfig

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
CONFIGS = {
    "main": PipelineConfig,
    "fine-tune": FineTuneConfig,
    "extract": ExtractConfig,
    "compare": CompareConfig,
    "probe": ProbeConfig,
    "sae": SaeConfig,
    "prune": PruneConfig,
    "sweep-pruning": SweepPruningConfig,
    "sweep-freezing": SweepFreezingConfig,
    "explore": ExploreConfig,
}


def test_every_entry_point_is_known_here():
    assert set(PROJECT["entry_points"]) == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_names_types_and_defaults_agree(name):
    entry = PROJECT["entry_points"][name]
    fields = {field.name: field for field in dataclasses.fields(CONFIGS[name])}
    for parameter, declared in entry["parameters"].items():
        default = fields[parameter].default
        # As Python writes it: then a run by `python -m` and one by `mlflow run` show the same params.
        assert declared["default"] == ("" if default is None else str(default)), parameter
        kind = str(fields[parameter].type)
        expected = next((t for t in ("int", "float") if t in kind), "string")
        assert declared["type"] == expected, parameter


@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_passes_every_parameter_to_its_module(name):
    entry = PROJECT["entry_points"][name]
    module = re.match(r"python -m (\S+) ", entry["command"]).group(1)
    assert hasattr(importlib.import_module(module), "main")
    passed = re.findall(r"--(\w+) \{(\w+)\}", entry["command"])
    assert all(flag == parameter for flag, parameter in passed)
    assert [parameter for _, parameter in passed] == list(entry["parameters"])


def test_one_list_of_dependencies():
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert conda == project
    assert all(re.search(r"[<>=]", dependency) for dependency in conda)
