"""Figures of sweeps: what stands in them is what stands in the tables."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba

from bertdyn.plots.style import COLORS
from bertdyn.plots.sweeps import REFERENCE_WORDS, front_history, history, importance, parallel_coordinates, pareto
from tests.plots.drawing import collisions, lines

pytestmark = pytest.mark.filterwarnings("error")

ORIGINS = ("unpruned", "uniform 0.1", "uniform 0.5", "System 4, linear", "System 4, published")
LABEL = "KL(dense ‖ pruned) on validation, nats"


# Made-up tables in the shape of the real ones ------------------------------------------------------------------------


def trials(count=40, layers=6, stopped=0.2, infeasible=0.0, scale=1.0):
    draw = np.random.default_rng(0)
    table = pd.DataFrame({"number": range(count)})
    table["state"] = np.where(draw.random(count) < stopped, "pruned", "complete")
    table.loc[table["number"] % 13 == 12, "state"] = "fail"
    table["origin"] = [ORIGINS[i] if i < len(ORIGINS) else "sampler" for i in range(count)]
    table.loc[: len(ORIGINS) - 1, "state"] = "complete"
    table["feasible"] = draw.random(count) >= infeasible
    table["cost"] = draw.uniform(0.2, 1, count)
    table["kl"] = scale * np.exp(-6 * table["cost"] + draw.normal(size=count))
    table.loc[0, ["cost", "kl"]] = 1.0, 0.0
    table.loc[table["state"] == "fail", "kl"] = np.nan
    table["loss"] = 0.3 + table["kl"] / 10
    table["score"] = 0.9 - table["cost"] / 10
    for layer in range(1, layers + 1):
        table[f"param/ffn_threshold_{layer:02d}"] = draw.random(count)
    table["param/criterion"] = draw.choice(["fisher", "wanda", "activation_change"], count)
    table["param/freeze_embeddings"] = draw.random(count) < 0.5
    table["param/compensation"] = "mean"  # all alike: nothing to see
    return table


def front_of(table):
    done = table[table["state"] == "complete"].sort_values(["cost", "kl"])
    return done.loc[done["kl"] < done["kl"].cummin().shift(fill_value=np.inf), "number"].tolist()


def references(winner=(0.6, 0.02)):
    rows = []
    for name, (cost, kl) in {"winner": winner, "uniform": (0.59, 0.05), "divided": (0.6, 0.03)}.items():
        rows += [
            {"name": name, "part": part, "cost": cost, "kl": kl * by} for part, by in (("validation", 1), ("test", 7))
        ]
    return pd.DataFrame(rows)


def importances(values=("kl", "flops"), layers=6):
    draw = np.random.default_rng(0)
    names = [f"{kind}_threshold_{i:02d}" for kind in ("attention", "ffn") for i in range(1, layers + 1)]
    found = []
    for value in values:
        share = draw.dirichlet(np.ones(len(names)))
        found.append(pd.DataFrame({"value": value, "parameter": draw.permutation(names), "importance": share}))
    return pd.concat(found, ignore_index=True)


def drawn_history(higher=False, label=LABEL, title="t", **options):
    table = trials(**options)
    return table, history(table, "score" if higher else "loss", higher, label, title)


def drawn_front_history(title="t", **options):
    """The area rises, by some trials and never back."""
    table = trials(stopped=0, **options).query("state == 'complete'")
    gains = np.random.default_rng(1).exponential(size=len(table)) * (np.arange(len(table)) % 3 != 1)
    table["area"] = 0.9 * np.cumsum(gains) / gains.sum()
    table.loc[0, "area"] = 0.0  # the dense model costs all there is
    return table, front_history(table, ["kl", "flops"], title)


def drawn_pareto(title="t", **options):
    table = trials(stopped=0, **options)
    return table, pareto(table, front_of(table), references(), "flops", title, "no training after the cut")


def drawn_coordinates(higher=False, title="t", **options):
    table = trials(**options)
    return table, parallel_coordinates(table, "score" if higher else "kl", higher, LABEL, title)


FIGURES = {
    "history": cache(lambda: drawn_history(title="Trials: sst2-minilm-s0")),
    "history, high": cache(lambda: drawn_history(higher=True, infeasible=0.4)),
    "history, many": cache(lambda: drawn_history(count=400, infeasible=0.2)),
    "history, few": cache(lambda: drawn_history(count=1)),
    "front": cache(lambda: drawn_front_history("Trials: sst2-minilm-s0")),
    "front, many": cache(lambda: drawn_front_history(count=400)),
    "front, few": cache(lambda: drawn_front_history(count=2)),
    "pareto": cache(lambda: drawn_pareto(title="What can be had at which cost: sst2-minilm-s0")),
    "pareto, many": cache(lambda: drawn_pareto(count=400)),
    "pareto, few": cache(lambda: drawn_pareto(count=2)),
    "coordinates": cache(lambda: drawn_coordinates(title="What trials chose: sst2-minilm-s0")),
    "coordinates, high": cache(lambda: drawn_coordinates(higher=True)),
    "coordinates, deep": cache(lambda: drawn_coordinates(layers=24)),
    "coordinates, one": cache(lambda: drawn_coordinates(count=2, layers=1, stopped=0)),
    "importances": cache(lambda: (table := importances(), importance(table, "What matters: sst2-minilm-s0"))),
    "importances, one value": cache(lambda: (table := importances(("loss",), 3), importance(table, "t"))),
    "importances, deep": cache(lambda: (table := importances(layers=24), importance(table, "t"))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_on_anything_else(name):
    assert collisions(FIGURES[name]()[1]) == []


@pytest.mark.parametrize("name", FIGURES)
def test_everything_can_be_drawn(name):
    """In one go, without a warning, and the legend beside the axes is on the page."""
    figure = FIGURES[name]()[1]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        drawn = axes.get_legend()
        if drawn:
            box = drawn.get_window_extent(canvas.get_renderer())
            assert box.x0 >= axes.get_window_extent(canvas.get_renderer()).x1
            assert box.x1 <= figure.bbox.x1 + 1


def points(axes, label):
    [found] = lines(axes)[label]
    return {(float(x), round(float(y), 9)) for x, y in found}


def rows(table, x, y):
    return {(float(a), round(float(b), 9)) for a, b in zip(table[x], table[y], strict=True)}


# One trial after the other -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["history", "history, high", "history, many"])
def test_every_trial_is_drawn_once_and_as_what_it_was(name):
    table, figure = FIGURES[name]()
    value, higher = ("score", True) if name.endswith("high") else ("loss", False)
    [axes] = figure.axes
    done = table[table["state"] == "complete"]
    groups = {
        "chosen by the sampler": done[done["feasible"] & (done["origin"] == "sampler")],
        "tried first": done[done["feasible"] & (done["origin"] != "sampler")],
        "above the budget": done[~done["feasible"]],
    }
    for words, of in groups.items():
        if len(of):
            assert points(axes, f"{words} ({len(of)})") == rows(of, "number", value)
    stopped = table[table["state"] == "pruned"]
    [marks] = lines(axes)[f"stopped early ({len(stopped)})"]
    assert marks[:, 0].tolist() == stopped["number"].tolist()
    assert len(set(marks[:, 1])) == 1  # what they came to is no result
    best, [steps] = None, lines(axes)["best so far"]
    for number, so_far in steps:
        [row] = done[done["number"] == number].to_dict("records")
        assert row["feasible"]
        best = row[value] if best is None else (max if higher else min)(best, row[value])
        assert so_far == best
    assert steps[:, 0].tolist() == sorted(done.loc[done["feasible"], "number"])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    expected = [f"{words} ({len(of)})" for words, of in groups.items() if len(of)]
    assert labels == [*expected, "best so far", f"stopped early ({len(stopped)})"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("trial", LABEL)


def test_wide_values_have_a_logarithmic_axis():
    def scale(values, higher=False):
        table = pd.DataFrame({"number": range(len(values)), "state": "complete", "origin": "sampler", "feasible": True})
        return history(table.assign(kl=values), "kl", higher, LABEL, "t").axes[0].get_yscale()

    assert scale([0.01, 1.0]) == "log"
    assert scale([0.1, 1.0]) == "linear"
    assert scale([0.0, 0.01, 1.0]) == "linear"  # zero has no place on the other
    assert scale([0.01, 1.0], higher=True) == "linear"


def test_a_study_of_which_nothing_came_to_its_end():
    table = trials(count=6).assign(state="pruned")
    figure = history(table, "loss", False, LABEL, "t")
    assert list(lines(figure.axes[0])) == ["stopped early (6)"]
    assert collisions(figure) == []


@pytest.mark.parametrize("name", ["front", "front, many", "front, few"])
def test_the_front_advances_where_a_trial_gained(name):
    table, figure = FIGURES[name]()
    [axes] = figure.axes
    [steps] = lines(axes)["front so far"]
    np.testing.assert_allclose(steps, table[["number", "area"]])
    gained = table[table["area"] > table["area"].shift(fill_value=0.0)]
    groups = {
        "gained by the sampler": gained[gained["origin"] == "sampler"],
        "gained by what was tried first": gained[gained["origin"] != "sampler"],
    }
    for words, of in groups.items():
        if len(of):
            assert points(axes, f"{words} ({len(of)})") == rows(of, "number", "area")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["front so far", *(f"{words} ({len(of)})" for words, of in groups.items() if len(of))]
    assert axes.get_title() == "hypervolume of kl and flops below the worst of the first ten trials"


# Cost and nearness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pareto", "pareto, many", "pareto, few"])
def test_the_front_and_what_stands_beside_the_winner(name):
    table, figure = FIGURES[name]()
    [axes] = figure.axes
    done = table[table["state"] == "complete"]
    floor = done.loc[done["kl"] > 0, "kl"].min() / 2
    shown = done.assign(kl=done["kl"].clip(lower=floor))  # a model that says the same has a place, too
    groups = {
        "chosen by the sampler": "sampler",
        "System 4's lists": "System 4",
        "uniform thresholds, tried first": "uniform",
        "unpruned (KL 0)": "unpruned",
    }
    count = 0
    for words, origin in groups.items():
        of = shown[shown["origin"].str.startswith(origin)]
        count += len(of)
        if len(of):
            assert points(axes, words) == rows(of, "cost", "kl")
    assert count == len(done)
    best = shown.set_index("number").loc[front_of(table)]
    [line] = lines(axes)["front"]
    np.testing.assert_allclose(line, best[["cost", "kl"]])
    assert (np.diff(line[:, 0]) > 0).all()
    assert (np.diff(line[:, 1]) < 0).all()
    compared = references().query("part == 'validation'").set_index("name")
    for reference, words in REFERENCE_WORDS.items():
        expected = compared.loc[reference]
        assert points(axes, words) == {(expected["cost"], round(max(expected["kl"], floor), 9))}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    present = [words for words, origin in groups.items() if shown["origin"].str.startswith(origin).any()]
    assert labels == [*present, "front", *(REFERENCE_WORDS[n] for n in ("winner", "uniform", "divided"))]
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "encoder flops, share of the dense model's"
    low, high = axes.get_ylim()
    assert low < floor
    assert shown["kl"].max() < high


def test_a_winner_that_says_what_the_dense_model_says_is_drawn():
    table = trials(count=5, stopped=0).assign(kl=0.0)
    figure = pareto(table, [0], references((1.0, 0.0)), "flops", "t", "n")
    assert collisions(figure) == []
    [(_, y)] = lines(figure.axes[0])["the winner"][0]
    assert y > 0


# What trials chose ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coordinates", "coordinates, high", "coordinates, deep"])
def test_a_line_goes_through_what_its_trial_chose(name):
    table, figure = FIGURES[name]()
    value, higher = ("score", True) if name.endswith("high") else ("kl", False)
    axes = figure.axes[0]
    done = table[table["state"] == "complete"]
    numbers = [column for column in table if column.startswith("param/ffn")]
    names = [*numbers, "param/criterion", "param/freeze_embeddings"]
    at = axes.get_xticks().tolist()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [n.removeprefix("param/") for n in names]
    assert len(at) == len(names)
    assert (np.diff(at) >= 1).all()
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) == len(names)]
    assert len(drawn) == len(done)
    # The better, the later drawn: the best lies on top.
    ordered = done.sort_values(value, ascending=higher)
    words = {"param/criterion": ["activation_change", "fisher", "wanda"], "param/freeze_embeddings": [False, True]}
    for line, row in zip(drawn, ordered.to_dict("records"), strict=True):
        assert line.get_xdata().tolist() == at
        expected = [(row[n] - done[n].min()) / (done[n].max() - done[n].min()) for n in numbers]
        expected += [of.index(row[n]) / (len(of) - 1) for n, of in words.items()]
        assert line.get_ydata() == pytest.approx(expected)
    colors = [to_hex(line.get_color()) for line in drawn]
    assert len(set(colors)) > 0.9 * len(set(ordered[value]))
    lightness = [np.dot(to_rgba(color)[:3], (0.2126, 0.7152, 0.0722)) for color in (colors[0], colors[-1])]
    assert lightness[0] > lightness[1]  # the better, the darker
    assert drawn[0].get_linewidth() < drawn[-1].get_linewidth()
    # Every axis says what its ends, or its places, are.
    texts = {(text.xy[0], round(text.xy[1], 3)): text.get_text() for text in axes.texts}
    for place, column in zip(at, names, strict=True):
        if column in words:
            marks = [texts[place, round(i / (len(words[column]) - 1), 3)] for i in range(len(words[column]))]
            assert marks == [str(word) for word in words[column]]
        else:
            assert texts[place, 0.0] == f"{done[column].min():.3g}"
            assert texts[place, 1.0] == f"{done[column].max():.3g}"
    scale = figure.axes[1]
    assert [tick.get_text() for tick in scale.get_yticklabels()] == ["worst", "best"]
    assert scale.get_ylabel() == f"rank by {LABEL}"


def test_the_scale_has_the_colours_of_the_lines():
    table, figure = FIGURES["coordinates"]()
    lines_of, scale = figure.axes
    done = table[table["state"] == "complete"]
    drawn = [line for line in lines_of.get_lines() if len(line.get_xdata()) > 2]
    assert scale.get_ylim() == (0, 1)
    shades = scale.collections[-1]  # a mesh from bottom to top, or what draws its values
    for line, share in ((drawn[-1], 1.0), (drawn[0], 1 / len(done))):
        assert to_hex(line.get_color()) == to_hex(shades.cmap(share))


def test_parameters_that_some_trials_do_not_have_leave_gaps():
    table = trials(count=10, stopped=0)
    table.loc[table["number"] >= 5, "param/ffn_threshold_02"] = np.nan
    figure = parallel_coordinates(table, "kl", False, LABEL, "t")
    axes = figure.axes[0]
    place = [tick.get_text() for tick in axes.get_xticklabels()].index("ffn_threshold_02")
    drawn = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    done = table[table["state"] == "complete"].dropna(subset=["kl"])
    assert len(drawn) == len(done)
    assert sum(np.isnan(line.get_ydata()[place]) for line in drawn) == (done["number"] >= 5).sum()


# What matters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["importances", "importances, one value", "importances, deep"])
def test_bars_are_importances(name):
    table, figure = FIGURES[name]()
    values = list(dict.fromkeys(table["value"]))
    assert [axes.get_title() for axes in figure.axes] == [f"of {value}" for value in values]
    order = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert sorted(order) == sorted(set(table["parameter"]))
    most = table.groupby("parameter")["importance"].max()
    assert [most[parameter] for parameter in order] == sorted(most)  # what matters most on top
    for axes, value in zip(figure.axes, values, strict=True):
        of = table[table["value"] == value].set_index("parameter")["importance"]
        bars = {order[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axes.patches}
        assert bars == pytest.approx(of.to_dict())
        low, high = axes.get_ylim()
        assert low < high
    colors = [to_hex(axes.patches[0].get_facecolor()) for axes in figure.axes]
    assert colors == [color.lower() for color in (COLORS[0], COLORS[2])[: len(colors)]]


def test_a_parameter_that_only_one_value_depends_on_has_no_bar_in_the_other():
    table = importances(layers=2)
    table = table[~((table["value"] == "flops") & (table["parameter"] == "ffn_threshold_01"))]
    first, second = importance(table, "t").axes
    order = [tick.get_text() for tick in first.get_yticklabels()]
    widths = [bar.get_width() for bar in second.patches]
    assert len(widths) == len(order) == 4
    assert widths[order.index("ffn_threshold_01")] == 0
    assert all(bar.get_width() > 0 for bar in first.patches)
