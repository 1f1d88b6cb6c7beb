from functools import cache

import numpy as np
import pandas as pd
import pytest

from bertdyn.plots.layers import state_name
from bertdyn.plots.similarity import similarity_by_layer, similarity_heatmaps, similarity_over_runs
from tests.plots import tables
from tests.plots.drawing import bands, collisions, legend, lines, panels

pytestmark = pytest.mark.filterwarnings("error")

CONTROLS = {
    "cosine_random_pairs_a": "control: random pairs, pretrained",
    "cosine_random_pairs_b": "control: random pairs, best",
    "cosine_mismatched": "control: mismatched pairs, one row of each state",
}
STATES = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 11)), "last"]


RUNS = {"sst2-minilm-s0": 13, "imdb_$clean$-minilm-s0": 13, "news-base-s0": 13, "flue-camembert-s0": 25, "tiny": 5}


# Figures as crowded as they get: drawn once, read by several tests -------------------------------------------------


@cache
def _by_layer_25():
    table = tables.similarity(layers=25)
    return table, similarity_by_layer(table, "t")


@cache
def _by_layer_and_seeds():
    baseline = tables.reseeded(pairs=3)
    table = pd.concat([tables.similarity(), baseline])
    return baseline, similarity_by_layer(table, "sst2_$a$, pretrained vs best")


@cache
def _heatmaps_11():
    table = tables.similarity(states=STATES)
    return table, similarity_heatmaps(table, STATES[1:], "t")


@cache
def _heatmaps_25_layers():
    table = tables.similarity(layers=25, states=STATES[:5])
    return table, similarity_heatmaps(table, STATES[1:5], "t")


@cache
def _heatmaps_with_values():
    table = tables.similarity(states=STATES)
    table = pd.concat([table, tables.reseeded(pairs=1)])  # not of this figure
    table.loc[(table["measure"] == "cka") & (table["layer"] == 3) & (table["rows"] == "content"), "value"] = np.nan
    return table, similarity_heatmaps(table, ["last", "epoch_004", "epoch_001", "absent"], "t")


@cache
def _over_runs():
    table = pd.concat([tables.similarity(layers=n, run=run, change=1 - n / 50) for run, n in RUNS.items()])
    return table, similarity_over_runs(pd.concat([table, tables.reseeded(pairs=1)]), "t")


def _values(table, measure, rows="content"):
    chosen = (
        table[(table["rows"] == rows) & (table["measure"] == measure)].sort_values("layer").dropna(subset=["value"])
    )
    return chosen[["layer", "value"]].to_numpy(dtype=float)


def test_each_cosine_stands_with_its_controls_and_every_value_is_the_tables():
    table, figure = _by_layer_25()
    shown = panels(figure)
    assert len(shown) == 6
    titles = {
        "content": "Cosine: content tokens",
        "first": "Cosine: first token",
        "mean": "Cosine: mean over content tokens",
    }
    measures = CONTROLS | {
        "cosine": "pretrained vs best",
        "cosine_centered": "pretrained vs best: cosine, means subtracted",
    }
    for rows, title in titles.items():
        drawn = lines(shown[title])
        assert set(drawn) == set(measures.values())
        for measure, label in measures.items():
            np.testing.assert_array_equal(drawn[label][0], _values(table, measure, rows))
    for title, measure in {
        "Linear CKA (debiased): content tokens": "cka",
        "Shared nearest neighbours: content tokens": "knn_overlap",
        "Procrustes distance: content tokens": "procrustes",
    }.items():
        np.testing.assert_array_equal(lines(shown[title])["pretrained vs best"][0], _values(table, measure))
    chance = lines(shown["Shared nearest neighbours: content tokens"])["control: neighbours by chance"][0]
    np.testing.assert_array_equal(chance, _values(table, "knn_chance"))
    assert sorted(legend(figure)) == sorted({*measures.values(), "control: neighbours by chance"})


