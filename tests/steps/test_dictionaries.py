"""Sparse dictionaries as a function, without MLflow, on stores made by hand: what was planted is found, no more."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore
from bertdyn.sae.dictionary import Dictionary, decode, encode
from bertdyn.sae.export import load_dictionary, load_metadata
from bertdyn.sae.metrics import basis_of, measure
from bertdyn.steps import dictionaries as step
from bertdyn.steps import sae_pages, sae_report, sae_training
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.dictionaries import SaeResult, sae
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.tracking.tracker import Tracker
from tests.features.test_aligned import write_store

pytestmark = pytest.mark.slow  # trainings; `make check` stays short

WIDTH = 12
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    (part, [f"[{ALPHABET[number % 5 : number % 5 + 6 + number % 8]}]"])
    for part, count in (("train", 150), ("test", 6), ("probe", 80))
    for number in range(count)
]
LABELS = np.random.default_rng(5).integers(2, size=len(TEXTS))
BASIS = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
SCALE = np.linspace(0.5, 2, WIDTH)
"""By dimension: directions in standardised space are not those of the rows."""
COMMON, BORN, DIED, OF_LABEL = range(6), 6, 7, 8
FEW = {"width": 16, "k": 2, "num_train_epochs": 2, "per_device_train_batch_size": 64, "page_latents": 4,
       "seeds": "0,1"}  # fmt: skip
"""Options of dictionaries so small that they take no time."""


def owners(texts=TEXTS) -> np.ndarray:
    """[tokens]: number of the text of each."""
    return np.repeat(np.arange(len(texts)), [len(windows[0]) for _, windows in texts])


def planted_codes(born: bool = False, died: bool = False, of_label: bool = False, seed: int = 0) -> np.ndarray:
    """[tokens, directions]: in each token one direction is on; where those planted are missing, a common one is."""
    generator, owner = np.random.default_rng(seed), owners()
    on, chance = generator.integers(len(COMMON), size=len(owner)), generator.random(len(owner))
    on = np.where(born & (chance < 0.12), BORN, on)
    on = np.where(died & (chance > 0.88), DIED, on)
    on = np.where(of_label & (chance >= 0.12) & (chance < 0.5) & (LABELS[owner] == 1), OF_LABEL, on)
    codes = np.zeros((len(owner), WIDTH))
    codes[np.arange(len(owner)), on] = generator.uniform(1, 2, size=len(owner))
    return codes


def rows_of(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Codes of planted directions as rows: with a large mean, dimensions of unequal spread, and some noise."""
    noise = 0.01 * np.random.default_rng(seed).normal(size=codes.shape)
    return ((codes @ BASIS + noise + 3) * SCALE).astype(np.float32)


def make_run(folder: Path, states: Mapping[str, Mapping[int, np.ndarray]], texts=TEXTS, **options) -> ExtractRun:
    labels = options.pop("labels", LABELS[: len(texts)].tolist())
    store = write_store(folder / "store", states, texts, labels=labels, **options)
    table = pd.read_parquet(store.folder / "tokens.parquet")  # what a page needs, of a character that is a token
    where = {"segment": 0, "word_id": table["position"], "char_start": table["position"]}
    table.assign(**where, char_end=table["position"] + 1).to_parquet(store.folder / "tokens.parquet")
    config = ExtractConfig(model_name_or_path="model-a1")
    return ExtractRun("a1", "synthetic-a1", config, FeatureStore.open(store.folder), list(states))


def run_sae(folder: Path, run: ExtractRun, **options) -> SaeResult:
    options = {"source_run_id": run.run_id, "random_init": False} | FEW | options
    return sae(SaeConfig(**options), Tracker(folder), run)


def dictionary_of(
    folder: Path, comparison: str, state: str, layer: int = 1, seed: int = 0, sparsity: str = "2"
) -> Dictionary:
    return load_dictionary(folder / f"dictionaries/{comparison}/{state}/layer_{layer:02d}/seed_{seed}_{sparsity}")


