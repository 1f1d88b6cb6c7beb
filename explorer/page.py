"""What pages share: which run of a stage is shown, figures, and what is said when something is not there."""

import re
from io import BytesIO

import streamlit as st
from matplotlib.figure import Figure

from bertdyn.tracking.store import run_link, tracking_uri
from explorer import artifacts
from explorer.runs import Family, RunInfo, how_to_make

DPI = 110
"""The widest figures fill the page of a laptop, and narrow ones keep their proportions beside them."""


def run_of(family: Family, *stages: str) -> RunInfo | None:
    """The run of these stages that a page shows, chosen where there are several, and its report; without one, how it is
    made."""
    there = family.of(*stages)
    if not there:
        st.info(f"{code(family.chosen.name)} has no {' or '.join(stages)} run. This makes one:")
        st.code("\n".join(how_to_make(stages[0], family)), language="bash")
        return None
    names = {run.run_id: run for run in there}
    run = there[0]
    if len(there) > 1:
        key = f"{'/'.join(stages)} of {family.chosen.run_id}"
        chosen = st.selectbox("Run", list(names), format_func=lambda run_id: label(names[run_id]), key=key)
        run = names[chosen]
    st.caption(f"{run.stage} run {code(run.name)} · {run.status.lower()} · {identity(run)}")
    if not run.is_over:
        st.warning(f"This run is {run.status.lower()}: below is what it has written so far.")
    if summary := artifacts.text(run, "summary.md"):
        with st.expander("Report of the run"):
            st.markdown(as_told(summary))
    return run


def label(run: RunInfo) -> str:
    """A run in a list."""
    return f"{run.name} · {run.started:%d %b %H:%M} · {run.status.lower()} · {run.run_id[:8]}"


def identity(run: RunInfo) -> str:
    """Markdown: the id of a run, which is a link where MLflow is a server."""
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        return run_link(run.run_id, run.experiment_id)
    return code(run.run_id)


def code(text: str) -> str:
    """Markdown: a name as it is, whatever characters it has."""
    return f"`{text.replace('`', chr(0x2BC))}`" if text else "–"


def absent(run: RunInfo, what: str) -> None:
    """Says that a run has not written something."""
    st.info(f"The {run.stage} run {code(run.name)} has no {what}{'' if run.is_over else ' yet'}.")


def as_told(markdown: str) -> str:
    """Markdown that makes no browser load a picture, whatever names stand in it, and has no links of the MLflow UI."""
    return re.sub(r"\[([^\]]*)\]\(#/[^)]*\)", r"`\1`", markdown).replace("![", r"!\[")


def png(figure: Figure) -> bytes:
    """A figure as a picture that a page can keep."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def picture(content: bytes, alt: str) -> None:
    """A picture, at most as wide as the page."""
    st.image(content, width="content", alt=alt)
