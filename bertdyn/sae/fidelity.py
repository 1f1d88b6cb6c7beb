"""What a classifier loses when the rows of one layer are replaced by what a basis keeps of them.

Every text runs once as it is, and from the hidden states of that run again for each replacement, without the layers
below. Beside the bases stand two ablations: all rows of a kind become their mean, or 0. The mean is the floor to
compare with: it says nothing of a text. Zero is a place where no row ever is, and the model may do anything there.

Replaced are content tokens, the first token, or both; special tokens behind the first never. What the layers below
have already written into those stays, so that an ablation in an upper layer need not cost much.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import MODEL_INPUTS, Batch, Collator, model_inputs
from bertdyn.data.windows import special_tokens_of
from bertdyn.geometry.intervals import bootstrap_ratio
from bertdyn.models.recording import recording
from bertdyn.models.splicing import TokenKinds, kinds_of, run_from
from bertdyn.models.unpadded import packing_of
from bertdyn.sae.dictionary import Dictionary, encode
from bertdyn.sae.metrics import Reconstruct

WHERE: dict[str, Callable[[TokenKinds], Tensor]] = {
    "content": lambda kinds: kinds.content,
    "first": lambda kinds: kinds.first,
    "both": lambda kinds: kinds.content | kinds.first,
}
"""Which rows are replaced."""
ABLATIONS = ("mean", "zero")
NOTHING = 1e-4
"""KL, in nats, below which an ablation costs nothing that could be recovered."""


class Means(NamedTuple):
    """Mean rows of one layer, of the train part, say; [width] each."""

    content: Tensor
    first: Tensor


def special_ids_of(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Ids of the tokens that the tokenizer puts around texts, [n]."""
    specials = special_tokens_of(tokenizer)
    return torch.from_numpy(np.unique(np.concatenate([specials.before, specials.between, specials.after])))


@torch.inference_mode()
def splice_fidelity(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    replacements: Mapping[int, Mapping[str, Reconstruct]],
    means: Mapping[int, Means],
    special_ids: Tensor,
    *,
    where: Sequence[str] = tuple(WHERE),
    seed: int = 0,
) -> pd.DataFrame:
    """A classifier's scores with replaced rows.

    Parameters
    ----------
    model
        With a classification head, in evaluation mode; padded or not.
    batches
        With labels, such as `make_batches(…, shuffle=False, token_rows=True)`; read once.
    replacements
        Layer → name → function [rows, width] → [rows, width], such as a `Basis`. The ablations `mean` and `zero` are
        added.
    means
        Layer → what `mean` puts in place of rows.
    special_ids
        From `special_ids_of`.
    where
        Of `WHERE`.
    seed
        Of the bootstrap.

    Returns
    -------
    pd.DataFrame
        A row for each layer, where and replacement:

        accuracy, accuracy_clean      of the spliced model and of the model as it is
        difference, …_low, …_high     accuracy less accuracy_clean
        agreement, …_low, …_high      share of texts with the prediction of the model as it is
        kl, …_low, …_high             mean KL(as it is ‖ spliced) of the label distributions, in nats
        recovered_mean, …_zero        (accuracy − ablated) / (clean − ablated), against either ablation
        recovered_kl_mean, …_zero     1 − kl / kl of the ablation
        texts                         how many

        Recovered shares are not clipped (below 0: worse than the ablation) and NaN where an ablation costs nothing.
        Intervals are 95 % bootstraps over texts, the same resamples for all rows of the table.

    Raises
    ------
    ValueError
        If a replacement has the name of an ablation.
    """
    taken = {name for functions in replacements.values() for name in functions} & set(ABLATIONS)
    if taken:
        raise ValueError(f"a replacement is called {taken.pop()!r}, as an ablation is: accepted are other names")
    labels, clean, spliced = _run(model, batches, replacements, means, special_ids, where)
    predicted, log_clean = clean.argmax(axis=1), log_softmax(clean, axis=1)
    right = predicted == labels
    keys, columns = list(spliced), []
    for logits in spliced.values():
        said = logits.argmax(axis=1)
        kl = (np.exp(log_clean) * (log_clean - log_softmax(logits, axis=1))).sum(axis=1)
        columns.append([(said == labels) * 1.0 - right, said == predicted, kl])
    values = np.array(columns, dtype=np.float64)  # [keys, measures, texts]
    flat = values.reshape(-1, len(labels)).T
    low, high = (bound.reshape(len(keys), -1) for bound in bootstrap_ratio(flat, np.ones(len(labels)), seed=seed))
    average = values.mean(axis=2)
    table = pd.DataFrame(keys, columns=["layer", "where", "replacement"])
    table["accuracy"], table["accuracy_clean"] = right.mean() + average[:, 0], right.mean()
    for number, name in enumerate(("difference", "agreement", "kl")):
        table[name] = average[:, number]
        table[f"{name}_low"], table[f"{name}_high"] = low[:, number], high[:, number]
    return _with_recovered(table).assign(texts=len(labels))