def same_dictionaries(one: Dictionary, other: Dictionary) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[2:], other[2:], strict=True))


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run wrote, but for its points, which have times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(autouse=True, scope="module")
def twin(tmp_path_factory):
    """In the place of a random encoder, which needs a model: rows that know nothing."""

    def make(run, *, parts, rows, layers, seed) -> FeatureStore:
        texts = [text for text in TEXTS if text[0] in parts]
        noise = np.random.default_rng([9, seed])
        shape = (len(owners(texts)), WIDTH)
        states = {"random_init": {layer: noise.normal(size=shape).astype(np.float32) for layer in layers}}
        folder = tmp_path_factory.mktemp("twin")
        labels = LABELS[[text[0] in parts for text in TEXTS]].tolist()
        return write_store(folder / "store", states, texts, kinds=tuple(rows), labels=labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "random_twin", make)
        yield


@pytest.fixture
def bare(monkeypatch):
    """Without what takes most of the time of so small a run."""
    monkeypatch.setattr(sae_report, "_figures", lambda found: iter(()))
    monkeypatch.setattr(step, "sparse_probe_table", lambda *_: pd.DataFrame())


@pytest.fixture
def shown_pages(monkeypatch) -> list:
    """What the pages are made of."""
    pages, make = [], sae_pages.feature_page
    monkeypatch.setattr(sae_pages, "feature_page", lambda page: (pages.append(page), make(page))[1])
    return pages


class Done(NamedTuple):
    run: ExtractRun
    result: SaeResult
    folder: Path

    def table(self, name: str, **values) -> pd.DataFrame:
        table = pd.read_parquet(self.folder / f"{name}.parquet")
        for column, value in values.items():
            table = table[table[column] == value]
        return table.reset_index(drop=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, twin) -> Done:
    """One direction vanishes, one appears, one appears in the texts of a class; everything else stays."""
    folder = tmp_path_factory.mktemp("planted")
    before, after = planted_codes(died=True), planted_codes(born=True, of_label=True)
    states = {
        "pretrained": {1: rows_of(before), 2: rows_of(before, seed=2)},
        "best": {1: rows_of(after, seed=1), 2: rows_of(before, seed=3)},
    }
    run = make_run(folder, states)
    options = {"width": 24, "k": 1, "num_train_epochs": 6, "learning_rate": 0.01, "random_init": True, "frontier": "2"}
    return Done(run, run_sae(folder / "run", run, **options), folder / "run")


def nearest(dictionary: Dictionary, direction: int) -> tuple[int, float]:
    """The latent whose direction is nearest to a planted one in standardised space, and the cosine."""
    true = torch.from_numpy(BASIS[direction] * SCALE).float() / dictionary.scale
    cosines = dictionary.directions @ (true / true.norm())
    return int(cosines.argmax()), float(cosines.max())


def test_what_was_planted_is_found(planted):
    for seed in (0, 1):
        dictionary = dictionary_of(planted.folder, "shared", "best", seed=seed, sparsity="1")
        fates = planted.table("fates", comparison="shared", layer=1, seed=seed).set_index("latent")
        features = planted.table("features", comparison="shared", layer=1, seed=seed).set_index(["state", "latent"])
        codes = {"pretrained": planted_codes(died=True), "best": planted_codes(born=True, of_label=True)}
        in_part = np.array([TEXTS[text][0] == "probe" for text in owners()]) & ~is_bracket()
        for direction, fate in ((BORN, "born"), (DIED, "died"), (OF_LABEL, "born")):
            latent, cosine = nearest(dictionary, direction)
            assert cosine > 0.9
            assert fates.loc[latent, "fate"] == fate
            for state, truth in codes.items():
                share = (truth[in_part, direction] > 0).mean()
                assert features.loc[(state, latent), "density"] == pytest.approx(share, abs=0.01)
        latent = nearest(dictionary, OF_LABEL)[0]
        assert features.loc[("best", latent), "auc"] > 0.97
        assert features.loc[("best", latent), "label"] == 1
    own = planted.table("sparse_probes", layer=1, basis="dictionary", size=1, sparsity=1)
    own = own[own["comparison"].isin(["shared", "independent"])].groupby("state")
    assert own["accuracy"].min()["best"] > 0.95
    assert (own["accuracy_low"].max()["pretrained"] < own["majority"].max()["pretrained"]).all()
    unchanged = planted.table("sparse_probes", layer=2, size=1, basis="dictionary")
    assert (unchanged["accuracy_low"] < unchanged["majority"]).all()


