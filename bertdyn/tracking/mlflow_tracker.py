"""A tracker whose folder is also shown in MLflow.

Local files first, then delivery; after the start nothing that MLflow does or fails to do ends a
run. Made by `runs.open_run`, which has the rules about which run it is.
"""

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, InputTag, Run
from mlflow.exceptions import MlflowException

from bertdyn.errors import InputError
from bertdyn.tracking.artifacts import ArtifactUnreadable, download_once, fetch_points, run_folder
from bertdyn.tracking.delivery import Delivery
from bertdyn.tracking.endings import SigtermRaises, Terminated, run_status, signals_held
from bertdyn.tracking.locks import RunLock
from bertdyn.tracking.points import Point, metric_key
from bertdyn.tracking.store import first_line, is_refusal, run_link, shown
from bertdyn.tracking.tracker import Tracker

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

PATIENCE = 120.0
"""Seconds that the end of a run waits for a server that is away."""
_PATIENCE_WHEN_KILLED = 20.0  # a scheduler sends SIGKILL about 30 s after SIGTERM
_LONGEST_PARAM = 6000
_LONGEST_NOTE = 7900


def patiently(begin: "Callable[[], MLflowTracker]", run_name: str, patience: float) -> "MLflowTracker":
    """What `begin` returns, called until MLflow answers.

    Raises
    ------
    RuntimeError
        If it stays away for `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return begin()
        except (MlflowException, ArtifactUnreadable) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"child run {run_name!r} cannot begin: {first_line(error)}") from error
            logger.warning("child run %r waits for MLflow: %s", run_name, first_line(error))
            time.sleep(2)


class MLflowTracker(Tracker):
    """Records a run in its folder and in MLflow; ends it in a `with` block.

    Parameters
    ----------
    client
        Of the store.
    run
        The run, RUNNING.
    stage
        `fine-tune`, `extract`, …
    resumed
        Whether the run was begun by another process.
    launcher
        The run of `mlflow run`, when that is another one: it ends as this one ends.
    open_child
        Makes the tracker of a child run from (parent run, name, tags).
    resources
        Whether to record system metrics.
    patience
        Seconds that the end waits for a server that is away.

    Raises
    ------
    InputError
        If another process is writing the run, or what it wrote earlier cannot be read now.
    """

    run_id: str
    uri: str

    def __init__(
        self,
        client: MlflowClient,
        run: Run,
        *,
        stage: str,
        resumed: bool = False,
        launcher: str | None = None,
        open_child: "Callable[[MLflowTracker, str, Mapping[str, str]], MLflowTracker]",
        resources: bool = True,
        patience: float | None = None,
    ):
        self.client, self.run, self.stage, self.resumed = client, run, stage, resumed
        self.run_id, self.uri = run.info.run_id, client.tracking_uri
        self.patience = PATIENCE if patience is None else patience
        self._launcher, self._open_child, self._resources = launcher, open_child, resources
        self._lock = RunLock(self.run_id)
        try:
            folder, self._is_store = run_folder(run)
            if resumed and not (folder / "metrics.jsonl").exists():
                fetch_points(run, folder)
            super().__init__(folder)
        except BaseException:
            self._lock.release()
            raise
        self._delivery = Delivery(
            client,
            self.run_id,
            self.folder,
            points=self._points,
            resumed=resumed,
            on_recovery=self._watch_resources,
        )
        self._sigterm = SigtermRaises()
        self._monitor: Any = None

    def __enter__(self) -> Self:
        self._sigterm.install()
        self._watch_resources()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        status = run_status(error)
        patience = min(self.patience, _PATIENCE_WHEN_KILLED) if status == "KILLED" else self.patience
        try:
            self._end(status, patience)
        except (KeyboardInterrupt, Terminated):
            # Asked a second time to stop: no more waiting, one last try to leave a true end state.
            self._end(status if error is not None else "KILLED", patience=0)
            raise
        finally:
            self._sigterm.restore()
            self._lock.release()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.json`, and logs the params that the run does not have yet (None is left out)."""
        super().log_config(config)
        params = {metric_key(key): str(value)[:_LONGEST_PARAM] for key, value in config.items() if value is not None}
        self._delivery.add_params(params)
        self._delivery.flush()

    def publish(self, path: str) -> None:
        """Uploads `path` now or when the server is back, unless the folder is itself the store."""
        if not self._is_store:
            self._delivery.add_path(path)
            self._delivery.flush()

    def publish_now(self, path: str) -> None:
        """As `publish`, but now or not at all: the proof that artifacts of this run can be stored.

        Raises
        ------
        InputError
            If the artifact store does not take it.
        """
        if self._is_store:
            return
        try:
            with signals_held():
                self._delivery.upload(path)
        except Exception as error:  # each store's driver has its own exceptions
            where = shown(self.run.info.artifact_uri)
            raise InputError(
                f"the artifacts of run {self.run_id} cannot be stored at {where}: {first_line(error)}"
            ) from error

    def fetch(self, path: str) -> Path:
        """The local path of an artifact of this run, downloaded when this machine does not have it.

        Raises
        ------
        FileNotFoundError
            If the run has no such artifact.
        InputError
            If the artifact store does not say so, or does not hand it over now.
        """
        if self._is_store or (self.folder / path).exists():
            return super().fetch(path)
        return download_once(self.run, path, self.folder)

    def log_dataset(
        self,
        table: "pandas.DataFrame",
        name: str,
        source: str,
        digest: str,
        context: str,
        targets: str | None = None,
    ) -> None:
        """Records a dataset in `datasets.json` and as an input of the run."""
        super().log_dataset(table, name, source, digest, context, targets)

        def send() -> None:
            entity = _dataset(table, name, source, digest, targets)
            tags = [InputTag("mlflow.data.context", context)]
            self.client.log_inputs(self.run_id, [DatasetInput(entity, tags)])

        self._delivery.add_job(f"dataset {name}", send)
        self._delivery.flush()

    def log_model(
        self,
        model: Any,
        tokenizer: Any,
        task: str,
        metrics: Mapping[str, Any],
        register_as: str | None = None,
    ) -> str | None:
        """Makes a LoggedModel of it, registered when asked; None when the server does not take it.

        Waits for a server that is away as the end of the run does.

        Raises
        ------
        InputError
            If `register_as` is no valid name.
        """
        from bertdyn.tracking.logged_models import ModelUpload

        upload = ModelUpload(self.client, self.run, model, tokenizer, task, register_as)
        shared = [point for name, value in metrics.items() if (point := self._point_for_model(name, value))]
        self._delivery.add_job("the model", lambda: upload.run(shared))
        self._delivery.finish(self.patience)
        return upload.uri

    def log_frame(self, figure: "Figure", name: str, step: int) -> None:
        """Writes one picture of a film; the MLflow UI shows it among the charts, with a slider over steps."""
        super().log_frame(figure, name, step)

        def send() -> None:
            from PIL import Image

            # MLflow gives every picture a new name: a second one would stand beside the first.
            there = [item.path for item in self.client.list_artifacts(self.run_id, "images")]
            if any(path.startswith(f"images/{name}+step+{step}+") and path.endswith(".webp") for path in there):
                return
            with Image.open(self.folder / "figures" / name / f"{step:03d}.png") as image:
                self.client.log_image(self.run_id, image, key=name, step=step)

        self._delivery.add_job(f"picture {step} of {name}", send)
        self._delivery.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the run."""
        self._delivery.add_tags({key: str(value) for key, value in tags.items()})
        self._delivery.flush()

    def note(self, markdown: str) -> None:
        """Writes `summary.md` and shows it as the run's description."""
        super().note(markdown)
        shortened = markdown if len(markdown) <= _LONGEST_NOTE else markdown[:_LONGEST_NOTE] + "\n\n… (`summary.md`)"
        self.set_tags({"mlflow.note.content": shortened})

    def link(self) -> str:
        """Markdown: a link to this run in the MLflow UI."""
        return run_link(self.run_id, self.run.info.experiment_id)

    def child(self, run_name: str, tags: Mapping[str, str] | None = None) -> "MLflowTracker":
        """A tracker for a run nested in this one; of a resumed run, the child of that name is resumed.

        Raises
        ------
        RuntimeError
            If the server stays away for `patience` seconds; a child cannot begin without it.
        InputError
            If another process is writing that run, or what it wrote earlier cannot be read for as long.
        """
        return patiently(lambda: self._open_child(self, run_name, dict(tags or {})), run_name, self.patience)

    def _deliver(self, points: list[Point]) -> None:
        self._delivery.add_points(points)
        self._delivery.flush()

    def _point_for_model(self, name: str, value: Any) -> Point | None:
        """The point of the run that a model's metric is; made at the last step when the run has none.

        MLflow writes a model's metrics to its run as well: only the very same point is not there twice.
        """
        key = metric_key(name)
        point = self._points.with_value(key, float(value))
        if point is None and (new := self._points.add({key: value}, self._points.last_step())):
            self._delivery.add_points(new)
            point = new[0]
        return point

    def _watch_resources(self) -> None:
        """Starts the thread that records system metrics; it ends by itself when the server is away."""
        if not self._resources or (self._monitor is not None and self._monitor._process.is_alive()):
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            again = self.resumed or self._monitor is not None
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=again, tracking_uri=self.uri)
            self._monitor.start()
        except Exception as error:  # nice to have: a missing psutil or an odd driver must not end a run
            self._resources = False
            logger.warning("no system metrics: %s", first_line(error))

    def _end(self, status: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        self._resources = False  # not again on a recovery at the end
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        if not self._is_store and (self.folder / "metrics.jsonl").exists():
            self._delivery.add_path("metrics.jsonl")
        self._delivery.finish(patience)
        # Apart from what is queued: whatever cannot be delivered, the run is not RUNNING any more.
        ended = [self._set_terminated(run_id, status, deadline) for run_id in (self.run_id, self._launcher) if run_id]
        missing = [self._delivery.waiting(), "" if all(ended) else "the end state"]
        if any(missing):
            logger.error(
                "MLflow at %s did not take %s; the results are in %s, and --resume_run_id %s delivers them",
                shown(self.uri),
                ", ".join(filter(None, missing)),
                self.folder,
                self.run_id,
            )

    def _set_terminated(self, run_id: str, status: str, deadline: float) -> bool:
        """Tries until the deadline, once at least; False when the store did not take it."""
        while True:
            try:
                with signals_held():
                    self.client.set_terminated(run_id, status)
            except Exception as error:  # whatever a driver, the network or a proxy raises
                if is_refusal(error):
                    logger.warning("MLflow refuses the end state of run %s: %s", run_id, first_line(error))
                    return True
                if time.monotonic() >= deadline:
                    return False
                time.sleep(min(2, max(deadline - time.monotonic(), 0)))
            else:
                return True


def _dataset(table: "pandas.DataFrame", name: str, source: str, digest: str, targets: str | None) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.pandas_dataset import from_pandas

    def made(where: Any) -> Any:
        return from_pandas(table, source=where, name=name, digest=digest[:36], targets=targets)._to_mlflow_entity()

    with warnings.catch_warnings():
        # About integer columns and ambiguous sources: nothing that a user could act on.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return made(source)
        except MlflowException:  # not a path or URL that MLflow knows, such as `runs:/…`
            return made(CodeDatasetSource({"source": source}))
