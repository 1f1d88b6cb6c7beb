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


def test_several_seeds_are_told_by_their_mean(tmp_path):
    rows = [("test", "best", "none", 0.9 + 0.01 * seed, seed) for seed in (0, 1, 2)]
    rows += [("test", "none", "tfidf", 0.7, seed) for seed in (0, 1, 2)]
    table = pd.DataFrame(rows, columns=["part", "state", "baseline", "accuracy", "seed"])
    table.to_parquet(tmp_path / "seeds.parquet")
    [found] = findings_of("fine-tune", str(tmp_path))
    assert found[1:] == ("0.910 (0.885 – 0.935)", "TF-IDF 0.700", {"accuracy": pytest.approx(0.91)})
    assert "mean over 3 seeds" in found.question


def test_prunings_of_several_seeds_are_told_by_their_last_scores(tmp_path):
    scores = {("dense", "surgery"): 0.9, ("pruned", "surgery"): 0.1, ("pruned", "recovery"): 0.8,
              ("random", "surgery"): 0.2, ("random", "recovery"): 0.6}  # fmt: skip
    rows = [
        ("test", model, stage, score + 0.1 * seed, seed) for seed in (0, 1) for (model, stage), score in scores.items()
    ]
    table = pd.DataFrame(rows, columns=["part", "model", "stage", "accuracy", "seed"])
    table.to_parquet(tmp_path / "seeds.parquet")
    [found] = findings_of("prune", str(tmp_path))
    assert found[1:] == ("0.850", "unpruned 0.950, random units 0.650", {"accuracy": pytest.approx(0.85)})
    assert "mean over 2 seeds" in found.question


def test_each_of_several_runs_has_its_own_numbers(tmp_path):
    rows = [
        (run, "states", "content", "pretrained", "best", 1, measure, value, value, value)
        for run, value in (("imdb", 0.1), ("news", 0.9))
        for measure in ("cka", "cosine", "cosine_mismatched")
    ]
    names = ["run", "kind", "rows", "state_a", "state_b", "layer", "measure", "value", "low", "high"]
    pd.DataFrame(rows, columns=names).to_parquet(tmp_path / "similarity.parquet")
    values = [found.values for found in findings_of("compare", str(tmp_path)) if found.values]
    assert values == [
        {"least_cka_imdb": 0.1, "least_cka_layer_imdb": 1},
        {"least_cka_news": 0.9, "least_cka_layer_news": 1},
    ]


def test_what_a_schedule_gains_is_named_by_its_score(tmp_path):
    rows = [("winner", "accuracy", 0.9), ("winner", "accuracy", 0.8), ("unfrozen", "accuracy", 0.7)]
    pd.DataFrame(rows, columns=["name", "score", "test"]).to_parquet(tmp_path / "winner_scores.parquet")
    [found] = findings_of("sweep-freezing", str(tmp_path))
    assert found[1:3] == ("0.850", "unfrozen 0.700")
    assert found.values == {"accuracy": pytest.approx(0.85)}


def test_small_divergences_keep_their_digits(tmp_path):
    names = ["name", "part", "kl", "kl_low", "kl_high", "cost"]
    rows = [("winner", 0.00012, 0.0001, 0.0002), ("uniform", 0.00034, 0.0003, 0.0004), ("divided", 0.0001, 0.0, 0.1)]
    table = pd.DataFrame([(name, "test", *numbers, 0.5) for name, *numbers in rows], columns=names)
    table.to_parquet(tmp_path / "references.parquet")
    pd.DataFrame({"number": range(3)}).to_parquet(tmp_path / "trials.parquet")
    [found] = findings_of("sweep-pruning", str(tmp_path))
    assert found[1:3] == ("0.00012 (0.0001 – 0.0002)", "one threshold for all 0.00034, divided exactly 0.0001")


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