def is_bracket() -> np.ndarray:
    return np.array([token in "[]" for _, windows in TEXTS for token in windows[0]])


def test_every_dictionary_stands_beside_its_baselines(planted):
    table = planted.result.metrics
    keys = ["comparison", "state", "layer", "seed", "sparsity", "rows"]
    assert not table.duplicated(keys).any()
    main = table[(table["sparsity"] == 1) & (table["rows"] == "content")]
    counts = main.groupby("comparison").size().to_dict()
    of_states = 2 * 2  # states and layers
    assert counts == {"independent": 2 * of_states, "shared": 2 * of_states, "stagewise": 2 * of_states,
                      "control": 2 * 2, "pca": of_states, "random_dictionary": of_states, "random_init": 2}  # fmt: skip
    frontier = table[table["sparsity"] == 2]
    assert set(frontier["comparison"]) == {"independent", "pca", "random_dictionary", "random_init"}
    assert set(frontier["seed"]) == {0}
    assert frontier[frontier["comparison"] == "independent"]["l0"].between(1.5, 2).all()
    fvu = main.groupby(["comparison", "state"])["fvu_standardized"].max()
    for state in ("pretrained", "best"):
        assert fvu["independent", state] < 0.3
        assert main.query("comparison in ['pca', 'random_dictionary']")["fvu_standardized"].min() > 0.5
    assert fvu["random_init", "random_init"] > 0.5  # Gaussian noise has no features
    assert set(main["num_rows"]) == {int((~is_bracket() & np.isin(owners(), part_texts("probe"))).sum())}


def part_texts(part: str) -> np.ndarray:
    return np.flatnonzero([of == part for of, _ in TEXTS])


def test_a_stored_dictionary_gives_the_measures_of_the_tables(planted):
    content = np.flatnonzero(~is_bracket() & np.isin(owners(), part_texts("probe")))
    first = np.flatnonzero(np.diff(owners(), prepend=-1) & np.isin(owners(), part_texts("probe")))
    for row in planted.result.metrics.query("baseline == 'none'").itertuples():
        of = dictionary_of(planted.folder, row.comparison, row.state, row.layer, row.seed, f"{row.sparsity:g}")
        state = "pretrained" if row.comparison == "control" else row.state
        rows = planted.run.store.array("tokens", state, row.layer)[content if row.rows == "content" else first]
        rows = torch.from_numpy(rows)
        error = (decode(of, encode(of, rows)) - rows).double().square().sum()
        assert row.fvu == pytest.approx(float(error / (rows - rows.mean(dim=0)).double().square().sum()), rel=1e-4)
    known = load_metadata(planted.folder / "dictionaries/shared/best/layer_01/seed_0_1")
    assert (known["comparison"], known["state"], known["layer"], known["rows"]) == ("shared", "best", 1, "content")


def test_shared_dictionaries_differ_between_states_by_the_mean_alone(planted):
    before, after = (dictionary_of(planted.folder, "shared", state, sparsity="1") for state in ("pretrained", "best"))
    torch.testing.assert_close(before.encoder, after.encoder, rtol=0, atol=0)
    torch.testing.assert_close(before.decoder, after.decoder, rtol=0, atol=0)
    moved = after.mean - before.mean
    assert moved.abs().max() > 0.05
    torch.testing.assert_close(after.decoder_bias - before.decoder_bias, moved, rtol=0, atol=1e-5)