def _run(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    replacements: Mapping[int, Mapping[str, Reconstruct]],
    means: Mapping[int, Means],
    special_ids: Tensor,
    where: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, str, str], np.ndarray]]:
    """Labels [texts], logits of the model as it is, and by layer, where and replacement; [texts, classes], float64."""
    labels: list[Tensor] = []
    clean: list[Tensor] = []
    spliced: dict[tuple[int, str, str], list[Tensor]] = {}
    with recording(model, {"hidden": list(replacements)}) as record:
        for batch in batches:
            inputs = _on_device(model_inputs(batch), model)
            recorded = record(inputs)
            kinds = kinds_of(recorded.packing, inputs["input_ids"], special_ids)
            labels.append(batch["labels"])
            clean.append(recorded.output.logits)
            for layer, functions in replacements.items():
                rows = recorded.values["hidden", layer]
                for name, new_rows in _replaced(rows, functions, means[layer], kinds):
                    for place in where:
                        edited = torch.where(WHERE[place](kinds)[:, None], new_rows, rows)
                        logits = run_from(model, layer, inputs, edited).logits
                        spliced.setdefault((layer, place, name), []).append(logits)
    by_key = {key: _joined(parts) for key, parts in spliced.items()}
    return torch.cat(labels).cpu().numpy(), _joined(clean), by_key


def _replaced(
    rows: Tensor, functions: Mapping[str, Reconstruct], means: Means, kinds: TokenKinds
) -> Iterable[tuple[str, Tensor]]:
    """What may take the place of rows, by name, one after another."""
    for name, reconstruct in functions.items():
        yield name, reconstruct(rows).to(rows)
    yield "mean", torch.where(kinds.first[:, None], means.first.to(rows), means.content.to(rows))
    yield "zero", torch.zeros_like(rows)


def _with_recovered(table: pd.DataFrame) -> pd.DataFrame:
    for ablation in ABLATIONS:
        floor = table[table["replacement"] == ablation].set_index(["layer", "where"])
        floor = floor.loc[pd.MultiIndex.from_frame(table[["layer", "where"]])].reset_index(drop=True)
        lost = floor["difference"]
        table[f"recovered_{ablation}"] = 1 - table["difference"] / lost.where(lost != 0)
        table[f"recovered_kl_{ablation}"] = 1 - table["kl"] / floor["kl"].where(floor["kl"] > NOTHING)
    return table


class LatentEffects(NamedTuple):
    """What latents do to the logits: what is lost when one is taken out."""

    latents: np.ndarray
    """[n]"""
    effects: np.ndarray
    """[n, classes], float64: logits as they are less logits without the latent, mean over its texts."""
    texts: np.ndarray
    """[n]: how many texts it was tried on."""
    on: np.ndarray
    """[n]: in how many of them it is on; in the others its effect is 0."""