def test_intervals_are_drawn_where_there_are_such():
    table, figure = _by_layer_25()
    content = panels(figure)["Cosine: content tokens"]
    drawn = bands(content)
    assert len(drawn) == 5
    expected = table[(table["rows"] == "content") & (table["measure"] == "cosine")].sort_values("layer")
    np.testing.assert_allclose(drawn[-1], expected[["low", "high"]])
    assert not bands(panels(figure)["Procrustes distance: content tokens"])
    note = figure.legends[0].get_title().get_text()
    assert note == (
        "872 texts; 17,344 content tokens (neighbours: 2,000, Procrustes: 2,000); "
        "bands: 95 % intervals (bootstrap, jackknife)"
    )
    without = similarity_by_layer(
        tables.similarity(layers=3, rows=["content"]).assign(low=np.nan, high=np.nan), "title"
    )
    assert not any(bands(axes) for axes in without.axes)
    assert "bands" not in without.legends[0].get_title().get_text()


def _by_layer_and_one_pair():
    baseline = tables.reseeded(layers=3, pairs=1)
    table = pd.concat([tables.similarity(layers=3, rows=["content"]), baseline])
    return baseline, similarity_by_layer(table, "title")


@pytest.mark.parametrize(("drawn", "pairs"), [(_by_layer_and_one_pair, 1), (_by_layer_and_seeds, 3)])
def test_two_seeds_are_the_baseline_of_both_rows(drawn, pairs):
    baseline, figure = drawn()
    name = "two seeds of the same fine-tuning, both best"
    for title, axes in panels(figure).items():
        assert len(lines(axes)[name]) == pairs, title
    seeds = lines(panels(figure)["Linear CKA (debiased): content tokens"])[name]
    for i, (_, of_pair) in enumerate(baseline.groupby("run", sort=False)):
        np.testing.assert_array_equal(seeds[i], _values(of_pair, "cka"))
    assert [name, f"{name}: cosine, means subtracted"] == [label for label in legend(figure) if "seeds" in label]
    # the spread of several pairs is seen itself; one has its interval
    assert len(bands(panels(figure)["Linear CKA (debiased): content tokens"])) == (2 if pairs == 1 else 1)


@pytest.mark.parametrize("pairs", [1, 3])
def test_seeds_alone_are_what_the_figure_shows(pairs):
    baseline = tables.reseeded(layers=3, pairs=pairs)
    shown = legend(similarity_by_layer(baseline[baseline["rows"] == "content"], "title"))
    assert "two runs, both best" in shown
    assert [label.split(", ")[1] for label in shown if label.startswith("control: random")] == [
        "best of the first run",
        "best of the second run",
    ]


def test_what_is_missing_is_left_out():
    table = tables.similarity(layers=3)
    few = table[(table["rows"] == "content") & table["measure"].isin(["cosine", "cosine_mismatched", "cka"])]
    assert list(panels(similarity_by_layer(few, "t"))) == [
        "Cosine: content tokens",
        "Linear CKA (debiased): content tokens",
    ]
    nothing = table.assign(value=table["value"].where(table["measure"] != "procrustes"))
    assert len(panels(similarity_by_layer(nothing, "t"))) == 5
    assert list(panels(similarity_by_layer(table[table["rows"] == "first"], "t"))) == [
        "Cosine: first token",
        "Linear CKA (debiased): first token",
        "Shared nearest neighbours: first token",
        "Procrustes distance: first token",
    ]
    assert len(panels(similarity_heatmaps(nothing, ["best"], "t"))) == 3
    assert len(panels(similarity_over_runs(few, "t"))) == 2


@pytest.mark.parametrize("rows", ["first", "mean"])
def test_figures_of_one_kind_of_rows_take_the_first_that_is_there(rows):
    table = tables.similarity(layers=3, states=STATES[:3], rows=sorted({rows, "mean"}))
    figure = similarity_heatmaps(table, STATES[1:3], "t")
    shown = panels(figure)["Linear CKA (debiased)"].images[0].get_array()
    expected = table[(table["rows"] == rows) & (table["measure"] == "cka")].pivot(
        index="layer", columns="state_b", values="value"
    )
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), expected[STATES[1:3]].to_numpy())
    assert f"t\n{'first token' if rows == 'first' else 'mean over content tokens'}; brighter" in figure.get_suptitle()
    pairs = pd.concat([tables.similarity(layers=3, run=run, rows=sorted({rows, "mean"})) for run in ("one", "other")])
    figure = similarity_over_runs(pairs, "t")
    drawn = lines(panels(figure)["Linear CKA (debiased)"])["one"][0]
    np.testing.assert_allclose(drawn, _values(pairs[pairs["run"] == "one"], "cka", rows))


