"""Figures of span probes: what stands in them is what stands in the tables."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from bertdyn.plots.span_probes import convergence_curves, span_heatmaps, span_scores_by_layer, threshold_curves_by_layer
from tests.plots.drawing import bands, collisions, legend, lines, panels

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]  # many figures; `make check` stays short

STATES = ["pretrained", "best", "random_init"]
SCORES = ["f1", "has_ans_f1", "best_span_f1"]


@cache
def probes(layers=13, states=(*STATES,)):
    draw, rows = np.random.default_rng(0), []
    for state in states:
        for layer in range(layers):
            for metric in SCORES:
                value = draw.uniform(0.2, 0.8)
                baselines = ["random_init" if state == "random_init" else "none"] + ["layer_0"] * (layer == 0)
                rows += [(layer, state, baseline, metric, value, value - 0.1, value + 0.05) for baseline in baselines]
            rows.append((layer, state, "none", "null_threshold", -3.0, np.nan, np.nan))
    rows += [(None, "", "majority", metric, 0.5 if metric == "f1" else 0.0, 0.4, 0.6) for metric in SCORES[:2]]
    table = pd.DataFrame(rows, columns=["layer", "state", "baseline", "metric", "value", "low", "high"])
    return table.astype({"layer": "Int64"})


@cache
def curves(layers=13):
    rows = [
        (state, layer, threshold, 0.5 + 0.01 * layer - 0.02 * abs(threshold - layer), 0.05 * threshold)
        for state in STATES
        for layer in range(layers)
        for threshold in range(11)
    ]
    return pd.DataFrame(rows, columns=["state", "layer", "threshold", "f1", "has_ans_f1"])


@cache
def record(layers=13, rates=(1e-4, 1e-3, 1e-2)):
    rows = [
        (layer, rate, epoch, 5 / (1 + epoch * rate * 100) + layer / 10, (rate, epoch) == (rates[-1], 4), state)
        for state in STATES
        for layer in range(layers)
        for rate in rates
        for epoch in range(6)
    ]
    return pd.DataFrame(rows, columns=["layer", "learning_rate", "epoch", "validation_loss", "chosen", "state"])


FIGURES = {
    "scores": lambda: span_scores_by_layer(probes(), "t"),
    "scores, 25 layers": lambda: span_scores_by_layer(probes(25), "t"),
    "heat maps": lambda: span_heatmaps(probes(), STATES, "t"),
    "thresholds": lambda: threshold_curves_by_layer(curves(), chosen(13), "t"),
    "thresholds, 25 layers": lambda: threshold_curves_by_layer(curves(25), chosen(25), "t"),
    "convergence": lambda: convergence_curves(record(), "t"),
    "convergence, one rate": lambda: convergence_curves(record(7, (1e-3,)), "t"),
}


def chosen(layers):
    return {(state, layer): layer / 3 - 0.5 for state in STATES for layer in range(layers)}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_on_anything_else(name):
    assert collisions(FIGURES[name]()) == []


def test_lines_and_bands_are_the_rows_of_the_table():
    figure, table = span_scores_by_layer(probes(), "t"), probes()
    shown = list(panels(figure).values())
    assert len(shown) == 3
    for axes, metric in zip(shown, SCORES, strict=True):
        drawn = lines(axes)
        for i, (state, name) in enumerate(zip(STATES, ("pretrained", "best", "random encoder"), strict=True)):
            rows = table[(table["state"] == state) & (table["metric"] == metric) & (table["baseline"] != "layer_0")]
            np.testing.assert_allclose(drawn[name][0], rows[["layer", "value"]].astype(float))
            np.testing.assert_allclose(bands(axes)[i], rows[["low", "high"]])
        assert ("never answering" in drawn) == (metric != "best_span_f1")
    assert lines(shown[0])["never answering"][0][0][1] == 0.5
    assert legend(figure) == ["pretrained", "best", "random encoder", "never answering"]


def test_heat_maps_have_layers_down_and_states_across():
    shown, table = list(panels(span_heatmaps(probes(), STATES, "t")).values()), probes()
    for axes, metric in zip(shown, SCORES, strict=True):
        rows = table[(table["metric"] == metric) & table["baseline"].isin(["none", "random_init"])]
        expected = rows.pivot(index="layer", columns="state", values="value")[STATES]
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), expected)


def test_points_stand_at_the_chosen_thresholds_on_their_curves():
    axes = panels(threshold_curves_by_layer(curves(), chosen(13), "t"))["pretrained: F1, all questions"]
    points = [line.get_xydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    values = curves().set_index(["state", "layer", "threshold"])["f1"]["pretrained"]
    for layer, (x, y) in enumerate(points):
        assert x == chosen(13)["pretrained", layer]
        assert y == values[layer, max(0, int(np.floor(x)))]


def test_convergence_marks_one_epoch_of_each_layer():
    shown = panels(convergence_curves(record(), "t"))
    assert len(shown) == 9
    points = {
        title: [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]
        for title, axes in shown.items()
    }
    for title, marked in points.items():
        of_best_rate = title.endswith("0.01")
        assert [len(point) for point in marked] == [int(of_best_rate)] * 13
    assert points["best, learning rate 0.01"][2] == [[4, 5 / 5 + 0.2]]
