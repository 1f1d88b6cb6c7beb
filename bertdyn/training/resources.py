"""What an epoch of training cost: time, examples and tokens a second, memory."""

import resource
import sys
import time

import torch
from torch import Tensor

from bertdyn.data.batching import Batch
from bertdyn.training.loop import Listener, Progress


class Resources(Listener):
    """Adds `train/…` rates and `memory/…` peaks; put it first, so that it times the training alone.

    Tokens are real ones; they are counted on the device and read once an epoch.
    """

    def __init__(self, device: torch.device, num_processes: int = 1) -> None:
        self.device = device
        self.num_processes = num_processes

    def on_epoch_start(self, progress: Progress) -> None:
        self.batches = self.examples = 0
        self.tokens = torch.zeros((), dtype=torch.long, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = time.perf_counter()

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        self.batches += 1
        self.examples += len(batch["input_ids"])
        self.tokens += batch["attention_mask"].sum()

    def on_epoch_end(self, progress: Progress) -> None:
        if progress.epoch:
            tokens = self.tokens.item()  # waits for the device
            seconds = time.perf_counter() - self.start
            progress.metrics.update(
                {
                    "train/examples_per_second": self.examples * self.num_processes / seconds,
                    "train/tokens_per_second": tokens * self.num_processes / seconds,
                    "train/step_time_ms": 1000 * seconds / max(self.batches, 1),
                    "train/epoch_seconds": seconds,
                }
            )
        progress.metrics["memory/peak_rss_mb"] = peak_rss_mb()
        if self.device.type == "cuda":
            progress.metrics["memory/peak_cuda_mb"] = torch.cuda.max_memory_allocated(self.device) / 2**20


def peak_rss_mb() -> float:
    """The largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
