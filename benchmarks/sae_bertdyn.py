"""Train a dictionary with bertdyn, by its own training; for `benchmarks.sae`.

    python -m benchmarks.sae_bertdyn '<job as JSON>'

Recipes: tuned, which is the only one, and speed, that without AuxK.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.sae_feed import SEED, Feed, Job, memory_mb
from bertdyn.sae.dictionary import decode, encode
from bertdyn.sae.rows import TrainingRows, standardisation_of
from bertdyn.sae.training import Place, Recipe, exported, make_dictionaries, train_dictionaries


def main() -> None:
    job = Job.from_json(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    accelerator = Accelerator(cpu=True)
    feed = Feed(job)
    before = memory_mb("VmRSS")
    train(feed, accelerator)
    print(json.dumps(feed.result() | {"mb_before": before}))


def train(feed: Feed, accelerator: Accelerator) -> None:
    """`train_dictionaries` with one dictionary."""
    job = feed.job
    sizes: dict[str, Any] = {"num_latents": job.num_latents, "k": job.k, "batch_size": job.batch_size}
    without_aux = {"aux_coefficient": 0.0} if job.recipe == "speed" else {}
    recipe = Recipe(**sizes, num_epochs=job.num_epochs, **without_aux)
    dataset: Any = _Dataset(feed)
    rows = TrainingRows([dataset], [standardisation_of(dataset, [[job.train]])])
    model = make_dictionaries(rows, recipe, [SEED])

    def reconstruct(given: Tensor) -> tuple[Tensor, Tensor]:
        dictionary = exported(model, rows)[Place(0, 0, 0)]
        codes = encode(dictionary, given)
        return decode(dictionary, codes), codes > 0

    feed.start(reconstruct)
    train_dictionaries(accelerator, model, rows, recipe, seed=SEED)


class _Dataset:
    """A feed as `RowDataset` has it: one state, one layer."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __len__(self) -> int:
        return len(self.feed.rows)

    def batch(self, indices: np.ndarray) -> Tensor:
        """[1, 1, rows, width]"""
        return self.feed.take(indices)[None, None]


if __name__ == "__main__":
    main()
