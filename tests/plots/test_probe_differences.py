from functools import cache

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.plots.probe_differences import association_figure, paired_figure, stages_figure, transfer_by_layer
from tests.plots import tables
from tests.plots.drawing import collisions, legend, lines, panels

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]  # many figures; `make check` stays short

STATES = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 29)), "best"]
SOME = ["pretrained", "epoch_001", "epoch_002", "epoch_012"]
FIRST, MEAN = "first token", "mean over content tokens"
LOGISTIC, RIDGE = "logistic regression", "ridge regression"
MEASURES = [f"within_text_variance_normalised_{i} (content)" for i in range(30)]


# Figures as crowded as they get: drawn once, read by several tests -------------------------------------------------


@cache
def _transfer():
    table = tables.transfer(25, SOME, ["sentiment", "word_count"])
    return table, transfer_by_layer(table, SOME, "t")


@cache
def _stages():
    table = tables.stage_scores(25, STATES)
    intervals = [(1, 4), (3, 5), (17, 20)]
    return table, stages_figure(table, STATES, [2, 4, 18], [0.93, 0.4, 1.0], intervals, "t")


@cache
def _associations():
    table = tables.associations(MEASURES)
    return table, association_figure(table, "t")


@cache
def _paired():
    table = tables.paired(25, STATES, ["sentiment", "a_$b$", "word_count"])
    return table, paired_figure(table, "t")


def _note(figure):
    return figure.legends[0].get_title().get_text()


def _faces(axes):
    """x, y of each point, and whether it is filled, one array for each set of points."""
    points = [c for c in axes.collections if c.get_offsets().size > 2]
    white = matplotlib.colors.to_rgba("white")
    return [
        (
            np.asarray(c.get_offsets()),
            ~np.all(np.broadcast_to(c.get_facecolors(), (len(c.get_offsets()), 4)) == white, 1),
        )
        for c in points
    ]


