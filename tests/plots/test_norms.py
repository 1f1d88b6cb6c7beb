from functools import cache

import numpy as np
import pytest

from bertdyn.plots.norms import norm_figure
from tests.plots import tables
from tests.plots.drawing import bands, collisions, legend, panels

pytestmark = pytest.mark.filterwarnings("error")

TWO = ["pretrained", "best"]
STATES = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 11)), "last"]


@cache
def _norms():
    data = tables.geometry(states=STATES), tables.dimensions(states=STATES, width=768)
    return data, norm_figure(*data, STATES, "t")


@cache
def _norms_25():
    data = tables.geometry(layers=25), tables.dimensions(layers=25)
    return data, norm_figure(*data, TWO, "t")


def test_boxes_are_the_quantiles_and_the_largest_outliers_are_named():
    (geometry, dimensions), figure = _norms_25()
    shown = panels(figure)
    assert list(shown) == [
        "Length of the content tokens",
        *(f"{state}, layer {layer}" for layer in (0, 8, 16, 24) for state in TWO),
    ]
    boxes = shown["Length of the content tokens"].patches
    assert len(boxes) == 2 * 25
    corners = boxes[25 + 5].get_path().vertices
    assert corners[:, 0].min() > 5  # the second state to the right of the layer
    of_box = (geometry["state"] == "best") & (geometry["layer"] == 5) & (geometry["rows"] == "content")
    quantiles = geometry[of_box].set_index("measure")["value"]
    assert corners[:, 1].min() == quantiles["norm_q25"]
    assert corners[:, 1].max() == quantiles["norm_q75"]
    panel = shown["best, layer 24"]
    expected = dimensions[(dimensions["state"] == "best") & (dimensions["layer"] == 24)]
    np.testing.assert_array_equal(panel.get_lines()[0].get_ydata(), expected["mean"])
    np.testing.assert_allclose(
        bands(panel)[0], np.column_stack([expected["mean"] - expected["std"], expected["mean"] + expected["std"]])
    )
    outliers = expected[expected["outlier"]]
    np.testing.assert_array_equal(panel.get_lines()[1].get_xydata(), outliers[["dimension", "mean"]])
    largest = outliers.loc[outliers["mean"].abs().nlargest(6).index, "dimension"]
    assert sorted(int(t.get_text()) for t in panel.texts) == sorted(largest)
    assert all(
        t.xy == (int(t.get_text()), *outliers.loc[outliers["dimension"] == int(t.get_text()), "mean"])
        for t in panel.texts
    )
    assert not shown["best, layer 0"].texts
    assert panel.get_ylim() == shown["pretrained, layer 24"].get_ylim()
    assert [label for label in legend(figure) if "outlier" not in label] == TWO


def test_what_is_missing_is_left_out():
    geometry, dimensions = tables.geometry(layers=3), tables.dimensions(layers=2)
    few = geometry[geometry["measure"] == "within_text_cosine"]
    assert len(panels(norm_figure(few, dimensions, TWO, "t"))) == 4
    assert len(panels(norm_figure(geometry, dimensions[:0], TWO, "t"))) == 1
    assert len(panels(norm_figure(geometry, dimensions, ["best"], "t"))) == 3


@pytest.mark.parametrize("drawn", [_norms, _norms_25])
def test_nothing_lies_on_anything_else(drawn):
    assert collisions(drawn()[1]) == []


def test_numbers_of_neighbouring_outliers_do_not_overlap():
    dimensions = tables.dimensions(layers=2, width=1024)
    dimensions["outlier"] = dimensions["dimension"].isin([1018, 1019, 1020, 1021, 1022, 1023])
    dimensions.loc[dimensions["outlier"], "mean"] = 5 + dimensions["dimension"] / 1000
    figure = norm_figure(tables.geometry(layers=2)[:0], dimensions, TWO, "t")
    assert len(panels(figure)["best, layer 1"].texts) == 6
    assert collisions(figure) == []
    empty = norm_figure(tables.geometry(layers=2)[:0], dimensions.assign(mean=np.nan, std=np.nan), TWO, "t")
    assert collisions(empty) == []