def test_continued_dictionaries_start_at_those_of_the_first_state(planted):
    """And stay near where nothing changed; the control sees the first state, the other the later one."""
    for layer in (1, 2):
        for seed in (0, 1):
            start, first, control, after, later = (
                dictionary_of(planted.folder, comparison, state, layer, seed, "1")
                for comparison, state in (
                    ("independent", "pretrained"),
                    ("stagewise", "pretrained"),
                    ("control", "best"),
                    ("stagewise", "best"),
                    ("independent", "best"),
                )
            )
            assert same_dictionaries(start, first)
            assert torch.equal(control.mean, start.mean)
            assert torch.equal(after.mean, later.mean)
            assert not torch.equal(after.mean, control.mean)
            stays = (control, after) if layer == 2 else (control,)
            assert all((start.directions * of.directions).sum(dim=1).median() > 0.95 for of in stays)
    fates = planted.table("fates", comparison="stagewise", layer=1, seed=0)
    content = ~is_bracket() & np.isin(owners(), part_texts("probe"))
    rows = {
        state: torch.from_numpy(planted.run.store.array("tokens", state, 1)[content])
        for state in ("pretrained", "best")
    }
    strength = {}
    for comparison, state in (("stagewise", "pretrained"), ("control", "best"), ("stagewise", "best")):
        seen = rows["best" if (comparison, state) == ("stagewise", "best") else "pretrained"]
        codes = encode(dictionary_of(planted.folder, comparison, state, sparsity="1"), seen)
        strength[comparison, state] = codes.double().square().mean(dim=0).sqrt().numpy()[fates["latent"]]
    before = strength["stagewise", "pretrained"]
    on = before > 0
    for column, of in (("floor_norm_ratio", "control"), ("norm_ratio", "stagewise")):
        np.testing.assert_allclose(fates[column][on], (strength[of, "best"] / np.where(on, before, 1))[on], rtol=1e-4)
    fates = planted.table("fates", comparison="stagewise").groupby("layer")
    assert (fates["floor_cosine"].median() > 0.95).all()
    assert fates["cosine"].median()[2] > 0.95


def test_all_files_are_there_and_none_that_is_for_training(planted):
    names = {path.split("/")[0] for path in files_of(planted.folder)}
    tables = {"metrics", "sparse_probes", "fate_shares", "fates", "features", "feature_labels", "examples",
              "shown_latents"}  # fmt: skip
    assert names == {"config.json", "datasets.json", "dictionaries", "figures", "pages", "summary.md"} | {
        f"{name}.parquet" for name in tables}  # fmt: skip
    pages = {f"{comparison}_layer_{layer:02d}.html" for comparison in ("shared", "stagewise", "independent")
             for layer in (1, 2)}  # fmt: skip
    assert {path.name for path in (planted.folder / "pages").iterdir()} == pages
    assert {path.stem for path in (planted.folder / "figures").iterdir()} == {
        "frontier", "densities", "sparse_probes", "fates", "cosines"}  # fmt: skip
    assert all(f"pages/{name}" in planted.result.summary for name in pages)
    assert planted.result.summary == (planted.folder / "summary.md").read_text()


def test_examples_are_rows_of_the_store(planted):
    examples = planted.table("examples")
    sides = examples.groupby(["comparison", "layer", "state"])["activation"].max()
    assert len(sides) == 3 * 2 * 2  # before and after on every page
    table = planted.run.store.examples().set_index("example_id")
    assert set(table.loc[examples["example_id"], "part"]) == {"probe"}
    for row in examples.sample(40, random_state=0).itertuples():
        assert row.row == table.loc[row.example_id, "first_row"] + row.position
        of = dictionary_of(planted.folder, row.comparison, row.state, row.layer, row.seed, "1")
        stored = torch.from_numpy(planted.run.store.array("tokens", row.state, row.layer)[[row.row]])
        assert float(encode(of, stored)[0, row.latent]) == pytest.approx(row.activation, rel=1e-5)


