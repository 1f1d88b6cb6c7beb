"""Which epoch is the best, and when to stop waiting for a better one."""

from bertdyn.training.loop import Listener, Progress


def best_epoch(history: list[dict[str, float]], metric: str) -> int:
    """The trained epoch (from 1) with the highest `metric`; ties go to the earliest.

    Epoch 0, the model before training, is never the best: its head is random.
    `history[epoch]` holds the metrics of `epoch`.
    """
    return max(range(1, len(history)), key=lambda epoch: (history[epoch][metric], -epoch))


class EarlyStopping(Listener):
    """Stops after `patience` epochs without a better `metric`; 0 never stops."""

    def __init__(self, metric: str, patience: int) -> None:
        self.metric = metric
        self.patience = patience

    def on_epoch_end(self, progress: Progress) -> None:
        if self.patience and progress.epoch:
            waited = progress.epoch - best_epoch(progress.history, self.metric)
            progress.stop = waited >= self.patience
