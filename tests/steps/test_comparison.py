"""Comparison as a function, without MLflow, on stores made by hand: which states and runs, which tables and figures."""

import itertools
import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.steps import extract_runs
from bertdyn.steps.comparison import (
    CompareResult,
    compare,
    compare_runs,
    compare_states,
    reference_pairs,
    token_cosines,
)
from bertdyn.steps.config import CompareConfig, ExtractConfig
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.tracking.tracker import Tracker
from tests.features.test_aligned import num_tokens, rows_of, write_store

pytestmark = pytest.mark.slow  # many figures; `make check` stays short

WIDTH, LAYERS = 8, (0, 1, 2)
TEXTS = [("train", ["[abc]"])] * 3 + [("probe", [f"[{'a' * (1 + number % 9)}]"]) for number in range(14)]
SHORT_ID = "id-0008"  # the first of 8 to 16 tokens
SIMILARITY = ["run", "kind", "state_a", "state_b", "layer", "rows", "measure", "value", "low", "high", "num_rows",
              "num_examples", "interval"]  # fmt: skip
GEOMETRY = ["run", "state", "layer", "rows", "measure", "value", "low", "high", "interval"]
PAIR_MEASURES = {"cosine", "cosine_centered", "cosine_random_pairs_a", "cosine_random_pairs_b", "cosine_mismatched",
                 "cosine_of_means", "cka", "procrustes", "knn_overlap", "knn_chance"}  # fmt: skip


def features(names, layers=LAYERS, texts=TEXTS, seed=0):
    """State → layer → rows that move away from the first state, the more the higher the layer; not at layer 0."""
    rng = np.random.default_rng(seed)
    shape = (num_tokens(texts), WIDTH)
    start = {layer: rng.normal(size=shape) + np.linspace(0, 2, WIDTH) for layer in layers}
    noise = {layer: rng.normal(size=shape) for layer in layers}
    return {
        name: {layer: (start[layer] + number * layer * noise[layer] / 2).astype(np.float32) for layer in layers}
        for number, name in enumerate(names)
    }


def make_run(
    folder, names=("pretrained", "best"), run_id="a1", states=None, texts=TEXTS, layers=LAYERS, seed=0, **options
):
    store = write_store(folder / run_id, features(names, layers, texts, seed), texts, **options)
    config = ExtractConfig(model_name_or_path=f"model-{run_id}")
    return ExtractRun(run_id, f"synthetic-{run_id}", config, store, list(states or names))


def run_compare(folder, *runs, **options) -> CompareResult:
    source = {"source_run_id": runs[0].run_id} if len(runs) == 1 else {"run_ids": ",".join(run.run_id for run in runs)}
    return compare(CompareConfig(**source, **{"num_neighbours": 3} | options), Tracker(folder), list(runs))


def figures(folder):
    return {path.stem for path in (folder / "figures").iterdir()}


def tidy(table, columns, values=("value", "low", "high")):
    """Nothing measured twice, nothing nameless."""
    assert set(table) == {"run_id", "dataset", "model", "seed", *columns, "num_rows", "num_examples"}
    keys = [
        name for name in ("run", "kind", "state", "state_a", "state_b", "layer", "rows", "measure") if name in table
    ]
    assert not table.duplicated(keys).any()
    assert not table.drop(columns=list(values)).isna().any().any()
    assert pd.api.types.is_integer_dtype(table["layer"])


class Done(NamedTuple):
    run: ExtractRun
    result: CompareResult
    folder: object


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Done:
    """Three of four states."""
    folder = tmp_path_factory.mktemp("compare")
    run = make_run(folder, ("pretrained", "epoch_001", "epoch_002", "best"), states=("pretrained", "epoch_002", "best"))
    return Done(run, run_compare(folder / "run", run, tsne=True), folder / "run")


