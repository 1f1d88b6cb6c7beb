"""Steps find each other by the folders of their trackers as they do by the ids of MLflow's runs."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bertdyn.errors import InputError
from bertdyn.steps.comparison import compare
from bertdyn.steps.config import CompareConfig, ExtractConfig
from bertdyn.steps.extraction import extract
from bertdyn.steps.pipeline_config import PipelineConfig
from bertdyn.steps.pipelines import pipeline
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.probing import probe
from bertdyn.tracking.tracker import Tracker

STEPS = {
    "fine-tune": {
        "from_scratch": True, "max_train_samples": 64, "max_validation_samples": 40, "max_probe_samples": 60,
        "max_test_samples": 40, "num_train_epochs": 1, "per_device_train_batch_size": 16,
        "config_overrides": "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64",
    },
    "extract": {"source_run_id": "fine-tune", "rows": "tokens,first,mean"},
    "first": {"step": "extract", "source_run_id": "fine-tune", "rows": "first", "parts": "probe"},
    "compare": {"source_run_id": "extract"},
    "probe": {"source_run_id": "first", "num_folds": 3, "random_init": False, "rows": "first"},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "steps.yaml").write_text(yaml.safe_dump({"title": "No server", "steps": STEPS}, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTDYN_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody may ask
        yield pipeline(PipelineConfig(preset=str(folder / "steps.yaml")), Tracker(folder / "run"))


def test_a_pipeline_is_one_folder(made):
    folders = [Path(folder) for folder in made.runs.values()]
    assert [folder.name for folder in folders] == list(STEPS)
    parent = folders[0].parents[1]
    assert json.loads((parent / "runs.json").read_text()) == made.runs
    assert "How good is the fine-tuned model?" in made.summary
    assert "Where can label be read off?" in made.summary
    assert all(str(folder) in made.summary for folder in folders)
    rows = {
        name: pd.read_json(Path(made.runs[name]) / "config.json", typ="series")["rows"] for name in ("extract", "first")
    }
    assert rows == {"extract": "tokens,first,mean", "first": "first"}, "two of one kind do not share a folder"
    assert (Path(made.runs["compare"]) / "similarity.parquet").exists()


@pytest.mark.parametrize(
    ("step", "config", "source", "message"),
    [
        (compare, CompareConfig, "fine-tune", "of a fine-tune or prune run; give that of a extract run"),
        (probe, ProbeConfig, "compare", "of a compare run; give that of a extract run"),
        (extract, ExtractConfig, "extract", "of a extract run; give that of a fine-tune or prune run"),
        (extract, ExtractConfig, None, "of no run that a step can start from"),
    ],
)
def test_the_wrong_folder_is_refused(made, tmp_path, step, config, source, message):
    folder = made.runs[source] if source else str(tmp_path)
    with pytest.raises(InputError, match=message):
        step(config(source_run_id=folder), Tracker(tmp_path / "run"))


def test_a_run_that_did_not_end_is_refused(made, tmp_path):
    (Path(made.runs["first"]) / "summary.md").rename(tmp_path / "summary.md")
    with pytest.raises(InputError, match="did not come to its end"):
        probe(ProbeConfig(source_run_id=made.runs["first"]), Tracker(tmp_path / "run"))
