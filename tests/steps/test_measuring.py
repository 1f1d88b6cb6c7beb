"""What is measured of a layer equals the naive definitions over all rows; samples, intervals and seeds as they say."""

import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import procrustes
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import NearestCentroid, NearestNeighbors

from bertdyn.features import aligned as aligned_module
from bertdyn.features.aligned import AlignedRows
from bertdyn.geometry import intervals
from bertdyn.steps import measuring
from bertdyn.steps.measuring import measure_layer
from tests.features.test_aligned import num_tokens, rows_of, write_store

WIDTH = 6
STATES = ("pretrained", "epoch_001", "best")
PAIRS = [(0, 1), (0, 2)]
KINDS = ("content", "first", "mean")
ROTATION = np.linalg.qr(np.random.default_rng(9).normal(size=(WIDTH, WIDTH)))[0]

pytestmark = pytest.mark.filterwarnings("error")


def make_texts(number, seed=0, longest=9):
    """Some without content, some with one token, every seventh in two windows; a little of another part before."""
    lengths = np.random.default_rng(seed).integers(1, longest, number)
    lengths[[2, number // 2]] = 0
    texts = [("probe", [f"[{'a' * n}]"] if i % 7 else [f"[{'b' * n}]", "[bbb]"]) for i, n in enumerate(lengths)]
    return [("train", ["[abc]"]), ("train", ["[ab]"]), *texts]


def make_rows(texts, seed=0, width=WIDTH):
    """Anisotropic, far from the origin, alike within a text; first tokens lie by the label of their text."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(texts)), [sum(map(len, windows)) for _, windows in texts])
    rows = rng.normal(size=(len(owner), width)) * np.linspace(0.3, 1.5, width)
    rows += rng.normal(size=(len(texts), width))[owner] + rng.normal(size=width)
    rows[:, 0] += owner % 2
    return rows.astype(np.float32)


def make_aligned(folder, texts, *layers_of_states, part="probe", **options):
    """States in order, each a list of layers [tokens, width]."""
    names = [f"state_{number}" for number in range(len(layers_of_states))]
    states = {name: dict(enumerate(layers)) for name, layers in zip(names, layers_of_states, strict=True)}
    store = write_store(folder, states, texts, **options)
    return AlignedRows([(store, name) for name in names], part)


@pytest.fixture(scope="module")
def texts():
    return make_texts(30)


@pytest.fixture(scope="module")
def three(texts, tmp_path_factory):
    """Three states, [tokens, width] each, which are layers 0 and 1 of their store; the second is near the first."""
    first, other = make_rows(texts), make_rows(texts, 1)
    rows = [first, (0.8 * first + 0.3 * other).astype(np.float32), other]
    return rows, make_aligned(tmp_path_factory.mktemp("three"), texts, *([r, r] for r in rows))


def table(rows):
    """(rows, measure, states …) → row of a table."""
    frame = pd.DataFrame(rows)
    index = ["rows", "measure", *(name for name in ("state_a", "state_b", "state") if name in frame)]
    assert not frame.duplicated(index).any()
    return frame.set_index(index).sort_index()


def cosines(x, y):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T


def unbiased_hsic(k, other):
    """Song et al. 2012, equation 5, on n×n matrices."""
    k, other, n = k - np.diag(np.diag(k)), other - np.diag(np.diag(other)), len(k)
    ones = np.ones(n)
    terms = np.trace(k @ other), (ones @ k @ ones) * (ones @ other @ ones), ones @ k @ other @ ones
    return (terms[0] + terms[1] / (n - 1) / (n - 2) - 2 / (n - 2) * terms[2]) / (n * (n - 3))


def naive_pair(x, y, owner, num_neighbours, num_texts):
    """All measures of two states of rows, [n, width] each, of texts `owner`."""
    apart = owner[:, None] != owner
    centred = [rows - rows.mean(axis=0) for rows in (x, y)]
    near = [NearestNeighbors(n_neighbors=num_neighbours).fit(rows).kneighbors(return_distance=False) for rows in (x, y)]
    return {
        "cosine": np.diag(cosines(x, y)).mean(),
        "cosine_centered": np.diag(cosines(*centred)).mean(),
        "cosine_random_pairs_a": cosines(x, x)[apart].mean(),
        "cosine_random_pairs_b": cosines(y, y)[apart].mean(),
        "cosine_mismatched": cosines(x, y)[apart].mean(),
        "cosine_of_means": cosines(x.mean(0, keepdims=True), y.mean(0, keepdims=True)).item(),
        "cka": corrected("cka", x, y, owner, num_texts),
        "procrustes": corrected("procrustes", x, y, owner, num_texts),
        "knn_overlap": np.mean([len(set(a) & set(b)) / num_neighbours for a, b in zip(*near, strict=True)]),
        "knn_chance": num_neighbours / (len(x) - 1),
    }


def corrected(measure, x, y, owner, num_texts):
    """A measure of two states less its bias, by leaving out each tenth of the texts (Quenouille)."""
    bounds = np.linspace(0, num_texts, 11).round()
    kept = [(owner < first) | (owner >= last) for first, last in itertools.pairwise(bounds)]
    without = [naive_shape(x[rows], y[rows])[measure] for rows in kept]
    return 10 * naive_shape(x, y)[measure] - 9 * np.mean(without)


def naive_shape(x, y):
    """What a rotation does not change, before its bias is taken off."""
    grams = [rows @ rows.T for rows in (x, y)]
    selves = [unbiased_hsic(gram, gram) for gram in grams]
    return {
        "cka": unbiased_hsic(*grams) / np.sqrt(selves[0] * selves[1]),
        "procrustes": 2 - 2 * np.sqrt(1 - procrustes(x, y)[2]),
    }


def naive_corrected(x, y, owner, num_neighbours, num_texts):
    """Of CKA and Procrustes what the jackknife takes for bias is taken off: ten groups of neighbouring texts."""
    whole = naive_pair(x, y, owner, num_neighbours)
    bounds = np.linspace(0, num_texts, 11).round()
    groups = [(owner >= low) & (owner < high) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    left_out = [naive_pair(x[~group], y[~group], owner[~group], 3) for group in groups]
    corrected = {m: 10 * whole[m] - 9 * np.mean([of[m] for of in left_out]) for m in ("cka", "procrustes")}
    return whole | corrected


def naive_state(x, owner):
    """All measures of one state that do not need classes."""
    apart = owner[:, None] != owner
    covariance = np.cov(x.T)
    ranks = []
    for rows in (x - x.mean(axis=0), x):
        singular = np.linalg.svd(rows, compute_uv=False)
        shares = singular / singular.sum()
        ranks.append(np.exp(-np.sum(shares * np.log(shares))))
    # Rudman et al. 2022, step by step, on the eigenvalues of the covariance
    eigenvalues, n = np.linalg.eigvalsh(covariance), len(covariance)
    scaled = np.sqrt(n) * eigenvalues / np.linalg.norm(eigenvalues)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    share = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return {
        "random_pair_cosine": cosines(x, x)[apart].mean(),
        "total_variance": np.trace(covariance),
        "total_variance_normalised": np.trace(covariance) / np.mean(np.sum(x**2, axis=1)),
        "iso_score": (n * share - 1) / (n - 1),
        "effective_rank": ranks[0],
        "effective_rank_uncentered": ranks[1],
    } | {f"norm_q{q:02d}": np.quantile(np.linalg.norm(x, axis=1), q / 100) for q in (5, 25, 50, 75, 95)}


def naive_within(texts_of_rows):
    """Every text counts once, whatever its length."""
    of = [rows for rows in texts_of_rows if len(rows) > 1]
    pairs = [cosines(rows, rows)[np.triu_indices(len(rows), 1)] for rows in of]
    traces = [np.trace(np.cov(rows.T)) for rows in of]
    return {
        "within_text_cosine": np.mean([values.mean() for values in pairs]),
        "within_text_cosine_variance": np.mean([values.var() for values in pairs]),
        "within_text_variance": np.mean(traces),
        "within_text_variance_normalised": np.mean(
            [trace / np.mean(np.sum(rows**2, axis=1)) for trace, rows in zip(traces, of, strict=True)]
        ),
    }


def naive_classes(x, labels, seed):
    same = labels[:, None] == labels
    pairs = ~np.eye(len(x), dtype=bool)
    values, counts = np.unique(labels, return_counts=True)
    means = np.stack([x[labels == value].mean(axis=0) for value in values])
    inner = np.concatenate([x[labels == value] - mean for value, mean in zip(values, means, strict=True)])
    between = (means - x.mean(axis=0)).T @ np.diag(counts / len(x)) @ (means - x.mean(axis=0))
    right = []
    for fitted, held_out in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, labels):
        right.extend(NearestCentroid().fit(x[fitted], labels[fitted]).predict(x[held_out]) == labels[held_out])
    return {
        "class_cosine_within": cosines(x, x)[same & pairs].mean(),
        "class_cosine_between": cosines(x, x)[~same].mean(),
        "fisher_ratio": np.trace(between) / (np.sum(inner**2) / len(x)),
        "nc1": np.trace(inner.T @ inner / len(x) @ np.linalg.pinv(between, rcond=1e-10)) / len(values),
        "silhouette": silhouette_score(x, labels),
        "nearest_centroid_accuracy": np.mean(right),
    }


@pytest.mark.parametrize("size", [1, 2_000, 10**9])
def test_every_measure_is_the_naive_one_whatever_the_block(texts, three, monkeypatch, size):
    monkeypatch.setattr(aligned_module, "BYTES_PER_BLOCK", size)
    rows, aligned = three
    found = measure_layer(aligned, 0, PAIRS, num_neighbours=4, seed=2)
    similarity, geometry = table(found.similarity), table(found.geometry)
    expected_similarity, expected_geometry = {}, {}
    for kind in KINDS:
        states = [rows_of(texts, state, kind) for state in rows]
        owner = np.repeat(np.arange(len(states[0])), list(map(len, states[0])))
        whole = [np.concatenate(of) for of in states]
        labels = aligned.labels[owner]
        for a, b in PAIRS:
            for measure, value in naive_pair(whole[a], whole[b], owner, 4, len(states[0])).items():
                expected_similarity[kind, measure, a, b] = value, len(owner), len(np.unique(owner))
        for state in range(3):
            naive = naive_state(whole[state], owner)
            naive |= naive_within(states[state]) if kind == "content" else naive_classes(whole[state], labels, 2)
            for measure, value in naive.items():
                expected_geometry[kind, measure, state] = value, len(owner), len(np.unique(owner))
    of_pca = {key for key in geometry.index if key[1].startswith("pca_explained")}
    assert set(similarity.index) == set(expected_similarity)
    assert set(geometry.index) - of_pca == set(expected_geometry)
    for got, expected in ((similarity, expected_similarity), (geometry, expected_geometry)):
        for key, (value, num_rows, num_examples) in expected.items():
            row = got.loc[key]
            assert row["value"] == pytest.approx(value, rel=1e-10, abs=1e-10), key
            assert (row["num_rows"], row["num_examples"]) == (num_rows, num_examples), key
            if key[1].startswith(("knn_chance", "norm_q")):
                assert (row["interval"], math.isnan(row["low"]), math.isnan(row["high"])) == ("none", True, True)
            else:
                assert row["low"] <= row["value"] <= row["high"], key
                assert row["low"] < row["high"], key
                assert row["interval"] in ("jackknife", "bootstrap")
    assert len(np.unique(np.round([value for value, *_ in expected_similarity.values()], 6))) > 40  # no two by chance


def test_distributions_and_dimensions_are_those_of_content_tokens(texts, three, monkeypatch):
    monkeypatch.setattr(aligned_module, "BYTES_PER_BLOCK", 3_000)  # blocks of one to some texts
    rows, aligned = three
    found = measure_layer(aligned, 1, PAIRS)
    histogram, dimensions = pd.DataFrame(found.histogram), pd.concat(found.dimensions)
    assert len(histogram) == 3 * 100
    assert len(dimensions) == 3 * WIDTH
    for state in range(3):
        of = rows_of(texts, rows[state], "content")
        whole = np.concatenate(of)
        got = dimensions[dimensions["state"] == state]
        np.testing.assert_allclose(got["mean"], whole.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(got["std"], whole.std(axis=0, ddof=1), atol=1e-12)
        densities = [
            np.histogram(cosines(text, text)[np.triu_indices(len(text), 1)], bins=100, range=(-1, 1), density=True)[0]
            for text in of
            if len(text) > 1
        ]
        bars = histogram[histogram["state"] == state]
        np.testing.assert_allclose(bars["density"], np.mean(densities, axis=0), atol=1e-9)
        np.testing.assert_allclose(bars["high"] - bars["low"], 0.02, atol=1e-12)
    [projection] = found.pca
    assert projection.examples.tolist() == list(range(30))
    shares = table(found.geometry)["value"]
    firsts = [np.concatenate(rows_of(texts, state, "first")) for state in rows]
    for state, points in enumerate(projection.basis.projections):
        for number in (1, 2):
            share = points[:, number - 1].var() / firsts[state].var(axis=0).sum()
            assert shares["first", f"pca_explained_{number}", state] == pytest.approx(share, abs=1e-12)


def test_a_state_itself_and_a_rotated_one(texts, tmp_path):
    """Rotation, scale and shift change nothing but cosines."""
    rows = make_rows(texts).astype(np.float64)
    moved = 3 * rows @ ROTATION + 2
    aligned = make_aligned(tmp_path, texts, [rows], [rows], [moved])
    found = table(measure_layer(aligned, 0, PAIRS).similarity)["value"]
    for kind in KINDS:
        assert found[kind, "cosine", 0, 1] == pytest.approx(1, abs=1e-12)
        assert found[kind, "cosine_centered", 0, 1] == pytest.approx(1, abs=1e-12)
        assert found[kind, "cosine_of_means", 0, 1] == pytest.approx(1, abs=1e-12)
        assert found[kind, "cosine_mismatched", 0, 1] == found[kind, "cosine_random_pairs_a", 0, 1]
        for number, precision in ((1, 1e-10), (2, 1e-5)):  # the rotated rows were rounded to float32
            assert found[kind, "cka", 0, number] == pytest.approx(1, abs=precision)
            assert found[kind, "procrustes", 0, number] == pytest.approx(0, abs=precision)
            assert found[kind, "knn_overlap", 0, number] == 1
        assert found[kind, "cosine", 0, 2] < 0.9
        assert found[kind, "cosine_centered", 0, 2] < 0.9


def test_far_from_the_origin_no_digits_are_lost(texts, tmp_path, monkeypatch):
    """Encoders have dimensions that are large in every token; fourth powers of those would drown the rest."""
    monkeypatch.setattr(aligned_module, "BYTES_PER_BLOCK", 2_000)
    rows = [make_rows(texts, seed) for seed in (0, 1)]
    for state in rows:
        state[:, 1] += 4_000
    found = measure_layer(make_aligned(tmp_path, texts, *([r] for r in rows)), 0, [(0, 1)])
    similarity, geometry = table(found.similarity)["value"], table(found.geometry)["value"]
    for kind in KINDS:
        states = [rows_of(texts, state, kind) for state in rows]
        owner = np.repeat(np.arange(len(states[0])), list(map(len, states[0])))
        centred = [np.concatenate(of) - np.concatenate(of).mean(axis=0) for of in states]
        expected = naive_pair(*centred, owner, 10, len(states[0]))
        for measure in ("cka", "procrustes", "knn_overlap", "cosine_centered"):
            assert similarity[kind, measure, 0, 1] == pytest.approx(expected[measure], abs=1e-9), (kind, measure)
        for measure in ("iso_score", "effective_rank", "total_variance"):
            value = naive_state(centred[1], owner)[measure]
            assert geometry[kind, measure, 1] == pytest.approx(value, rel=1e-9), (kind, measure)


def test_states_of_other_widths(texts, tmp_path):
    """Nothing that needs the same coordinates; the rest is unchanged by zeros that make them as wide."""
    narrow, wide = make_rows(texts), make_rows(texts, 1, width=9)
    padded = np.pad(narrow, [(0, 0), (0, 3)])
    one, other, third = (
        write_store(tmp_path / name, {"best": {0: rows}}, texts)
        for name, rows in (("one", narrow), ("other", wide), ("third", padded))
    )
    found = [
        table(
            measure_layer(AlignedRows([(s, "best"), (other, "best")], "probe"), 0, [(0, 1)], geometry=False).similarity
        )
        for s in (one, third)
    ]
    shapes = {"cka", "procrustes", "knn_overlap", "knn_chance"}
    assert {key[1] for key in found[0].index} == shapes
    assert {key[1] for key in found[1].index} > shapes
    for key, row in found[0].iterrows():
        values = list(row[["value", "low", "high"]])
        assert values == pytest.approx(list(found[1].loc[key, ["value", "low", "high"]]), abs=1e-10, nan_ok=True)


def test_without_geometry_only_pairs_are_measured(three):
    _, aligned = three
    whole, pairs = (measure_layer(aligned, 0, PAIRS, geometry=geometry) for geometry in (True, False))
    pd.testing.assert_frame_equal(pd.DataFrame(whole.similarity), pd.DataFrame(pairs.similarity))
    assert not any([pairs.geometry, pairs.histogram, pairs.dimensions, pairs.pca])
    alone = measure_layer(aligned, 0, [])
    pd.testing.assert_frame_equal(pd.DataFrame(whole.geometry), pd.DataFrame(alone.geometry))
    assert alone.similarity == []


def test_first_tokens_that_are_all_the_same(texts, tmp_path):
    """As at layer 0, where floats in the last digits are no geometry."""
    rows = make_rows(texts)
    starts = np.cumsum([0, *(sum(map(len, windows)) for _, windows in texts[:-1])])
    after = (1.1 * rows).astype(np.float32)
    for state in (rows, after):
        state[starts] = np.float32(0.1) * np.arange(1, WIDTH + 1)
    after[starts] = after[starts] + np.float32(0.3)
    found = measure_layer(make_aligned(tmp_path, texts, [rows], [after]), 0, [(0, 1)])
    similarity = table(found.similarity)["value"]["first"].droplevel(["state_a", "state_b"])
    geometry = table(found.geometry)["value"].xs(("first", 1), level=("rows", "state"))
    there = cosines(rows[:1], after[:1]).item()
    assert set(similarity[similarity.isna()].index) == {
        "cosine_centered",
        "cka",
        "procrustes",
        "knn_overlap",
        "knn_chance",
    }
    for measure in ("cosine", "cosine_mismatched", "cosine_of_means"):
        assert similarity[measure] == pytest.approx(there, abs=1e-6)
    for measure in ("cosine_random_pairs_a", "cosine_random_pairs_b"):
        assert similarity[measure] == pytest.approx(1, abs=1e-12)
    assert set(geometry[geometry.isna()].index) == {"iso_score", "fisher_ratio", "nc1"}
    assert geometry["total_variance"] == geometry["effective_rank"] == geometry["silhouette"] == 0
    assert geometry["nearest_centroid_accuracy"] == 0.5
    assert found.pca == []
    assert table(found.similarity)["value"]["content", "cka", 0, 1] == pytest.approx(1, abs=1e-5)  # the others have one


def test_the_size_of_a_sample_is_in_its_row(texts, three, monkeypatch):
    """What grows with rows squared is of a sample; sums are of all rows."""
    monkeypatch.setattr(measuring, "SAMPLE_ROWS", 17)
    rows, aligned = three
    found = measure_layer(aligned, 1, PAIRS, num_neighbours=4)
    similarity, geometry = table(found.similarity), table(found.geometry)
    total = {"content": len(np.concatenate(rows_of(texts, rows[0], "content"))), "first": 30, "mean": 28}
    # two of the first 17 texts have no content
    size = {"content": 17, "first": 17, "mean": 15}
    sampled = {"knn_overlap", "knn_chance", "effective_rank", "effective_rank_uncentered", "fisher_ratio", "nc1",
               "silhouette", "nearest_centroid_accuracy", "class_cosine_within", "class_cosine_between",
               "pca_explained_1", "pca_explained_2", *(f"norm_q{q:02d}" for q in (5, 25, 50, 75, 95))}  # fmt: skip
    for found_rows in (similarity, geometry):
        for key, row in found_rows.iterrows():
            kind, measure = key[:2]
            assert row["num_rows"] == (size if measure in sampled else total)[kind], key
            assert row["num_examples"] <= min(row["num_rows"], total["first"]), key
    assert similarity.loc[("content", "knn_chance", 0, 1), "value"] == 4 / 16
    firsts = [np.concatenate(rows_of(texts, state, "first")[:17]) for state in rows]
    expected = naive_pair(firsts[0], firsts[2], np.arange(17), 4, 17)["knn_overlap"]
    assert similarity.loc[("first", "knn_overlap", 0, 2), "value"] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_tables_bit_for_bit(three, monkeypatch):
    monkeypatch.setattr(measuring, "SAMPLE_ROWS", 20)
    _, aligned = three
    one, again, other = (measure_layer(aligned, 0, PAIRS, num_neighbours=3, seed=seed) for seed in (0, 0, 1))
    for name in ("similarity", "geometry", "histogram"):
        frames = [pd.DataFrame(getattr(tables, name)) for tables in (one, again, other)]
        pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
        assert name == "histogram" or not frames[0].equals(frames[2])
    exact = [table(tables.similarity)["value"]["content", "cka", 0, 2] for tables in (one, other)]
    assert exact[0] == exact[1]  # no seed decides what is of all rows


def test_few_texts_are_measured_or_are_not_known(tmp_path):
    """Down to two texts, and to no content at all; no number is made up."""
    cases = {
        "two texts": [("probe", ["[abc]"]), ("probe", ["[ab]"])],
        "four texts of four classes": [("probe", [f"[{'a' * n}]"]) for n in (3, 2, 4, 1)],
        "one text with content": [("probe", ["[abc]"]), ("probe", ["[]"]), ("probe", ["[]"])],
        "no content": [("probe", ["[]"])] * 4,
    }
    for name, texts in cases.items():
        rows = [make_rows(texts, seed) for seed in (0, 1)]
        labels = range(4) if "classes" in name else None
        aligned = make_aligned(tmp_path / name, texts, *([r] for r in rows), labels=labels)
        found = measure_layer(aligned, 0, [(0, 1)])
        similarity = table(found.similarity)
        kinds = {"first"} if "content" in name else set(KINDS)
        assert set(similarity.index.get_level_values(0)) == kinds
        firsts = [np.concatenate(rows_of(texts, state, "first")) for state in rows]
        expected = np.diag(cosines(*firsts)).mean()
        assert similarity["value"]["first", "cosine", 0, 1] == pytest.approx(expected, abs=1e-12)
        assert np.isnan(similarity["value"]["first", "cka", 0, 1]) == (len(texts) < 5)  # no CKA of three rows


def test_intervals_shrink_as_texts_become_more(tmp_path):
    """By 1/√n, about; by another seed for each size, so that no luck is the same."""
    widths = {}
    for number in (60, 960):
        texts = make_texts(number, seed=number, longest=6)
        first, other = make_rows(texts, number), make_rows(texts, number + 1)
        aligned = make_aligned(tmp_path / str(number), texts, [first], [(first + other).astype(np.float32)])
        found = measure_layer(aligned, 0, [(0, 1)])
        for row in [*found.similarity, *found.geometry]:
            widths.setdefault((row["rows"], row["measure"], row.get("state")), []).append(row["high"] - row["low"])
    ratios = {key: large / small for key, (small, large) in widths.items() if not np.isnan(small)}
    # a quarter; where a jackknife has ten groups, its error is known to about a quarter itself
    assert len(ratios) > 60
    assert np.median(list(ratios.values())) == pytest.approx(0.25, abs=0.06)
    odd = {key: ratio for key, ratio in ratios.items() if not 0.08 < ratio < 0.75}
    assert not odd


def test_intervals_hold_the_truth_as_often_as_they_say(tmp_path, monkeypatch):
    """Texts, not tokens, are what was drawn: a text's tokens point in one direction and turn by one angle."""
    monkeypatch.setattr(measuring, "SAMPLE_ROWS", 20)  # of no interest here, and slow
    draws, number, tokens, spread, turn, jitter = 60, 40, 6, 0.7, 0.6, 0.1
    rng = np.random.default_rng(0)
    texts = [("probe", ["a" * tokens])] * number
    owner = np.repeat(np.arange(number), tokens)
    assert num_tokens(texts) == len(owner)
    before, after = [], []
    for _ in range(draws):  # a layer each
        angle = rng.normal(scale=spread, size=number)[owner] + rng.normal(scale=jitter, size=len(owner))
        turned = angle + rng.normal(scale=turn, size=number)[owner] + rng.normal(scale=jitter, size=len(owner))
        for rows, of in ((before, angle), (after, turned)):
            rows.append(np.stack([np.cos(of), np.sin(of)], axis=1))
    aligned = make_aligned(tmp_path, texts, before, after)
    # of a normal angle, E cos = exp(−variance/2)
    truth = {"cosine": np.exp(-(turn**2 + jitter**2) / 2), "cosine_random_pairs_a": np.exp(-(spread**2 + jitter**2))}
    holds = {measure: [] for measure in truth}
    for layer in range(draws):
        for row in measure_layer(aligned, layer, [(0, 1)], geometry=False).similarity:
            if row["rows"] == "content" and row["measure"] in truth:
                holds[row["measure"]].append(row["low"] <= truth[row["measure"]] <= row["high"])
    for measure, held in holds.items():
        assert len(held) == draws
        assert 0.85 <= np.mean(held) <= 1, measure


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """Blocks, samples and sums only; a few numbers a text are kept for its interval."""
    monkeypatch.setattr(aligned_module, "BYTES_PER_BLOCK", 200_000)
    monkeypatch.setattr(measuring, "SAMPLE_ROWS", 100)
    monkeypatch.setattr(intervals, "BLOCK_ELEMENTS", 20_000)
    peaks, sizes = [], []
    for number in (100, 600):
        texts = [("probe", [f"[{'a' * 22}]"])] * number
        rows = [np.random.default_rng(seed).normal(size=(num_tokens(texts), 24)) for seed in range(2)]
        aligned = make_aligned(tmp_path / str(number), texts, *([r] for r in rows))
        sizes.append(2 * rows[0].nbytes)
        del rows
        tracemalloc.start()
        measure_layer(aligned, 0, [(0, 1)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.1 * (sizes[1] - sizes[0]), (peaks, sizes)
