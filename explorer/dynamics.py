"""What training moved, layer by epoch, and how the texts of the probe part part ways.

A run draws its figures when it is over; those are shown as they are, and drawn here while it is still going.
"""

from typing import NamedTuple

import altair as alt
import pandas as pd
import streamlit as st

from bertdyn.plots.layers import spread, state_name
from bertdyn.plots.style import COLORS
from bertdyn.plots.training import component_curves, dynamics_heatmaps, training_curves
from bertdyn.training.groups import by_group
from explorer import artifacts
from explorer.page import absent, picture, png, run_of
from explorer.runs import Family, RunInfo

SCORES = {"eval/accuracy": "accuracy", "eval/macro_f1": "macro F1", "eval/f1": "F1", "eval/has_ans_f1": "HasAns F1"}
"""Columns of the history that are drawn, where there are such."""
ROWS = {"first": "first token", "mean": "mean over the tokens"}
MAX_POINTS = 600
SIZE = 520
"""Height of the chart, pixels."""


def page(family: Family) -> None:
    """Draw the page."""
    run = run_of(family, "fine-tune")
    if run is None:
        return
    if artifacts.table(run, "dynamics") is None:
        absent(run, "dynamics: its seeds are runs of their own" if family.of("fine-tune")[1:] else "dynamics")
        return
    st.subheader("What moved, by layer and epoch")
    picture(
        artifacts.figure(run, "dynamics_by_layer") or _heat_maps(run),
        "Four heat maps, layer by epoch: distance, relative update, gradient norm, weight norm",
    )
    st.subheader("How the texts part ways")
    _trajectory(run)
    if artifacts.table(run, "history") is not None:
        st.subheader("Loss and validation score")
        picture(
            artifacts.figure(run, "training_curves") or _curves(run),
            "Loss and validation score by epoch, beside the baselines",
        )
    st.subheader("What moved, by component")
    picture(
        artifacts.figure(run, "dynamics_by_component") or _components(run),
        "Distance from the start and gradient norm by epoch, one line a component",
    )


@st.cache_data(show_spinner="Drawing …")
def _heat_maps(run: RunInfo) -> bytes:
    return png(dynamics_heatmaps(by_group(_table(run, "dynamics")), run.name))


@st.cache_data(show_spinner="Drawing …")
def _components(run: RunInfo) -> bytes:
    return png(component_curves(_table(run, "dynamics"), run.name))


@st.cache_data(show_spinner="Drawing …")
def _curves(run: RunInfo) -> bytes:
    history, scores = _table(run, "history"), artifacts.table(run, "scores")
    drawn = {column: name for column, name in SCORES.items() if column in history}
    baselines = {}
    if scores is not None:
        main = "accuracy" if "accuracy" in scores else "f1"
        rows = scores[(scores["part"] == "validation") & (scores["baseline"] != "none")]
        baselines = dict(zip(rows["baseline"], rows[main], strict=True))
    states = artifacts.record(run, "checkpoints/manifest.json").get("states", {})
    best = int(str(states.get("best", "epoch_000")).rpartition("_")[2])
    return png(training_curves(history, drawn, baselines, best, run.name))


def _table(run: RunInfo, name: str) -> pd.DataFrame:
    table = artifacts.table(run, name)
    assert table is not None
    return table


class Trajectory(NamedTuple):
    """The same texts in all states, in one basis."""

    points: pd.DataFrame
    """example_id, text, label, state (its number), x, y."""
    centres: pd.DataFrame
    """label, state, x, y: means over all texts of a class."""
    explained: list[tuple[float, float]]
    """By state: share of its variance along x, and along y."""
    states: list[str]


def _trajectory(run: RunInfo) -> None:
    store = artifacts.open_store(run)
    if store is None:
        absent(run, "pooled features (`--store_features true` keeps them)")
        return
    kinds = [kind for kind in ROWS if kind in store.manifest.arrays]
    left, middle, right = st.columns([1, 1, 2])
    kind = left.selectbox("Vectors", kinds, format_func=ROWS.__getitem__)
    layers = [layer for layer in store.layers(kind) if layer > 0 or kind != "first"]  # the same first token everywhere
    layer = middle.selectbox("Layer", layers, index=len(layers) - 1)
    found = _projected(run, kind, layer)
    numbers = range(len(found.states))
    names = [state_name(state) for state in found.states]
    state = right.select_slider("Epoch", numbers, value=len(numbers) - 1, format_func=lambda n: names[n])
    x, y = found.explained[state]
    st.altair_chart(_chart(found, state), height=SIZE)
    st.caption(
        f"Layer {layer}, {ROWS[kind]}, {names[state]}: {x:.0%} of its variance across, {y:.0%} up. One PCA basis for "
        "all epochs, so that a point moves because its text moved. Lines: the centres of the classes since epoch 0."
    )


@st.cache_data(show_spinner="Projecting …")
def _projected(run: RunInfo, kind: str, layer: int) -> Trajectory:
    from bertdyn.geometry.pca import fixed_basis  # with scikit-learn, which takes a second

    store = artifacts.open_store(run)
    assert store is not None
    basis = fixed_basis([artifacts.store_array(run, store, kind, state, layer) for state in store.states])
    examples, names = store.examples(), store.manifest.label_names
    labels = [names[label] if 0 <= label < len(names) else "–" for label in examples["label"]]
    texts = examples[["example_id", "text"]].assign(label=labels)
    frames = [
        texts.assign(state=number, x=places[:, 0], y=places[:, 1]) for number, places in enumerate(basis.projections)
    ]
    points = pd.concat(frames, ignore_index=True)
    centres = points.groupby(["label", "state"], as_index=False)[["x", "y"]].mean()
    shown = points[points["example_id"].isin(spread(texts["example_id"].tolist(), MAX_POINTS))]
    explained = [(float(share[0]), float(share[1])) for share in basis.explained]
    return Trajectory(shown.assign(text=shown["text"].str[:200]), centres, explained, store.states)


def _chart(found: Trajectory, state: int) -> alt.LayerChart | alt.FacetChart:
    """The points of one state over the way of the centres up to it, on the scale of all states."""

    def axis(name: str, title: str) -> dict:
        low, high = found.points[name].min(), found.points[name].max()
        margin = 0.05 * (high - low) or 1.0
        return {"title": title, "scale": alt.Scale(domain=[low - margin, high + margin], nice=False)}

    x, y = alt.X("x:Q", **axis("x", "component 1")), alt.Y("y:Q", **axis("y", "component 2"))
    labels = sorted(found.centres["label"].unique())
    colors = alt.Scale(domain=labels, range=[COLORS[i % len(COLORS)] for i in range(len(labels))])
    color = alt.Color("label:N", scale=colors, title="class")
    shape = alt.Shape("label:N", title="class")
    points = alt.Chart(found.points[found.points["state"] == state]).mark_point(filled=True, size=28, opacity=0.5)
    way = alt.Chart(found.centres[found.centres["state"] <= state])
    line = way.mark_line(strokeWidth=2.5).encode(x, y, color, order="state:Q")
    ends = way.mark_point(filled=True, size=130, stroke="white", strokeWidth=1.5, opacity=1)
    return alt.layer(
        points.encode(x, y, color, shape, tooltip=["example_id", "label", "text"]),
        line,
        ends.encode(x, y, color, shape, tooltip=["label", alt.Tooltip("state:Q", title="epoch")]),
    )
