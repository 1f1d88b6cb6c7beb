"""What `benchmarks.sae` gives to every trainer of dictionaries: a job, rows batch by batch, and the clock.

Imports nothing of bertdyn: the other libraries run it in an environment of their own. Every trainer is its library's
own loop; it asks for its next batch, and by that its last step has ended. Evaluations lie between two steps, where the
clock stands still.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SEED = 0
ROWS_PER_BLOCK = 1024
"""Of an evaluation: as many as a batch, so that it does not decide the peak of memory."""

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[rows, width] as the trainer gets them → reconstruction [rows, width], and what is on [rows, latents], bool."""


class Job(NamedTuple):
    """One training in one process."""

    system: str
    """saelens, dictionary_learning, sparsify or bertdyn."""
    recipe: str
    """"default": the library's own, on raw rows. "tuned": for few rows. "speed": that without AuxK, for equal work."""
    learning_rate: float
    """Of "tuned"."""
    train: str
    """.npy, float32 [rows, width]"""
    held_out: str
    """Likewise; empty: nothing is evaluated."""
    num_latents: int
    k: int
    batch_size: int
    num_epochs: int
    evaluations: int = 20

    @classmethod
    def from_json(cls, text: str) -> "Job":
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(self._asdict())


class Feed:
    """Rows of a job, and what its training costs and reaches.

    Parameters
    ----------
    row_length
        Rows are standardised by dimension, then scaled to this root of the mean squared length; None leaves them raw.
    """

    def __init__(self, job: Job, row_length: float | None = None) -> None:
        self.job = job
        self.rows = torch.from_numpy(np.load(job.train))
        self.held_out = torch.from_numpy(np.load(job.held_out)) if job.held_out else None
        self.width = self.rows.shape[1]
        self.center, self.deviation = self.rows.double().mean(0).float(), self.rows.double().std(0).float()
        self.factor = None
        if row_length is not None:
            self.factor = row_length / (self.deviation * self.width**0.5)
            self.rows = (self.rows - self.center) * self.factor
        self.per_epoch = len(self.rows) // job.batch_size
        self.steps = job.num_epochs * self.per_epoch
        due = self.steps * np.linspace(0, 1, job.evaluations + 1) ** 2  # early on, more happens
        self._due = set(np.unique(due.round().astype(int)).tolist()) if job.held_out else set()
        self.curve: list[dict[str, float]] = []
        self._wall: list[float] = []
        self._processor: list[float] = []
        self._began: tuple[float, float] | None = None
        self._reconstruct: Reconstruct | None = None
        self._created = time.perf_counter()
        self._preparing = 0.0

    def indices(self) -> Iterator[np.ndarray]:
        """The rows of each batch, the same for every trainer: every row once an epoch, but for the last batch."""
        for epoch in range(1, self.job.num_epochs + 1):
            order = np.random.default_rng([SEED, epoch]).permutation(len(self.rows))
            for number in range(self.per_epoch):
                yield order[number * self.job.batch_size : (number + 1) * self.job.batch_size]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.take(indices) for indices in self.indices())

    def start(self, reconstruct: Reconstruct) -> None:
        """The next batch that is taken is the first of the training."""
        self._reconstruct = reconstruct
        self._preparing = time.perf_counter() - self._created
        reset_peak()

    def take(self, indices: np.ndarray) -> Tensor:
        """The next batch, [rows, width], which is the trainer's to keep; ends the step before it."""
        if self._reconstruct is None:  # a look before the training
            return self.rows[indices]
        self._between_steps()
        self._began = time.perf_counter(), time.process_time()
        return self.rows[indices]

    def result(self) -> dict[str, Any]:
        """Of the whole training, which has ended."""
        self._between_steps()
        if len(self._wall) != self.steps:
            raise AssertionError(f"{self.job.system} took {len(self._wall)} steps, not {self.steps}")
        return {
            "step_seconds": self._wall,
            "step_processor_seconds": self._processor,
            "seconds_before_first_step": self._preparing,
            "curve": self.curve,
            "peak_mb": memory_mb("VmHWM"),
        }

    def _between_steps(self) -> None:
        if self._began is not None:
            self._wall.append(time.perf_counter() - self._began[0])
            self._processor.append(time.process_time() - self._began[1])
            self._began = None
        if len(self._wall) in self._due:
            self._due.remove(len(self._wall))
            self.curve.append(self._evaluate())

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Fractions of variance unexplained, sums in float64; the share of latents that are on in no held-out row."""
        assert self.held_out is not None
        assert self._reconstruct is not None
        rest, variance = torch.zeros(self.width).double(), torch.zeros(self.width).double()
        fired: Tensor | float = 0.0
        mean = self.held_out.double().mean(0)
        for rows in self.held_out.split(ROWS_PER_BLOCK):
            given = rows if self.factor is None else (rows - self.center) * self.factor
            found, on = self._reconstruct(given)
            if self.factor is not None:
                found = found / self.factor + self.center
            rest += (rows.double() - found.double()).square().sum(0)
            variance += (rows.double() - mean).square().sum(0)
            fired = fired + on.sum(0)
        assert isinstance(fired, Tensor)
        weights = 1 / self.deviation.double().square()
        return {
            "step": len(self._wall),
            "seconds": sum(self._wall),
            "processor_seconds": sum(self._processor),
            "fvu": float(rest.sum() / variance.sum()),
            "fvu_standardised": float((rest * weights).sum() / (variance * weights).sum()),
            "l0": float(fired.sum()) / len(self.held_out),
            "dead_share": float((fired == 0).float().mean()),
        }


def memory_mb(name: str) -> float:
    """VmRSS (memory now) or VmHWM (its peak) of this process in MiB. Linux only."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split(maxsplit=1)[0]) / 1024


def reset_peak() -> None:
    """The peak of memory is what it is now: loading and imports do not count."""
    Path("/proc/self/clear_refs").write_text("5")
