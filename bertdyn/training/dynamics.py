"""What training does to every parameter tensor, epoch by epoch.

For each tensor: Frobenius norm, share of exact zeros, distance from the initial weights, relative
update (‖W_e - W_{e-1}‖ / ‖W_{e-1}‖, NaN where that was 0), and mean, maximum and root mean square of
the gradient's norm over *all* updates of the epoch, before clipping. (System 0 looked at the first
batch only.)
Gradient norms are accumulated on the device: nothing is synchronised until the epoch ends, and
the norms themselves are those that clipping needs anyway.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bertdyn.models.anatomy import places
from bertdyn.training.groups import by_group
from bertdyn.training.loop import Listener, Progress
from bertdyn.training.snapshots import Snapshot, norms

MAX_LAYERS_AS_SCALARS = 24


class Dynamics(Listener):
    """Fills `table`, one row per epoch and parameter tensor, and adds group scalars to the metrics.

    Parameters
    ----------
    model
        The model without any wrapper, on its device.
    initial
        Parameter name → the weights of epoch 0; None takes those of `model` now.
    table
        Rows of earlier epochs, when a run is resumed.
    folder
        Where two unnamed files hold the weights of epoch 0 and of the epoch's start; default: the system's
        temporary folder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        initial: Mapping[str, Tensor] | None = None,
        table: pd.DataFrame | None = None,
        folder: Path | None = None,
    ) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [p for _, p in model.named_parameters()]
        self.places = places(model)
        weights = self.parameters if initial is None else [initial[name] for name in self.names]
        self.initial, self.previous = (Snapshot(weights, folder) for _ in range(2))
        self.table = table if table is not None else pd.DataFrame()
        self._reset()

    def _reset(self) -> None:
        device = self.parameters[0].device
        self.updates = torch.zeros((), device=device)
        self.sum, self.sum_of_squares, self.max = torch.zeros(3, len(self.parameters), device=device).unbind()

    def on_epoch_start(self, progress: Progress) -> None:
        self._reset()
        self.previous.take(self.parameters)

    def on_gradients(self, progress: Progress, norms: Tensor) -> None:
        finite = norms.isfinite().all()  # float16 gradients that overflowed lead to no update
        norms = torch.where(finite, norms, 0.0)
        self.updates += finite
        self.sum += norms
        self.sum_of_squares += norms**2
        self.max = torch.maximum(self.max, norms)

    def on_epoch_end(self, progress: Progress) -> None:
        rows = self._rows(progress.epoch)
        self.table = pd.concat([self.table, rows], ignore_index=True) if len(self.table) else rows
        progress.metrics.update(scalars(rows))

    @torch.no_grad()
    def _rows(self, epoch: int) -> pd.DataFrame:
        weights = self.parameters
        distance_from_init, _ = self.initial.compare(weights)
        update_norm, previous_norm = self.previous.compare(weights)
        measured = torch.stack(
            [
                norms(weights),
                torch.stack([(w.numel() - w.count_nonzero()).double() / w.numel() for w in weights]),
                distance_from_init,
                update_norm,
                previous_norm,
                self.sum.double() / self.updates,
                self.max.double(),
                (self.sum_of_squares.double() / self.updates).sqrt(),
            ]
        ).cpu()
        norm, sparsity, distance, update, previous, mean, maximum, rms = measured.numpy()
        if epoch == 0:  # nothing was updated yet
            update, mean, maximum, rms = np.full((4, len(weights)), np.nan)
        return pd.DataFrame(
            {
                "epoch": epoch,
                "parameter": self.names,
                "component": [self.places[name].component for name in self.names],
                "layer": pd.array([self.places[name].layer for name in self.names], dtype="Int64"),
                "num_elements": [w.numel() for w in weights],
                "trainable": [p.requires_grad for p in self.parameters],
                "norm": norm,
                "sparsity": sparsity,
                "distance_from_init": distance,
                "update_norm": update,
                "relative_update": update / np.where(previous > 0, previous, np.nan),
                "previous_norm": previous,
                "grad_norm_mean": mean,
                "grad_norm_max": maximum,
                "grad_norm_rms": rms,
            }
        )


def scalars(rows: pd.DataFrame) -> dict[str, float]:
    """One epoch's rows → `norm/`, `grad/` and `update/` scalars by group.

    The tracking UI draws one chart per key, so deep models get every second (third, …) layer only.
    """
    groups = by_group(rows).set_index("group")
    layers = [name for name in groups.index if name.startswith("layer_")]
    stride = -(-len(layers) // MAX_LAYERS_AS_SCALARS)
    shown = [name for name in groups.index if name not in layers or (int(name[6:]) - 1) % stride == 0]
    columns = {"norm": "norm", "grad": "grad_norm_rms", "update": "relative_update"}
    values: dict[str, Any] = {
        f"{prefix}/{name}": groups.at[name, column] for prefix, column in columns.items() for name in shown
    }
    return {key: float(value) for key, value in values.items() if not np.isnan(value)}