def test_tables_are_tidy_and_in_files(done):
    similarity, geometry = done.result.similarity, done.result.geometry
    tidy(similarity, SIMILARITY)
    tidy(geometry, GEOMETRY)
    for name, table in (("similarity", similarity), ("geometry", geometry)):
        pd.testing.assert_frame_equal(pd.read_parquet(done.folder / f"{name}.parquet"), table)
    assert set(similarity["kind"]) == {"states"}
    assert set(similarity["run"]) == {"synthetic-a1"}
    assert set(zip(similarity["state_a"], similarity["state_b"], strict=True)) == {
        ("pretrained", "epoch_002"),
        ("pretrained", "best"),
    }
    assert len(similarity) == 2 * 3 * 3 * len(PAIR_MEASURES)
    assert set(similarity["measure"]) == PAIR_MEASURES
    assert set(geometry["state"]) == {"pretrained", "epoch_002", "best"}
    for table in (similarity, geometry):
        assert set(table["layer"]) == {0, 1, 2}
        assert set(table["rows"]) == {"content", "first", "mean"}
        assert set(table["run_id"]) == {"a1"}
    histogram, dimensions, pca = (
        pd.read_parquet(done.folder / f"{name}.parquet") for name in ("cosine_histogram", "dimensions", "pca")
    )
    assert not histogram.duplicated(["run", "state", "layer", "low"]).any()
    for _, bars in histogram.groupby(["state", "layer"]):
        assert (bars["density"] * (bars["high"] - bars["low"])).sum() == pytest.approx(1)
    assert len(dimensions.drop_duplicates(["run", "state", "layer", "dimension"])) == len(dimensions) == 3 * 3 * WIDTH
    assert len(pca.drop_duplicates(["run", "state", "layer", "example_id"])) == len(pca) == 3 * 2 * 14
    assert pca["example_id"][:14].tolist() == [f"id-{number:04d}" for number in range(3, 17)]


def test_each_value_is_of_the_states_and_layer_that_it_names(done):
    """Cosines of the rows of the store, picked by hand."""
    rows = done.result.similarity.set_index(["state_b", "layer", "rows", "measure"])["value"]
    variances = done.result.geometry.set_index(["state", "layer", "rows", "measure"])["value"]
    for state, layer, kind in itertools.product(
        ("pretrained", "epoch_002", "best"), LAYERS, ("content", "first", "mean")
    ):
        x, y = (
            np.concatenate(rows_of(TEXTS, done.run.store.array("tokens", name, layer), kind))
            for name in ("pretrained", state)
        )
        assert variances[state, layer, kind, "total_variance"] == pytest.approx(y.var(axis=0, ddof=1).sum())
        if state != "pretrained":
            cosines = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
            assert rows[state, layer, kind, "cosine"] == pytest.approx(cosines.mean())
            assert (cosines.mean() == pytest.approx(1)) == (layer == 0)


def test_figures_metrics_and_report(done):
    assert figures(done.folder) == {
        "similarity_by_layer", "similarity_heatmaps", "geometry_heatmaps", "geometry_by_layer", "class_geometry",
        "cosine_distributions", "norms", "pca", "tsne", "token_cosines",
    }  # fmt: skip
    points = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(points) == 2 * 4 * 3
    content = done.result.similarity.query("rows == 'content'").set_index(["state_b", "measure", "layer"])["value"]
    for point in points:
        section, measure, layer = point["key"].split("/")
        state = {1: "epoch_002", 2: "best"}[point["step"]]
        assert section == "similarity"
        assert point["value"] == pytest.approx(content[state, measure, int(layer.removeprefix("layer_"))])
    assert (done.folder / "summary.md").read_text() == done.result.summary
    heading, _, header, line, *body = done.result.summary.splitlines()
    assert heading == "## `synthetic-a1`: pretrained → best, content tokens"
    assert [row.split(" | ")[0] for row in body[:3]] == ["| 0", "| 1", "| 2"]
    assert {len(row.split("|")) for row in (header, line, *body[:3])} == {len(header.split("|"))}
    cells = dict(zip(header.split(" | "), body[2].split(" | "), strict=True))
    value, low, high = (
        done.result.similarity.set_index(["state_b", "rows", "layer", "measure"]).loc[
            ("best", "content", 2, "cosine"), name
        ]
        for name in ("value", "low", "high")
    )
    assert cells["cosine"] == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    # no cosine without what unrelated tokens have
    assert {"cosine, mismatched", "cosine, means subtracted"} <= set(cells)
    assert json.loads((done.folder / "config.json").read_text())["source_run_id"] == "a1"


@pytest.mark.parametrize(
    ("reference", "pairs"),
    [(None, [(0, 1), (0, 2)]), ("last", [(2, 0), (2, 1)]), ("best", [(1, 0), (1, 2)]), ("previous", [(0, 1), (1, 2)])],
)
def test_what_the_others_are_compared_with(reference, pairs):
    config = CompareConfig(source_run_id="a1", reference=reference)
    assert reference_pairs(["pretrained", "best", "last"], config) == pairs


