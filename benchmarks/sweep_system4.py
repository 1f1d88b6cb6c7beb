"""System 4's way of trying a list of thresholds, written anew from its description: everything anew for each list.

    load the model → tokenise all texts, padded to 128 tokens → two batches of 64 through hooks → cut
        → train without schedule or clipping → evaluate, padded to 128 tokens

A neuron stays if what it gives out *before* the activation function changes enough between the two batches, on the mean
over texts and all 128 positions, padding included. Heads, which its repository lacks and its README describes, are
scored alike by what they give out.

Where the description leaves a choice, the quicker way was taken, and what was plainly wrong is not made again:

- thresholds are quantiles of the layer's changes, so that both sides of the benchmark cut equally much;
- the columns of output projections are those of the units that stay (its were the first so many);
- hooks are gone after the look (its copied all activations to NumPy in every training step), and neither attention maps
  nor hidden states are asked for;
- the texts are read from disk once for all lists.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.metrics import f1_score, precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.tables import Row
from bertdyn.data.batching import model_inputs
from bertdyn.data.text_data import TextData
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.loading import load_model, load_tokenizer
from bertdyn.pruning.shape import Shape, Site, shape_of

LENGTH = 128
LOOK_BATCH = 64
EVAL_BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 2e-5, 0.01

Thresholds = dict[str, Sequence[float]]
"""`attention`, `ffn` → one quantile a layer."""
Kept = dict[Site, list[int]]
"""Ascending units that stay, by block."""


class System4(NamedTuple):
    """What all of its trials have in common: nothing but what they start from."""

    checkpoint: str
    data: TextData
    batch_size: int

    def trial(self, thresholds: Thresholds, steps: int) -> Row:
        """One list of thresholds: scores on validation, sizes, and the seconds of each stage."""
        seconds: dict[str, float] = {}
        with stage(seconds, "load"):
            model, tokenizer = self.load()
        with stage(seconds, "tokenise"):
            train, validation = (tokenise(self.data.parts[part], tokenizer) for part in ("train", "validation"))
        with stage(seconds, "look"):
            kept = above(look(model, train), thresholds)
        with stage(seconds, "cut"):
            cut(model, kept)
        with stage(seconds, "train"):
            done = fine_tune(model, train, self.batch_size, steps) if steps else 0
        with stage(seconds, "evaluate"):
            scores = evaluate(model, validation)
        shape = shape_of(model)
        sizes = {"heads": list(shape.heads), "neurons": list(shape.neurons)}
        return scores | sizes | {"steps": done, "stages": seconds}

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model = load_model(self.checkpoint, "classification", label_names=self.data.label_names)
        return model.eval(), load_tokenizer(self.checkpoint)


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def tokenise(table: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """All texts of one part, padded to `LENGTH` tokens."""
    encoded = tokenizer(table["text"].tolist(), padding="max_length", truncation=True, max_length=LENGTH)
    return Dataset.from_dict({**encoded, "labels": table["label"].tolist()}).with_format("torch")


@torch.no_grad()
def look(model: PreTrainedModel, train: Dataset) -> dict[Site, Tensor]:
    """[units] by block: the mean absolute change of what a unit gives out, from one batch to another."""
    shape, passes, hooks = shape_of(model), [], []
    activations: dict[Site, Tensor] = {}

    def keep_input(site: Site, module: nn.Module, args: tuple[Tensor]) -> None:
        activations[site] = args[0]

    def keep_output(site: Site, module: nn.Module, args: Any, output: Tensor) -> None:
        activations[site] = output

    for number, layer in enumerate(anatomy_of(model).layers, start=1):
        heads, neurons = partial(keep_input, Site("attention", number)), partial(keep_output, Site("ffn", number))
        hooks.append(layer["attention_output"].register_forward_pre_hook(heads))
        hooks.append(layer["ffn_in"].register_forward_hook(neurons))
    for _ in range(2):
        batch = next(iter(DataLoader(train, LOOK_BATCH, shuffle=True)))  # type: ignore[arg-type]
        model(**model_inputs(batch))
        passes.append(dict(activations))
    for hook in hooks:
        hook.remove()
    found = {}
    for site in shape.sites:
        change = (passes[1][site] - passes[0][site]).abs().mean(dim=(0, 1))  # [width]
        found[site] = change.unflatten(0, (-1, shape.unit_width(site.kind))).mean(dim=1)
    return found


def above(changes: dict[Site, Tensor], thresholds: Thresholds) -> Kept:
    """The units whose change reaches the threshold of their block; the best one at least."""
    kept = {}
    for site, change in changes.items():
        values = change.double().numpy()
        least = min(np.quantile(values, thresholds[site.kind][site.layer - 1]), values.max())
        kept[site] = np.flatnonzero(values >= least).tolist()
    return kept


@torch.no_grad()
def cut(model: PreTrainedModel, kept: Kept) -> None:
    """Make the linear maps of `model` narrower where they are."""
    shape, layers = shape_of(model), anatomy_of(model).layers
    for site, units in kept.items():
        layer, inputs = layers[site.layer - 1], inputs_of(shape, site, units)
        attention = site.kind == "attention"
        for component in ("query", "key", "value") if attention else ("ffn_in",):
            rows: Any = layer[component]
            rows.weight, rows.bias = nn.Parameter(rows.weight[inputs]), nn.Parameter(rows.bias[inputs])
            rows.out_features = len(inputs)
        columns: Any = layer["attention_output" if attention else "ffn_out"]
        columns.weight, columns.in_features = nn.Parameter(columns.weight[:, inputs]), len(inputs)


def inputs_of(shape: Shape, site: Site, units: Sequence[int]) -> Tensor:
    """The inputs of a block's output projection that belong to some of its units."""
    width = shape.unit_width(site.kind)
    return (torch.tensor(units)[:, None] * width + torch.arange(width)).flatten()


def fine_tune(model: PreTrainedModel, train: Dataset, batch_size: int, steps: int) -> int:
    """Train on the labels for `steps` batches; how many they were."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    done = 0
    for batch in islice(DataLoader(train, batch_size, shuffle=True), steps):  # type: ignore[arg-type]
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
    model.eval()
    return done


@torch.no_grad()
def evaluate(model: PreTrainedModel, validation: Dataset) -> dict[str, float]:
    """Accuracy, weighted F1 and micro precision."""
    predicted, labels = [], []
    for batch in DataLoader(validation, EVAL_BATCH):  # type: ignore[arg-type]
        predicted.append(model(**model_inputs(batch)).logits.argmax(dim=-1))
        labels.append(batch["labels"])
    found, right = torch.cat(predicted).numpy(), torch.cat(labels).numpy()
    return {
        "accuracy": float((found == right).mean()),
        "weighted_f1": float(f1_score(right, found, average="weighted")),
        "micro_precision": float(precision_score(right, found, average="micro")),
    }
