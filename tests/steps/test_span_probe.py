"""Span probing as a function, without MLflow, on a tiny encoder's own store."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from accelerate import Accelerator

from bertdyn.data.loading import load_data
from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.features.writing import name_state
from bertdyn.probing.spans import load_directions
from bertdyn.probing.window_rows import WindowRows, stored_windows
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.extract_runs import ExtractRun, load_run_texts
from bertdyn.steps.extraction import extract
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.span_probe import SpanProbeResult, probe_spans, probe_state
from bertdyn.steps.span_probe_report import COLUMNS
from bertdyn.tasks.squad_metric import squad_scores
from bertdyn.tracking.tracker import Tracker
from tests.squad_files import write_squad

pytestmark = pytest.mark.slow

LAYERS = (0, 2)
SHARES = {"exact", "f1", "has_ans_exact", "has_ans_f1", "no_ans_f1", "best_span_f1"}


def make_run(folder: Path, checkpoint: Path, squad: Path, **options) -> ExtractRun:
    """An extract run of an encoder, whose state has two names."""
    config = ExtractConfig(
        model_name_or_path=str(checkpoint),
        **{
            "dataset": "squad_v2",
            "data_dir": str(squad),
            "max_length": 96,
            "doc_stride": 16,
            "parts": "train,validation,probe",
            "max_train_samples": 20,
            "dtype": "float32",
        }
        | options,
    )
    store = extract(config, Tracker(folder)).store
    name_state(store, "again", "model", "weights")
    store = FeatureStore.open(store.folder)
    return ExtractRun("a1", "films", config, store, store.states)


def probe_config(**options) -> ProbeConfig:
    given = {"source_run_id": "a1", "layers": "0,2", "num_train_epochs": 2, "learning_rates": "0.01,0.1"}
    return ProbeConfig(**given | options)


class Done(NamedTuple):
    run: ExtractRun
    result: SpanProbeResult
    folder: Path


@pytest.fixture(scope="module")
def squad(tmp_path_factory) -> Path:
    return write_squad(tmp_path_factory.mktemp("squad"))


@pytest.fixture(scope="module")
def done(checkpoints, squad, tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("spans")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTDYN_CACHE", str(folder / "cache"))
        run = make_run(folder / "extract", checkpoints["bert"], squad)
        return Done(run, probe_spans(probe_config(), Tracker(folder / "run"), run), folder / "run")


def test_the_table_is_complete_and_in_its_file(done):
    table = done.result.table
    assert list(table) == COLUMNS
    assert table["layer"].dtype == "Int64"
    pd.testing.assert_frame_equal(pd.read_parquet(done.folder / "probes.parquet"), table)
    assert not table.duplicated(["layer", "state", "baseline", "metric"]).any()
    probes = table[table["baseline"] != "majority"]
    groups = {key: set(rows["metric"]) for key, rows in probes.groupby(["baseline", "state", "layer"])}
    expected = [("none", state, layer) for state in ("model", "again") for layer in LAYERS]
    expected += [("layer_0", state, 0) for state in ("model", "again")]
    expected += [("random_init", "random_init", layer) for layer in LAYERS]
    assert groups == dict.fromkeys(expected, SHARES | {"null_threshold", "validation_loss"})
    shares = table[table["metric"].isin(SHARES)]
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()
    never = table[table["baseline"] == "majority"].set_index("metric")
    assert never["layer"].isna().all()
    assert set(never["state"]) == {""}
    part = load_data(done.run.config).parts["probe"]
    assert never.loc[["exact", "f1", "has_ans_f1", "no_ans_f1"], "value"].tolist() == [
        *[pytest.approx((part["label"] == 0).mean())] * 2,
        0,
        1,
    ]
    assert never.loc[["f1", "has_ans_f1"], "n"].tolist() == [len(part), part["label"].sum()]
    # The same features under two names give the same probes.
    values = probes.set_index(["state", "baseline", "layer", "metric"])["value"]
    pd.testing.assert_series_equal(values["model"], values["again"])


def test_predictions_score_what_the_table_says_by_the_official_metric(done):
    part = load_data(done.run.config).parts["probe"]
    golds = dict(zip(part["example_id"], part["answers"], strict=True))
    table = done.result.table[done.result.table["baseline"].isin(["none", "random_init"])]
    for (state, layer), rows in table.groupby(["state", "layer"]):
        said = json.loads((done.folder / f"predictions/{state}/layer_{layer:02d}.json").read_text())
        assert set(said) == set(golds)
        official, found = squad_scores(said, golds), rows.set_index("metric")["value"]
        for name in SHARES - {"best_span_f1"}:
            assert 100 * found[name] == pytest.approx(official[name]), (state, layer, name)


def test_other_files_figures_and_metrics(done):
    figures = {"span_scores_by_layer", "span_heatmaps", "threshold_curves", "span_convergence"}
    assert {path.stem for path in (done.folder / "figures").iterdir()} == figures
    for state in ("model", "again", "random_init"):
        layers, directions = load_directions(done.folder / f"probes/{state}.safetensors")
        assert layers == list(LAYERS)
        assert directions.shape[:2] == (2, 2)
    record = pd.read_parquet(done.folder / "span_convergence.parquet")
    assert len(record) == 3 * len(LAYERS) * 2 * 3
    assert (record.groupby(["state", "layer"])["chosen"].sum() == 1).all()
    values = done.result.table.set_index(["state", "baseline", "layer", "metric"])["value"]
    chosen = record[record["chosen"]].set_index(["state", "layer"])["validation_loss"]
    assert values["model", "none", 2, "validation_loss"] == pytest.approx(chosen["model", 2])
    curves = pd.read_parquet(done.folder / "threshold_curves.parquet").set_index(["state", "layer", "part"])
    for state, layer in (("model", 0), ("random_init", 2)):
        threshold = values.xs((state, layer, "null_threshold"), level=("state", "layer", "metric")).iloc[0]
        tuned = curves.loc[(state, layer, "validation")].set_index("threshold")["f1"]
        assert tuned[threshold] == tuned.max(), "the threshold is the best on validation"
        always = values.xs((state, layer, "best_span_f1"), level=("state", "layer", "metric")).iloc[0]
        assert always == pytest.approx(curves.loc[(state, layer, "probe")].iloc[-1]["has_ans_f1"])
    points = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    logged = {(point["key"], point["step"]): point["value"] for point in points}
    assert logged == {
        (f"probe/span_f1/layer_{layer:02d}", step): pytest.approx(values[state, "none", layer, "f1"])
        for step, state in enumerate(("model", "again"))
        for layer in LAYERS
    }
    assert (done.folder / "summary.md").read_text() == done.result.summary
    for text in ("never answering", "random encoder", "`probe`", "### random_init", "predictions/"):
        assert text in done.result.summary


def test_labels_of_the_scored_part_decide_no_answer(done):
    """Nor do they decide a probe or a threshold."""
    data, _, windows, _ = load_run_texts(done.run)
    changed = data.parts["probe"].assign(
        label=0,
        answers=[[] for _ in data.parts["probe"]["answers"]],
        answer_starts=[[] for _ in data.parts["probe"]["answers"]],
    )
    found = []
    for frames in (data.parts, data.parts | {"probe": changed}):
        rows = {
            part: WindowRows(
                done.run.store, "model", LAYERS, stored_windows(done.run.store, part, frames[part], windows[part])
            )
            for part in ("train", "validation", "probe")
        }
        found.append(probe_state(Accelerator(cpu=True), rows, probe_config()))
    one, other = found
    assert one.thresholds == other.thresholds
    assert one.validation_f1 == other.validation_f1
    for a, b in zip(one.answers, other.answers, strict=True):
        pd.testing.assert_frame_equal(a.table, b.table)
    assert not np.allclose(one.scores[0]["f1"].mean(), other.scores[0]["f1"].mean()), "but they are scored by them"


def test_fewer_questions_and_no_twin(done, tmp_path):
    config = probe_config(max_examples=10, random_init=False, layers="2", position_weights=True)
    result = probe_spans(config, Tracker(tmp_path), done.run._replace(states=["again"]))
    assert set(result.table["baseline"]) == {"none", "majority"}
    assert result.table.set_index(["baseline", "metric"])["n"].loc[[("none", "f1"), ("majority", "f1")]].tolist() == [
        10,
        10,
    ]
    assert "random encoder" not in result.summary


WRONG = {
    "another dataset": ({"dataset": "sst2"}, {}, "of 'sst2', which has no answers"),
    "the training part": ({}, {"part": "train"}, "accepted are probe, test"),
    "the validation part": ({}, {"part": "validation"}, "accepted are probe, test"),
    "a part that is not there": (
        {},
        {"part": "test"},
        "nothing of the part 'test'; extract with .*train,validation,test",
    ),
    "a layer that is not there": ({}, {"layers": "9"}, "no layer 9"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_probed_is_said(done, tmp_path, case):
    source, options, said = WRONG[case]
    config = done.run.config
    for name, value in source.items():
        config = type(config)(**{**vars(config), name: value, "data_dir": None, "doc_stride": 128})
    with pytest.raises(InputError, match=said):
        probe_spans(probe_config(**options), Tracker(tmp_path), done.run._replace(config=config))


def test_a_store_without_token_rows_is_refused(checkpoints, squad, tmp_path):
    run = make_run(tmp_path / "extract", checkpoints["bert"], squad, rows="first")
    with pytest.raises(InputError, match="no token rows.*--rows tokens --parts train,validation,probe"):
        probe_spans(probe_config(), Tracker(tmp_path / "run"), run)