def _bars(axes):
    """[x, y] of both ends of each line of a bundle."""
    return [np.array(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments")]


def _of_states(table, fitted_on, scored_on, column="accuracy", **where):
    where = where | {"fitted_on": fitted_on, "scored_on": scored_on}
    chosen = table[np.logical_and.reduce([table[name] == value for name, value in where.items()])]
    return chosen.sort_values("layer")[["layer", column]].to_numpy(dtype=float)


# Transfer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "other"), [("pretrained", "epoch_012"), ("epoch_012", "pretrained")])
def test_a_probe_stands_on_its_own_state_and_carried_over_as_it_is_and_recentred(own, other):
    table, figure = _transfer()
    name = {"pretrained": "pretrained", "epoch_012": "epoch 12"}
    axes = panels(figure)[f"word_count: {MEAN}\n{LOGISTIC}\nscored on {name[own]}"]
    carried = f"fitted on {name[other]}, scored on {name[own]}"
    expected = {
        f"fitted and scored on {name[own]}": ("-", own, "accuracy"),
        carried: ("--", other, "accuracy"),
        f"{carried}, recentred": (":", other, "accuracy_recentred"),
    }
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert list(drawn) == list(expected)
    for label, (dashes, fitted_on, column) in expected.items():
        values = _of_states(table, fitted_on, own, column, target="word_count", rows="mean")
        np.testing.assert_array_equal(drawn[label].get_xydata(), values)
        assert drawn[label].get_linestyle() == dashes
    colors = [line.get_color() for line in drawn.values()]  # of the state that a probe was fitted on
    assert colors[0] != colors[1] == colors[2]


def test_transfer_is_between_the_first_and_the_last_state_with_their_cosine():
    table, figure = _transfer()
    assert len(panels(figure)) == 2 * 2 * 3
    axes = panels(figure)[f"word_count: {MEAN}\n{LOGISTIC}\nthe two directions (dotted: by chance)"]
    directions, by_chance, _ = (line.get_xydata() for line in axes.get_lines())
    assert (by_chance[:, 1] == 0.5).all()
    cosine = _of_states(table, "pretrained", "epoch_012", "cosine", target="word_count", rows="mean")
    np.testing.assert_array_equal(directions, cosine)
    limits = [axes.get_ylim() for axes in figure.axes]
    assert limits[0] == limits[1]
    assert limits[0][0] < 0.45 < 0.95 < limits[0][1]
    assert limits[2][0] < -0.1 < 1 < limits[2][1]
    carried = ["fitted on pretrained, scored on epoch 12", "fitted on epoch 12, scored on pretrained"]
    assert legend(figure) == [  # down the columns: the probe of the one state, the probe of the other
        *("fitted and scored on pretrained", carried[0], f"{carried[0]}, recentred"),
        *("fitted and scored on epoch 12", carried[1], f"{carried[1]}, recentred"),
    ]
    assert _note(figure).startswith("872 texts; recentred: ")


def test_each_probe_that_is_carried_over_has_panels_of_its_own():
    table, _ = _transfer()
    probes = [table, table.assign(probe="nearest_centroid", accuracy=0.5)]
    several = panels(transfer_by_layer(pd.concat(probes), SOME, "t"))
    assert len(several) == 2 * 2 * 2 * 3
    for probe, of_probe in zip((LOGISTIC, "nearest centroid"), probes, strict=True):
        drawn = lines(several[f"word_count: {MEAN}\n{probe}\nscored on epoch 12"])
        expected = _of_states(of_probe, "pretrained", "epoch_012", target="word_count", rows="mean")
        np.testing.assert_array_equal(drawn["fitted on pretrained, scored on epoch 12"][0], expected)


# Stages, associations, differences ---------------------------------------------------------------------------------


def test_stages_begin_where_the_change_points_are():
    table, figure = _stages()
    axes = figure.axes[0]
    expected = table.pivot(index="layer", columns="state", values="value")[STATES]
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    np.testing.assert_array_equal([line.get_xdata()[0] for line in axes.get_lines()][:3], [1.5, 3.5, 17.5])
    assert [t.get_text() for t in axes.texts] == ["93 %", "40 %", "100 %"]
    assert [t.get_position()[0] for t in axes.texts] == [1.5, 3.5, 17.5]
    brackets = [line for line in axes.get_lines() if line.get_marker() == "|"]
    np.testing.assert_array_equal([b.get_xdata() for b in brackets], [[0.5, 3.5], [2.5, 4.5], [16.5, 19.5]])
    heights = [b.get_transform().transform((0, 1))[1] for b in brackets]
    assert heights[1] > heights[0] == heights[2] > axes.transAxes.transform((0, 1))[1]
    assert axes.get_xlim() == (-0.5, 29.5)
    assert len(axes.get_xticks()) == 15
    unsure = stages_figure(table, STATES, [2, 4], [0.0, 0.9], [(np.nan, np.nan), (3.5, 4.2)], "t").axes[0]
    assert [t.get_text() for t in unsure.texts] == ["0 %", "90 %"]
    brackets = [line.get_xdata() for line in unsure.get_lines() if line.get_marker() == "|"]
    np.testing.assert_allclose(brackets, [[np.nan, np.nan], [3.0, 3.7]])
    none = stages_figure(table, STATES, [], [], [], "t")
    assert not none.axes[0].texts
    assert not none.legends


def test_associations_have_a_line_a_measure_and_a_panel_a_coefficient():
    table, figure = _associations()
    shown = panels(figure)
    assert list(shown) == ["Spearman", "layer held", "state held", "both held"]
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == [f"within text variance normalised {i} (content)" for i in range(30)]
    for coefficient, axes in zip(table["coefficient"].unique(), shown.values(), strict=True):
        rows = table[table["coefficient"] == coefficient]
        [(points, filled)] = _faces(axes)
        np.testing.assert_array_equal(points, np.column_stack([rows["value"], np.arange(30)]))
        np.testing.assert_array_equal(filled, (rows["low"] > 0) | (rows["high"] < 0))
        np.testing.assert_array_equal(_bars(axes)[0][:, :, 0], rows[["low", "high"]])
        assert axes.get_xlim() == (-1, 1)
        assert axes.get_ylim() == (29.5, -0.5)  # the first measure above
    assert _note(figure) == "156 pairs of layer and state, 12 layers; bars: 95 % intervals"
    few = table[table["coefficient"] != "partial_state"].assign(low=np.nan, high=np.nan)
    few.loc[few["measure"] == MEASURES[3], "n"] = 1000
    figure = association_figure(few, "t")
    assert len(panels(figure)) == 3
    assert not _faces(figure.axes[0])[0][1].any()
    assert _note(figure).startswith("156 to 1,000 pairs")


def test_paired_differences_are_filled_where_q_is_small():
    table, figure = _paired()
    shown = panels(figure)
    targets = {"sentiment": LOGISTIC, r"a_\$b\$": LOGISTIC, "word_count": RIDGE}
    assert list(shown) == [f"{t}: {r}\n{probe}" for t, probe in targets.items() for r in (FIRST, MEAN)]
    assert legend(figure)[:4] == [f"{s} − pretrained" for s in ("epoch 1", "epoch 10", "epoch 20", "best")]
    rows = table[(table["kind"] == "states") & (table["target"] == "sentiment") & (table["rows"] == "mean")]
    axes = shown[f"sentiment: {MEAN}\n{LOGISTIC}"]
    for i, state in enumerate(("epoch_001", "epoch_010", "epoch_020", "best")):
        of_pair = rows[rows["state_b"] == state].sort_values("layer_b")
        points, filled = _faces(axes)[i]
        np.testing.assert_array_equal(points[:, 1], of_pair["difference"])
        np.testing.assert_array_equal(points[:, 0].round(), of_pair["layer_b"])
        np.testing.assert_array_equal(filled, of_pair["q_value"] < 0.05)
        np.testing.assert_array_equal(_bars(axes)[i][:, :, 1], of_pair[["low", "high"]])
    assert legend(figure)[4:] == ["filled: q < 0.05 (false discovery rate)", "hollow: not so"]
    assert _note(figure) == "872 texts; bars: 95 % intervals"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()  # of one target
    bare = table[table["state_b"] == "best"].assign(low=np.nan, high=np.nan, q_value=np.nan)
    assert not _faces(paired_figure(bare, "t").axes[0])[0][1].any()


def test_the_axis_of_differences_says_of_what_and_which_way_is_better():
    _, figure = _paired()
    for title, axes in panels(figure).items():
        error = title.startswith("word_count")
        assert axes.get_ylabel() == (
            "difference of squared error\n(below 0: better)" if error else "difference of accuracy"
        )


def test_what_cannot_be_drawn_is_an_input_error():
    with pytest.raises(InputError, match="two of the states pretrained, other are needed"):
        transfer_by_layer(tables.transfer(3), ["pretrained", "other"], "t")
    with pytest.raises(InputError, match="no value of spearman"):
        association_figure(tables.associations().assign(value=np.nan), "t")
    with pytest.raises(InputError, match='no difference of kind "states"'):
        paired_figure(tables.paired(3, ["best"]), "t")
    scores = tables.stage_scores(3, STATES[:4])
    with pytest.raises(InputError, match="2 change points, 1 supports, 1 intervals"):
        stages_figure(scores, STATES[:4], [1, 2], [0.5], [(1, 2)], "t")
    with pytest.raises(InputError, match=r"change points \[0, 4\] are not within 1 to 3"):
        stages_figure(scores, STATES[:4], [0, 4], [1, 1], [(0, 1), (3, 4)], "t")
    with pytest.raises(InputError, match="no scores of the states other"):
        stages_figure(scores, ["other", "another"], [1], [1.0], [(1, 1)], "t")


@pytest.mark.parametrize("drawn", [_transfer, _stages, _associations, _paired])
def test_nothing_lies_on_anything_else(drawn):
    assert collisions(drawn()[1]) == []
