from functools import cache

import numpy as np
import pytest

from bertdyn.plots.geometry import (
    class_geometry,
    cosine_distributions,
    geometry_by_layer,
    geometry_heatmaps,
    token_cosine_heatmaps,
)
from tests.plots import tables
from tests.plots.drawing import bands, collisions, legend, lines, panels

pytestmark = pytest.mark.filterwarnings("error")

TWO = ["pretrained", "best"]
STATES = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 11)), "last"]
SIX = ["pretrained", "epoch_002", "epoch_004", "epoch_007", "epoch_009", "last"]
CONTENT_PANELS = {
    "within_text_cosine": "Cosine between tokens of a text",
    "within_text_cosine_variance": "Variance of the cosines within a text",
    "effective_rank": "Effective rank",
    "iso_score": "IsoScore",
    "total_variance_normalised": "Total variance over mean squared norm",
    "total_variance": "Total variance",
}
CLASS_PANELS = {
    "class_cosine_within": "Cosine of two texts of one class",
    "class_cosine_between": "Cosine of two texts of different classes",
    "nearest_centroid_accuracy": "Nearest centroid",
    "silhouette": "Silhouette",
    "fisher_ratio": "Fisher ratio",
    "nc1": "Neural collapse, NC1 (0 = collapsed)",
}


# Figures as crowded as they get: drawn once, read by several tests -------------------------------------------------


@cache
def _layers_25():
    table = tables.geometry(layers=25)
    return table, geometry_by_layer(table, TWO, "t")


@cache
def _layers_12_states():
    table = tables.geometry(states=STATES)
    table = table[(table["measure"] != "iso_score") | (table["state"] != "pretrained")]
    return table, geometry_by_layer(table, STATES, "sst2_$a$")


@cache
def _classes():
    table = tables.geometry(states=STATES)
    return table, class_geometry(table, STATES, "t")


@cache
def _heat_12_states():
    table = tables.geometry(states=STATES)
    return table, geometry_heatmaps(table, STATES, "t")


@cache
def _heat_25():
    table = tables.geometry(layers=25, states=STATES[:3])
    return table, geometry_heatmaps(table, [*STATES[2::-1], "absent"], "t")


@cache
def _distributions():
    table = tables.cosine_histogram(25, ["pretrained", "epoch_001", "best"])
    return table, cosine_distributions(table, ["pretrained", "epoch_001", "best"], "t")


@cache
def _tokens_8():
    matrices = _matrices(8)
    tokens = ["[CLS]", "a", "$5", "un", "##com", "internationalisation", "token6", "[SEP]"]
    return matrices, token_cosine_heatmaps(matrices, tokens, "t")


@cache
def _tokens_30():
    matrices = _matrices(30)
    return matrices, token_cosine_heatmaps(matrices, [f"token{i}" for i in range(30)], "t")


def _matrices(number, layers=13):
    rng = np.random.default_rng(0)

    def matrix(layer):
        rows = rng.normal(size=(number, 20)) + layer / 8
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows @ rows.T

    return {state: {layer: matrix(layer) for layer in range(layers)} for state in TWO}


def _values(table, measure, state, rows="content"):
    chosen = table[(table["rows"] == rows) & (table["measure"] == measure) & (table["state"] == state)]
    return chosen.sort_values("layer").dropna(subset=["value"])[["layer", "value"]].to_numpy(dtype=float)


def _styled(axes, style):
    return [line for line in axes.get_lines() if line.get_linestyle() == style]


def test_cosine_stands_with_its_control_and_every_value_is_the_tables():
    table, figure = _layers_25()
    shown = panels(figure)
    assert list(shown) == list(CONTENT_PANELS.values())
    dashed = {"within_text_cosine": "random_pair_cosine", "effective_rank": "effective_rank_uncentered"}
    for measure, title in CONTENT_PANELS.items():
        solid, dashes = _styled(shown[title], "-"), _styled(shown[title], "--")
        assert len(solid) == 2
        assert len(dashes) == (2 if measure in dashed else 0)
        for i, state in enumerate(TWO):
            np.testing.assert_array_equal(solid[i].get_xydata(), _values(table, measure, state))
            if dashes:
                np.testing.assert_array_equal(dashes[i].get_xydata(), _values(table, dashed[measure], state))
                assert dashes[i].get_color() == solid[i].get_color()
    assert legend(figure) == [*TWO, "control: random pairs of different texts", "effective rank, not centred"]
    variance = table[(table["rows"] == "content") & (table["measure"] == "iso_score") & (table["state"] == "best")]
    np.testing.assert_allclose(bands(shown["IsoScore"])[1], variance.sort_values("layer")[["low", "high"]])


