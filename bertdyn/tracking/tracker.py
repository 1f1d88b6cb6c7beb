"""What a step writes to: a folder, and whoever wants to see it.

`Tracker` alone keeps everything in a folder, so that every step can be used without MLflow.
`MLflowTracker` adds delivery. Nothing here imports MLflow, and the order is always the same: the
local file first, complete, then `publish`.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertdyn.files import replacing, write_json, write_text
from bertdyn.tracking.points import Point, Points

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class Tracker:
    """Records a run in `folder`.

    Parameters
    ----------
    folder
        Where everything goes; made when it is missing. A folder that already holds a run
        is continued: metric points that are there are not written again.

    Attributes
    ----------
    folder
        The run's folder.
    run_id
        The MLflow run, or None.
    uri
        The MLflow tracking URI, or None.
    """

    run_id: str | None = None
    uri: str | None = None
    resumed: bool = False
    """Whether an earlier process began this run."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._points = Points(self.folder / "metrics.jsonl")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        return None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the exact resolved configuration to `config.json`."""
        write_json(self.folder / "config.json", dict(config))
        self.publish("config.json")

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Records scalars of one step; a (key, step) that is already there keeps its first value.

        Parameters
        ----------
        metrics
            Numbers, NumPy scalars or one-element tensors by name; infinity is recorded as NaN.
        step
            The epoch.
        """
        self._deliver(self._points.add(metrics, step))

    def log_table(self, table: "pandas.DataFrame", name: str) -> None:
        """Writes `<name>.parquet`."""
        with replacing(self.folder / f"{name}.parquet") as temporary:
            table.to_parquet(temporary)
        self.publish(f"{name}.parquet")

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Writes `figures/<name>.png` and closes the figure."""
        self.publish(self._write_figure(figure, name))

    def log_frame(self, figure: "Figure", name: str, step: int) -> None:
        """Writes one picture of a film, `figures/<name>/<step>.png`, and closes the figure."""
        self.publish(self._write_figure(figure, f"{name}/{step:03d}", whole=True))  # all of one size

    def publish(self, path: str) -> None:
        """Says that `path`, relative to the folder, is complete: a file or a whole directory."""

    def fetch(self, path: str) -> Path:
        """The local path of an artifact of this run.

        Raises
        ------
        FileNotFoundError
            If this run has no such artifact.
        """
        if not (self.folder / path).exists():
            raise FileNotFoundError(f"{path} is not in {self.folder}")
        return self.folder / path

    def log_dataset(
        self,
        table: "pandas.DataFrame",
        name: str,
        source: str,
        digest: str,
        context: str,
        targets: str | None = None,
    ) -> None:
        """Records which data a run used, in `datasets.json`.

        Parameters
        ----------
        table
            The examples.
        name
            Of the dataset.
        source
            The path, URL or name it came from.
        digest
            Fingerprint of its content, at most 36 characters.
        context
            What it was used for: `train`, `validation`, `probe`, `test`.
        targets
            The column that holds the labels, if there is one.
        """
        path = self.folder / "datasets.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        entry = {
            "name": name,
            "source": source,
            "digest": digest,
            "context": context,
            "targets": targets,
            "rows": len(table),
            "columns": [str(column) for column in table.columns],
        }
        if entry not in known:
            write_json(path, [*known, entry])
            self.publish("datasets.json")

    def log_model(
        self,
        model: Any,
        tokenizer: Any,
        task: str,
        metrics: Mapping[str, Any],
        register_as: str | None = None,
    ) -> str | None:
        """Makes the final model a model of the tracking store, and returns its URI; here there is no store.

        Parameters
        ----------
        model
            A Hugging Face model.
        tokenizer
            Its tokenizer.
        task
            The pipeline task, such as `text-classification`.
        metrics
            The numbers to show next to the model.
        register_as
            `name` or `name@alias` in the model registry.
        """
        if register_as:
            logger.warning("register_as=%s is ignored: this run is recorded in %s only", register_as, self.folder)
        return None

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run; kept in `tags.json`."""
        path = self.folder / "tags.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, known | {key: str(value) for key, value in tags.items()})

    def note(self, markdown: str) -> None:
        """Writes the run's short report to `summary.md`."""
        write_text(self.folder / "summary.md", markdown)
        self.publish("summary.md")

    def link(self) -> str:
        """Markdown that leads to this run."""
        return f"`{self.folder}`"

    def child(self, run_name: str, tags: Mapping[str, str] | None = None) -> "Tracker":
        """A tracker for a run inside this run; use it in a `with` block."""
        child = Tracker(self.folder / "children" / run_name)
        child.set_tags(tags or {})
        return child

    def _write_figure(self, figure: "Figure", name: str, whole: bool = False) -> str:
        path = f"figures/{name}.png"
        with replacing(self.folder / path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, bbox_inches=None if whole else "tight")
        # Only pyplot keeps figures alive; where nobody imported it, there is nothing to close.
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)
        return path

    def _deliver(self, points: list[Point]) -> None:
        """Hook for trackers that copy the points elsewhere."""
