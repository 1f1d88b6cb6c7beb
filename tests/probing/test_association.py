import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student_t

from bertdyn.geometry.intervals import jackknife
from bertdyn.probing.association import CONTROLS, associations


def _tables(accuracy, *measures):
    """Frames from arrays [layers, states]."""
    layers, states = accuracy.shape
    cells = pd.DataFrame(
        {"layer": np.repeat(np.arange(layers), states), "state": [f"epoch {9 - s}" for s in range(states)] * layers}
    )
    frames = [cells.assign(measure=f"m{i}", value=values.ravel()) for i, values in enumerate(measures)]
    return cells.assign(value=accuracy.ravel()), pd.concat(frames).sample(frac=1, random_state=0)


def _values(table, measure="m0", column="value"):
    return table[table["measure"] == measure].set_index("coefficient")[column]


def _grid(layers, states):
    return np.repeat(np.arange(layers), states), np.tile(np.arange(states), layers)


def test_spearman_is_scipys_and_partial_follows_the_recursion():
    rng = np.random.default_rng(0)
    accuracy = rng.normal(size=(6, 5)).round(1)  # with ties
    measure = (accuracy + rng.normal(size=(6, 5))).round(1)
    found = _values(associations(*_tables(accuracy, measure)))

    def r(a, b):
        return spearmanr(a, b).statistic

    def without(xy, xz, yz):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))

    x, y, (layer, state) = accuracy.ravel(), measure.ravel(), _grid(6, 5)
    by_layer = {pair: without(r(*pair_values), *rest) for pair, pair_values, rest in (
        ("xy", (x, y), (r(x, layer), r(y, layer))),
        ("xs", (x, state), (r(x, layer), r(state, layer))),
        ("ys", (y, state), (r(y, layer), r(state, layer))),
    )}  # fmt: skip
    assert found["spearman"] == pytest.approx(r(x, y), abs=1e-10)
    assert found["partial_layer"] == pytest.approx(by_layer["xy"], abs=1e-10)
    assert found["partial_state"] == pytest.approx(without(r(x, y), r(x, state), r(y, state)), abs=1e-10)
    assert found["partial_layer_state"] == pytest.approx(without(*by_layer.values()), abs=1e-10)


def test_confounded_by_layer_or_by_state():
    rng = np.random.default_rng(1)
    layer, state = (control.reshape(12, 6) for control in _grid(12, 6))
    for control, name, other in ((layer, "partial_layer", "partial_state"), (state, "partial_state", "partial_layer")):
        accuracy, measure = (control + 0.3 * rng.normal(size=(12, 6)) for _ in range(2))
        table = associations(*_tables(accuracy, -measure))
        found = _values(table)
        assert found["spearman"] < -0.85
        assert found[other] < -0.85
        assert abs(found[name]) < 0.25
        assert abs(found["partial_layer_state"]) < 0.25
        assert _values(table, column="p_value")["partial_layer_state"] > 0.05
    assert _values(table, column="p_value")["spearman"] < 1e-4


def test_intervals_leave_out_whole_layers():
    rng = np.random.default_rng(2)
    accuracy, measure = rng.normal(size=(2, 7, 4)) + rng.normal(size=(2, 7, 1))
    row = associations(*_tables(accuracy, measure)).iloc[0]
    without = [spearmanr(np.delete(accuracy, i, 0).ravel(), np.delete(measure, i, 0).ravel())[0] for i in range(7)]
    expected = np.tanh(jackknife(np.arctanh(row["value"]), np.arctanh(without)))
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected), abs=1e-10)
    assert (row["n"], row["groups"]) == (28, 7)
    error = np.sqrt(6 / 7 * np.square(np.arctanh(without) - np.arctanh(without).mean()).sum())
    assert row["p_value"] == pytest.approx(2 * student_t.sf(np.arctanh(row["value"]) / error, 6), abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_intervals_cover_the_truth(shared):
    """Layers are independent, the cells of a layer alike: pooled cells would cover far too rarely."""
    rng = np.random.default_rng(3)
    truth = 6 / np.pi * np.arcsin(shared / 2)  # Spearman's coefficient of a normal pair of correlation `shared`
    hits, rejections = 0, 0
    for _ in range(60):
        level, cell = rng.normal(size=(3, 14, 1)), rng.normal(size=(3, 14, 3))
        common, x, y = np.sqrt(0.8) * level + np.sqrt(0.2) * cell
        accuracy, measure = (np.sqrt(shared) * common + np.sqrt(1 - shared) * own for own in (x, y))
        row = associations(*_tables(accuracy, measure)).iloc[0]
        hits += row["low"] < truth < row["high"]
        rejections += row["p_value"] < 0.05
    assert hits >= 52
    assert rejections <= 8 if shared == 0 else rejections >= 45


def test_joins_on_cells_and_drops_what_is_unknown():
    rng = np.random.default_rng(4)
    accuracy, measure = rng.normal(size=(2, 5, 4))
    measure[0, 1], accuracy[3, 3] = np.nan, np.nan
    found, measures = _tables(accuracy, measure)
    table = associations(found, measures[measures["layer"] != 4])
    kept = ~np.isnan(accuracy + measure)
    kept[4] = False
    assert table["n"].unique() == [14]
    assert table["groups"].unique() == [4]
    assert table["value"][0] == pytest.approx(spearmanr(accuracy[kept], measure[kept]).statistic, abs=1e-10)
    with pytest.raises(ValueError, match="not unique|not a many-to-one"):
        associations(pd.concat([found, found]), measures)


def test_too_few_cells_and_nothing_that_varies():
    rng = np.random.default_rng(5)
    accuracy = rng.normal(size=(5, 1))
    values = _values(associations(*_tables(accuracy, rng.normal(size=(5, 1)))))
    assert values.isna().tolist() == [False, False, False, True]
    layer = np.arange(6.0)[:, None] * np.ones((6, 3))
    accuracy = rng.normal(size=(6, 3))
    table = associations(*_tables(accuracy, np.ones((6, 3)), np.exp(layer)))
    assert table.loc[table["measure"] == "m0", ["value", "low", "p_value"]].isna().all(axis=None)
    assert _values(table, "m1").isna().tolist() == [False, True, False, True]  # the layer says it all
    whole = associations(*_tables(accuracy, rankdata(accuracy).reshape(6, 3))).iloc[0]
    assert whole["value"] == 1
    assert whole[["low", "high", "p_value"]].isna().all()
    assert table["coefficient"].tolist() == [*CONTROLS] * 2
