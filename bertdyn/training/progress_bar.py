"""A progress bar over all steps of a training, with the rate and, now and then, the loss."""

import sys
import time

from torch import Tensor
from tqdm.auto import tqdm

from bertdyn.data.batching import Batch
from bertdyn.training.loop import Listener, Progress

SECONDS_BETWEEN_LOSSES = 2.0


class ProgressBar(Listener):
    """One bar for the whole training; reading the loss (which synchronises) at most every two seconds."""

    def __init__(self, batches_per_epoch: int, num_epochs: int, shown: tuple[str, ...] = ("eval/accuracy",)) -> None:
        self.batches_per_epoch, self.num_epochs, self.shown = batches_per_epoch, num_epochs, shown
        self.bar: tqdm | None = None
        self.last_loss = time.monotonic()

    def on_epoch_start(self, progress: Progress) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=self.num_epochs * self.batches_per_epoch,
                initial=(progress.epoch - 1) * self.batches_per_epoch,
                desc="training",
                unit="batch",
                dynamic_ncols=True,
            )
        self.bar.set_description(f"epoch {progress.epoch}/{self.num_epochs}")

    def on_step_end(self, progress: Progress, batch: Batch, loss: Tensor) -> None:
        assert self.bar is not None
        if time.monotonic() - self.last_loss > SECONDS_BETWEEN_LOSSES:
            self.bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            self.last_loss = time.monotonic()
        self.bar.update()

    def on_epoch_end(self, progress: Progress) -> None:
        found = "  ".join(f"{key} {progress.metrics[key]:.3f}" for key in self.shown if key in progress.metrics)
        if found:
            tqdm.write(f"epoch {progress.epoch}/{self.num_epochs}  {found}", file=sys.stderr)

    def on_train_end(self, progress: Progress) -> None:
        if self.bar is not None:
            self.bar.close()
