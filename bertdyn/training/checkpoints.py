"""Checkpoints that are whole or absent, and all that is needed to go on from the newest.

    checkpoints/epoch_003/       model and tokenizer, as `save_pretrained` writes them
    checkpoints/manifest.json    states (`pretrained`, `best`, `last`) → epochs, and the history
    checkpoints/training_state.safetensors
                                 the optimiser's tensors; progress and schedule as JSON in its metadata

Every file is written under a temporary name and renamed. The training state is renamed last: the
epoch that it names is complete, and a resumed run goes on from there. No pickle is involved.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import Batch
from bertdyn.errors import InputError
from bertdyn.files import replacing, write_json
from bertdyn.training.loop import Listener, Progress
from bertdyn.training.selection import best_epoch

MANIFEST = "checkpoints/manifest.json"
TRAINING_STATE = "checkpoints/training_state.safetensors"
WEIGHT = "weight"
"""The slot of a parameter's own values in the training state, beside the optimiser's."""


def checkpoint_path(epoch: int) -> str:
    """`checkpoints/epoch_003`, relative to the run's folder."""
    return f"checkpoints/epoch_{epoch:03d}"


class Checkpoints(Listener):
    """Saves model, tokenizer and training state at the end of every epoch.

    Parameters
    ----------
    folder
        The run's folder.
    saved
        Called with the relative path of everything that is complete; the training state's last.
    metric
        What `best` is judged by.
    keep
        How many of the newest epochs stay besides epoch 0 and the best; -1 keeps all.
    log_spaced
        Also save the model after 1, 2, 4, … updates.
    dtype
        Of the saved weights. `epoch_000` is always exact, since distances from the start are measured from
        it; with any other type than the model's own, the exact weights go into the training state, too.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        *,
        scaler: GradScaler | None = None,
        metric: str,
        keep: int = -1,
        log_spaced: bool = False,
        dtype: torch.dtype = torch.float32,
        saved: Callable[[str], None] = lambda path: None,
    ) -> None:
        self.folder, self.model, self.tokenizer = folder, model, tokenizer
        self.optimizer, self.scheduler, self.scaler = optimizer, scheduler, scaler
        self.metric, self.keep, self.log_spaced, self.saved = metric, keep, log_spaced, saved
        self.dtype = dtype
        self.last_step = 0

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        step = progress.step
        if self.log_spaced and step > self.last_step and step.bit_count() == 1:
            self._save_model(f"checkpoints/step_{step:06d}", self.dtype)
        self.last_step = step

    def on_epoch_end(self, progress: Progress) -> None:
        exact = self.model.dtype
        self._save_model(checkpoint_path(progress.epoch), self.dtype if progress.epoch else exact)
        removed = self._outdated(progress)
        manifest = self._manifest(progress, {checkpoint_path(epoch) for epoch in removed})
        self._write(MANIFEST, lambda path: path.write_text(json.dumps(manifest, indent=1)))
        self._write(
            TRAINING_STATE,
            lambda path: save_training_state(
                path,
                self.model,
                self.optimizer,
                self.scheduler,
                progress,
                self.scaler,
                with_weights=self.dtype != exact,
            ),
        )
        for epoch in removed:
            shutil.rmtree(self.folder / checkpoint_path(epoch), ignore_errors=True)

    def _save_model(self, path: str, dtype: torch.dtype) -> None:
        def write(target: Path) -> None:
            model = self.model if dtype == self.model.dtype else copy.deepcopy(self.model).to(dtype)  # type: ignore[arg-type]
            # By default transformers writes the old names that a checkpoint was loaded from (LayerNorm.gamma).
            model.save_pretrained(target, save_original_format=False)
            self.tokenizer.save_pretrained(target)

        self._write(path, write)

    def _write(self, path: str, write: Callable[[Path], Any]) -> None:
        try:
            with replacing(self.folder / path) as temporary:
                write(temporary)
        except (OSError, SafetensorError) as error:  # disk full, most often; safetensors has its own error
            raise InputError(f"cannot write {self.folder / path}: {error}; earlier checkpoints are intact") from error
        self.saved(path)

    def _manifest(self, progress: Progress, removed: set[str]) -> dict[str, Any]:
        states = {"pretrained": 0, "last": progress.epoch}
        if progress.epoch:
            states["best"] = best_epoch(progress.history, self.metric)
        return {
            "states": {name: f"epoch_{epoch:03d}" for name, epoch in states.items()},
            "checkpoints": sorted(
                path.parent.name
                for path in (self.folder / "checkpoints").glob("[es]*/config.json")
                if f"checkpoints/{path.parent.name}" not in removed
            ),
            "updates_per_epoch": progress.step // max(1, progress.epoch),
            "metric": self.metric,
            "history": [{"epoch": epoch, **metrics} for epoch, metrics in enumerate(progress.history)],
        }

    def _outdated(self, progress: Progress) -> set[int]:
        """Epochs whose checkpoints are not to be kept any longer."""
        if self.keep < 0:
            return set()
        keep = set(range(progress.epoch - self.keep + 1, progress.epoch + 1)) | {0, progress.epoch}
        if progress.epoch:
            keep.add(best_epoch(progress.history, self.metric))
        return set(range(progress.epoch)) - keep


def save_start(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, saved: Callable[[str], None]
) -> None:
    """The checkpoints of a run that does not train: `pretrained`, `best` and `last` are one, epoch 0."""
    name = checkpoint_path(0).removeprefix("checkpoints/")
    states = dict.fromkeys(("pretrained", "last", "best"), name)
    manifest = {
        "states": states,
        "checkpoints": [name],
        "updates_per_epoch": 0,
        "metric": None,
        "history": [{"epoch": 0}],
    }
    with replacing(folder / checkpoint_path(0)) as temporary:
        model.save_pretrained(temporary, save_original_format=False)
        tokenizer.save_pretrained(temporary)
    saved(checkpoint_path(0))
    write_json(folder / MANIFEST, manifest)
    saved(MANIFEST)


def save_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    progress: Progress,
    scaler: GradScaler | None = None,
    *,
    with_weights: bool = False,
) -> None:
    """Write the optimiser's tensors by parameter name; progress, schedule and float16 scale in the metadata.

    `with_weights` writes the model's parameters and buffers, too: where no checkpoint holds them exactly.
    """
    names = _names_in_order(model, optimizer)
    state = optimizer.state_dict()
    tensors = {
        f"{names[index]}/{slot}": value.contiguous()
        for index, slots in state["state"].items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }
    if with_weights:
        tensors |= {f"{name}/{WEIGHT}": value.contiguous() for name, value in model.state_dict().items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    schedule = {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"}
    content = {
        "progress": asdict(progress),
        "param_groups": groups,
        "scheduler": schedule,
        "scaler": scaler.state_dict() if scaler else None,
    }
    save_file(tensors, path, metadata={"bertdyn": json.dumps(content)})


def load_progress(path: Path) -> Progress:
    """How far the training got whose state is at `path`."""
    return Progress(**_metadata(path)["progress"])


def load_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler | None = None,
) -> None:
    """Give optimiser, schedule, float16 scaler (and weights, if `path` has them) the state they had then.

    Raises
    ------
    InputError
        If the state belongs to a model with other parameters.
    """
    names = _names_in_order(model, optimizer)
    metadata, state = _metadata(path), optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    index_of = {name: index for index, name in enumerate(names)}
    own = model.state_dict()
    for key, tensor in load_file(path).items():
        name, _, slot = key.rpartition("/")
        if name not in (own if slot == WEIGHT else index_of):
            raise InputError(f"{path} is the state of another model: it has a parameter {name!r}")
        if slot == WEIGHT:
            own[name].copy_(tensor)
        else:
            slots.setdefault(index_of[name], {})[slot] = tensor
    groups = [
        new | {"params": old["params"]}
        for new, old in zip(metadata["param_groups"], state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    scheduler.load_state_dict(scheduler.state_dict() | metadata["scheduler"])
    if scaler and metadata["scaler"]:
        scaler.load_state_dict(metadata["scaler"])


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["bertdyn"])


def _names_in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