def test_where_nothing_changed_everything_is_the_floor(tmp_path, bare, shown_pages):
    rows = rows_of(planted_codes(born=True))
    run = make_run(tmp_path, {"pretrained": {1: rows}, "best": {1: rows.copy()}})
    result = run_sae(tmp_path / "run", run, seeds="0,1,2", num_train_epochs=3)
    folder = tmp_path / "run"
    for seed in (0, 1, 2):
        stagewise, control = (dictionary_of(folder, name, "best", seed=seed) for name in ("stagewise", "control"))
        assert same_dictionaries(stagewise, control)
        assert not same_dictionaries(stagewise, dictionary_of(folder, "stagewise", "pretrained", seed=seed))
        of_states = (dictionary_of(folder, "shared", state, seed=seed) for state in ("pretrained", "best"))
        assert same_dictionaries(*of_states)
    shares = pd.read_parquet(folder / "fate_shares.parquet")
    assert set(shares["comparison"]) == {"shared", "stagewise", "independent"}
    pd.testing.assert_series_equal(shares["share"], shares["floor"], check_names=False, rtol=0, atol=0)
    fates = pd.read_parquet(folder / "fates.parquet")
    stagewise = fates[fates["comparison"] == "stagewise"]
    assert (stagewise["fate"] == stagewise["floor_fate"]).all()
    assert not set(stagewise["fate"]) & {"born", "died"}
    assert (stagewise["cosine"] == stagewise["floor_cosine"]).all()
    shared = fates[fates["comparison"] == "shared"]
    assert set(shared["fate"]) == {"kept"}
    assert (shared["density_before"] == shared["density_after"]).all()
    assert not shared["changed"].any()
    of_state = [of.drop(columns="state").reset_index(drop=True)
                for _, of in result.features.query("comparison == 'shared'").groupby("state")]  # fmt: skip
    pd.testing.assert_frame_equal(*of_state)
    [page] = [page for page in shown_pages if "shared" in {fact.value for fact in page.facts}]
    assert {card.change for card in page.cards} == {0.0}
    assert {card.norm_ratio for card in page.cards} == {1.0}


def test_one_state_is_studied_alone(tmp_path, bare):
    run = make_run(tmp_path, {"pretrained": {1: rows_of(planted_codes())}})
    result = run_sae(tmp_path / "run", run, num_train_epochs=1, max_examples=20)
    assert set(result.metrics["comparison"]) == {"independent", "pca", "random_dictionary"}
    few = np.isin(owners(), part_texts("probe")[:20]) & ~is_bracket()
    assert set(result.metrics.query("rows == 'content'")["num_rows"]) == {few.sum()}
    assert not list((tmp_path / "run").glob("fate*"))
    assert [path.name for path in (tmp_path / "run/pages").iterdir()] == ["independent_layer_01.html"]
    assert re.search("Left out: .*one state", result.summary)


def test_one_seed_has_no_floor_for_independent_dictionaries(tmp_path, bare):
    rows = rows_of(planted_codes())
    run = make_run(tmp_path, {"pretrained": {1: rows}, "best": {1: rows}})
    result = run_sae(tmp_path / "run", run, seeds="3", num_train_epochs=1, frontier="1")
    assert re.search("Left out: .*independent.* seed", result.summary)
    assert set(pd.read_parquet(tmp_path / "run/fates.parquet")["comparison"]) == {"shared", "stagewise"}
    assert set(result.metrics["seed"]) == {3}


def test_a_class_too_rare_for_folds_leaves_the_probes_out_and_says_so(tmp_path):
    labels = LABELS.copy()
    of_probe = np.flatnonzero([text[0] == "probe" for text in TEXTS])
    labels[of_probe] = 0
    labels[of_probe[:3]] = 1
    run = make_run(tmp_path, {"pretrained": {1: rows_of(planted_codes())}}, labels=labels.tolist())
    result = run_sae(tmp_path / "run", run, num_train_epochs=1, fidelity=False)
    assert re.search("Left out: sparse probes of the label: a class has fewer than 5 texts", result.summary)
    assert not (tmp_path / "run/sparse_probes.parquet").exists()
    assert "classifier" not in result.summary  # not asked for, so not left out, either


def test_the_first_seed_has_the_baselines_whatever_its_number(tmp_path, bare):
    run = make_run(tmp_path, {"pretrained": {1: rows_of(planted_codes())}})
    found = run_sae(tmp_path / "run", run, seeds="3,1", num_train_epochs=1, frontier="1").metrics
    assert set(found.query("comparison == 'pca'")["sparsity"]) == {1, 2}
    assert set(found.query("comparison == 'pca'")["seed"]) == {3}


