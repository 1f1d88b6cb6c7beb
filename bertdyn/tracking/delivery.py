"""Best-effort delivery of one run's records to MLflow.

What is to be delivered is queued; `flush` sends all of it or as much as it can, and never raises.
While the server is away the queue grows, and the next call tries again.

Four things are unusual. An answer can be lost after the request was carried out, so after any
failure the server is asked which points it has before one is sent again: no point is there twice.
Paths arrive in the order of their last publication, because a file may name another: one that
cannot be uploaded now holds back those after it. Paths, tags and params that are not delivered yet
are also kept in a file, so that a resumed run delivers what a killed one could not. And a server
that takes long to not answer is asked less often, so that it costs a training a tenth of its time
at most.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from bertdyn.files import cache_folder, write_json
from bertdyn.tracking.endings import signals_held
from bertdyn.tracking.points import Point
from bertdyn.tracking.store import first_line, is_refusal, long_requests, shown

logger = logging.getLogger(__name__)

_BATCH = 1000  # MLflow's limit of metrics in one request
_PARAMS_OR_TAGS = 100
_REST_PER_SECOND_LOST = 10


class Job(NamedTuple):
    """Something to do at the store; it may be done twice without harm."""

    what: str
    do: Callable[[], None]


def outbox(run_id: str) -> Path:
    """The file of this machine that keeps what the store does not have yet of a run; none when it has all."""
    return cache_folder("outbox") / f"{run_id}.json"


class Delivery:
    """The queue between one run and the store.

    Parameters
    ----------
    client
        Of the store.
    run_id
        The run.
    folder
        The run's folder, to which queued paths are relative.
    points
        Points of which it is not known whether the store has them (of a resumed run).
    resumed
        Whether the store may hold points of this run that are not known here.
    on_recovery
        Called when the store answers after it did not.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        folder: Path,
        points: Iterable[Point] = (),
        resumed: bool = False,
        on_recovery: Callable[[], None] = lambda: None,
    ):
        self._client, self._run_id, self._folder, self._outbox = client, run_id, folder, outbox(run_id)
        self._on_recovery = on_recovery
        self._points = list(points)
        self._in_doubt = resumed
        self._steps_there: dict[str, set[int]] = {}  # filled only while in doubt
        self._jobs: deque[Job] = deque()
        self._away = False
        self._uploads_fail = False
        self._not_before = 0.0
        kept = json.loads(self._outbox.read_text(encoding="utf-8")) if self._outbox.exists() else {}
        self._paths: dict[str, None] = dict.fromkeys(kept.get("paths", ()))  # a set in order of publication
        self._tags: dict[str, str] = kept.get("tags", {})
        self._params: dict[str, str] = kept.get("params", {})

    def add_points(self, points: Iterable[Point]) -> None:
        """Queues metric points."""
        self._points.extend(points)

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Queues tags; of several values of one tag the last is set."""
        self._tags |= tags
        self._keep()

    def add_params(self, params: Mapping[str, str]) -> None:
        """Queues parameters; those that the run has already stay as they are."""
        self._params |= params
        self._keep()

    def add_path(self, path: str) -> None:
        """Queues the upload of a file or directory of the run's folder, after all that is queued."""
        self._paths.pop(path, None)
        self._paths[path] = None
        self._keep()

    def add_job(self, what: str, do: Callable[[], None]) -> None:
        """Queues any other request; unlike the rest it is forgotten when the process dies."""
        self._jobs.append(Job(what, do))

    def waiting(self) -> str:
        """What is queued, in words; empty when nothing is."""
        counts = {
            "metric points": len(self._points),
            "tags": len(self._tags),
            "params": len(self._params),
            "artifacts": len(self._paths),
        }
        words = [f"{count} {name}" for name, count in counts.items() if count]
        return ", ".join(words + [job.what for job in self._jobs])

    def flush(self, now: bool = False) -> bool:
        """Sends what is queued; True when nothing is left.

        Parameters
        ----------
        now
            Try even when the last failure was so slow that it is too early for another.
        """
        if not self.waiting():
            return True
        if time.monotonic() < self._not_before and not now:
            return False
        started = time.monotonic()
        try:
            with signals_held():
                # Metrics first: they are small, and what people watch.
                self._send_points()
                self._send_tags()
                self._send_params()
                self._send_paths()
                self._send_jobs()
        except Exception as error:  # whatever a driver, the network or a proxy raises: the run goes on
            self._failed(error, time.monotonic() - started)
        return not self.waiting()

    def finish(self, patience: float, pause: float = 2.0) -> bool:
        """Flushes until all is delivered, for at most `patience` seconds; True when it is."""
        deadline = time.monotonic() + patience
        next_line = 0.0
        while not self.flush(now=True):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self._keep()
                return False
            if time.monotonic() >= next_line:
                uri = shown(self._client.tracking_uri)
                logger.warning("waiting up to %.0f s for MLflow at %s to take %s", remaining, uri, self.waiting())
                next_line = time.monotonic() + 15
            time.sleep(min(pause, remaining))
        return True

    def _send_points(self) -> None:
        if self._in_doubt:
            self._drop_points_there()
        while self._points:
            batch = self._points[:_BATCH]
            metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in batch]
            # Set before the request, so that it holds when a signal interrupts it.
            was_in_doubt, self._in_doubt = self._in_doubt, True
            try:
                self._client.log_batch(self._run_id, metrics=metrics)
            except Exception as error:
                self._steps_there.clear()
                if not is_refusal(error):
                    raise
                logger.warning("MLflow refuses %d metric points: %s", len(batch), first_line(error))
            except BaseException:
                self._steps_there.clear()
                raise
            self._in_doubt = was_in_doubt
            self._answered()
            for point in batch:
                if point.key in self._steps_there:
                    self._steps_there[point.key].add(point.step)
            del self._points[:_BATCH]

    def _drop_points_there(self) -> None:
        for key in {point.key for point in self._points} - self._steps_there.keys():
            history = self._client.get_metric_history(self._run_id, key)
            self._steps_there[key] = {metric.step for metric in history}
        self._points = [point for point in self._points if point.step not in self._steps_there[point.key]]

    def _send_tags(self) -> None:
        while self._tags:
            some = dict(list(self._tags.items())[:_PARAMS_OR_TAGS])
            self._or_refused("tags", self._client.log_batch, self._run_id, tags=_entities(RunTag, some))
            self._tags = {key: value for key, value in self._tags.items() if key not in some}
            self._keep()

    def _send_params(self) -> None:
        if self._params:
            # `mlflow run` logs its own spelling of the parameters first, and a param cannot be changed.
            there = self._client.get_run(self._run_id).data.params
            self._params = {key: value for key, value in self._params.items() if key not in there}
        while self._params:
            some = dict(list(self._params.items())[:_PARAMS_OR_TAGS])
            self._or_refused("params", self._client.log_batch, self._run_id, params=_entities(Param, some))
            self._params = {key: value for key, value in self._params.items() if key not in some}
        self._keep()

    def _send_paths(self) -> None:
        for path in list(self._paths):
            try:
                with long_requests():
                    self._or_refused(path, self.upload, path)
            except Exception as error:  # the artifact store can be away on its own
                if not self._uploads_fail:
                    logger.warning("%s of run %s is not uploaded yet: %s", path, self._run_id, first_line(error))
                self._uploads_fail = True
                return
            self._uploads_fail = False
            del self._paths[path]
            self._keep()

    def upload(self, path: str) -> None:
        """Uploads a file or directory of the run's folder now, and raises what the store's driver raises."""
        local, parent = self._folder / path, str(Path(path).parent)
        if local.is_dir():
            self._client.log_artifacts(self._run_id, str(local), path)
        elif local.exists():
            self._client.log_artifact(self._run_id, str(local), None if parent == "." else parent)
        # Neither: it was removed in the meantime, as old checkpoints are.

    def _send_jobs(self) -> None:
        for _ in range(len(self._jobs)):
            self._or_refused(self._jobs[0].what, self._jobs[0].do)
            self._jobs.popleft()
            self._keep()

    def _or_refused(self, what: str, send: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Calls `send` with the arguments; what the store refuses for good is given up with a warning."""
        try:
            send(*arguments, **named)
        except Exception as error:  # decided by is_refusal
            if not is_refusal(error):
                raise
            logger.warning("MLflow refuses %s of run %s: %s", what, self._run_id, first_line(error))
        self._answered()

    def _failed(self, error: Exception, seconds: float) -> None:
        self._not_before = time.monotonic() + (_REST_PER_SECOND_LOST * seconds if seconds > 1 else 0)
        if not self._away:
            self._away = True
            uri = shown(self._client.tracking_uri)
            logger.warning(
                "MLflow at %s does not take records (%s); the run goes on, its results are kept in %s",
                uri,
                first_line(error),
                self._folder,
            )

    def _answered(self) -> None:
        if self._away:
            self._away = False
            logger.warning("MLflow answers again; what it missed is being delivered")
            self._on_recovery()

    def _keep(self) -> None:
        if waiting := self.waiting():
            kept = {"waiting": waiting, "paths": list(self._paths), "tags": self._tags, "params": self._params}
            write_json(self._outbox, kept)
        else:
            self._outbox.unlink(missing_ok=True)


def _entities(kind: type, values: Mapping[str, str]) -> list:
    return [kind(key, value) for key, value in values.items()]