def test_several_pairs_in_a_figure_of_one_are_refused():
    several = tables.similarity(layers=3, states=STATES[:3])
    with pytest.raises(ValueError, match=r"one state_a, state_b.*epoch_001.*epoch_002"):
        similarity_by_layer(several, "t")
    with pytest.raises(ValueError, match="one state_a, state_b"):
        similarity_over_runs(several, "t")
    with pytest.raises(ValueError, match=r"one run;.*sst2.*other"):
        similarity_by_layer(pd.concat([tables.similarity(3), tables.similarity(3, run="other")]), "t")
    with pytest.raises(ValueError, match="one run, state_a"):
        similarity_heatmaps(pd.concat([several, tables.similarity(3, run="other")]), [*STATES[:3], "best"], "t")


def test_heat_maps_are_the_pivoted_table_in_the_order_given():
    table, figure = _heatmaps_with_values()
    order = ["last", "epoch_004", "epoch_001"]
    shown = panels(figure)
    for measure, title in {
        "cosine_centered": "Cosine, means subtracted",
        "cka": "Linear CKA (debiased)",
        "knn_overlap": "Shared nearest neighbours",
        "procrustes": "Procrustes distance (0 = equal up to a rotation)",
    }.items():
        rows = table[(table["kind"] == "states") & (table["rows"] == "content") & (table["measure"] == measure)]
        expected = rows.pivot(index="layer", columns="state_b", values="value")[order].to_numpy()
        image = shown[title].images[0]
        np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), expected)
        assert [t.get_text() for t in shown[title].get_xticklabels()] == ["last", "epoch 4", "epoch 1"]
        written = [float(t.get_text()) for t in shown[title].texts]
        np.testing.assert_allclose(written, expected[np.isfinite(expected)], atol=0.00501)
        alike, unlike = (0.0, expected[-1, 0]) if measure == "procrustes" else (1.0, expected[-1, 0])
        assert sum(image.cmap(image.norm(alike))[:3]) > 1.9 > sum(image.cmap(image.norm(unlike))[:3])
    assert "grey: not defined" in shown["Linear CKA (debiased)"].get_xlabel()
    for many in (_heatmaps_11, _heatmaps_25_layers):
        assert not any(axes.texts for axes in panels(many()[1]).values())


def test_runs_of_different_depth_are_drawn_over_relative_depth_in_one_colour_each():
    table, figure = _over_runs()
    shown = panels(figure)
    assert list(shown) == [
        "Cosine, pretrained vs best",
        "Control: cosine of random pairs, best",
        "Cosine, means subtracted",
        "Linear CKA (debiased)",
    ]
    assert legend(figure) == [run.replace("$", r"\$") for run in RUNS]
    for measure, axes in zip(
        ["cosine", "cosine_random_pairs_b", "cosine_centered", "cka"], shown.values(), strict=True
    ):
        drawn = lines(axes)
        for run, layers in RUNS.items():
            expected = _values(table[table["run"] == run], measure) / [layers - 1, 1]
            np.testing.assert_allclose(drawn[run.replace("$", r"\$")][0], expected)
        assert len({line.get_color() for line in axes.get_lines()}) == len(RUNS)
        assert len(bands(axes)) == len(RUNS)
    same = pd.concat([tables.similarity(layers=5, run=run, rows=["content"]) for run in ("flat", "other")])
    same = similarity_over_runs(same[same["measure"] == "cosine"], "t")
    assert same.axes[0].get_xlabel() == "layer (0 = embeddings)"
    assert list(same.axes[0].get_xticks()) == [0, 1, 2, 3, 4]


def test_names_of_states():
    names = [state_name(s) for s in ("pretrained", "epoch_003", "epoch_012", "best", "a_$b$")]
    assert names == ["pretrained", "epoch 3", "epoch 12", "best", r"a \$b\$"]


@pytest.mark.parametrize(
    "drawn",
    [_by_layer_and_seeds, _by_layer_25, _heatmaps_11, _heatmaps_25_layers, _heatmaps_with_values, _over_runs],
)
def test_nothing_lies_on_anything_else(drawn):
    assert collisions(drawn()[1]) == []
