"""What pruning leaves of each layer, at what price; and what a sweep says can be had at which cost."""

import streamlit as st

from explorer import artifacts, sweep
from explorer.page import absent, picture, run_of
from explorer.runs import Family, RunInfo

FIGURES = {
    "architecture": "What stays of each layer",
    "scores": "Nearness to the dense model, on the test part",
    "latency": "Time of a batch, pruned / dense",
    "head_scores": "Scores of heads",
    "neuron_scores": "Scores of neurons",
}
"""Figures that a run draws, and what they are called here."""
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
    if artifacts.table(run, "plan") is None:
        absent(run, "plan: its seeds are runs of their own" if family.of("prune")[1:] else "plan")
        return
    _costs(run)
    for name, title in FIGURES.items():
        figure = artifacts.figure(run, name)
        if figure is not None:
            st.subheader(title)
            picture(figure, title)


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
