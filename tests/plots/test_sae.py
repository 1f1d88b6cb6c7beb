"""Figures of dictionaries: what stands in them is what stands in the tables."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ecdf

from bertdyn.errors import InputError
from bertdyn.plots.sae import plot_densities, plot_fidelity, plot_frontier, plot_sparse_probes
from bertdyn.plots.sae_fates import plot_cosines, plot_fates
from tests.plots.drawing import bands, collisions, legend, lines, panels

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.slow]  # many figures; `make check` stays short

TWO = ["pretrained", "best"]
MANY = ["pretrained", *(f"epoch_{i:03d}" for i in range(1, 10)), "best"]
LAYERS = (2, 4, 6)


# Made-up tables in the shape of the real ones ------------------------------------------------------------------------


def frontier(layers=LAYERS, states=TWO, rows=("content",), seeds=3):
    draw, found = np.random.default_rng(0), []

    def add(layer, state, seed, baseline, k, kind, fvu):
        noise = 1 + 0.03 * draw.standard_normal()
        found.append((layer, state, seed, baseline, k, kind, k * (1 - 0.01 * seed), fvu * noise, 1.2 * fvu * noise))

    for layer in layers:
        for kind in rows:
            for k in (8, 16, 32, 64):
                base = (0.5 + 0.02 * layer) * (8 / k) ** 0.5
                for i, state in enumerate(states):
                    for seed in range(seeds):
                        add(layer, state, seed, "none", k, kind, base * (1 - 0.04 * i))
                    add(layer, state, 0, "pca", k, kind, 1.4 * base * (1 - 0.05 * i))
                    add(layer, state, 0, "random_dictionary", k, kind, min(2 * base, 0.95))
                add(layer, "random_init", 0, "random_init", k, kind, 0.9 * base)
    return pd.DataFrame(
        found, columns=["layer", "state", "seed", "baseline", "k", "rows", "l0", "fvu", "fvu_standardized"]
    )


def densities(layers=LAYERS, states=TWO, latents=1536):
    draw, found = np.random.default_rng(0), []
    for layer in layers:
        for i, state in enumerate(states):
            density = 10 ** draw.normal(-2 - 0.1 * layer, 0.5, latents).clip(-5, 0)
            density[: int(latents * (0.02 + 0.03 * i))] = 0
            found.append(pd.DataFrame({"layer": layer, "state": state, "latent": range(latents), "density": density}))
    return pd.concat(found, ignore_index=True)


def fidelity(layers=LAYERS, states=("best",), places=("content", "first", "both"), seeds=3):
    draw, found = np.random.default_rng(0), []
    losses = {"dictionary": 0.02, "pca": 0.05, "random_dictionary": 0.2, "mean": 0.35, "zero": 0.45}
    for layer in layers:
        for state in states:
            for place, much in zip(places, (1, 0.5, 1.2), strict=False):
                for replacement, loss in losses.items():
                    for seed in range(seeds if replacement in ("dictionary", "random_dictionary") else 1):
                        lost = loss * much * (1 + 0.1 * draw.standard_normal()) * (1 + layer / 12)
                        row = (layer, state, place, replacement, seed, 0.92 - lost, 0.92, 1 - lost, 2 * lost**1.5)
                        found.append((*row, 1 - lost / 0.4, 1 - lost / 0.5))
    columns = "layer state where replacement seed accuracy accuracy_clean agreement kl recovered_mean recovered_zero"
    return pd.DataFrame(found, columns=columns.split())


def sparse_probes(layers=LAYERS, states=TWO):
    found = []
    for layer in layers:
        for i, state in enumerate([*states, "random_init"]):
            for j, basis in enumerate(("dictionary", "pca", "dimensions") if state in states else ("random_init",)):
                for size, gain in ((1, 0), (5, 0.08), (0, 0.15)):
                    value = (
                        0.56
                        if basis == "random_init"
                        else 0.6 + gain + 0.08 * layer / max(layers) + 0.1 * i / len(states) - 0.03 * j
                    )
                    found.append((layer, state, basis, size, value, value - 0.02, value + 0.02, 0.51))
    columns = "layer state basis size accuracy accuracy_low accuracy_high majority"
    return pd.DataFrame(found, columns=columns.split())


SHARES = {
    ("independent", "before"): {"kept": (0.6, 0.8), "rotated": (0.2, 0.08), "died": (0.2, 0.12)},
    ("independent", "after"): {"born": (0.25, 0.1), "kept": (0.6, 0.8), "rotated": (0.15, 0.1)},
    ("stagewise", "both"): {
        "born": (0.03, 0.01),
        "kept": (0.65, 0.93),
        "turned": (0.27, 0.05),
        "died": (0.05, 0.01),
        "unstable": (0.01, 0.01),
    },
    ("shared", "both"): {
        "born": (0.04, 0.01),
        "doubled": (0.17, 0.0),
        "kept": (0.64, 0.98),
        "halved": (0.12, 0.0),
        "died": (0.03, 0.01),
    },
}


def shares(layers=LAYERS, states=("best",), half=0.04):
    found = []
    for (comparison, side), fates in SHARES.items():
        for layer in layers:
            for i, state in enumerate(states):
                for fate, (share, floor) in fates.items():
                    share = floor + (share - floor) * (i + 1) / len(states) * layer / max(layers)
                    low = 0.5 * half
                    row = (comparison, layer, state, side, fate, share, share - low, share + half)
                    found.append((*row, floor, floor - low, floor + half))
    columns = "comparison layer state side fate share share_low share_high floor floor_low floor_high"
    return pd.DataFrame(found, columns=columns.split())


def fates(layers=LAYERS, states=("best",), latents=400):
    draw, found = np.random.default_rng(0), []
    for comparison, side, mean in (
        *(("independent", "before", 0.75), ("independent", "after", 0.2)),
        *(("stagewise", "both", 0.95), ("shared", "both", 1.0)),
    ):
        for layer in layers:
            for i, state in enumerate(states):
                floor = 1 - np.abs(draw.normal(0, 1 - mean, latents)).clip(0, 1)
                cosine = 1 - (1 - floor) * (1.2 + 0.3 * i) - 0.01 * layer * draw.random(latents)
                names = {"comparison": comparison, "side": side, "layer": layer, "state": state, "fate": "kept"}
                found.append(pd.DataFrame({"cosine": cosine, "floor_cosine": floor}).assign(**names))
    table = pd.concat(found, ignore_index=True)
    table["floor_fate"] = "kept"
    table.loc[table.index[::10], "fate"] = "died"
    table.loc[table.index[5::10], "floor_fate"] = "died"
    return table


FIGURES = {
    "frontier": cache(lambda: (table := frontier(), plot_frontier(table, "Sparsity, MiniLM on SST-2"))),
    "frontier, two kinds": cache(
        lambda: (table := frontier((2, 4), MANY, ("content", "first")), plot_frontier(table, "t"))
    ),
    "densities": cache(lambda: (table := densities(), plot_densities(table, "Densities, MiniLM on SST-2"))),
    "densities, many": cache(lambda: (table := densities(range(13), MANY), plot_densities(table, "t"))),
    "fidelity": cache(lambda: (table := fidelity(), plot_fidelity(table, "Fidelity, MiniLM on SST-2"))),
    "fidelity, many": cache(lambda: (table := fidelity(range(13), MANY), plot_fidelity(table, "t"))),
    "fidelity, one place": cache(lambda: (table := fidelity((4,), TWO, ("first",), 1), plot_fidelity(table, "t"))),
    "probes": cache(lambda: (table := sparse_probes(), plot_sparse_probes(table, "Sparse probes of the label"))),
    "probes, many": cache(lambda: (table := sparse_probes(range(13), MANY), plot_sparse_probes(table, "t"))),
    "fates": cache(lambda: (table := shares(), plot_fates(table, "What became of latents, MiniLM on SST-2"))),
    "fates, many": cache(lambda: (table := shares(range(1, 13), MANY[1:]), plot_fates(table, "t"))),
    "fates, one": cache(lambda: (table := shares((4,)), plot_fates(table[table["comparison"] == "shared"], "t"))),
    "fates, none stable": cache(
        lambda: (table := shares((2, 4)).query("comparison != 'independent' or layer == 4"), plot_fates(table, "t"))
    ),
    "cosines": cache(lambda: (table := fates(), plot_cosines(table, "Cosines, MiniLM on SST-2"))),
    "cosines, many": cache(lambda: (table := fates(range(1, 13), MANY[1:]), plot_cosines(table, "t"))),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_on_anything_else(name):
    assert collisions(FIGURES[name]()[1]) == []


# What stands in them -------------------------------------------------------------------------------------------------


def test_a_frontier_goes_through_the_means_of_its_seeds():
    table, figure = FIGURES["frontier"]()
    for layer in LAYERS:
        axes = panels(figure)[f"layer {layer}: content tokens"]
        assert axes.get_xscale() == "log"
        for state in TWO:
            rows = table[(table["layer"] == layer) & (table["state"] == state) & (table["baseline"] == "none")]
            means = rows.groupby("k")[["l0", "fvu_standardized"]].mean().to_numpy()
            line = next(line for line in axes.get_lines() if line.get_label() == state)
            np.testing.assert_allclose(line.get_xydata(), means)
            points = next(p for p in axes.collections if p.get_facecolor()[0, :3] == pytest.approx(_rgb(line)))
            np.testing.assert_allclose(points.get_offsets(), rows[["l0", "fvu_standardized"]])
            drawn = [other for other in axes.get_lines() if other.get_color() == line.get_color()]
            for other, baseline in zip(drawn[1:], ("pca", "random_dictionary"), strict=True):
                expected = table[
                    (table["layer"] == layer) & (table["state"] == state) & (table["baseline"] == baseline)
                ]
                np.testing.assert_allclose(other.get_xydata(), expected[["l0", "fvu_standardized"]])
        random = table[(table["layer"] == layer) & (table["baseline"] == "random_init")]
        np.testing.assert_allclose(axes.get_lines()[-1].get_xydata(), random[["l0", "fvu_standardized"]])
        assert len(axes.get_lines()) == 7
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    baselines = ["PCA with as many components", "random dictionary", "dictionary of a random encoder"]
    assert legend(figure) == [*TWO, *baselines]
    raw = plot_frontier(table, "t", "fvu").axes[0]
    assert raw.get_ylabel() == "FVU"
    chosen = table[(table["layer"] == 2) & (table["state"] == "best") & (table["baseline"] == "none")]
    np.testing.assert_allclose(lines(raw)["best"][0][:, 1], chosen.groupby("k")["fvu"].mean())


def _rgb(line):
    return tuple(int(line.get_color()[i : i + 2], 16) / 255 for i in (1, 3, 5))


def test_a_frontier_of_many_says_what_is_left_out():
    _, figure = FIGURES["frontier, two kinds"]()
    assert list(panels(figure)) == [f"layer {n}: {rows}" for rows in ("content tokens", "first token") for n in (2, 4)]
    assert figure.get_suptitle() == "t\n6 of 11 states"


def test_densities_are_shares_of_all_latents_and_the_dead_stand_apart():
    table, figure = FIGURES["densities"]()
    for layer, axes in zip(LAYERS, figure.axes, strict=True):
        for i, state in enumerate(TWO):
            density = table.loc[(table["layer"] == layer) & (table["state"] == state), "density"]
            shares, edges, _ = axes.patches[2 * i].get_data()
            bar = axes.patches[2 * i + 1]
            assert bar.get_height() == (density == 0).mean()
            assert bar.get_x() + bar.get_width() < edges[0]
            assert shares.sum() + bar.get_height() == pytest.approx(1)
            inside = (np.log10(density[density > 0]) >= edges[7]) & (np.log10(density[density > 0]) < edges[8])
            assert shares[7] == pytest.approx(inside.sum() / len(density))
        assert axes.get_xticklabels()[0].get_text() == "never"
    assert FIGURES["densities, many"]()[1].get_suptitle() == "t\n8 of 13 layers, 6 of 11 states"


def test_fidelity_has_agreement_above_and_kl_below():
    table, figure = FIGURES["fidelity"]()
    names = ["dictionary", "PCA with as many components", "random dictionary", "mean of all rows", "zeros"]
    assert legend(figure) == names
    assert list(panels(figure)) == [
        f"{p} replaced" for p in ("content tokens", "first token", "content and first token")
    ]
    for i, axes in enumerate(figure.axes):
        measure, where = ("agreement", "kl")[i // 3], ("content", "first", "both")[i % 3]
        drawn = lines(axes)
        for name, replacement in zip(names, ("dictionary", "pca", "random_dictionary", "mean", "zero"), strict=True):
            rows = table[(table["where"] == where) & (table["replacement"] == replacement)]
            np.testing.assert_allclose(drawn[name][0], rows.groupby("layer", as_index=False)[measure].mean())
        assert axes.get_yscale() == ("linear", "log")[i // 3]
    assert figure.legends[0].get_title().get_text() == "best; lines: means of 3 seeds, points: each"
    assert legend(FIGURES["fidelity, many"]()[1])[-3:] == ["pretrained", "epoch 4", "best"]


def test_sparse_probes_stand_with_the_random_encoder_and_the_majority():
    table, figure = FIGURES["probes"]()
    sizes = {1: "1 feature", 5: "5 features", 0: "all features"}
    assert list(panels(figure)) == [f"{state}: {name}" for state in TWO for name in sizes.values()]
    bases = {"dictionary": "latents of the dictionary", "pca": "principal components"}
    bases |= {"dimensions": "dimensions of the layer", "random_init": "latents of a random encoder's dictionary"}
    for axes, (state, size) in zip(figure.axes, ((s, n) for s in TWO for n in sizes), strict=True):
        drawn, drawn_bands = lines(axes), bands(axes)
        for band, (basis, name) in zip(drawn_bands, bases.items(), strict=True):
            of_state = "random_init" if basis == "random_init" else state
            rows = table[(table["state"] == of_state) & (table["basis"] == basis) & (table["size"] == size)]
            np.testing.assert_allclose(drawn[name][0], rows[["layer", "accuracy"]])
            np.testing.assert_allclose(band, rows[["accuracy_low", "accuracy_high"]])
        assert drawn["majority class"][0][:, 1] == pytest.approx(0.51)


def test_each_fate_stands_beside_its_floor():
    table, figure = FIGURES["fates"]()
    assert len(figure.axes) == 9
    assert legend(figure) == ["best", "floor"]
    shown = [
        (("independent", "before"), "born kept rotated died"),
        (("stagewise", "both"), "born kept turned died unstable"),
        (("shared", "both"), "born doubled kept halved died"),
    ]
    for i, (comparison, fates) in enumerate(shown):
        for j, layer in enumerate(LAYERS):
            axes = figure.axes[3 * i + j]
            assert [text.get_text() for text in axes.get_xticklabels()] == fates.split()
            solid, hatched = axes.containers[1], axes.containers[3]  # 0 and 2: their error bars
            assert not solid[0].get_hatch()
            assert hatched[0].get_hatch()
            of_layer = table[(table["comparison"] == comparison[0]) & (table["layer"] == layer)]
            of_layer = of_layer.set_index(["side", "fate"])
            for bar, floor, fate in zip(solid, hatched, fates.split(), strict=True):
                side = "after" if comparison[0] == "independent" and fate == "born" else comparison[1]
                assert bar.get_height() == of_layer.loc[(side, fate), "share"]
                assert floor.get_height() == of_layer.loc[(side, fate), "floor"]
                assert floor.get_x() == pytest.approx(bar.get_x() + bar.get_width())
            ends = axes.containers[0].lines[2][0].get_segments()[fates.split().index("kept")][:, 1]
            kept = of_layer.loc[(comparison[1], "kept")]
            np.testing.assert_allclose(ends, [kept["share_low"], kept["share_high"]])
    many = FIGURES["fates, many"]()[1]
    assert many.get_suptitle() == "t\n4 of 12 layers, 3 of 10 states"
    assert legend(many) == ["epoch 1", "epoch 5", "best", "floor"]
    assert "95 % intervals over seeds of dictionaries, of one fine-tuning" in note(figure)
    assert "independent: shares of stable latents" in note(figure)
    bare = table.assign(share_low=np.nan, share_high=np.nan, floor_low=np.nan, floor_high=np.nan)
    assert "intervals" not in note(plot_fates(bare, "t"))
    assert "turned: by more than 95 % of the floor's, however little" in note(figure)
    assert "stable" not in note(FIGURES["fates, one"]()[1])
    assert "turned" not in note(FIGURES["fates, one"]()[1])
    [first, second] = FIGURES["fates, none stable"]()[1].axes[:2]
    assert [text.get_text() for text in first.texts] == ["no stable latents"]
    assert not second.texts
    assert len(second.get_xticklabels()) == 4


def note(figure):
    return figure.legends[0].get_title().get_text()


def test_cosines_are_shares_of_latents_below():
    table, figure = FIGURES["cosines"]()
    titles = ["independent dictionaries", "one dictionary, continued"]
    assert list(panels(figure)) == [f"{title}\nlayer {n}" for title in titles for n in LAYERS]
    for i, axes in enumerate(figure.axes):
        comparison, side = (("independent", "before"), ("stagewise", "both"))[i // 3]
        rows = table[(table["comparison"] == comparison) & (table["side"] == side) & (table["layer"] == LAYERS[i % 3])]
        numbered = (rows["fate"] == "kept") & (rows["floor_fate"] == "kept")
        rows = rows[numbered | (comparison == "independent")]
        assert len(rows) == (400 if comparison == "independent" else 320)
        for name, column in (("best", "cosine"), ("floor", "floor_cosine")):
            expected = ecdf(rows[column]).cdf
            drawn = lines(axes)[name][0][1:]
            np.testing.assert_allclose(drawn, np.stack([expected.quantiles, expected.probabilities], axis=1))


def test_what_cannot_be_drawn_is_an_input_error():
    table = frontier(seeds=1)
    with pytest.raises(InputError, match="no fvu of a dictionary; the baselines pca, random_dictionary, random_init"):
        plot_frontier(table[table["baseline"] != "none"], "t", "fvu")
    with pytest.raises(InputError, match="none above 0"):
        plot_densities(densities().assign(density=0.0), "t")
    with pytest.raises(InputError, match="no replacement dictionary; the table has mean, zero"):
        plot_fidelity(fidelity().query("replacement in ('mean', 'zero')"), "t")
    with pytest.raises(InputError, match="no basis dictionary"):
        plot_sparse_probes(sparse_probes().query("basis == 'pca'"), "t")
    with pytest.raises(InputError, match="no latents of a state"):
        plot_cosines(fates().query("comparison == 'shared'"), "t")
