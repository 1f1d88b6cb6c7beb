"""Train a dictionary with one of the other libraries, by its own training loop; for `benchmarks.sae`.

    SPARSIFY_DISABLE_TRITON=1 python -m benchmarks.sae_peers '<job as JSON>'

Runs where SAELens, eai-sparsify and dictionary_learning are installed, and bertdyn need not be. Recipes:

    default    all that the library has defaults for, on raw rows; dictionary_learning's warm-up of 1000 steps is cut to
               a tenth of the training
    tuned      for 10⁵ to 10⁷ rows: standardised rows of the length that the library normalises to, the given learning
               rate of Adam, a warm-up of 50 steps, a linear decay to 0 over the last fifth (sparsify's is over all
               steps), AuxK for latents that were off for 20 batches; its weight is the library's, of sparsify 1/32
    speed      that without AuxK
"""

import json
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata, util
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.sae_feed import SEED, Feed, Job, memory_mb

WARMUP_STEPS, DECAY_SHARE, DEAD_AFTER, AUX_COEFFICIENT = 50, 0.2, 20, 1 / 32
NEVER = 10**9
"""Steps or rows after which a latent is dead, without AuxK."""


def main() -> None:
    job = Job.from_json(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    train, length_of, package = SYSTEMS[job.system]
    width = np.load(job.train, mmap_mode="r").shape[1]
    feed = Feed(job, None if job.recipe == "default" else length_of(width))
    before = memory_mb("VmRSS")
    train(feed)
    versions = {name: metadata.version(name) for name in (package, "torch")}
    print(json.dumps(feed.result() | {"mb_before": before, "versions": versions}))


def saelens(feed: Feed) -> None:
    """`SAETrainer.fit`."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    job = feed.job
    schedule: dict[str, Any] = {"lr_end": 3e-5}  # of the runner's default; only a cosine uses it
    if job.recipe != "default":
        schedule = {
            "lr": job.learning_rate,
            "lr_end": job.learning_rate / 10,
            "lr_warm_up_steps": warmup(feed),
            "lr_decay_steps": round(DECAY_SHARE * feed.steps),
            "dead_feature_window": NEVER if job.recipe == "speed" else DEAD_AFTER,
        }
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=feed.width, d_sae=job.num_latents, k=job.k))
    config = SAETrainerConfig(
        total_training_samples=feed.steps * job.batch_size,
        train_batch_size_samples=job.batch_size,
        logger=LoggingConfig(log_to_wandb=False),
        **schedule,
    )
    trainer = SAETrainer(config, sae, iter(feed))

    def reconstruct(rows: Tensor) -> tuple[Tensor, Tensor]:
        codes = sae.encode(rows)
        return sae.decode(codes), codes > 0

    feed.start(reconstruct)
    trainer.fit()


def dictionary_learning(feed: Feed) -> None:
    """`trainSAE` with a `TopKTrainer`."""
    if util.find_spec("nnsight") is None:  # imported there, to read a language model; its pins are hard to meet
        sys.modules["nnsight"] = _NoNnsight("nnsight")
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.training import trainSAE

    job = feed.job
    options: dict[str, Any] = {"warmup_steps": min(1000, feed.steps // 10)}
    if job.recipe != "default":
        options = {
            "lr": job.learning_rate,
            "warmup_steps": warmup(feed),
            "decay_start": feed.steps - round(DECAY_SHARE * feed.steps),
            "auxk_alpha": 0.0 if job.recipe == "speed" else AUX_COEFFICIENT,
        }

    def make_trainer(**config: Any) -> TopKTrainer:
        trainer = TopKTrainer(**config)
        if job.recipe != "default":
            trainer.dead_feature_threshold = NEVER if job.recipe == "speed" else DEAD_AFTER * job.batch_size

        def reconstruct(rows: Tensor) -> tuple[Tensor, Tensor]:
            codes = trainer.ae.encode(rows)
            return trainer.ae.decode(codes), codes > 0

        feed.start(reconstruct)
        return trainer

    config = {"trainer": make_trainer, "steps": feed.steps, "activation_dim": feed.width, "dict_size": job.num_latents}
    config |= {"k": job.k, "layer": 0, "lm_name": "", "device": "cpu", "seed": SEED}
    trainSAE(iter(feed), [config | options], steps=feed.steps, device="cpu")


def sparsify(feed: Feed) -> None:
    """`Trainer.fit` on a model that looks rows up: its token ids are numbers of rows."""
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    job = feed.job
    options: dict[str, Any] = {}
    if job.recipe != "default":
        options = {"optimizer": "adam", "lr": job.learning_rate, "lr_warmup_steps": warmup(feed)}
    if job.recipe == "tuned":
        options |= {"auxk_alpha": AUX_COEFFICIENT, "dead_feature_threshold": DEAD_AFTER * job.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=job.num_latents, k=job.k),
            batch_size=1,  # texts, of batch_size tokens
            hookpoints=["rows"],
            log_to_wandb=False,
            save_dir=folder,
            save_every=NEVER,
            init_seeds=[SEED],
            **options,
        )
        texts = [{"input_ids": torch.from_numpy(indices)} for indices in feed.indices()]
        trainer = Trainer(config, texts, _RowModel(feed))
        [coder], [optimizer] = trainer.saes.values(), trainer.optimizers
        averages = job.recipe == "default"  # schedule-free: what is evaluated is an average of the weights

        def reconstruct(rows: Tensor) -> tuple[Tensor, Tensor]:
            if averages:
                optimizer.eval()
            values, latents, activations = coder.encode(rows)
            found = coder.decode(values, latents)
            if averages:
                optimizer.train()
            return found, torch.zeros_like(activations, dtype=torch.bool).scatter_(1, latents, values > 0)

        feed.start(reconstruct)
        trainer.fit()


class _NoNnsight(ModuleType):
    LanguageModel = object


class _RowModel(nn.Module):
    """What sparsify needs of a language model."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self.rows = _Lookup(feed)
        self.device = torch.device("cpu")
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.rows(input_ids)


class _Lookup(nn.Module):
    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self.feed = feed

    def forward(self, input_ids: Tensor) -> Tensor:
        torch.set_float32_matmul_precision("highest")  # its loop asks for less; all are to have float32
        return self.feed.take(input_ids[0].numpy())[None]


def warmup(feed: Feed) -> int:
    return min(WARMUP_STEPS, feed.steps // 10)


def unit(width: int) -> float:
    return 1.0


def root_of_width(width: int) -> float:
    return width**0.5


SYSTEMS: dict[str, tuple[Callable[[Feed], None], Callable[[int], float], str]] = {
    "saelens": (saelens, root_of_width, "sae-lens"),
    "dictionary_learning": (dictionary_learning, unit, "dictionary-learning"),
    "sparsify": (sparsify, unit, "eai-sparsify"),
}
"""How each trains, on rows of what length if not on raw ones (what its own normalisation makes), and its package."""


if __name__ == "__main__":
    main()
