"""A trained model as MLflow's LoggedModel, and its name in the registry.

`mlflow.transformers.log_model` is taken apart into its steps: as one call it needs the fluent active
run, copies the run's metrics of step 0 to the model, asks the Hugging Face hub for the licence of
the starting checkpoint, and leaves a FAILED model behind each time a server is away.
"""

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from bertdyn.errors import InputError
from bertdyn.tracking.points import Point
from bertdyn.tracking.store import first_line, long_requests

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^/:@]+")
_ALIAS = re.compile(r"(?!v\d+$)[A-Za-z0-9_-]+")


def check_register_as(register_as: str) -> tuple[str, str | None]:
    """Splits `name` or `name@alias`; to be called before the work is done.

    Returns
    -------
    tuple
        The name and the alias, None where there is none.

    Raises
    ------
    InputError
        If MLflow would refuse one of them.
    """
    name, at, alias = register_as.partition("@")
    if not _NAME.fullmatch(name) or name.strip() != name:
        raise InputError(f"--register_as {register_as!r}: the name must be non-empty, without '/', ':' and '@'")
    if at and (not _ALIAS.fullmatch(alias) or alias.lower() == "latest"):
        raise InputError(
            f"--register_as {register_as!r}: an alias has letters, digits, '-', '_', and is not 'latest' or 'v1'"
        )
    return name, alias or None


class ModelUpload:
    """One model on its way into the store; `run` continues where a failed `run` stopped.

    Parameters
    ----------
    client
        Of the store.
    run
        The run that made the model.
    model
        A Hugging Face model.
    tokenizer
        Its tokenizer.
    task
        Its pipeline task.
    register_as
        `name` or `name@alias`.

    Attributes
    ----------
    uri
        `models:/m-…` when the model is in the store, before that None.

    Raises
    ------
    InputError
        If `register_as` is no valid name.
    """

    def __init__(self, client: MlflowClient, run: Run, model: Any, tokenizer: Any, task: str, register_as: str | None):
        self.uri: str | None = None
        self._client, self._run, self._model, self._tokenizer, self._task = (
            client,
            run,
            model,
            tokenizer,
            task,
        )
        self._name: str | None
        self._alias: str | None
        self._name, self._alias = check_register_as(register_as) if register_as else (None, None)
        self._model_id: str | None = None
        self._version: str | None = None
        # Written once, however often the store has to be asked: a large model takes long.
        self._folder = Path(tempfile.mkdtemp(prefix="bertdyn-model-"))
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._is_written = self._is_uploaded = False

    def run(self, points: Iterable[Point] = ()) -> None:
        """Creates, uploads, finishes and registers the model; `points` of the run are shown with it."""
        run_id = self._run.info.run_id
        if self.uri is None:
            if self._model_id is None:
                self._model_id = self._create()
            if not self._is_uploaded:
                self._upload(self._model_id)
            self._client.finalize_logged_model(self._model_id, "READY")
            if metrics := [Metric(p.key, p.value, p.timestamp, p.step, model_id=self._model_id) for p in points]:
                self._client.log_batch(run_id, metrics=metrics)
            self.uri = f"models:/{self._model_id}"
        if self._name is not None:
            self._register(self._name, self.uri, run_id)

    def _create(self) -> str:
        run = self._client.get_run(self._run.info.run_id)
        created = self._client.create_logged_model(
            run.info.experiment_id, "model", run.info.run_id, params=run.data.params, model_type=self._task
        )
        self._client.log_outputs(run.info.run_id, [LoggedModelOutput(created.model_id, step=0)])
        return created.model_id

    def _upload(self, model_id: str) -> None:
        target = self._folder / "model"
        if not self._is_written:
            described = Model(
                artifact_path=self._client.get_logged_model(model_id).artifact_location,
                model_uuid=model_id,
                model_id=model_id,
                run_id=self._run.info.run_id,
            )
            shutil.rmtree(target, ignore_errors=True)  # half of it, when the disk was full
            _save(target, described, self._model, self._tokenizer, self._task)
            self._is_written = True
        with long_requests():
            self._client.log_model_artifacts(model_id, str(target))
        self._is_uploaded = True
        self._remove_folder()

    def _register(self, name: str, uri: str, run_id: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if self._version is None:
            made = self._client.create_model_version(name, uri, run_id, model_id=self._model_id)
            self._version = str(made.version)
        if self._alias is not None:
            self._client.set_registered_model_alias(name, self._alias, self._version)
        logger.info("registered as models:/%s/%s", name, self._version)


def _save(folder: Path, described: Model, model: Any, tokenizer: Any, task: str) -> None:
    """Writes the MLflow model: with its pipeline, or, without one for the task, as Hugging Face files."""
    import mlflow.transformers
    from huggingface_hub import ModelCard

    # Without pip_requirements MLflow demands torchvision.
    requirements = [f"{name}=={metadata.version(name)}" for name in ("torch", "transformers")]
    try:
        with _no_hub_name(model):
            mlflow.transformers.save_model(
                {"model": model, "tokenizer": tokenizer},
                str(folder),
                task=task,
                mlflow_model=described,
                pip_requirements=requirements,
                model_card=ModelCard("---\nlicense: other\n---\nMade by bertdyn.\n"),
            )
    except (MlflowException, KeyError, ValueError, AttributeError, OSError) as error:
        logger.info(
            "no MLflow pipeline for %s (%s): the model is stored as Hugging Face files",
            task,
            first_line(error),
        )
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        described.flavors = {}
        described.save(str(folder / "MLmodel"))


@contextmanager
def _no_hub_name(model: Any) -> Iterator[None]:
    """Hides which hub checkpoint the model began as: MLflow would look its licence up over the network."""
    name = getattr(model, "name_or_path", "")
    model.name_or_path = ""
    try:
        yield
    finally:
        model.name_or_path = name