def test_a_state_has_one_colour_though_a_measure_lacks_it():
    _, figure = _layers_12_states()
    colors = [
        {label: drawn.get_color() for drawn, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        for axes in figure.axes
    ]
    assert list(colors[0]) == ["pretrained", "epoch 2", "epoch 4", "epoch 7", "epoch 9", "last"]
    assert len(set(colors[0].values())) == 6
    assert any("pretrained" not in of_panel for of_panel in colors)
    for of_panel in colors:
        assert of_panel.items() <= colors[0].items()


def test_the_scale_is_logarithmic_where_the_values_need_it():
    table = tables.geometry()
    variance = table[table["measure"] == "total_variance"]
    jump = variance.copy()
    jump.loc[jump["layer"] == 12, ["value", "low", "high"]] *= 100
    assert panels(geometry_by_layer(variance, TWO, "t"))["Total variance"].get_yscale() == "linear"
    assert panels(geometry_by_layer(jump, TWO, "t"))["Total variance"].get_yscale() == "log"
    shown = panels(_classes()[1])
    assert shown["Fisher ratio"].get_yscale() == "log"
    assert shown["Silhouette"].get_yscale() == "linear"
    zero = table[table["measure"] == "fisher_ratio"].assign(value=0.0)
    assert panels(class_geometry(zero, TWO, "t"))["Fisher ratio"].get_yscale() == "linear"


def test_classes_by_first_token_and_mean():
    table, figure = _classes()
    shown = panels(figure)
    assert list(shown) == list(CLASS_PANELS.values())
    for measure, title in CLASS_PANELS.items():
        for rows, style in (("first", "-"), ("mean", "--")):
            for line, state in zip(_styled(shown[title], style), SIX, strict=True):
                np.testing.assert_array_equal(line.get_xydata(), _values(table, measure, state, rows))
    assert _styled(shown["Silhouette"], "-")[0].get_xdata()[0] == 1  # the first token of layer 0 is one and the same
    within, between = shown["Cosine of two texts of one class"], shown["Cosine of two texts of different classes"]
    assert within.get_ylim() == between.get_ylim()
    for axes in (within, between):
        assert axes.get_ylim()[0] < axes.dataLim.y0 < axes.dataLim.y1 < axes.get_ylim()[1]
    assert legend(figure) == [
        *("pretrained", "epoch 2", "epoch 4", "epoch 7", "epoch 9", "last"),
        *("first token", "mean over the content tokens"),
    ]


def test_heat_maps_are_the_pivoted_table_in_the_order_given():
    table, figure = _heat_25()
    order = ["epoch_002", "epoch_001", "pretrained"]
    shown = panels(figure)
    titles = {
        "within_text_cosine": "Cosine between tokens of a text",
        "random_pair_cosine": "Control: cosine of random pairs",
        "effective_rank": "Effective rank",
        "iso_score": "IsoScore",
        "nearest_centroid_accuracy": "Nearest centroid, first token",
    }
    assert list(shown) == list(titles.values())
    for measure, title in titles.items():
        rows = table[table["rows"] == ("first" if measure == "nearest_centroid_accuracy" else "content")]
        expected = rows[rows["measure"] == measure].pivot(index="layer", columns="state", values="value")[order]
        image = shown[title].images[0].get_array()
        np.testing.assert_array_equal(np.ma.filled(image, np.nan), expected)
        assert [t.get_text() for t in shown[title].get_xticklabels()] == ["epoch 2", "epoch 1", "pretrained"]
    assert "grey: not defined" in shown["Nearest centroid, first token"].get_xlabel()
    cosines = [shown[titles[m]].images[0].get_clim() for m in ("within_text_cosine", "random_pair_cosine")]
    assert cosines[0] == cosines[1]  # a cosine and its control are compared by colour


def test_distributions_of_the_first_and_the_last_state():
    histogram, figure = _distributions()
    axes = figure.axes[0]
    assert len(axes.patches) == 2 * 25
    assert legend(figure) == ["pretrained", "best", "mean"]
    last = histogram[(histogram["state"] == "best") & (histogram["layer"] == 24)]
    both = histogram[(histogram["layer"] == 24) & histogram["state"].isin(TWO)]
    values, edges, baseline = axes.patches[-1].get_data()
    np.testing.assert_allclose((values - baseline) / 0.44, last["density"] / both["density"].max(), atol=1e-12)
    np.testing.assert_allclose(edges[[0, -1]], [-1, 1])
    first = axes.patches[0].get_data()
    assert (first.values <= first.baseline).all()  # to the left
    mean = np.average((last["low"] + last["high"]) / 2, weights=last["density"])
    assert lines(axes)["mean"][-1][:, 1] == pytest.approx(mean)
    assert len(cosine_distributions(tables.cosine_histogram(5), ["best"], "t").axes[0].patches) == 5


def test_what_is_missing_is_left_out():
    geometry = tables.geometry(layers=3)
    few = geometry[geometry["measure"].isin(["within_text_cosine", "effective_rank"])]
    figure = geometry_by_layer(few, TWO, "t")
    assert list(panels(figure)) == ["Cosine between tokens of a text", "Effective rank"]
    assert legend(figure) == TWO
    empty = geometry.assign(value=geometry["value"].where(geometry["measure"] != "silhouette"))
    assert len(panels(class_geometry(empty, TWO, "t"))) == 5
    classes = geometry[geometry["measure"].isin(["class_cosine_between", "nc1"])]
    assert len(panels(class_geometry(classes, TWO, "t"))) == 2
    assert len(panels(geometry_heatmaps(few, TWO, "t"))) == 2
    one = few[few["state"] == "best"]
    assert legend(geometry_by_layer(one, TWO, "t"))[0] == "best"


def test_tokens_of_one_text_are_on_one_scale():
    matrices, figure = _tokens_8()
    shown = panels(figure)
    assert list(shown) == [f"{state}, layer {layer}" for state in TWO for layer in (0, 4, 8, 12)]
    for state in TWO:
        for layer in (0, 4, 8, 12):
            image = shown[f"{state}, layer {layer}"].images[0]
            np.testing.assert_array_equal(image.get_array(), matrices[state][layer])
            assert image.get_clim() == (0, 1)
    names = [t.get_text() for t in shown["pretrained, layer 0"].get_yticklabels()]
    assert names == ["[CLS]", "a", r"\$5", "un", "##com", "internation…", "token6", "[SEP]"]
    assert [t.get_text() for t in shown["best, layer 12"].get_xticklabels()] == names
    assert len(figure.axes) == 9  # one colour bar
    few = _matrices(2, layers=2)
    del few["best"][1]
    absent = panels(token_cosine_heatmaps(few, ["a", "b"], "t"))["best, layer 1"].images[0].get_array()
    assert np.ma.getmaskarray(absent).all()


def test_long_texts_are_cut_and_the_title_says_so():
    matrices = _matrices(50)
    figure = token_cosine_heatmaps(matrices, [f"t{i}" for i in range(50)], "t")
    assert "the first 32 of 50 tokens" in figure.get_suptitle()
    assert len(panels(figure)) == 6  # names of so many tokens need room
    for state in TWO:
        for layer in (0, 6, 12):
            image = panels(figure)[f"{state}, layer {layer}"].images[0]
            np.testing.assert_array_equal(image.get_array(), matrices[state][layer][:32, :32])


@pytest.mark.parametrize(
    "drawn",
    [_layers_12_states, _layers_25, _classes, _heat_12_states, _heat_25, _distributions, _tokens_8, _tokens_30],
)
def test_nothing_lies_on_anything_else(drawn):
    assert collisions(drawn()[1]) == []
