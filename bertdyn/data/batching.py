"""Batches for training and evaluation: padded to their longest text, in an order that can be repeated.

Training order. `accelerate`'s own seedable sampler takes its seed from torch's global generator, and uses
seed + epoch, so that seed 0 in epoch 1 and seed 1 in epoch 0 see the same order. Here the sampler is our own:
the order of epoch e is a function of (seed, e) alone, whatever ran before. What the caller does:

    loader = accelerator.prepare(make_batches(dataset, tokenizer, 32, shuffle=True, seed=0))
    for epoch in range(first_epoch, last_epoch + 1):
        loader.set_epoch(epoch)                     # unprepared: loader.sampler.set_epoch(epoch)
        for batch in loader: ...

To resume in mid-epoch, `rest = accelerator.skip_first_batches(loader, n)` and then `rest.set_epoch(epoch)`:
the epoch of the original loader is not passed on. All processes of a distributed run draw the same order, of
which `accelerate` gives each its share.

Evaluation order is longest first: little padding, and the largest batch (the one that may not fit) comes at
once. The column `index` says which row of the part's table (question answering: which window) each output
belongs to.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

Batch = dict[str, torch.Tensor]
"""input_ids, attention_mask and, where the model takes them, token_type_ids [batch, seq]; index and labels, or for
question answering start_positions, end_positions, context_start, context_end [batch]; on request token_rows
[tokens]."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "token_rows")
RENAMED = {"label": "labels", "start_position": "start_positions", "end_position": "end_positions"}
"""Columns that batches hold under the names of transformers."""
NOT_IN_BATCHES = ("length", "example", "window", "char_start", "char_end")
"""Columns that are looked up by `index` when they are needed; they are not even read for a batch."""


def model_inputs(batch: Batch) -> Batch:
    """What a model's forward takes, without targets and what else says where the rows belong."""
    return {name: value for name, value in batch.items() if name in MODEL_INPUTS}


class EpochShuffle(Sampler[int]):
    """All rows in an order that depends on the seed and the epoch set with `set_epoch`, and nothing else."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows).tolist()

    def __len__(self) -> int:
        return self.num_rows


def make_batches(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    token_rows: bool = False,
    by_length: bool = True,
) -> DataLoader:
    """A DataLoader over one tokenised part.

    Parameters
    ----------
    dataset
        From `tokenize_parts`; further columns with one number a row become tensors [batch].
    tokenizer
        Knows the padding token and side.
    batch_size
        Rows a batch (and process); the last batch may be smaller.
    shuffle
        True for training (order by seed and epoch); False for evaluation (longest first).
    seed
        Of the training order, at least 0.
    by_length
        Of evaluation; False: in the order of the rows.
    token_rows
        Also say where the real tokens lie in the flattened batch, for models that compute no padding: found
        here, their number is known without waiting for a GPU.

    Returns
    -------
    loader
        Yields a `Batch` at a time, padded to its longest text.
    """
    if shuffle:
        order: Any = EpochShuffle(len(dataset), seed)
    else:
        # Stable, so that texts of one length keep their order.
        order = np.argsort(-np.asarray(dataset["length"]), kind="stable").tolist() if by_length else range(len(dataset))
    # A generator of its own: else every pass would draw from, and so change, torch's global random state.
    generator = torch.Generator().manual_seed(seed)
    dataset = dataset.remove_columns([name for name in NOT_IN_BATCHES if name in dataset.column_names])
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a datasets.Dataset is a map-style dataset with __getitems__
        batch_size=batch_size,
        sampler=order,
        collate_fn=Collator(tokenizer, token_rows),
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )


class Collator:
    """A list of rows to a padded batch. A class, not a closure, so that worker processes can receive it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_rows: bool = False) -> None:
        self.tokenizer = tokenizer
        self.token_rows = token_rows

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        sequences = [name for name in ("input_ids", "token_type_ids") if name in rows[0]]
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer,
            {name: [row[name] for row in rows] for name in sequences},
            padding=True,
            padding_side="right",  # whatever the tokenizer says: heads and positions count from the first token
            return_attention_mask=True,
            return_tensors="pt",
        )
        batch = dict(padded)
        for name in rows[0]:
            if name not in sequences:
                batch[RENAMED.get(name, name)] = torch.tensor([row[name] for row in rows])
        if self.token_rows:
            batch["token_rows"] = batch["attention_mask"].flatten().nonzero().squeeze(1)
        return batch