def test_several_later_states_go_on_from_one_to_the_next(tmp_path, bare):
    """The dictionary of the second later state starts where that of the first ended, and so does its control."""
    rows = [rows_of(planted_codes(), seed=seed) for seed in range(2)]
    names = ("pretrained", "epoch_001", "epoch_002")
    run = make_run(tmp_path, dict(zip(names, ({1: rows[0]}, {1: rows[1]}, {1: rows[0]}), strict=True)))
    result = run_sae(tmp_path / "run", run, comparisons="stagewise", seeds="0")
    alone = run_sae(tmp_path / "alone", run._replace(states=["pretrained", "epoch_001"]), comparisons="stagewise",
                    seeds="0")  # fmt: skip
    assert set(result.metrics["comparison"]) == {"independent", "stagewise", "control", "pca", "random_dictionary"}
    for kind in ("stagewise", "control"):
        one, other = (dictionary_of(tmp_path / name, kind, "epoch_001") for name in ("run", "alone"))
        # the scale is common to the states that are compared, so the two are not the same bit for bit
        torch.testing.assert_close(one.directions, other.directions, rtol=0, atol=2e-2)
    steps = [
        (
            dictionary_of(tmp_path / "run", kind, second).directions
            - dictionary_of(tmp_path / "run", kind, first).directions
        )
        .norm()
        .item()
        for kind in ("stagewise", "control")
        for first, second in (("epoch_001", "epoch_002"),)
    ]
    start = dictionary_of(tmp_path / "run", "stagewise", "pretrained").directions
    far = [(dictionary_of(tmp_path / "run", kind, "epoch_002").directions - start).norm().item()
           for kind in ("stagewise", "control")]  # fmt: skip
    assert all(0 < step < 0.9 * whole for step, whole in zip(steps, far, strict=True))
    assert len(alone.metrics) < len(result.metrics)


@pytest.mark.parametrize("cut_in", [3, "study"])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, bare, cut_in):
    before, after = planted_codes(died=True), planted_codes(born=True)
    run = make_run(tmp_path, {"pretrained": {1: rows_of(before)}, "best": {1: rows_of(after)}})
    run_sae(tmp_path / "whole", run)
    broken, calls, train = RuntimeError("killed"), [], sae_training.train_dictionaries

    def dies(accelerator, model, rows, recipe, **options):
        calls.append(model)
        if len(calls) == cut_in:
            read, batches = rows.batch, iter(range(30))  # of 22 an epoch

            def batch(indices):
                if next(batches, None) is None:
                    raise broken
                return read(indices)

            monkeypatch.setattr(rows, "batch", batch)
        return train(accelerator, model, rows, recipe, **options)

    def no_study(*_):
        raise broken

    with monkeypatch.context() as patch:
        patch.setattr(sae_training, "train_dictionaries", dies)
        if cut_in == "study":
            patch.setattr(step, "error_table", no_study)
        with pytest.raises(RuntimeError, match="killed"):
            run_sae(tmp_path / "cut", run)
    states = list((tmp_path / "cut/training").glob("*.safetensors"))
    assert len(states) == 3  # what a resumed run goes on from, also where only the tables were missing
    trained = []
    with monkeypatch.context() as patch:
        counted = lambda rows, indices: (trained.append(len(indices)), read(rows, indices))[1]  # noqa: E731
        read = sae_training.TrainingRows.batch
        patch.setattr(sae_training.TrainingRows, "batch", counted)
        run_sae(tmp_path / "cut", run)
    assert sum(trained) < 3 * num_rows("train")  # at most one epoch, and the points where latents start
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")
    points = [pd.read_json(tmp_path / name / "metrics.jsonl", lines=True).drop(columns="timestamp")
              for name in ("cut", "whole")]  # fmt: skip
    pd.testing.assert_frame_equal(*(of.sort_values(["key", "step"], ignore_index=True) for of in points))


def num_rows(part: str) -> int:
    return int((~is_bracket() & np.isin(owners(), part_texts(part))).sum())


