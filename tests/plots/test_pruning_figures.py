"""Figures of pruning: what stands in them is what stands in the tables."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from bertdyn.plots.pruning import (
    GONE,
    STAGE_STYLES,
    architecture,
    head_scores,
    latency_figure,
    neuron_scores,
    scores_figure,
)
from tests.plots.drawing import collisions, legend, panels

pytestmark = pytest.mark.filterwarnings("error")

NAMES = {"dense": "dense", "pruned": "pruned", "random": "random units", "magnitude": "units of small weights"}


# Made-up tables in the shape of the real ones ------------------------------------------------------------------------


def plan(layers=6, heads=12, neurons=1536):
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"layer": range(1, layers + 1), "heads": heads, "neurons": neurons})
    table["heads_kept"] = draw.integers(0, heads + 1, layers)
    table["neurons_kept"] = draw.integers(0, neurons + 1, layers)
    table.loc[0, ["heads_kept", "neurons_kept"]] = heads, 0
    return table


def scores(models=tuple(NAMES), score="accuracy", recovered=True):
    found = []
    for i, model in enumerate(models):
        for stage in ("surgery", "recovery") if recovered else ("surgery",):
            for part in ("validation", "test"):
                better = 0.02 * (stage == "recovery") + 0.01 * (part == "validation")
                row = {"model": model, "stage": stage, "part": part, score: 0.91 - 0.03 * i + better}
                row |= {"kl": 0.02 * i * (1 - 20 * better) + 0.001 * (stage == "recovery")}
                row |= {"kl_low": 0.8 * row["kl"], "kl_high": 1.3 * row["kl"]}
                if score == "accuracy":
                    row |= {"accuracy_low": row[score] - 0.02, "accuracy_high": row[score] + 0.015}
                found.append(row)
    return pd.DataFrame(found)


def units(layers=6, heads=12, neurons=64, without_heads=()):
    draw, found = np.random.default_rng(0), []
    for layer in range(1, layers + 1):
        for kind, count in (("attention", 0 if layer in without_heads else heads), ("ffn", neurons)):
            values = draw.exponential(size=count) * 10.0**-layer
            values[: count // 8] = 0
            kept = values >= np.quantile(values, layer / (layers + 1)) if count else values > 0
            rows = {"kind": kind, "layer": layer, "unit": range(count), "score": values, "kept": kept}
            found.append(pd.DataFrame(rows))
    return pd.concat(found, ignore_index=True)


def latency(shapes=((1, 32), (1, 128), (16, 32)), backends=("torch", "onnxruntime")):
    found = []
    for i, backend in enumerate(backends):
        for j, (batch_size, sequence_length) in enumerate(shapes):
            for model, ratio in (("dense", 1.0), ("pruned", 0.6 + 0.05 * i + 0.1 * j)):
                row = {"backend": backend, "model": model, "batch_size": batch_size, "sequence_length": sequence_length}
                row |= {"ratio": ratio, "ratio_low": ratio - 0.03, "ratio_high": ratio + 0.05, "device": "cpu"}
                found.append(row)
    return pd.DataFrame(found)


FIGURES = {
    "architecture": cache(lambda: (table := plan(), architecture(table, "What stays: MiniLM on SST-2"))),
    "architecture, one layer": cache(lambda: (table := plan(1), architecture(table, "t"))),
    "architecture, three layers": cache(lambda: (table := plan(3), architecture(table, "t"))),
    "architecture, many": cache(lambda: (table := plan(24, 16, 4096), architecture(table, "t"))),
    "scores": cache(lambda: (table := scores(), scores_figure(table, NAMES, "Nearness to the dense model: MiniLM"))),
    "scores, questions": cache(lambda: (table := scores(score="f1"), scores_figure(table, NAMES, "t"))),
    "scores, not recovered": cache(
        lambda: (table := scores(("dense", "pruned"), recovered=False), scores_figure(table, NAMES, "t"))
    ),
    "heads": cache(lambda: (table := units(), head_scores(table, "Scores of heads by fisher"))),
    "heads, many": cache(lambda: (table := units(24, 16), head_scores(table, "t"))),
    "heads, few": cache(lambda: (table := units(1, 2), head_scores(table, "t"))),
    "neurons": cache(lambda: (table := units(), neuron_scores(table, "Scores of neurons by fisher"))),
    "neurons, many": cache(lambda: (table := units(24, 1), neuron_scores(table, "t"))),
    "latency": cache(lambda: (table := latency(), latency_figure(table, "Time of a batch, pruned / dense: MiniLM"))),
    "latency, one": cache(lambda: (table := latency(((8, 64),), ("torch",)), latency_figure(table, "t"))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_on_anything_else(name):
    assert collisions(FIGURES[name]()[1]) == []


# What stands in them -------------------------------------------------------------------------------------------------


def color_of(patch):
    return to_hex(patch.get_facecolor()).upper()


@pytest.mark.parametrize("name", ["architecture", "architecture, one layer", "architecture, many"])
def test_bars_are_what_stays_of_what_there_was(name):
    table, figure = FIGURES[name]()
    assert len(figure.axes) == 2
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["heads kept", "neurons kept", "removed"]
    for axes, unit in zip(figure.axes, ("heads", "neurons"), strict=True):
        kept, of = table[f"{unit}_kept"], table[unit]
        assert axes.get_title() == f"{unit}: {kept.sum():,} of {of.sum():,}"
        assert len(axes.patches) == 2 * len(table)
        below, above = axes.patches[: len(table)], axes.patches[len(table) :]
        assert [bar.get_width() for bar in below] == of.tolist()
        assert [bar.get_width() for bar in above] == kept.tolist()
        assert {color_of(bar) for bar in below} == {GONE}
        assert GONE not in {color_of(bar) for bar in above}
        assert [bar.get_y() + bar.get_height() / 2 for bar in above] == pytest.approx(table["layer"].tolist())
        assert [text.get_text() for text in axes.texts] == [f"{count:,}" for count in kept]
        low, high = axes.get_ylim()
        assert low > high  # the first layer on top
        assert axes.get_yticks().tolist() == table["layer"].tolist()


@pytest.mark.parametrize("layers", [1, 2, 4, 6, 24])
def test_no_legend_lies_on_the_name_of_an_axis(layers):
    """ALBERT has one layer."""
    figure = architecture(plan(layers), "t")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # which alone puts the name of an axis below its numbers
    renderer = canvas.get_renderer()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    boxes = [text.get_window_extent(renderer) for drawn in legends for text in drawn.get_texts()]
    assert boxes
    for axes in figure.axes:
        words = [word for word in (axes.xaxis.label, *axes.get_xticklabels()) if word.get_text()]
        handles = [patch.get_window_extent(renderer) for drawn in legends for patch in drawn.get_patches()]
        assert not any(word.get_window_extent(renderer).overlaps(box) for word in words for box in [*boxes, *handles])


@pytest.mark.parametrize("name", ["scores", "scores, questions", "scores, not recovered"])
def test_points_are_scores_of_the_test_part(name):
    table, figure = FIGURES[name]()
    left, right = figure.axes
    test = table[table["part"] == "test"].reset_index(drop=True)
    score = "f1" if "f1" in table else "accuracy"
    shown = [model for model in NAMES if model in set(test["model"])]
    assert [tick.get_text() for tick in left.get_yticklabels()] == [NAMES[model] for model in shown]
    for axes, column in ((left, "kl"), (right, score)):
        found = set()
        for drawn in axes.containers:
            [value], [at] = drawn[0].get_data()
            stage = next(s for s, (_, color, _) in STAGE_STYLES.items() if color == drawn[0].get_color())
            found.add((shown[round(float(at))], stage, round(float(value), 9)))
            row = test[(test["model"] == shown[round(float(at))]) & (test["stage"] == stage)].iloc[0]
            if f"{column}_low" in test:
                [[(low, _), (high, _)]] = drawn[2][0].get_segments()
                assert (low, high) == pytest.approx((row[f"{column}_low"], row[f"{column}_high"]))
            else:
                assert not drawn[2]
        expected = test[test[column] > 0]  # the dense model's own divergence is zero, for which there is no place
        assert found == {(r["model"], r["stage"], round(r[column], 9)) for r in expected.to_dict("records")}
    assert left.get_xscale() == "log"
    dense = test[(test["model"] == "dense") & (test["stage"] == "surgery")][score].iloc[0]
    [line] = [line for line in right.get_lines() if line.get_label() == "dense, before"]
    assert set(line.get_xdata()) == {dense}
    recovered = ["after recovery"] if "recovery" in set(test["stage"]) else []
    assert legend(figure) == ["after surgery", *recovered, "dense, before"]
    assert right.get_title() == ("F1" if score == "f1" else "Accuracy")


def test_a_model_that_lost_nothing_is_drawn():
    """Budget 1: no divergence that a logarithmic scale could show."""
    table = scores(("dense", "pruned"), recovered=False).assign(kl=0.0, kl_low=0.0, kl_high=0.0)
    figure = scores_figure(table, NAMES, "t")
    assert len(figure.axes[0].containers) == 0
    assert len(figure.axes[1].containers) == 2
    assert collisions(figure) == []


def test_removed_heads_are_crossed_out():
    for without in ((), (2,)):
        table = units(without_heads=without)
        figure = head_scores(table, "t")
        axes = next(axes for axes in figure.axes if axes.get_xlabel() == "head (× removed)")
        heads = table[table["kind"] == "attention"]
        layers = sorted(set(heads["layer"]))
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [str(layer) for layer in layers]
        gone = heads[~heads["kept"]]
        assert len(gone)
        crosses = {(layers[int(text.get_position()[1])], int(text.get_position()[0])) for text in axes.texts}
        assert {text.get_text() for text in axes.texts} == {"×"}
        assert len(axes.texts) == len(gone)
        assert crosses == set(zip(gone["layer"], gone["unit"], strict=True))
        values = heads.pivot(index="layer", columns="unit", values="score").to_numpy()
        floor = values[values > 0].min()
        np.testing.assert_allclose(axes.images[0].get_array(), np.log10(np.maximum(values, floor)))
        image = np.asarray(axes.images[0].get_array())
        for text in axes.texts:  # legible on its cell
            column, row = (int(place) for place in text.get_position())
            red, green, blue, _ = axes.images[0].cmap(axes.images[0].norm(image[row, column]))
            luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
            assert abs(luminance - (0 if text.get_color() == "black" else 1)) > 0.3


def test_heads_that_an_earlier_pruning_took_have_no_cell():
    """Layers of different widths: neither a colour nor a cross."""
    table = units(3, 4)
    table = table[~((table["kind"] == "attention") & (table["layer"] == 2) & (table["unit"] >= 1))]
    axes = head_scores(table, "t").axes[0]
    heads = table[table["kind"] == "attention"]
    assert len(axes.texts) == (~heads["kept"]).sum()
    assert np.isfinite(np.ma.filled(axes.images[0].get_array(), np.nan)).sum() == len(heads)


def test_lines_are_sorted_scores_with_a_dot_where_what_stays_begins():
    table, figure = FIGURES["neurons"]()
    [axes] = figure.axes
    neurons = table[table["kind"] == "ffn"]
    floor = neurons.loc[neurons["score"] > 0, "score"].min()
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    dots = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert axes.get_yscale() == "log"
    for line, dot, label, (layer, of) in zip(drawn, dots, labels, neurons.groupby("layer"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.maximum(np.sort(of["score"]), floor))
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, 65) / 64)
        assert dot.get_ydata()[0] == of.loc[of["kept"], "score"].min()
        assert dot.get_xdata()[0] == pytest.approx(((~of["kept"]).sum() + 1) / 64)
        assert dot.get_color() == line.get_color()
        assert label == f"layer {layer}: {of['kept'].mean():.0%} stay"
    many = FIGURES["neurons, many"]()[1].axes[0].get_lines()
    lines_of_layers = [line for line in many if line.get_label().startswith("layer")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines_of_layers}) == 24


def test_a_layer_that_keeps_all_neurons_has_no_dot():
    table = units(2)
    table.loc[table["layer"] == 1, "kept"] = True
    axes = neuron_scores(table, "t").axes[0]
    assert len([line for line in axes.get_lines() if len(line.get_xdata()) == 1]) == 1


@pytest.mark.parametrize("name", ["latency", "latency, one"])
def test_times_are_ratios_with_their_intervals(name):
    table, figure = FIGURES[name]()
    [axes] = figure.axes
    rows = table[table["model"] == "pruned"]
    backends = list(dict.fromkeys(rows["backend"]))
    assert legend(figure) == [f"{backend} (cpu)" for backend in backends]
    shapes = [tick.get_text() for tick in axes.get_yticklabels()]
    assert shapes == [
        f"{t} × {n} tokens" for t, n in dict.fromkeys(zip(rows["batch_size"], rows["sequence_length"], strict=True))
    ]
    assert len(axes.containers) == len(backends)
    for drawn, backend in zip(axes.containers, backends, strict=True):
        of = rows[rows["backend"] == backend]
        np.testing.assert_allclose(drawn[0].get_xdata().astype(float), of["ratio"])
        assert [round(y) for y in drawn[0].get_ydata()] == list(range(len(of)))
        segments = np.array(drawn[2][0].get_segments())[:, :, 0].astype(float)
        np.testing.assert_allclose(segments, of[["ratio_low", "ratio_high"]])
    assert any(set(line.get_xdata()) == {1} for line in axes.get_lines())
    low, high = axes.get_xlim()
    assert low == 0
    assert high > 1
    assert panels(figure)
