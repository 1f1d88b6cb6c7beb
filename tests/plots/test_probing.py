from functools import cache

import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.plots.probing import (
    code_lengths,
    score_heatmaps,
    scores_by_layer,
    selectivity_by_layer,
)
from tests.plots import tables
from tests.plots.drawing import bands, collisions, legend, lines, panels

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]  # many figures; `make check` stays short

TWO = ["pretrained", "best"]
STATES = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 29)), "best"]
SIX = ["pretrained", "epoch 6", "epoch 12", "epoch 17", "epoch 23", "best"]
TARGETS = ["sentiment", "word_count", "topic", "has_negation", "tense", "length_count", "number", "depth"]
FIRST, MEAN = "first token", "mean over content tokens"
LOGISTIC, RIDGE = "logistic regression", "ridge regression"


# Figures as crowded as they get: drawn once, read by several tests -------------------------------------------------


@cache
def _scores_two():
    table = tables.probes()
    return table, scores_by_layer(table, TWO, "sentiment", "sst2_$a$")


@cache
def _scores_crowded():
    table = tables.probes(25, STATES, ["sentiment"], mlp=True)
    return table, scores_by_layer(table, STATES, "sentiment", "t")


@cache
def _numbers():
    table = tables.probes()
    return table, scores_by_layer(table, TWO, "word_count", "t")


@cache
def _heat_two():
    table = tables.probes()
    absent = (table["layer"] == 3) & (table["state"] == "best") & (table["target"] == "sentiment")
    table.loc[absent & (table["rows"] == "mean"), "value"] = np.nan
    return table, score_heatmaps(table, ["best", "absent", "pretrained"], "t")


@cache
def _heat_crowded():
    table = tables.probes(5, STATES, TARGETS, mlp=True)
    return table, score_heatmaps(table, STATES, "t")


@cache
def _selectivity():
    table = tables.probes(25, STATES[:5], TARGETS)
    return table, selectivity_by_layer(table, STATES[:5], "t")


@cache
def _code():
    table = tables.probes()
    return table, code_lengths(table, TWO, "t")


def _values(table, metric="accuracy", baseline="none", columns=("layer", "value"), **where):
    chosen = table[(table["metric"] == metric) & (table["baseline"] == baseline)]
    for column, value in where.items():
        chosen = chosen[chosen[column] == value]
    return chosen.dropna(subset=["value"]).sort_values("layer")[list(columns)].to_numpy(dtype=float)


def _note(figure):
    return figure.legends[0].get_title().get_text()


# Scores ------------------------------------------------------------------------------------------------------------


def test_scores_stand_with_every_baseline_and_every_value_is_the_tables():
    table, figure = _scores_two()
    shown = panels(figure)
    assert list(shown) == [f"sentiment: {FIRST}\n{LOGISTIC}", f"sentiment: {MEAN}\n{LOGISTIC}"]
    assert legend(figure) == [
        *(*TWO, "random encoder", "shuffled labels (mean over states)"),
        *("TF-IDF", "majority class"),
    ]
    for rows, axes in zip(("first", "mean"), shown.values(), strict=True):
        where = {"target": "sentiment", "rows": rows}
        drawn = lines(axes)
        for state in TWO:
            np.testing.assert_array_equal(drawn[state][0], _values(table, state=state, **where))
        random = _values(table, baseline="random_init", **where)
        np.testing.assert_array_equal(drawn["random encoder"][0], random)
        shuffled = [_values(table, baseline="shuffled", state=state, **where) for state in TWO]
        np.testing.assert_allclose(drawn["shuffled labels (mean over states)"][0], np.mean(shuffled, axis=0))
        for baseline, name in (("majority", "majority class"), ("tfidf", "TF-IDF")):
            value = _values(table, baseline=baseline, target="sentiment", columns=["value"])
            assert drawn[name][0][:, 1] == pytest.approx(value.item())
        assert axes.get_ylabel() == "accuracy"
        low, high = axes.get_ylim()
        assert 0.3 < low < axes.dataLim.y0 < axes.dataLim.y1 < high  # nothing is cut off, and no empty half
    assert len({axes.get_ylim() for axes in shown.values()}) == 1
    first = bands(shown[f"sentiment: {FIRST}\n{LOGISTIC}"])
    assert len(first) == 3  # two states and the random encoder
    best = _values(table, state="best", target="sentiment", rows="first", columns=["low", "high"])
    np.testing.assert_allclose(first[-1], best)
    assert _note(figure) == "872 texts; bands: 95 % intervals over texts"


