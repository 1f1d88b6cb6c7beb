"""Probing as a function, without MLflow, on stores made by hand: what is found, and beside what it stands."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.errors import InputError
from bertdyn.probing.paired import paired_difference
from bertdyn.steps import probing as step
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.probe_cells import Source
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.probing import ProbeResult, probe
from bertdyn.tracking.tracker import Tracker
from tests.features.test_aligned import num_tokens, write_store

pytestmark = pytest.mark.slow  # many figures; `make check` stays short

WIDTH, LAYERS, COUNT = 6, (0, 1, 2), 90
TEXTS = [("train", ["[abc]"])] * 4 + [("probe", [f"[{'abcdefghi'[: 3 + number % 7]}]"]) for number in range(COUNT)]
COLUMNS = ["layer", "state", "rows", "target", "probe", "baseline", "metric", "value", "low", "high", "n", "fold_std",
           "num_folds"]  # fmt: skip
LABELS = np.random.default_rng(5).integers(2, size=len(TEXTS))


def features(names, texts=TEXTS, labels=LABELS, signal=1.2, seed=0):
    """State → layer → rows: the label stands in the first dimension, more so in later states and layers."""
    rng = np.random.default_rng(seed)
    of_text = np.repeat(labels[: len(texts)], [sum(map(len, windows)) for _, windows in texts])
    own = np.repeat(rng.normal(size=(len(texts), WIDTH)), np.bincount(np.repeat(np.arange(len(texts)), [
        sum(map(len, windows)) for _, windows in texts])), axis=0)  # fmt: skip
    states = {}
    for number, name in enumerate(names):
        states[name] = {}
        for layer in LAYERS:
            rows = own + 0.1 * rng.normal(size=(num_tokens(texts), WIDTH))
            rows[:, 0] += signal * (number + 1) * layer * of_text
            states[name][layer] = rows.astype(np.float32)
    return states


def make_run(folder, names=("pretrained", "best"), states=None, run_id="a1", made=None, **options):
    made = made or features(names)
    store = write_store(folder / run_id, made, TEXTS, labels=LABELS.tolist(), **options)
    config = ExtractConfig(model_name_or_path=f"model-{run_id}")
    return ExtractRun(run_id, f"synthetic-{run_id}", config, store, list(states or names))


@pytest.fixture(autouse=True, scope="module")
def twin(tmp_path_factory):
    """In the place of a random encoder, which needs a model: features that know nothing."""
    folder = tmp_path_factory.mktemp("twin")
    noise = features(["random_init"], labels=np.zeros(len(TEXTS)), seed=9)
    store = write_store(folder / "twin", noise, TEXTS, labels=LABELS.tolist())

    def source(config, run, layers, examples):
        return Source(
            "random_init", store, step.AlignedRows([(store, "random_init")], config.part, config.max_examples)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_random_source", source)
        yield


def run_probe(folder, run, **options) -> ProbeResult:
    return probe(ProbeConfig(**{"source_run_id": run.run_id} | options), Tracker(folder), run)


class Done(NamedTuple):
    run: ExtractRun
    result: ProbeResult
    folder: object

    def one(self, **values) -> pd.Series:
        table = self.result.probes
        for name, value in ({"baseline": "none", "metric": "accuracy", "probe": "logistic"} | values).items():
            table = table[(table[name] == value).fillna(False)]
        assert len(table) == 1, f"{values}: {len(table)} rows"
        return table.iloc[0]


ALL = {"probes": "logistic,ridge,nearest_centroid,mean_difference,mlp", "rows": "first,mean,content"}


@pytest.fixture(scope="module")
def done(tmp_path_factory, twin) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertdyn.probing.mlp.NUM_UPDATES", 60)  # its own tests are of what it can learn
        yield _everything(tmp_path_factory)


def _everything(tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("probe")
    run = make_run(folder)
    options = ALL | {"targets": "label,num_characters"}
    return Done(run, run_probe(folder / "run", run, **options), folder / "run")


def test_the_table_is_tidy_and_in_a_file(done):
    table = done.result.probes
    assert list(table) == COLUMNS
    assert not table.duplicated(["layer", "state", "rows", "target", "probe", "baseline", "metric"]).any()
    read = pd.read_parquet(done.folder / "probes.parquet")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert set(table["baseline"]) == {"none", "majority", "tfidf", "random_init", "shuffled", "layer_0", "control"}
    assert not table["value"].isna().any()
    bounded = table[~table["metric"].str.endswith(("_fitted", "inverse_penalty"))]
    assert (bounded["low"] <= bounded["value"] + 1e-12).all()
    assert (bounded["value"] <= bounded["high"] + 1e-12).all()


def test_every_probe_of_every_layer_and_state_stands_beside_its_controls(done):
    table = done.result.probes
    main = table[table["metric"].isin(["accuracy", "r2"])]
    for target, probes in (("label", {"logistic", "nearest_centroid", "mean_difference", "mlp"}),
                           ("num_characters", {"ridge", "mlp"})):  # fmt: skip
        mine = main[main["target"] == target]
        for baseline in ("none", "shuffled"):
            cells = mine[mine["baseline"] == baseline]
            assert len(cells) == len(probes) * 3 * 2 * len(LAYERS)
            assert set(cells["probe"]) == probes
        assert len(mine[mine["baseline"] == "random_init"]) == len(probes) * 3 * len(LAYERS)
        assert set(mine[mine["baseline"].isin(["majority", "tfidf"])]["layer"].isna()) == {True}
    control = main[main["baseline"] == "control"]
    assert set(control["rows"]) == {"content"}
    assert set(control["target"]) == {"label"}


def test_accuracy_is_that_of_a_loop_over_folds(done):
    """The features of the store, the folds of the predictions table, scikit-learn in a loop."""
    aligned = step.AlignedRows([(done.run.store, "best")], "probe")
    for kind in ("first", "mean"):
        said = pd.read_parquet(done.folder / f"predictions/label-logistic-{kind}.parquet")
        said = said[(said["state"] == "best") & (said["layer"] == 1)].set_index("example_id")
        said = said.loc[aligned.examples["example_id"]]
        x = np.concatenate([block[kind].states[0] for block in aligned.blocks(1)])
        y, folds = aligned.labels, said["fold"].to_numpy()
        np.testing.assert_array_equal(said["truth"], y)
        predicted = np.empty_like(y)
        for fold in range(5):
            seen = folds != fold
            losses = []
            penalties = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
            for penalty in penalties:
                total = 0.0
                for inner in set(range(5)) - {fold}:
                    fit, judge = seen & (folds != inner), folds == inner
                    model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, tol=1e-8, max_iter=10_000))
                    p = model.fit(x[fit], y[fit]).predict_proba(x[judge])
                    total -= np.log(p[np.arange(judge.sum()), y[judge]]).sum()
                losses.append(total)
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=penalties[int(np.argmin(losses))], tol=1e-8, max_iter=10_000)
            )
            predicted[~seen] = model.fit(x[seen], y[seen]).predict(x[~seen])
        assert (said["prediction"].to_numpy() == predicted).mean() >= 0.98
        row = done.one(rows=kind, state="best", layer=1, target="label")
        assert row["value"] == pytest.approx((said["prediction"] == said["truth"]).mean())
        assert row["n"] == len(y)
        per_fold = (said["prediction"] == said["truth"]).groupby(said["fold"]).mean()
        assert row["fold_std"] == pytest.approx(per_fold.std())


def test_what_is_there_is_found_and_what_is_not_there_is_not(done):
    for rows in ("first", "mean", "content"):
        assert done.one(rows=rows, state="best", layer=2, target="label")["value"] > 0.9
        assert done.one(rows=rows, state="best", layer=0, target="label")["low"] < 0.6
        assert done.one(rows=rows, baseline="shuffled", state="best", layer=2, target="label")["low"] < 0.55
        assert done.one(rows=rows, baseline="random_init", layer=2, target="label")["low"] < 0.6
    assert done.one(rows="first", metric="compression", state="best", layer=2, target="label")["value"] > 1.5
    assert done.one(rows="first", metric="selectivity", state="best", layer=2, target="label")["low"] > 0.2


def test_layer_0_is_repeated_as_a_baseline(done):
    for state in ("pretrained", "best"):
        own = done.one(rows="mean", state=state, layer=0, target="label")
        again = done.one(rows="mean", state=state, layer=0, target="label", baseline="layer_0")
        assert own["value"] == again["value"]


def test_paired_tests_are_of_the_predictions(done):
    table = pd.read_parquet(done.folder / "paired_tests.parquet")
    assert set(table["kind"]) == {"states", "layers", "best", "random_init", "tfidf"}
    said = pd.read_parquet(done.folder / "predictions/label-logistic-first.parquet")
    right = (said["prediction"] == said["truth"]).astype(float)
    of = {key: right[rows.index].to_numpy() for key, rows in said.groupby(["state", "layer"])}
    mine = table[(table["target"] == "label") & (table["rows"] == "first") & (table["probe"] == "logistic")]
    row = mine[(mine["kind"] == "states") & (mine["layer_b"] == 2)].iloc[0]
    expected = paired_difference(of["pretrained", 2], of["best", 2], seed=0)
    assert row["difference"] == pytest.approx(expected.value)
    assert row["p_value"] == pytest.approx(expected.p_value)
    assert row["q_value"] >= row["p_value"]


def test_stored_weights_say_what_they_are(done):
    """Fitted to all texts: at least as good on them as the probes of the folds."""
    weights = load_file(done.folder / "probes/label-logistic-mean.safetensors")
    assert set(weights) == {f"{state}/layer_{layer:02d}/{name}" for state in ("pretrained", "best")
                            for layer in LAYERS for name in ("weight", "bias")} | {
        f"random_init/layer_{layer:02d}/{name}" for layer in LAYERS for name in ("weight", "bias")}  # fmt: skip
    aligned = step.AlignedRows([(done.run.store, "best")], "probe")
    x = np.concatenate([block["mean"].states[0] for block in aligned.blocks(2)])
    scores = x @ weights["best/layer_02/weight"] + weights["best/layer_02/bias"]
    assert (scores.argmax(axis=1) == aligned.labels).mean() > 0.9


def test_transfer_to_the_same_features_is_no_transfer(tmp_path):
    """Two states that are the same but for an offset: as it is the cut is wrong, recentred nothing is lost."""
    made = features(["pretrained"])
    made["moved"] = {layer: rows + 30 for layer, rows in made["pretrained"].items()}
    run = make_run(tmp_path, ("pretrained", "moved"), made=made)
    run_probe(tmp_path / "run", run, rows="mean")
    table = pd.read_parquet(tmp_path / "run/transfer.parquet").query("layer == 2").set_index(["fitted_on", "scored_on"])
    own = table.loc[("pretrained", "pretrained")]
    assert own["accuracy"] == own["accuracy_recentred"] > 0.8
    across = table.loc[("pretrained", "moved")]
    assert across["accuracy_recentred"] == pytest.approx(own["accuracy"], abs=0.02)
    assert across["accuracy"] < 0.7
    assert across["cosine"] > 0.99
    assert own["cosine"] == pytest.approx(1)
    assert 0.5 < own["cosine_by_chance"] < 1
    assert own["accuracy_low"] < own["accuracy"] < own["accuracy_high"]


def test_stages_and_association(tmp_path, monkeypatch):
    names = [f"epoch_{number:03d}" for number in range(14)]
    disordered = [*names[::2], *names[1::2]]
    before, after = features(["x"], signal=0.0)["x"], features(["x"], signal=2.5)["x"]
    made = {name: before if number < 7 else after for number, name in enumerate(names)}
    run = make_run(tmp_path, names, made=made)
    measures = pd.DataFrame(
        [
            {
                "layer": layer,
                "state": name,
                "measure": "within_text_cosine (content)",
                "value": layer * (number >= 7) + 0.01 * number,
            }
            for layer in LAYERS
            for number, name in enumerate(names)
        ]
    )
    monkeypatch.setattr(step, "_measures", lambda config, run: measures)
    result = run_probe(tmp_path / "run", run, rows="mean")
    stages = pd.read_parquet(tmp_path / "run/stages.parquet")
    assert "epoch_007" in set(stages["state"])
    assert "a new stage begins at `epoch_007`" in result.summary
    assert set(stages["low_state"]) <= set(names)
    run_probe(tmp_path / "disordered", run._replace(states=disordered), rows="mean")
    assert not (tmp_path / "disordered/stages.parquet").exists()  # not the order of training
    table = pd.read_parquet(tmp_path / "run/associations.parquet")
    assert set(table["coefficient"]) == {"spearman", "partial_layer", "partial_state", "partial_layer_state"}
    assert table.set_index("coefficient").loc["spearman", "value"] > 0.5
    assert "Does the geometry go with what probes find?" in result.summary


def test_two_runs_are_the_same(done, tmp_path):
    options = {"rows": "first", "targets": "label"}
    one = run_probe(tmp_path / "one", done.run, **options).probes
    again = run_probe(tmp_path / "again", done.run, **options).probes
    pd.testing.assert_frame_equal(one, again)
    other = run_probe(tmp_path / "other", done.run, seed=1, **options).probes
    assert not one["value"].equals(other["value"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "span"}, "--targets 'span'.*whose texts have no answers"),
        ({"targets": "nonsense"}, "nonsense"),
        ({"targets": "num_characters", "probes": "logistic"}, "--probes 'logistic': none is for numbers"),
        ({"layers": "7"}, "--layers '7'"),
        ({"part": "validation"}, "has 0 texts of the part 'validation'"),
        ({"num_folds": 46}, "class '[01]' has|fewer"),
        ({"num_folds": 46, "targets": "num_characters"}, "--num_folds 46: 90 texts; accepted are at most 45"),
    ],
)
def test_bad_input(done, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run_probe(tmp_path, done.run, **options)


def test_names_of_columns_make_no_paths(done, tmp_path, monkeypatch):
    column = pd.Series(np.arange(len(TEXTS)) % 2, index=[f"id-{number:04d}" for number in range(len(TEXTS))]).astype(
        str
    )
    monkeypatch.setattr(step, "read_column", lambda config, name: column)
    monkeypatch.setattr(step, "load_run_texts", lambda run: None)
    run_probe(tmp_path / "run", done.run, targets="../../a b/c", rows="first")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert (tmp_path / "run/probes/_.._a_b_c-logistic-first.safetensors").exists()


def test_penalties_and_what_the_sizes_of_classes_compress(done):
    penalty = done.one(rows="first", metric="inverse_penalty", state="best", layer=2, target="label")["value"]
    assert 1e-4 <= penalty <= 1
    majority = done.result.probes.query("baseline == 'majority' and metric == 'compression'")["value"]
    assert majority.between(0.9, 1.05).all()


def test_texts_that_trained_the_encoder_are_refused(done, tmp_path):
    config = ExtractConfig(source_run_id="f00")
    with pytest.raises(InputError, match="--part 'train': these texts trained or selected the encoder"):
        run_probe(tmp_path, done.run._replace(config=config), part="train")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(tmp_path, value):
    made = features(["pretrained"])
    made["pretrained"][1][27, 2] = value  # a content token
    run = make_run(tmp_path, ("pretrained",), made=made)
    number = int(np.searchsorted(np.cumsum([sum(map(len, windows)) for _, windows in TEXTS]), 30, side="right"))
    with pytest.raises(InputError, match=f"state 'pretrained', layer 1 are not finite.*text 'id-{number:04d}'"):
        run_probe(tmp_path / "run", run, rows="mean,first,content")