def test_layer_by_layer_gives_the_dictionaries_of_all_at_once(tmp_path, monkeypatch, bare):
    before, after = planted_codes(died=True), planted_codes(born=True)
    states = {
        "pretrained": {1: rows_of(before), 2: rows_of(before, 1)},
        "best": {1: rows_of(after), 2: rows_of(before)},
    }
    run = make_run(tmp_path, states)
    options = {"random_init": True, "frontier": "1", "activation": "relu", "l1_coefficient": 0.05, "seeds": "1"}
    together = run_sae(tmp_path / "together", run, **options)
    monkeypatch.setattr(sae_training, "_layers_at_once", lambda *_: 1)
    one_by_one = run_sae(tmp_path / "one_by_one", run, **options)
    folders = sorted(path.parent for path in (tmp_path / "together").rglob("cfg.json"))
    assert len(folders) == 2 * (2 + 2 + 2 + 1 + 2 + 2)  # layers times independent … control, frontier, twins
    for folder in folders:
        one, other = (
            load_dictionary(folder),
            load_dictionary(tmp_path / "one_by_one" / folder.relative_to(tmp_path / "together")),
        )
        for name in ("encoder", "decoder", "encoder_bias"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-3, atol=2e-4)
    keys = ["comparison", "state", "layer", "seed", "sparsity", "rows"]
    tables = [of.metrics.sort_values(keys, ignore_index=True) for of in (together, one_by_one)]
    pd.testing.assert_frame_equal(*(of[[*keys, "fvu"]] for of in tables), rtol=1e-3)


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (("tokens",), {"rows": "content", "activation": "batch_topk", "frontier": "1"}),
        (("tokens",), {"rows": "first", "activation": "topk"}),
        (("first", "mean"), {"rows": "first", "activation": "relu"}),
        (("first", "mean"), {"rows": "mean", "activation": "batch_topk"}),
        (("tokens", "mean"), {"rows": "mean", "activation": "topk"}),
    ],
)
def test_every_kind_of_row_and_activation_runs_through(tmp_path, bare, kinds, options):
    before, after = planted_codes(died=True), planted_codes(born=True)
    run = make_run(tmp_path, {"pretrained": {1: rows_of(before)}, "best": {1: rows_of(after)}}, kinds=kinds)
    few = {"width": 8, "num_train_epochs": 1, "per_device_train_batch_size": 16, "random_init": True}
    result = run_sae(tmp_path / "run", run, **(few | options))
    table = result.metrics
    assert set(table["rows"]) == ({"content", "first"} if options["rows"] == "content" else {options["rows"]})
    assert "random_init" in set(table["comparison"])
    assert table["fvu"].notna().all()
    rows = {"content": num_rows("probe")}.get(options["rows"], len(part_texts("probe")))
    assert set(table[table["rows"] == options["rows"]]["num_rows"]) == {rows}
    dictionary = dictionary_of(
        tmp_path / "run", "shared", "best", sparsity="0.1" if options["activation"] == "relu" else "2"
    )
    assert dictionary.activation == options["activation"]
    assert (tmp_path / "run/pages").exists() == ("mean" not in options["rows"] and "tokens" in kinds)
    array = kinds[0] if options["rows"] != "mean" else "mean"
    numbers = AlignedRows([(run.store, "best")], "probe").numbers
    if array == "tokens":
        wanted = np.isin(owners(), part_texts("probe"))
        numbers = np.flatnonzero(
            wanted & (~is_bracket() if options["rows"] == "content" else np.diff(owners(), prepend=-1))
        )
    rows = torch.from_numpy(run.store.array(array, "best", 1)[numbers])
    measured = measure(basis_of(dictionary), [rows], dictionary.scale)
    row = table[(table["comparison"] == "shared") & (table["state"] == "best") & (table["rows"] == options["rows"])]
    assert row.query("seed == 0")["fvu"].iloc[0] == pytest.approx(measured.fvu, rel=1e-4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Callable[..., ExtractRun]:
    """Stores that options are tried on: nothing is trained."""
    folder, made = tmp_path_factory.mktemp("plain"), {}

    def make(*kinds: str) -> ExtractRun:
        if kinds not in made:
            rows = rows_of(planted_codes())
            states = {name: {1: rows, 3: rows} for name in ("epoch_001", "epoch_002")}
            made[kinds] = make_run(folder / "-".join(kinds), states, kinds=kinds)
        return made[kinds]

    return make


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        ("tokens", {"width": 500}, r"--width: 1,4\d\d rows of train are too few for 500 latents .*--width 14\d fits"),
        ("tokens", {"train_parts": "test", "width": 10}, r"--width: \d\d rows of test are too few.*--width \d fits"),
        ("tokens", {"layers": "2"}, r"--layers '2': layer 2 was not extracted; there are 1, 3"),
        ("tokens", {"k": 16}, r"--k 16: a dictionary has 16 latents; accepted are"),
        ("tokens", {"frontier": "1,16"}, r"--frontier '?1[^:]*: .*16 latents"),
        ("first,mean", {"rows": "content"}, r"--rows 'content': .* have first, mean; extract with --rows tokens"),
        ("tokens", {"rows": "mean"}, r"--rows 'mean': .* have tokens; extract with --rows mean"),
        ("mean", {"rows": "first"}, r"--rows first: .*extract with --rows"),
        ("tokens", {"part": "train"}, r"--part 'train': accepted are probe, test"),
        ("tokens", {"part": "nonsense"}, r"--part 'nonsense': accepted are probe, test"),
        ("tokens", {"train_parts": "train,probe"}, r"--part 'probe': dictionaries are trained on it"),
        ("tokens", {"train_parts": "train,nonsense"}, r"--train_parts .*nonsense.*accepted"),
        ("tokens", {"train_parts": "validation"}, r"has 0 texts of the part 'validation'"),
        ("tokens", {"per_device_train_batch_size": 2000}, r"--per_device_train_batch_size 2000: there are 1,4"),
        ("tokens", {"comparisons": "twice"}, r"--comparisons 'twice'.*shared, stagewise, independent"),
        ("tokens", {"seeds": "0,0"}, r"--seeds '0,0': accepted are different whole numbers"),
        ("tokens", {"activation": "gelu"}, r"--activation 'gelu': accepted are topk, batch_topk, relu"),
    ],
)  # fmt: skip
def test_bad_input(plain, tmp_path, monkeypatch, kinds, options, message):
    """One line that says what is accepted, before a model is run or trained."""

    def never(*_, **__):
        raise AssertionError("an encoder was run, or a dictionary trained, before the options were looked at")

    monkeypatch.setattr(step, "random_twin", never)
    monkeypatch.setattr(sae_training, "train_dictionaries", never)
    with pytest.raises(InputError, match=message) as raised:
        run_sae(tmp_path, plain(*kinds.split(",")), random_init=True, **options)
    assert "\n" not in str(raised.value)


