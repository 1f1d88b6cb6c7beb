"""From a model and tokenised texts to rows of a feature store."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import Batch, model_inputs
from bertdyn.features.store import FeatureStore
from bertdyn.models.anatomy import anatomy_of


def example_rows(table: pd.DataFrame, part: str, lengths: np.ndarray) -> pd.DataFrame:
    """The examples table of a store: `table` with its part and its range of token rows.

    `lengths` [examples] counts the tokens of each text, special ones included.
    """
    columns = [c for c in ("example_id", "label", "text", "text_pair") if c in table]
    first_row = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return table[columns].reset_index(drop=True).assign(part=part, first_row=first_row, n_rows=lengths)


def token_rows(
    example_ids: Iterable[str], input_ids: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """The tokens table of a store: one row a token of every text, in order."""
    special = set(tokenizer.all_special_ids)
    frames = [
        pd.DataFrame({"example_id": example_id, "position": range(len(ids)), "token_id": ids})
        for example_id, ids in zip(example_ids, input_ids, strict=True)
    ]
    tokens = pd.concat(frames, ignore_index=True)
    names = {i: tokenizer.convert_ids_to_tokens(i) for i in tokens["token_id"].unique().tolist()}
    tokens["token"] = tokens["token_id"].map(names)
    tokens["is_special"] = tokens["token_id"].isin(special)
    return tokens.rename_axis("row").reset_index()


@torch.inference_mode()
def extract_pooled(
    accelerator: Accelerator,
    model: PreTrainedModel,
    batches: Iterable[Batch],
    store: FeatureStore,
    state: str,
) -> np.ndarray:
    """Write one state into `store` and return the logits of a classification head, [examples, classes].

    Another head says nothing of a text as a whole, and nothing of it is stored: [examples, 0].
    Rows are placed by the batch's `index`, so the order of `batches` (which must have gone through
    `accelerator.prepare`) does not matter. The model's mode and attention backend are as before.
    Only the main process writes; the others help with the forward pass.

    Raises
    ------
    FloatingPointError
        If a value is not finite in the store's type.
    """
    kinds, layers = store.manifest.kinds, store.manifest.layers
    with_attention = "attention" in kinds
    first_row = store.examples()["first_row"].to_numpy()
    logits = np.zeros((0, 0), dtype=np.float32)
    with _reading(model, with_attention), _on_main(accelerator, store, state) as arrays:
        for batch in batches:
            inputs = model_inputs(batch)
            with accelerator.autocast():
                output = model(**inputs, output_hidden_states=True, output_attentions=with_attention)
            hidden = torch.stack([output.hidden_states[layer] for layer in layers], dim=1).float()
            mask = inputs["attention_mask"]
            pooled = {"first": hidden[:, :, 0], "mean": _masked_mean(hidden, mask)}
            said = output.logits.float() if "logits" in output else hidden.new_zeros(len(hidden), 0)
            index, said, gathered = accelerator.gather_for_metrics((batch["index"], said, pooled))
            index, said = index.cpu().numpy(), said.cpu().numpy()
            if not logits.size:
                logits = np.zeros((store.manifest.num_examples, said.shape[1]), dtype=np.float32)
            logits[index] = said
            for kind in ("first", "mean") if arrays else ():
                rows = _finite(gathered[kind].cpu().numpy().astype(store.manifest.dtype), state)
                for position, layer in enumerate(layers):
                    arrays[kind, layer][index] = rows[:, position]
            if with_attention:
                _write_attention(accelerator, arrays, output.attentions, batch, first_row)
    if accelerator.is_main_process and logits.size:
        store.write_predictions(state, logits)
    return logits


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[batch, layers, seq, width], [batch, seq] → [batch, layers, width], over real tokens."""
    weights = mask[:, None, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=2) / weights.sum(dim=2)


def _write_attention(
    accelerator: Accelerator,
    arrays: dict[tuple[str, int], np.ndarray],
    attentions: tuple[Tensor, ...],
    batch: Batch,
    first_row: np.ndarray,
) -> None:
    # [batch, layers, seq]: how much the first token looks at each position, mean over heads
    attention = torch.stack([a[:, :, 0].mean(dim=1) for a in attentions], dim=1).float()
    padded = accelerator.pad_across_processes((attention, batch["attention_mask"]), dim=-1)
    index, attention, mask = accelerator.gather_for_metrics((batch["index"], *padded))
    if not arrays:
        return
    index, attention, mask = index.cpu().numpy(), attention.cpu().numpy(), mask.cpu().numpy().astype(bool)
    rows = np.concatenate([first_row[i] + np.arange(m.sum()) for i, m in zip(index, mask, strict=True)])
    for position in range(attention.shape[1]):
        arrays["attention", position + 1][rows] = attention[:, position][mask]


def _finite(rows: np.ndarray, state: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise FloatingPointError(f"features of {state} are not finite as {rows.dtype}")
    return rows


@contextmanager
def _on_main(accelerator: Accelerator, store: FeatureStore, state: str) -> Iterator[dict[tuple[str, int], np.ndarray]]:
    if accelerator.is_main_process:
        with store.write_state(state) as arrays:
            yield arrays
    else:
        yield {}


@contextmanager
def _reading(model: PreTrainedModel, with_attention: bool) -> Iterator[None]:
    """Evaluation mode; eager attention where the weights are asked for (sdpa returns none)."""
    was_training, backend = model.training, model.config._attn_implementation
    model.eval()
    if with_attention:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.train(was_training)
        model.set_attn_implementation(backend)


def pooled_layers(model: PreTrainedModel) -> list[int]:
    """All layers of `model`, 0 (embeddings) to L."""
    return list(range(anatomy_of(model).depth + 1))
