"""Training dictionaries, many at once, on the training loop of this project.

The recipe is for 10⁵ to 10⁷ rows, which is what a classification task has; the defaults of libraries are for 10⁹ and
find next to nothing here. It is a high learning rate on rows of unit length, a short warm-up, a linear decay at the
end, latents that start at data points, and AuxK for latents that were off for a few batches.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_wsd_schedule

from bertdyn.data.batching import Batch
from bertdyn.files import replacing
from bertdyn.sae.dictionaries import Dictionaries
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.objective import DeadLatents, auxiliary_loss, find_dead, sparsity_loss, squared_error
from bertdyn.sae.rows import RowBatches, TrainingRows
from bertdyn.training.checkpoints import load_progress, load_training_state, save_training_state
from bertdyn.training.loop import AtEpochEnd, Listener, Progress, train
from bertdyn.training.progress_bar import ProgressBar

DEAD_AT_ONCE = 2
"""Dead latents that AuxK chooses among, in units of those that it chooses."""
STEPS_BETWEEN_LOOKS = 10
"""After so many steps the dead latents are counted anew, which synchronises."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""
CALIBRATION_ROWS = 2**15
"""From which the threshold of batch_topk is found."""


@dataclass(frozen=True)
class Recipe:
    """How dictionaries are trained."""

    activation: str = "topk"
    """One of `config.ACTIVATIONS`."""
    num_latents: int = 1536
    k: int = 32
    """Latents a row, of topk and batch_topk."""
    l1_coefficient: float = 0.0
    """Weight of the codes' L1 norm beside the unexplained share of variance, of relu."""
    num_epochs: int = 5
    """Passes over the rows."""
    batch_size: int = 512
    """Rows a step of each dictionary; of each state, where states are pooled."""
    learning_rate: float = 3e-3
    """Of Adam; the peak."""
    warmup_steps: int = 50
    decay_share: float = 0.2
    """Of all steps, at the end: the learning rate falls to 0."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK; 0 leaves dead latents dead."""
    dead_after: int = 20
    """Steps without being on after which a latent counts as dead."""


def make_dictionaries(rows: TrainingRows, recipe: Recipe, seeds: list[int]) -> Dictionaries:
    """Dictionaries at the start of their training: latents at data points, the same rows in all groups of a seed."""
    model = Dictionaries(
        len(seeds), rows.num_groups, rows.width, recipe.num_latents, activation=recipe.activation, k=recipe.k
    )
    points, some = [], []
    for seed in seeds:
        chosen = np.random.default_rng([seed, 0]).permutation(len(rows))[: recipe.num_latents]
        if len(chosen) < recipe.num_latents:
            raise ValueError(f"{len(rows)} rows for {recipe.num_latents} latents to start at")
        points.append(_spread(rows, chosen))
        some.append(rows.batch(np.random.default_rng([seed, 1]).permutation(len(rows))[: recipe.batch_size]))
    model.start_at(torch.cat(points).cpu(), torch.cat(some).cpu())
    return model


def _spread(rows: TrainingRows, chosen: np.ndarray) -> Tensor:
    """[groups, latents, width]: points of the chosen rows; pooled ones from each state in turn."""
    points = rows.batch(chosen)
    if not rows.pooled:
        return points
    by_state = points.unflatten(1, (rows.num_states, -1))
    at = torch.arange(len(chosen), device=points.device)
    return by_state[:, at % rows.num_states, at]