@torch.inference_mode()
def latent_effects(
    model: PreTrainedModel,
    dictionary: Dictionary,
    layer: int,
    texts: Mapping[int, Sequence[int]],
    sequences: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    where: str = "content",
    batch_size: int = 64,
) -> LatentEffects:
    """The causal effect of single latents: code × decoder row is subtracted from the rows of a layer.

    The rest of the row, what the dictionary does not reconstruct included, stays as it is. Each text runs once as it
    is; then each pair of a text and a latent that is on in it is a row of a batch, whatever the latent, from the
    layer upwards.

    Parameters
    ----------
    model
        With a classification head, in evaluation mode; padded or not.
    layer
        0 to L: whose rows the dictionary codes.
    texts
        Latent → rows of `sequences`, such as the texts where it is strongest.
    sequences
        Tokenised texts: input_ids, [token_type_ids].
    where
        Of `WHERE`: from which rows the latent is taken out.
    batch_size
        Texts, or pairs, in a forward pass.
    """
    latents = np.array(list(texts), dtype=np.int64)
    counts = np.array([len(texts[latent]) for latent in latents], dtype=np.int64)
    effects, on = np.zeros((len(latents), model.config.num_labels or 0)), np.zeros(len(latents), dtype=np.int64)
    numbers = np.repeat(np.arange(len(latents)), counts)  # of the latent of each pair, in `latents`
    owners = np.fromiter((text for latent in texts.values() for text in latent), dtype=np.int64, count=len(numbers))
    ablate = _Ablation(model, dictionary, layer, WHERE[where], special_ids_of(tokenizer), batch_size)
    sequences = sequences.select_columns([name for name in sequences.column_names if name in MODEL_INPUTS])
    collate, used = Collator(tokenizer), np.unique(owners)
    lengths = np.array([len(ids) for ids in sequences.select(used)["input_ids"]])
    used = used[np.argsort(-lengths, kind="stable")]
    for start in range(0, len(used), batch_size):
        chosen = used[start : start + batch_size]
        pairs = np.flatnonzero(np.isin(owners, chosen))
        places = {text: place for place, text in enumerate(chosen.tolist())}
        in_batch = np.array([places[text] for text in owners[pairs].tolist()])
        batch = collate([sequences[text] for text in chosen.tolist()])
        lost, is_on = ablate(batch, in_batch, latents[numbers[pairs]])
        np.add.at(effects, numbers[pairs], lost)
        np.add.at(on, numbers[pairs], is_on)
    return LatentEffects(latents, effects / np.maximum(counts, 1)[:, None], counts, on)


class _Ablation(NamedTuple):
    """Takes latents out of the texts of one batch."""

    model: PreTrainedModel
    dictionary: Dictionary
    layer: int
    kind: Callable[[TokenKinds], Tensor]
    special_ids: Tensor
    batch_size: int

    def __call__(self, batch: Batch, texts: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits lost [pairs, classes], and whether the latent is on [pairs], for pairs of a text and a latent."""
        inputs = _on_device(model_inputs(batch), self.model)
        with recording(self.model, {"hidden": [self.layer]}) as record:
            values, packing, output = record(inputs)
        chosen = self.kind(kinds_of(packing, inputs["input_ids"], self.special_ids))
        wanted, columns = np.unique(latents, return_inverse=True)
        rows = values["hidden", self.layer]
        codes = encode(self.dictionary, rows.to(self.dictionary.encoder.device)).to(rows.device)
        codes = packing.unpack(codes[:, torch.from_numpy(wanted).to(rows.device)] * chosen[:, None])
        rows = packing.unpack(rows)  # [texts, seq, width], and codes [texts, seq, wanted]
        decoder = self.dictionary.decoder[wanted].to(rows)
        is_on = (codes != 0).any(dim=1).cpu().numpy()[texts, columns]
        lost = np.zeros((len(texts), output.logits.shape[1]))
        alive = np.flatnonzero(is_on)
        for start in range(0, len(alive), self.batch_size):
            pairs = alive[start : start + self.batch_size]
            of_text, of_latent = (torch.from_numpy(part[pairs]).to(rows.device) for part in (texts, columns))
            without = rows[of_text] - codes[of_text, :, of_latent][:, :, None] * decoder[of_latent][:, None]
            repeated = {name: value[of_text] for name, value in inputs.items()}
            packed = packing_of(repeated["attention_mask"]).pack(without)
            logits = run_from(self.model, self.layer, repeated, packed).logits
            lost[pairs] = (output.logits[of_text].double() - logits.double()).cpu().numpy()
        return lost, is_on


def _on_device(inputs: Batch, model: PreTrainedModel) -> Batch:
    return {name: value.to(model.device) for name, value in inputs.items()}


def _joined(parts: list[Tensor]) -> Any:
    return torch.cat(parts).double().cpu().numpy()