def test_six_states_of_many_and_a_row_of_panels_for_each_kind_of_rows():
    _, figure = _scores_crowded()
    assert list(panels(figure)) == [f"sentiment: {r}\n{p}" for r in (FIRST, MEAN) for p in (LOGISTIC, "MLP")]
    assert legend(figure)[:6] == SIX
    places = [axes.get_position() for axes in figure.axes]
    assert places[0].y0 == pytest.approx(places[1].y0)
    assert places[0].x0 == pytest.approx(places[2].x0)
    solid = [line for line in figure.axes[0].get_lines() if line.get_label() in SIX]
    assert len({line.get_color() for line in solid}) == len({line.get_marker() for line in solid}) == 6


def test_r2_far_below_zero_is_not_drawn_and_the_legend_says_so():
    table, figure = _numbers()
    for axes in panels(figure).values():
        assert axes.get_ylim()[0] == -0.5
        assert axes.get_ylim()[1] > 0.9
        assert axes.get_ylabel() == "R²"
    lowest = table.loc[table["metric"] == "r2", "low"].min()
    assert f"R² below −0.5 is not drawn (lowest: −{-lowest:.1f})" in _note(figure)
    assert "predicting the mean" in legend(figure)
    near = table[table["layer"].isna() | (table["layer"] > 0)]
    figure = scores_by_layer(near, TWO, "word_count", "t")
    assert "R²" not in _note(figure)
    assert figure.axes[0].get_ylim()[0] > -0.1


def test_text_baselines_of_another_probe_are_the_best_there_is():
    table = tables.probes(3, mlp=True)
    better = table[(table["baseline"] == "tfidf") & (table["target"] == "sentiment")].assign(probe="other", value=0.9)
    figure = scores_by_layer(pd.concat([table, better]), TWO, "sentiment", "t")
    drawn = {title: lines(axes)["TF-IDF"][0][0, 1] for title, axes in panels(figure).items()}
    assert drawn[f"sentiment: {FIRST}\nMLP"] == 0.9
    assert drawn[f"sentiment: {FIRST}\n{LOGISTIC}"] < 0.85


def test_content_tokens_stand_with_their_control_task():
    table = tables.probes(3)
    content = table[(table["rows"] == "mean") & (table["metric"] == "accuracy")].assign(rows="content")
    content["baseline"] = content["baseline"].replace("shuffled", "control")
    figure = scores_by_layer(content, TWO, "sentiment", "t")
    assert list(panels(figure)) == [f"sentiment: content tokens\n{LOGISTIC}"]
    control = [_values(content, baseline="control", state=state) for state in TWO]
    np.testing.assert_allclose(lines(figure.axes[0])["control task (mean over states)"][0], np.mean(control, axis=0))


def test_scores_that_are_missing_are_left_out():
    table = tables.probes(3)
    bare = table[(table["baseline"] == "none") & (table["rows"] == "mean")].assign(low=np.nan, high=np.nan)
    figure = scores_by_layer(bare, [*TWO, "absent"], "sentiment", "t")
    assert legend(figure) == TWO
    assert len(panels(figure)) == 1
    assert _note(figure) == "872 texts"
    one = table.assign(value=table["value"].where(table["state"] != "pretrained"))
    assert legend(scores_by_layer(one, TWO, "sentiment", "t"))[0] == "best"
    axes = scores_by_layer(table, ["best"], "sentiment", "t").axes[0]
    shuffled = _values(table, baseline="shuffled", state="best", rows="first")
    np.testing.assert_array_equal(lines(axes)["shuffled labels (mean over states)"][0], shuffled)


def test_what_cannot_be_drawn_is_an_input_error():
    table = tables.probes(3)
    with pytest.raises(InputError, match=r"no accuracy or r2 of mood .* targets sentiment, word_count"):
        scores_by_layer(table, TWO, "mood", "t")
    with pytest.raises(InputError, match="none of the states other"):
        scores_by_layer(table, ["other"], "sentiment", "t")
    with pytest.raises(InputError, match="no compression"):
        code_lengths(table[table["target"] == "word_count"], TWO, "t")
    with pytest.raises(InputError, match="no selectivity"):
        selectivity_by_layer(table.assign(value=np.nan), TWO, "t")


