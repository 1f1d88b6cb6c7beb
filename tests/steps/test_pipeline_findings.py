"""What a report over several steps says where a table is missing, and where it cannot be read."""

import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.steps import pipeline_findings
from bertdyn.steps.pipeline_findings import findings_of
from bertdyn.tracking import recipes
from bertdyn.tracking.locations import run_folder


def test_a_missing_table_leaves_its_lines_out(tmp_path):
    assert findings_of("prune", str(tmp_path)) == []
    rows = [("test", "best", "none", 0.9, 0.8, 0.95), ("test", "none", "tfidf", 0.7, 0.6, 0.8)]
    columns = ["part", "state", "baseline", "accuracy", "accuracy_low", "accuracy_high"]
    pd.DataFrame(rows, columns=columns).to_parquet(tmp_path / "scores.parquet")
    [found] = findings_of("fine-tune", str(tmp_path))
    assert found[1:] == ("0.900 (0.800 – 0.950)", "TF-IDF 0.700", {"accuracy": 0.9})


def away(run_id, path):
    raise InputError("the server is away")


def test_what_cannot_be_read_now_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_findings, "run_folder", away)
    with pytest.raises(InputError, match="the server is away"):
        findings_of("fine-tune", str(tmp_path))


def test_no_step_is_made_again_because_its_run_cannot_be_read_now(monkeypatch):
    class Client:
        def search_runs(self, *arguments, **options):
            class Run:
                class info:
                    run_id = "abc"

            return [Run]

    monkeypatch.setattr("bertdyn.tracking.store.connect", Client)
    monkeypatch.setattr("bertdyn.tracking.store.find_experiment", lambda client, name: "1")
    monkeypatch.setattr(recipes, "run_folder", away)
    with pytest.raises(InputError, match="the server is away"):
        recipes.find_made("f00", "sae")
    monkeypatch.setattr(recipes, "run_folder", lambda run_id, path: run_folder("/tmp", "absent/summary.md"))
    assert recipes.find_made("f00", "sae") is None