def train_dictionaries(
    accelerator: Accelerator,
    model: Dictionaries,
    rows: TrainingRows,
    recipe: Recipe,
    *,
    seed: int,
    state_file: Path | None = None,
    listeners: Sequence[Listener] = (),
) -> Progress:
    """Train all dictionaries in place; each process its own.

    Parameters
    ----------
    seed
        Of the order of rows, which all dictionaries share.
    state_file
        Written at the end of every epoch; a training that finds it goes on from there, bit for bit as if it had not
        been interrupted.
    listeners
        Called after ours, which give every epoch the metrics `train/fvu` (mean over its steps and all dictionaries)
        and `train/dead_share`.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    batches = RowBatches(rows, recipe.batch_size, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    steps = recipe.num_epochs * len(batches)
    warmup, decay = min(recipe.warmup_steps, steps // 10), round(recipe.decay_share * steps)
    scheduler = get_wsd_schedule(
        optimizer, warmup, decay, num_training_steps=steps, decay_type="linear", min_lr_ratio=0.0
    )
    progress = None
    model.to(accelerator.device)
    if accelerator.device.type == "cpu":
        _keep_freed_memory()
    if state_file and state_file.exists():
        load_training_state(state_file, model, optimizer, scheduler)
        progress = load_progress(state_file)
    course = _Course(model, rows, recipe)
    around: list[Listener] = [course]
    if accelerator.is_main_process:
        around.append(ProgressBar(len(batches), recipe.num_epochs, shown=("train/fvu",)))
    around += listeners
    if state_file:

        def save(progress: Progress) -> None:
            with replacing(state_file) as temporary:
                save_training_state(temporary, model, optimizer, scheduler, progress, with_weights=True)

        around.append(AtEpochEnd(save))
    return train(
        accelerator,
        model,
        cast(DataLoader, batches),
        course.loss,
        optimizer,
        scheduler,
        num_epochs=recipe.num_epochs,
        seed=seed,
        listeners=around,
        progress=progress,
        together=False,
    )


def _keep_freed_memory() -> None:
    """Let the C library keep the memory that a step frees, for the next step.

    By default glibc gives every block over 32 MB back at once, and the system zeroes its pages again a moment later:
    nearly half the time of a step of many dictionaries, whose gradients and activations are such blocks. Other C
    libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class _Course(Listener):
    """The loss, and what has to happen around a step: dead latents, decoder rows of length 1."""

    def __init__(self, model: Dictionaries, rows: TrainingRows, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.variance = rows.variance.repeat(model.num_seeds)
        self.aux_k = max(1, rows.width // 2)
        self.dead: DeadLatents | None = None

    def loss(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The sum over dictionaries: each has the gradient that it would have alone."""
        rows = batch["rows"].repeat(self.model.num_seeds, 1, 1)
        reconstruction, fired, codes = model(rows)
        reconstruction = reconstruction.float()
        fvu = squared_error(rows, reconstruction) / self.variance
        loss = fvu
        if self.dead is not None:
            loss = loss + self.recipe.aux_coefficient * auxiliary_loss(
                self.model, rows, reconstruction, self.dead, self.aux_k
            )
        if codes is not None:
            loss = loss + self.recipe.l1_coefficient * sparsity_loss(codes) / self.variance.sqrt()
        self.model.idle.add_(1).masked_fill_(fired > 0, 0)
        self.total += fvu.detach()
        return loss.sum()

    def on_epoch_start(self, progress: Progress) -> None:
        self.total, self.steps = torch.zeros_like(self.variance), 0
        self._look()

    def on_gradients(self, progress: Progress, norms: Tensor) -> None:
        self.model.project_gradient()

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        self.model.normalize()
        self.steps += 1
        if self.steps % STEPS_BETWEEN_LOOKS == 0:
            self._look()

    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epoch:
            progress.metrics["train/fvu"] = float(self.total.mean()) / self.steps
            dead = self.model.idle >= self.recipe.dead_after
            progress.metrics["train/dead_share"] = float(dead.float().mean())

    def _look(self) -> None:
        if self.recipe.aux_coefficient and self.recipe.activation != "relu":
            self.dead = find_dead(self.model.idle, self.recipe.dead_after, DEAD_AT_ONCE * self.aux_k)


class Place(NamedTuple):
    """Where a dictionary belongs."""

    seed: int
    """Its place among the seeds."""
    state: int
    """Of the states of the training rows; of pooled ones, the state whose mean is folded in."""
    layer: int
    """Its place among the layers."""


@torch.no_grad()
def exported(model: Dictionaries, rows: TrainingRows) -> dict[Place, Dictionary]:
    """The trained dictionaries on rows as the encoder produces them; a pooled one once for each state.

    An activation is given in standard deviations: sqrt(width) times that on standardised rows.
    """
    root = rows.width**0.5
    thresholds = _thresholds(model, rows) * root
    found = {}
    for seed in range(model.num_seeds):
        for state in range(rows.num_states):
            for layer in range(rows.num_layers):
                group = layer if rows.pooled else state * rows.num_layers + layer
                number = seed * rows.num_groups + group
                mean = torch.as_tensor(rows.mean[state, layer])
                scale = torch.as_tensor(rows.deviation[state, layer])
                encoder = model.encoder[number].cpu().double() / scale
                decoder = model.decoder[number].cpu().double() * scale
                found[Place(seed, state, layer)] = Dictionary(
                    activation=model.activation,
                    k=0 if model.activation == "relu" else model.k,
                    encoder=encoder.t().contiguous().float(),
                    encoder_bias=(model.encoder_bias[number].cpu().double() * root - encoder @ mean).float(),
                    decoder=decoder.float(),
                    decoder_bias=(mean + scale * root * model.decoder_bias[number].cpu().double()).float(),
                    threshold=thresholds[number],
                    mean=mean.float(),
                    scale=scale.float(),
                )
    return found


def _thresholds(model: Dictionaries, rows: TrainingRows) -> Tensor:
    """[dictionaries]: for batch_topk, what an activation must reach so that k latents a row are on, on average."""
    number = model.encoder.shape[0]
    thresholds = torch.zeros(number)
    if model.activation != "batch_topk":
        return thresholds
    most = min(8 * model.k, model.encoder.shape[1])  # of one row
    count = min(len(rows), CALIBRATION_ROWS // (rows.num_states if rows.pooled else 1))
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:count])
    sample = rows.batch(chosen)
    for index in range(number):
        of_group = sample[index % rows.num_groups]
        kept = [
            (block @ model.encoder[index].t() + model.encoder_bias[index]).topk(most, dim=1)[0].flatten()
            for block in of_group.split(1024)
        ]
        strongest = torch.cat(kept).topk(model.k * len(of_group))[0]
        thresholds[index] = strongest[-1].clamp_min(0).cpu()
    return thresholds