def test_heat_maps_are_the_pivoted_table_on_one_scale_a_target():
    table, figure = _heat_two()
    shown = panels(figure)
    order = ["best", "pretrained"]
    assert len(shown) == 4
    for title, axes in shown.items():
        target, metric = ("sentiment", "accuracy") if title.startswith("sentiment") else ("word_count", "r2")
        rows = "first" if FIRST in title else "mean"
        expected = table[
            (table["target"] == target)
            & (table["metric"] == metric)
            & (table["rows"] == rows)
            & (table["baseline"] == "none")
        ]
        expected = expected.pivot(index="layer", columns="state", values="value")[order].to_numpy(dtype=float)
        np.testing.assert_array_equal(np.ma.filled(axes.images[0].get_array(), np.nan), expected)
        assert [t.get_text() for t in axes.get_xticklabels()] == order
        majority, best = ("the mean", "0.11") if metric == "r2" else ("majority", "0.55")
        assert f"\n{majority} " in title
        assert title.endswith(f"random encoder at best {best}")
    assert "grey: not defined" in shown[next(t for t in shown if f"sentiment: {MEAN}" in t)].get_xlabel()
    scales = [axes.images[0].get_clim() for axes in shown.values()]
    assert scales[0] == scales[1] != scales[2] == scales[3]
    assert scales[2][0] == 0  # R² of −1.3 at the embeddings does not take all the colours
    assert all("darkest: 0 or less" in title for title in list(shown)[2:])


def test_many_heat_maps_are_one_a_target_and_names_of_states_are_thinned():
    _, figure = _heat_crowded()
    shown = panels(figure)
    assert [title.split("\n")[0] for title in shown] == [f"{target}: {FIRST}" for target in TARGETS]
    assert all((RIDGE if "count" in title else LOGISTIC) in title for title in shown)
    assert figure.get_suptitle() == "t\none kind of rows and one probe a target: 8 of 32 panels"
    axes = figure.axes[0]
    names = [t.get_text() for t in axes.get_xticklabels()]
    assert names[:3] == ["pretrained", "epoch 2", "epoch 4"]
    assert names[-1] == "best"
    assert len(names) == 15
    assert axes.get_xticks()[-1] == 29
    assert len(axes.images[0].get_array()[0]) == 30


# Selectivity and code lengths --------------------------------------------------------------------------------------


def test_selectivity_by_layer():
    table, figure = _selectivity()
    classes = [target for target in TARGETS if "count" not in target]
    assert list(panels(figure)) == [f"{t}: {r}\n{LOGISTIC}" for t in classes for r in (FIRST, MEAN)]
    for title, axes in panels(figure).items():
        where = {"target": title.split(":")[0], "rows": "first" if FIRST in title else "mean"}
        drawn = lines(axes)
        np.testing.assert_array_equal(drawn["epoch 4"][0], _values(table, "selectivity", state="epoch_004", **where))
        assert (drawn["0 = the control's labels are fitted as well"][0][:, 1] == 0).all()
        assert axes.get_ylim()[0] < 0


def test_code_lengths_with_the_random_encoder_and_the_uniform_code():
    table, figure = _code()
    assert legend(figure) == [*TWO, "random encoder", "1 = uniform code"]
    for rows, axes in zip(("first", "mean"), panels(figure).values(), strict=True):
        drawn = lines(axes)
        where = {"rows": rows, "target": "sentiment"}
        np.testing.assert_array_equal(drawn["best"][0], _values(table, "compression", state="best", **where))
        random = _values(table, "compression", "random_init", **where)
        np.testing.assert_array_equal(drawn["random encoder"][0], random)
        assert (drawn["1 = uniform code"][0][:, 1] == 1).all()
        assert axes.get_ylim()[0] < 1


@pytest.mark.parametrize(
    "drawn", [_scores_two, _scores_crowded, _numbers, _heat_two, _heat_crowded, _selectivity, _code]
)
def test_nothing_lies_on_anything_else(drawn):
    assert collisions(drawn()[1]) == []
