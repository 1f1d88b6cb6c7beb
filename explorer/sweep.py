"""The trials of a sweep over pruning thresholds, cost against nearness; a click on one leads to its run."""

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from bertdyn.plots.pruning import architecture
from bertdyn.plots.style import COLORS
from bertdyn.plots.sweeps import REFERENCE_WORDS
from bertdyn.tracking.store import connect, find_run
from explorer import artifacts
from explorer.page import absent, code, identity, picture, png, run_of
from explorer.runs import Family, RunInfo, load_run

KINDS = {  # of a trial → colour, shape
    "front": (COLORS[0], "circle"),
    "chosen by the sampler": (COLORS[4], "circle"),
    "tried first": (COLORS[5], "square"),
    "unpruned (KL 0)": (COLORS[7], "cross"),
    REFERENCE_WORDS["uniform"]: (COLORS[1], "square"),
    REFERENCE_WORDS["divided"]: (COLORS[2], "diamond"),
    REFERENCE_WORDS["winner"]: (COLORS[6], "triangle-up"),
}
CHART = "trials"
HEIGHT = 460


def show(family: Family) -> None:
    """Draw it."""
    run = run_of(family, "sweep-pruning")
    if run is None:
        return
    trials = artifacts.table(run, "trials")
    if trials is None:
        absent(run, "table of its trials: it is written at the end")
        return
    points = _points(run, trials)
    of = artifacts.record(run, "config.json")["budget_of"].replace("flops", "FLOPs")
    st.subheader("What can be had at which cost")
    st.caption("Click a trial to see its run. Of validation; the nearer to the lower left corner, the better.")
    chart = _chart(points, f"encoder {of}, share of the dense model's")
    event = st.altair_chart(chart, height=HEIGHT, on_select="rerun", key=CHART)
    picked = event["selection"].get("picked") or []
    if picked:
        _trial(picked[0]["run_id"], trials)
    else:
        st.info("No trial is chosen.")
    with st.expander("All trials as a table"):
        st.dataframe(trials, hide_index=True)


def _points(run: RunInfo, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a trial that came to its end, and one a reference: kind, cost, kl, name, run_id."""
    done = trials[(trials["state"] == "complete") & trials["feasible"]]
    front = artifacts.table(run, "pareto")
    numbers = set(front["number"]) if front is not None else set()
    words = {"sampler": "chosen by the sampler", "unpruned": "unpruned (KL 0)"}
    kinds = done["origin"].map(words).fillna("tried first")
    kinds = kinds.where(~done["number"].isin(numbers), "front")
    points = pd.DataFrame(
        {
            "kind": kinds,
            "cost": done["noted/cost"],
            "kl": done["noted/kl"],
            "name": "trial " + done["number"].astype(str),
            "origin": done["origin"],
            "run_id": done["run_id"].fillna(""),
        }
    )
    references = artifacts.table(run, "references")
    if references is not None:
        rows = references[references["part"] == "validation"]
        words = rows["name"].map(REFERENCE_WORDS)
        more = pd.DataFrame({"kind": words, "cost": rows["cost"], "kl": rows["kl"], "name": words})
        points = pd.concat([points, more.assign(origin="", run_id="")], ignore_index=True)
    positive = points.loc[points["kl"] > 0, "kl"]
    floor = float(positive.min()) / 2 if len(positive) else 1e-6  # where a model that says the same is drawn
    return points.assign(shown_kl=points["kl"].clip(lower=floor))


def _chart(points: pd.DataFrame, cost: str) -> alt.LayerChart | alt.FacetChart:
    there = [kind for kind in KINDS if kind in set(points["kind"])]
    picked = alt.selection_point(name="picked", fields=["run_id"], on="click", nearest=True, empty=False)
    x = alt.X("cost:Q", title=cost, scale=alt.Scale(zero=False))
    y = alt.Y("shown_kl:Q", title="KL(dense ‖ pruned), nats", scale=alt.Scale(type="log"))
    legend = alt.Legend(orient="bottom", columns=4, labelLimit=0, symbolSize=140)
    by_kind: dict[str, Any] = {"shorthand": "kind:N", "title": None, "sort": there, "legend": legend}
    color = alt.Color(**by_kind, scale=alt.Scale(domain=there, range=[KINDS[kind][0] for kind in there]))
    shape = alt.Shape(**by_kind, scale=alt.Scale(domain=there, range=[KINDS[kind][1] for kind in there]))
    tooltip = ["name", "origin", alt.Tooltip("cost:Q", format=".3f"), alt.Tooltip("kl:Q", format=".4f")]
    front = alt.Chart(points[points["kind"] == "front"]).mark_line(interpolate="step-after", color=COLORS[0])
    mark: dict[str, Any] = {"filled": True, "opacity": 0.9, "strokeWidth": 1, "stroke": "white"}
    look = {"x": x, "y": y, "color": color, "shape": shape, "tooltip": tooltip}
    # Below the trials and larger: the winner is one of them.
    references = alt.Chart(points[points["run_id"] == ""]).mark_point(**mark, size=450).encode(**look)
    trials = alt.Chart(points[points["run_id"] != ""]).mark_point(**mark).encode(**look)
    trials = trials.encode(
        size=alt.condition(picked, alt.value(400), alt.value(140)),
        stroke=alt.condition(picked, alt.value("black"), alt.value("white")),
    )
    return alt.layer(front.encode(x, y), references, trials.add_params(picked))


def _trial(run_id: str, trials: pd.DataFrame) -> None:
    """The run of one trial: what it chose, what came out, what is left of the model."""
    run = load_run(run_id)
    row = trials[trials["run_id"] == run_id].iloc[0]
    st.subheader(f"Trial {row['number']}")
    origin = "chosen by the sampler" if row["origin"] == "sampler" else f"tried first as {code(row['origin'])}"
    st.markdown(f"{code(run.name)} · {run.status.lower()} · {identity(run)} · {origin}")
    left, right = st.columns(2)
    chosen = {name.removeprefix("param/"): row[name] for name in trials if name.startswith("param/")}
    left.dataframe(_named(chosen, "chosen"), hide_index=True)
    found = find_run(connect(), run_id).data.metrics
    measured = {name: value for name, value in found.items() if not name.startswith("system/")}
    right.dataframe(_named(measured, "measured"), hide_index=True)
    try:
        picture(_architecture(run), "Heads and neurons that stay, layer by layer")
    except FileNotFoundError:
        absent(run, "plan")


def _named(values: dict, what: str) -> pd.DataFrame:
    known = {name: value for name, value in values.items() if not pd.isna(value)}
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in known.values()]
    return pd.DataFrame({what: list(known), "value": shown})


@st.cache_data(show_spinner="Drawing …")
def _architecture(run: RunInfo) -> bytes:
    from bertdyn.pruning.plan import load_plan  # with PyTorch and transformers

    plan = load_plan(artifacts.fetch(run, "plan.json"))
    return png(architecture(plan.table(), f"What stays of each layer: {run.name}"))