def test_states_stand_in_the_order_of_training(plain, tmp_path):
    run = plain("tokens")
    with pytest.raises(InputError, match="--states 'epoch_002,epoch_001': give them in the order of training"):
        run_sae(tmp_path, run._replace(states=["epoch_002", "epoch_001"]), states="epoch_002,epoch_001")
    with pytest.raises(InputError, match="--comparisons 'shared': there is one state, 'epoch_001'; accepted is indep"):
        run_sae(tmp_path, run._replace(states=["epoch_001"]), comparisons="shared")


@pytest.mark.parametrize("part", ["train", "probe"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(tmp_path, bare, part, value):
    rows = rows_of(planted_codes())
    broken = rows.copy()
    broken[np.flatnonzero(~is_bracket() & np.isin(owners(), part_texts(part)))[40], 2] = value
    run = make_run(tmp_path, {"pretrained": {1: rows, 2: rows}, "best": {1: rows, 2: broken}})
    with pytest.raises(InputError, match="(?=.*layer 2)(?=.*best).*not finite"):
        run_sae(tmp_path / "run", run, num_train_epochs=1, comparisons="independent", seeds="0")


def test_first_tokens_that_are_alike_are_named(tmp_path, bare):
    """At the embeddings the first token is the same in all texts: there is nothing to reconstruct."""
    rows = rows_of(planted_codes())
    alike = rows.copy()
    alike[np.flatnonzero(np.diff(owners(), prepend=-1))] = rows[0]
    run = make_run(tmp_path, {"pretrained": {0: alike, 1: rows}, "best": {0: alike, 1: rows}})
    options = {"width": 8, "num_train_epochs": 1, "per_device_train_batch_size": 16}
    with pytest.raises(InputError, match="layer 0"):
        run_sae(tmp_path / "first", run, rows="first", layers="0,1", **options)
    first = run_sae(tmp_path / "first", run, rows="first", **options)  # of all layers, those that can be had
    assert set(first.metrics["layer"]) == {1}
    assert "Left out: layer 0" in first.summary
    content = run_sae(tmp_path / "content", run, layers="0", **options)  # measured there, too
    assert content.metrics.query("rows == 'first'")["fvu"].isna().all()
    assert "nan" not in content.summary
