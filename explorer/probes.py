"""What probes read off each layer of each state, beside their baselines."""

from collections.abc import Callable

import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from bertdyn.plots.layers import state_name
from bertdyn.plots.probe_differences import paired_figure, transfer_by_layer
from bertdyn.plots.probing import code_lengths, score_heatmaps, scores_by_layer, selectivity_by_layer
from bertdyn.plots.span_probes import span_heatmaps, span_scores_by_layer
from explorer import artifacts
from explorer.page import absent, picture, png, run_of
from explorer.runs import Family, RunInfo

RANDOM = "random_init"
SPAN = "span"
MORE = {
    "heat maps": "State by state",
    "paired": "What fine-tuning changes, with paired tests",
    "selectivity": "Better than on labels that mean nothing",
    "code length": "How easily it is read off: code length",
    "transfer": "Probes of one state on another",
}


def page(family: Family) -> None:
    """Draw the page."""
    run = run_of(family, "probe")
    if run is None:
        return
    probes = artifacts.table(run, "probes")
    if probes is None:
        absent(run, "scores")
        return
    left, right = st.columns(2)
    targets = list(dict.fromkeys(probes["target"]))
    target = left.selectbox("Target", targets)
    states = _states(probes)
    chosen = right.multiselect("States", states, default=states, format_func=state_name)
    if not chosen:
        st.info("Choose a state.")
        return
    order = tuple(state for state in states if state in chosen)
    st.subheader("What each layer knows, beside its baselines")
    picture(_figure(run, "scores", target, order), f"Scores of {target} by layer and state, with baselines")
    st.subheader("More of it")
    there = _there(run, probes, target, len(order))
    what = st.selectbox("What", there, format_func=MORE.__getitem__, label_visibility="collapsed")
    picture(_figure(run, what, target, order), MORE[what])
    with st.expander("As a table"):
        shown = probes[(probes["target"] == target) & (probes["state"].isin(order) | probes["layer"].isna())]
        st.dataframe(shown, hide_index=True)


def _states(probes: pd.DataFrame) -> list[str]:
    there = probes.dropna(subset=["layer"])["state"]
    return [state for state in dict.fromkeys(there) if state and state != RANDOM]


def _there(run: RunInfo, probes: pd.DataFrame, target: str, num_states: int) -> list[str]:
    """What can be drawn of a target, beside its scores by layer."""
    own = probes[probes["target"] == target]
    if target == SPAN:
        return ["heat maps"]
    paired = artifacts.table(run, "paired_tests")
    known = {
        "heat maps": True,
        "paired": paired is not None and ((paired["target"] == target) & (paired["kind"] == "states")).any(),
        "selectivity": "selectivity" in set(own["metric"]),
        "code length": "compression" in set(own["metric"]),
        "transfer": artifacts.table(run, "transfer") is not None and num_states > 1,
    }
    return [what for what, is_there in known.items() if is_there]


@st.cache_data(show_spinner="Drawing …")
def _figure(run: RunInfo, what: str, target: str, states: tuple[str, ...]) -> bytes:
    """One figure of one target."""

    def of_target(table: str) -> pd.DataFrame:
        found = artifacts.table(run, table)
        assert found is not None
        return found[found["target"] == target]

    probes = of_target("probes")
    is_span = target == SPAN
    if is_span:
        probes = probes[probes["state"].isin([*states, RANDOM, ""])]
    drawn: dict[str, Callable[[], Figure]] = {
        "scores": lambda: (
            span_scores_by_layer(probes, run.name) if is_span else scores_by_layer(probes, states, target, run.name)
        ),
        "heat maps": lambda: (
            span_heatmaps(probes, states, run.name) if is_span else score_heatmaps(probes, states, run.name)
        ),
        "paired": lambda: paired_figure(of_target("paired_tests"), run.name),
        "selectivity": lambda: selectivity_by_layer(probes, states, run.name),
        "code length": lambda: code_lengths(probes, states, run.name),
        "transfer": lambda: transfer_by_layer(of_target("transfer"), states, run.name),
    }
    return png(drawn[what]())
