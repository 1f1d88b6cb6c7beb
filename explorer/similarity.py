"""How much each layer keeps from state to state, beside its controls, and how features lie within a state."""

import pandas as pd
import streamlit as st

from bertdyn.plots.geometry import class_geometry, cosine_distributions, geometry_by_layer
from bertdyn.plots.layers import state_name
from bertdyn.plots.norms import norm_figure
from bertdyn.plots.similarity import similarity_by_layer, similarity_heatmaps
from explorer import artifacts
from explorer.page import absent, picture, png, run_of
from explorer.runs import Family, RunInfo

AND = " and "
"""Between the labels of two runs that are compared."""
GEOMETRY = {
    "geometry_by_layer": "Isotropy and rank",
    "class_geometry": "How far the classes are apart",
    "cosine_distributions": "Cosines between tokens of one text",
    "norms": "Norms and outlier dimensions",
}


def page(family: Family) -> None:
    """Draw the page."""
    run = run_of(family, "compare")
    if run is None:
        return
    similarity, geometry = artifacts.table(run, "similarity"), artifacts.table(run, "geometry")
    if similarity is not None:
        _curves(run, similarity)
    else:
        absent(run, "similarity: one state has nothing to be compared with")
    if geometry is not None:
        _geometry(run, geometry)


def _curves(run: RunInfo, similarity: pd.DataFrame) -> None:
    st.subheader("What each layer keeps, beside its controls")
    names = list(dict.fromkeys(similarity["run"]))
    columns = iter(st.columns(2))
    name = next(columns).selectbox("Encoder", names) if len(names) > 1 else names[0]
    own = similarity[similarity["run"] == name]
    pairs = list(own[["state_a", "state_b"]].drop_duplicates().itertuples(index=False, name=None))
    number = next(columns).selectbox(
        "States",
        range(len(pairs)),
        index=len(pairs) - 1,
        format_func=lambda i: " → ".join(map(state_name, pairs[i])),
    )
    picture(_by_layer(run, name, *pairs[number]), "Cosines by layer with controls; CKA, neighbours, Procrustes")
    later = own[own["kind"] == "states"]
    if later["state_b"].nunique() > 1:
        picture(_heat_maps(run, name), "Layer by state: centred cosine, CKA, neighbours, Procrustes distance")
    with st.expander("As a table"):
        st.dataframe(_pair(similarity, name, *pairs[number]), hide_index=True)


def _pair(similarity: pd.DataFrame, name: str, before: str, after: str) -> pd.DataFrame:
    own = similarity[similarity["run"] == name]
    return own[(own["state_a"] == before) & (own["state_b"] == after)]


@st.cache_data(show_spinner="Drawing …")
def _by_layer(run: RunInfo, name: str, before: str, after: str) -> bytes:
    """One pair of states, beside what two seeds of the fine-tuning differ by where that was compared."""
    similarity = artifacts.table(run, "similarity")
    assert similarity is not None
    seeds = similarity[similarity["kind"] == "reseeded"]
    seeds = seeds[[name in str(runs).split(AND) for runs in seeds["run"]]]
    pair = _pair(similarity, name, before, after)
    return png(similarity_by_layer(pd.concat([pair, seeds]) if len(seeds) else pair, name))


@st.cache_data(show_spinner="Drawing …")
def _heat_maps(run: RunInfo, name: str) -> bytes:
    similarity = artifacts.table(run, "similarity")
    assert similarity is not None
    own = similarity[(similarity["run"] == name) & (similarity["kind"] == "states")]
    if own["state_a"].nunique() > 1:
        own = own.assign(state_a="previous")
    return png(similarity_heatmaps(own, list(dict.fromkeys(own["state_b"])), name))


def _geometry(run: RunInfo, geometry: pd.DataFrame) -> None:
    st.subheader("How features lie in each state")
    there = [
        name
        for name, is_there in (
            ("geometry_by_layer", (geometry["rows"] == "content").any()),
            ("class_geometry", (geometry["measure"] == "fisher_ratio").any()),
            ("cosine_distributions", artifacts.table(run, "cosine_histogram") is not None),
            ("norms", artifacts.table(run, "dimensions") is not None),
        )
        if is_there
    ]
    names = list(dict.fromkeys(geometry["run"]))
    columns = iter(st.columns(2))
    name = next(columns).selectbox("Encoder", names, key="geometry of") if len(names) > 1 else names[0]
    what = next(columns).selectbox("What of it", there, format_func=GEOMETRY.__getitem__)
    if what:
        picture(_geometry_figure(run, name, what), GEOMETRY[what])


@st.cache_data(show_spinner="Drawing …")
def _geometry_figure(run: RunInfo, name: str, what: str) -> bytes:
    def own(table: str) -> pd.DataFrame:
        found = artifacts.table(run, table)
        assert found is not None
        return found[found["run"] == name]

    geometry = own("geometry")
    states = list(dict.fromkeys(geometry["state"]))
    if what == "geometry_by_layer":
        return png(geometry_by_layer(geometry, states, name))
    if what == "class_geometry":
        return png(class_geometry(geometry, states, name))
    if what == "cosine_distributions":
        return png(cosine_distributions(own("cosine_histogram"), states, name))
    return png(norm_figure(geometry, own("dimensions"), states, name))