def test_against_the_state_before(tmp_path):
    """Steps and heat maps are those of the later state of each pair."""
    run = make_run(tmp_path, ("pretrained", "epoch_001", "best"))
    result = run_compare(tmp_path / "run", run, reference="previous", layers="0,-1")
    pairs = result.similarity[["state_a", "state_b"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [["pretrained", "epoch_001"], ["epoch_001", "best"]]
    assert set(result.similarity["layer"]) == set(result.geometry["layer"]) == {0, 2}
    assert {"similarity_heatmaps", "geometry_heatmaps"} <= figures(tmp_path / "run")
    points = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(point["key"], point["step"]) for point in points if "cosine/" in point["key"]} == {
        (f"similarity/cosine/layer_0{layer}", step) for layer in (0, 2) for step in (1, 2)
    }


def test_one_state_has_geometry_only(tmp_path):
    run = make_run(tmp_path, ("model",))
    result = run_compare(tmp_path / "run", run)
    assert result.similarity.empty
    tidy(result.geometry, GEOMETRY)
    assert set(result.geometry["state"]) == {"model"}
    assert {"geometry_by_layer", "norms", "pca", "token_cosines"} <= figures(tmp_path / "run")
    assert not (tmp_path / "run/similarity.parquet").exists()
    assert "`synthetic-a1`" in result.summary


@pytest.mark.parametrize("kinds", [("first", "mean"), ("mean",), ("first",)])
def test_stores_of_pooled_rows(tmp_path, kinds):
    run = make_run(tmp_path, kinds=kinds)
    result = run_compare(tmp_path / "run", run, tsne="first" in kinds)
    tidy(result.similarity, SIMILARITY)
    tidy(result.geometry, GEOMETRY)
    assert set(result.similarity["rows"]) == set(result.geometry["rows"]) == set(kinds)
    named = "first tokens" if "first" in kinds else "mean over each text"
    assert f"pretrained → best, {named}" in result.summary
    drawn = figures(tmp_path / "run")
    assert {"similarity_by_layer", "class_geometry", "norms"} <= drawn
    assert drawn.isdisjoint({"geometry_by_layer", "token_cosines", "cosine_distributions"})
    assert ("pca" in drawn) == ("tsne" in drawn) == ("first" in kinds)


@pytest.mark.parametrize("kinds", [("first", "mean"), ("mean",), ("first",)])
def test_stores_of_pooled_rows_epoch_by_epoch(tmp_path, kinds):
    """One run, and several, of more than two states."""
    names = ("pretrained", "epoch_001", "best")
    runs = [
        make_run(tmp_path, names, run_id=run_id, seed=seed, kinds=kinds) for seed, run_id in enumerate(("a1", "b2"))
    ]
    run_compare(tmp_path / "one", runs[0])
    heatmaps = {"similarity_heatmaps"} | ({"geometry_heatmaps"} if "first" in kinds else set())
    assert {name for name in figures(tmp_path / "one") if name.endswith("_heatmaps")} == heatmaps
    run_compare(tmp_path / "several", *runs)
    expected = {"similarity_over_runs", *(f"{name}_synthetic-{run}" for name in heatmaps for run in ("a1", "b2"))}
    assert expected <= figures(tmp_path / "several")


def test_fewer_examples_are_the_first_ones(tmp_path):
    run = make_run(tmp_path)
    result = compare_states(run, CompareConfig(source_run_id="a1", max_examples=5, layers="1"))
    assert set(result.similarity["num_examples"]) == {5}
    assert result.geometry["num_examples"].max() == 5
    x, y = (np.concatenate(rows_of(TEXTS, run.store.array("tokens", name, 1), "mean")[:5]) for name in run.states)
    cosines = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    found = result.similarity.query("rows == 'mean' and measure == 'cosine'")["value"].item()
    assert found == pytest.approx(cosines.mean())


def test_the_text_of_the_heat_map(tmp_path):
    run = make_run(tmp_path, ("pretrained", "epoch_001", "best"))
    for chosen, name in ((None, SHORT_ID), ("id-0004", "id-0004"), ("id-0001", "id-0001")):
        config = CompareConfig(source_run_id="a1", example_id=chosen)
        tokens, cosines = token_cosines(run, config, [0, 2])
        assert tokens == run.store.tokens().query(f"example_id == '{name}'")["token"].tolist()
        assert list(cosines) == ["pretrained", "best"]
        rows = run.store.example(name, "tokens", "best", 2).astype(np.float64)
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(cosines["best"][2], units @ units.T, atol=1e-12)


BAD = {
    "reference that is no state": (
        {"reference": "nowhere"},
        "--reference 'nowhere': accepted are previous, pretrained, best",
    ),
    "layer outside the model": ({"layers": "9"}, r"--layers '9': the model has no layer 9; accepted are 0 .* to 4"),
    "layer that was not extracted": ({"layers": "0,3"}, "--layers '0,3': layer 3 was not extracted; there are 0, 2, 4"),
    "part that was not extracted": ({"part": "test"}, "0 texts of the part 'test'; its parts are train, probe"),
    "no such text": ({"example_id": "nobody"}, "--example_id 'nobody': run a1 has no such text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said(tmp_path, case):
    options, said = BAD[case]
    run = make_run(tmp_path, layers=(0, 2, 4))
    with pytest.raises(InputError, match=said):
        run_compare(tmp_path / "run", run, **options)
    assert not list((tmp_path / "run").glob("*.parquet"))


@pytest.mark.parametrize("options", [
    {}, {"source_run_id": "a", "run_ids": "b,c"}, {"run_ids": "a"}, {"run_ids": "a,a"},
    {"run_ids": "a,b", "between_runs": "maybe"},
    *({"source_run_id": "a"} | wrong for wrong in (
        {"states": ","}, {"max_examples": 3}, {"num_neighbours": 0}, {"part": "dev"}, {"layers": "two"}, {"seed": -1},
    )),
])  # fmt: skip
def test_options_are_checked_at_the_door(options):
    with pytest.raises(InputError, match="--"):
        CompareConfig(**options)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two models on the same texts, and one on others."""
    folder = tmp_path_factory.mktemp("several")
    others = [(part, [window[:-1] + "z]" for window in windows]) for part, windows in TEXTS]
    return [
        make_run(folder, run_id="a1"),
        make_run(folder, run_id="b2", seed=1),
        make_run(folder, run_id="c3", seed=2, texts=others),
    ]


@pytest.mark.parametrize("between", ["auto", "false"])
def test_runs_on_the_same_texts(several, tmp_path, between):
    """Each with its own reference, and the last state of one with the last of the other."""
    one, other = several[:2]
    result = run_compare(tmp_path / "run", one, other, between_runs=between, layers="0,2")
    similarity = result.similarity
    tidy(similarity, SIMILARITY)
    tidy(result.geometry, GEOMETRY)
    assert set(result.geometry["run"]) == {"synthetic-a1", "synthetic-b2"}
    models = similarity[similarity["kind"] != "states"]
    if between == "false":
        assert models.empty
    else:
        assert set(models["kind"]) == {"models"}
        assert set(models["run"]) == {"synthetic-a1 and synthetic-b2"}
        assert set(models["run_id"]) == {"a1,b2"}
        assert set(models["state_a"]) == set(models["state_b"]) == {"best"}
        means = []
        for layer in (0, 2):
            x, y = (
                np.concatenate(rows_of(TEXTS, r.store.array("tokens", "best", layer), "content")) for r in (one, other)
            )
            cosines = np.sum(x * y, axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
            found = models.query("rows == 'content' and measure == 'cosine' and layer == @layer")["value"].item()
            assert found == pytest.approx(cosines.mean())
            means.append(f"{found:.3f}")
        row = f"| synthetic-a1 and synthetic-b2: best → best (two models) | {' | '.join(means)} |"
        assert "**cosine**, by layer\n\n| | 0 | 2 |\n|---|---|---|" in result.summary
        assert row in result.summary
    drawn = {"similarity_over_runs", "similarity_by_layer_synthetic-a1", "similarity_by_layer_synthetic-b2"}
    drawn |= {"between_synthetic-a1_and_synthetic-b2"} if len(models) else set()
    found = figures(tmp_path / "run")
    assert {name for name in found if name.startswith(("similarity", "between"))} == drawn
    own = {"geometry_by_layer", "class_geometry", "cosine_distributions", "norms", "pca", "token_cosines"}
    assert found - drawn == {f"{name}_synthetic-{run}" for name in own for run in ("a1", "b2")}
    alone = compare_states(one, CompareConfig(source_run_id="a1", num_neighbours=3, layers="0,2")).similarity
    pd.testing.assert_frame_equal(alone, similarity[similarity["run"] == "synthetic-a1"].reset_index(drop=True))


def test_runs_on_other_texts(several, tmp_path):
    """Said in the report, or refused; those that can be compared are."""
    result = run_compare(tmp_path / "run", *several, layers="1")
    assert set(result.similarity.query("kind == 'models'")["run"]) == {"synthetic-a1 and synthetic-b2"}
    assert set(result.similarity.query("kind == 'states'")["run_id"]) == {"a1", "b2", "c3"}
    _, _, said = result.summary.partition("### Not compared row by row")
    reasons = [line for line in said.splitlines() if line.startswith("- ")]
    assert len(reasons) == 2
    assert all("synthetic-c3" in line and "other texts under the same example ids" in line for line in reasons)
    with pytest.raises(InputError, match="other texts under the same example ids"):
        run_compare(tmp_path / "refused", several[0], several[2], between_runs="true", layers="1")


def test_models_of_other_depths(tmp_path):
    """Their layers do not correspond; each is still compared with its own reference."""
    deep = make_run(tmp_path, run_id="d4", layers=(0, 1, 2, 3))
    shallow = make_run(tmp_path, run_id="a1")
    result = run_compare(tmp_path / "run", shallow, deep, layers="0,-1")
    assert set(result.similarity["kind"]) == {"states"}
    assert result.similarity.groupby("run_id")["layer"].max().to_dict() == {"a1": 2, "d4": 3}
    reason = "a1 has 2 layers, d4 has 3: layers do not correspond"
    assert reason in result.summary
    with pytest.raises(InputError, match=reason):
        compare_runs(shallow, deep, CompareConfig(run_ids="a1,d4", between_runs="true"))


def test_models_with_one_state_each(several, tmp_path):
    """As extraction makes them of any model: no pair of states, one pair of models, or none."""
    one, other, apart = (run._replace(states=["best"]) for run in several)
    result = run_compare(tmp_path / "pair", one, other, between_runs="True", layers="1")
    assert set(result.similarity["kind"]) == {"models"}
    tidy(result.similarity, SIMILARITY)
    tidy(result.geometry, GEOMETRY)
    assert {"between_synthetic-a1_and_synthetic-b2", "class_geometry_synthetic-a1"} <= figures(tmp_path / "pair")
    assert "\n| | 1 |\n" in result.summary
    result = run_compare(tmp_path / "apart", one, apart, layers="1")
    assert result.similarity.empty
    assert set(result.geometry["run"]) == {"synthetic-a1", "synthetic-c3"}
    assert "other texts under the same example ids" in result.summary


def test_the_same_call_gives_the_same_tables(done):
    again = compare_states(done.run, CompareConfig(source_run_id="a1", num_neighbours=3))
    for name in ("similarity", "geometry"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(done.result, name), check_exact=True)


def test_no_map_of_first_tokens_without_them(tmp_path):
    run = make_run(tmp_path, kinds=("mean",))
    with pytest.raises(InputError, match="--tsne true: needs first tokens; extract them with --rows tokens or first"):
        run_compare(tmp_path / "run", run, tsne=True, layers="1")


def test_runs_of_one_model_have_labels_of_their_own(tmp_path, monkeypatch):
    """By their ids; where they are folders, by their place."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    run = make_run(tmp_path)
    monkeypatch.setattr(
        extract_runs,
        "open_extract_run",
        lambda run_id, states, flag: run._replace(run_id=run_id, label="sst2-minilm-s0"),
    )
    opened = extract_runs.open_runs(CompareConfig(run_ids=",".join(map(str, folders))))
    assert [one.label for one in opened] == ["sst2-minilm-s0", "sst2-minilm-s0 (2)", "sst2-minilm-s0 (3)"]
    opened = extract_runs.open_runs(CompareConfig(run_ids="abcdefgh,ijklmnop"))
    assert [one.label for one in opened] == ["sst2-minilm-s0", "sst2-minilm-s0 (ijklmn)"]
