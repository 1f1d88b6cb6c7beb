"""What pruning leaves of each layer, at what price; and what a sweep says can be had at which cost."""

import streamlit as st

from bertdyn.plots.pruning import architecture, head_scores, latency_figure, neuron_scores, scores_figure
from explorer import artifacts, sweep
from explorer.page import absent, picture, png, report, run_of
from explorer.runs import Family, RunInfo

MODELS = {"dense": "unpruned", "pruned": "pruned", "random": "random units", "magnitude": "smallest weights"}
"""Model of a run's scores → what it is called here."""
FIGURES = {
    "architecture": ("plan", "What stays of each layer"),
    "scores": ("scores", "Nearness to the dense model, on the test part"),
    "latency": ("latency", "Time of a batch, pruned / dense"),
    "head_scores": ("unit_scores", "Scores of heads"),
    "neuron_scores": ("unit_scores", "Scores of neurons"),
}
"""Figure → the table that it is drawn from, and its title."""
COSTS = {
    "parameters": "parameters",
    "encoder_parameters": "encoder parameters",
    "encoder_flops": "encoder FLOPs",
    "file_bytes": "file",
    "model_memory_mb": "memory",
}
SWEEPS, PRUNED = "Sweeps: what can be had at which cost", "Pruned models"


def page(family: Family) -> None:
    """Draw the page."""
    there = [name for name, stages in ((PRUNED, ("prune",)), (SWEEPS, ("sweep-pruning",))) if family.of(*stages)]
    what = st.segmented_control(
        "Show", [PRUNED, SWEEPS], default=there[0] if there else PRUNED, required=True, label_visibility="collapsed"
    )
    if what == SWEEPS:
        sweep.show(family)
        return
    run = run_of(family, "prune")
    if run is None:
        return
    report(run)
    if artifacts.table(run, "plan") is None:
        absent(run, "plan: its seeds are runs of their own" if family.of("prune")[1:] else "plan")
        return
    _costs(run)
    for name, (table, title) in FIGURES.items():
        if artifacts.table(run, table) is not None:
            st.subheader(title)
            picture(_figure(run, name), title)


def _costs(run: RunInfo) -> None:
    """Each as a share of the dense model's."""
    costs = artifacts.table(run, "costs")
    if costs is None:
        return
    by_model = costs.set_index("model")
    there = [name for name in COSTS if name in costs]
    for column, name in zip(st.columns(len(there)), there, strict=True):
        dense, pruned = float(by_model.at["dense", name]), float(by_model.at["pruned", name])
        column.metric(COSTS[name], f"{pruned / dense:.1%}", help=f"of the dense model's {dense:,.0f}")


@st.cache_data(show_spinner="Drawing …")
def _figure(run: RunInfo, name: str) -> bytes:
    table = artifacts.table(run, FIGURES[name][0])
    assert table is not None
    if name == "scores":
        return png(scores_figure(table, MODELS, run.name))
    draw = {"architecture": architecture, "latency": latency_figure}
    draw |= {"head_scores": head_scores, "neuron_scores": neuron_scores}
    return png(draw[name](table, run.name))
