"""The explorer: a run picker beside one page for each thing that there is to see.

Other pages than the first are imported when they are opened, and PyTorch by those that need it. `python -m explorer`
serves it.
"""

import os
from collections.abc import Callable
from importlib import import_module

import streamlit as st

from bertdyn.errors import InputError
from bertdyn.tracking.store import shown, tracking_uri
from explorer.config import ASKED
from explorer.page import as_told, code, identity, label
from explorer.runs import NEEDS, Family, RunInfo, family_of, list_runs, load_run

# Comments and no strings below the constants: Streamlit writes every string of its main script onto the page. No icons:
# they would become the icon of the browser's tab, which is fetched from another host.
PAGES = {  # module → title
    "dynamics": "Training dynamics",
    "similarity": "Similarity",
    "features": "Features",
    "sentence": "Type a sentence",
    "probes": "Probes",
    "pruning": "Pruning",
}
SECONDS_LISTED = 60  # for so long a list of runs is taken to be the newest
FIRST = ("pipeline", "fine-tune")  # stages of which the newest run is shown when none is asked for


def main() -> None:
    """Draw the page that is open."""
    st.set_page_config(page_title="bertdyn", layout="wide")
    family: Family | None = None
    problem = ""
    try:
        family = pick_run()
    except InputError as error:
        problem = str(error)
    pages = [
        st.Page(_opener(name, family, problem), title=title, url_path=name, default=name == "dynamics")
        for name, title in PAGES.items()
    ]
    st.navigation(pages).run()


def pick_run() -> Family | None:
    """The run that all pages show, with its relatives; None if there is no run at all."""
    runs = _runs(tracking_uri())
    asked = st.query_params.get("run_id") or os.environ.get(ASKED, "")
    if asked and asked not in {run.run_id for run in runs}:
        runs = [*runs, _run(tracking_uri(), asked)]
    if not runs:
        return None
    by_id = {run.run_id: run for run in runs}
    with st.sidebar:
        stages = [stage for stage in NEEDS if any(run.stage == stage for run in runs)]
        stage = st.selectbox("Runs of", ["all steps", *stages], key="stage")
        shown_runs = {i: run for i, run in by_id.items() if stage in ("all steps", run.stage)}
        first = asked if asked in shown_runs else _first(list(shown_runs.values()))
        run_id = st.selectbox(
            "Run",
            list(shown_runs),
            index=list(shown_runs).index(first),
            format_func=lambda i: f"{by_id[i].stage}: {label(by_id[i])}",
            key="run",
        )
        family = family_of(by_id[run_id], runs)
        _describe(family)
        if st.button("Look for new runs", icon=":material/refresh:"):
            st.cache_data.clear()
            st.cache_resource.clear()
            st.rerun()
        st.caption(f"Runs of {code(shown(tracking_uri()))}")
    st.query_params["run_id"] = run_id
    return family


def _describe(family: Family) -> None:
    run = family.chosen
    lines = [f"{code(run.dataset)} · {code(run.model)}", f"{run.status.lower()}, {run.started:%d %b %Y %H:%M}"]
    st.markdown("  \n".join([*lines, identity(run)]))
    counts = {stage: len(family.of(stage)) for stage in NEEDS if stage != "pipeline"}
    there = ", ".join(f"{count} {stage}" for stage, count in counts.items() if count)
    st.caption(f"Belongs together: {there}" if there else "No other run belongs to it.")


def _first(runs: list[RunInfo]) -> str:
    wanted = (run for stage in FIRST for run in runs if run.stage == stage and run.is_over)
    return next(wanted, runs[0]).run_id


@st.cache_data(ttl=SECONDS_LISTED, show_spinner="Reading the list of runs …")
def _runs(uri: str) -> list[RunInfo]:
    return list_runs()


@st.cache_data(ttl=SECONDS_LISTED, show_spinner=False)
def _run(uri: str, run_id: str) -> RunInfo:
    return load_run(run_id)


def _opener(name: str, family: Family | None, problem: str) -> Callable[[], None]:
    def show() -> None:
        st.title(PAGES[name])
        if problem:
            st.error(as_told(problem))
        elif family is None:
            st.info("There is no run yet. This makes some, in five minutes:")
            st.code("mlflow run . --env-manager local", language="bash")
        else:
            try:
                import_module(f"explorer.{name}").page(family)
            except InputError as error:
                st.error(as_told(str(error)))

    return show


main()
