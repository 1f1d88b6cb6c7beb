"""What a dictionary sees in a text that nobody has stored: any text in, activations of its tokens out.

    dictionary, metadata = load_dictionary(folder), load_metadata(folder)
    texts = ["a gripping, unsentimental film"]
    reading = read_text(model, tokenizer, dictionary, metadata["layer"], texts, metadata=metadata)
    reading[reading["latent"] == 312][["word", "piece", "activation"]]

`plots.token_activations` draws it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import Collator, model_inputs
from bertdyn.data.token_table import token_table
from bertdyn.errors import InputError
from bertdyn.models import anatomy
from bertdyn.models.recording import recording
from bertdyn.sae.dictionary import Dictionary, encode
from bertdyn.sae.examples import add_words, check_latents

TEXTS_AT_ONCE = 32
NONE_ON = -1
COLUMNS = ["text", "position", "token", "word_id", "word", "piece", "char_start", "char_end", "is_special"]


def read_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dictionary: Dictionary,
    layer: int,
    texts: Sequence[str],
    *,
    latents: Sequence[int] | None = None,
    strongest: int | None = None,
    max_length: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Activations of the latents in every token of some texts.

    Parameters
    ----------
    model, tokenizer
        The state that the dictionary was trained on; with or without a head.
    layer
        0 (output of the embeddings) to L: the layer that the dictionary is of.
    texts
        Any number of them.
    latents
        Only these. Default: all.
    strongest
        Of them, in each text, only those with the largest activations in its own tokens. Default: all.
    max_length
        Texts are cut to so many tokens, special ones included. Default: what the model takes.
    metadata
        What `export.load_metadata` says of the dictionary: `layer`, and `depth` of its model where it has that, must be
        those that are read. Default: not looked at. Nothing can tell whether the model is in the dictionary's state.

    Returns
    -------
    reading
        text (its number), position (of the token in the model's input), token (the tokenizer's name), word_id, word,
        piece (see `examples.add_words`), char_start, char_end (of the token in the text), is_special, latent,
        activation. One row a token and latent that is on; a token where none is has one row of latent -1 and
        activation 0. Special tokens have activations, too, but a dictionary of content tokens was not made for them.

    Raises
    ------
    InputError
        If there is nothing to read, or the model has no such layer, the dictionary no such latent, or the two are of
        different widths; or if layer or model are not those of `metadata`.
    """
    texts = list(texts)
    _check(model, dictionary, layer, texts, latents)
    _check_origin(model, layer, {} if metadata is None else metadata)
    longest = min(anatomy.max_length(model.config), tokenizer.model_max_length)
    if max_length is not None and not 0 < max_length <= longest:
        raise InputError(f"max_length {max_length}: the model takes from 1 to {longest} tokens")
    encoded = tokenizer(texts, truncation=True, max_length=max_length or longest, verbose=False)
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    inputs: dict[str, Any] = {name: encoded[name] for name in names}
    lengths = [len(ids) for ids in inputs["input_ids"]]
    dataset = Dataset.from_dict({"index": list(range(len(texts))), "length": lengths} | inputs)
    frame = pd.DataFrame({"example_id": range(len(texts)), "text": texts})
    tokens = token_table(frame, dataset, tokenizer).rename(columns={"example_id": "text"})
    tokens = tokens.astype({"text": np.int64, "token": "str"})
    by_number: dict[object, Sequence[str]] = {number: (text,) for number, text in enumerate(texts)}
    tokens = add_words(tokens, "text", by_number)[COLUMNS]
    on = []
    first_row = 0
    for rows in _hidden_states(model, Collator(tokenizer), dataset.select_columns(names), layer):
        codes = encode(dictionary, rows.to(dictionary.encoder.device))
        if latents is not None:
            codes = _only(codes, list(latents))
        if strongest is not None:
            is_special = tokens["is_special"].iloc[first_row : first_row + len(rows)].to_numpy()
            codes = _only(codes, _strongest(codes, is_special, strongest))
        row, latent = (found.cpu().numpy() for found in codes.nonzero(as_tuple=True))
        on.append(pd.DataFrame({"row": row + first_row, "latent": latent, "activation": codes[row, latent].cpu()}))
        first_row += len(rows)
    reading = tokens.join(pd.concat(on).set_index("row"))
    reading["latent"] = reading["latent"].fillna(NONE_ON).astype(np.int64)
    reading["activation"] = reading["activation"].fillna(0.0)
    return reading.reset_index(drop=True)


@torch.inference_mode()
def _hidden_states(model: PreTrainedModel, collate: Collator, inputs: Dataset, layer: int) -> Iterator[Tensor]:
    """Text by text: [tokens, width] of one layer."""
    was_training = model.training
    model.eval()
    try:
        with recording(model, {"hidden": [layer]}) as record:
            for start in range(0, len(inputs), TEXTS_AT_ONCE):
                batch = collate(inputs.select(range(start, min(start + TEXTS_AT_ONCE, len(inputs)))).to_list())
                recorded = record({name: value.to(model.device) for name, value in model_inputs(batch).items()})
                padded = recorded.packing.unpack(recorded.values["hidden", layer])
                for states, length in zip(padded, batch["attention_mask"].sum(dim=1).tolist(), strict=True):
                    yield states[:length]
    finally:
        model.train(was_training)


def _only(codes: Tensor, latents: Sequence[int]) -> Tensor:
    """0 in all other latents."""
    kept = torch.zeros_like(codes)
    kept[:, latents] = codes[:, latents]
    return kept


def _strongest(codes: Tensor, is_special: np.ndarray, number: int) -> list[int]:
    """The latents with the largest activation in what the text contains; of a text without content, in all of it."""
    content = codes[torch.from_numpy(~is_special).to(codes.device)] if not is_special.all() else codes
    return content.amax(dim=0).topk(min(number, codes.shape[1])).indices.tolist()


def _check(
    model: PreTrainedModel, dictionary: Dictionary, layer: int, texts: list[str], latents: Sequence[int] | None
) -> None:
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError("there is no text to read; accepted is a list of strings, at least one")
    depth = anatomy.anatomy_of(model).depth
    if not 0 <= layer <= depth:
        raise InputError(f"layer {layer}: the model has the layers 0 to {depth}")
    if dictionary.width != model.config.hidden_size:
        raise InputError(
            f"the dictionary is of width {dictionary.width}, the model of width {model.config.hidden_size}: it was "
            "trained on another model"
        )
    check_latents([] if latents is None else latents, dictionary.num_latents)


def _check_origin(model: PreTrainedModel, layer: int, metadata: Mapping[str, Any]) -> None:
    """That the dictionary is of this layer, of a model of this depth."""
    depth = anatomy.anatomy_of(model).depth
    origin = f"layer {metadata.get('layer')} of {metadata.get('model')}, state {metadata.get('state')}"
    if metadata.get("layer", layer) != layer:
        raise InputError(f"layer {layer}: the dictionary is of {origin}")
    if metadata.get("depth", depth) != depth:
        raise InputError(
            f"the model has {depth} layers; the dictionary is of {origin}, a model of {metadata['depth']} layers"
        )
