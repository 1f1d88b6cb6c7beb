"""What a latent reads: the tokens where it is on, by example id and position, and the texts around them.

Two kinds of examples. The top ones show what makes a latent strongest, and flatter it: most of its activations are
weaker and often mean less. Quantile samples are drawn from equal slices of all positive activations, q1 the weakest.

Whatever is shown can be found again: run the model on the text of the example id, take the position at the layer,
encode, and the activation is the one of the table.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.sae.dictionary import Dictionary, encode

ROWS_AT_ONCE = 8192
TOKEN_COLUMNS = ["row", "segment", "position", "token", "word_id", "char_start", "char_end", "is_special"]


def latent_examples(
    codes: scipy.sparse.csr_array,
    rows: pd.DataFrame,
    latents: Sequence[int],
    *,
    num_top: int = 8,
    num_slices: int = 4,
    per_slice: int = 2,
    seed: int = 0,
) -> pd.DataFrame:
    """The strongest tokens of some latents, and samples of the others.

    Parameters
    ----------
    codes
        [rows, latents], not negative.
    rows
        What each row is: example_id, row (in the store), position (of the token in its text).
    latents
        Which ones; a latent that is never on has no examples.
    num_top
        Texts with the strongest tokens; each text once, with its strongest token.
    num_slices, per_slice
        All tokens where a latent is on, in the order of their activation, are cut into slices of equal size; so many
        of each are drawn, of different texts.
    seed
        Of the draw; what is drawn of a latent does not depend on the other latents.

    Returns
    -------
    examples
        latent, kind ("top", "q1" ... the strongest slice last), rank (from 0, by activation, within its kind),
        example_id, row, position, activation. In the order of `latents`, top first, then from the strongest slice to
        the weakest.

    Raises
    ------
    InputError
        If codes and rows do not fit together, or there is no such latent.
    """
    if len(rows) != codes.shape[0]:
        raise InputError(f"examples of latents: {codes.shape[0]} rows of codes, but {len(rows)} tokens")
    check_latents(latents, codes.shape[1])
    text_of_row = pd.factorize(rows["example_id"])[0]
    chosen = scipy.sparse.csc_array(codes[:, list(latents)])
    found = []
    for column, latent in enumerate(latents):
        stored = slice(chosen.indptr[column], chosen.indptr[column + 1])
        on = chosen.data[stored] > 0
        activation, number = chosen.data[stored][on], chosen.indices[stored][on]
        order = np.lexsort((number, -activation))  # the strongest first; of equal ones the first row
        number, activation = number[order], activation[order]
        rng = np.random.default_rng([seed, latent])
        kinds = {"top": _first_of_texts(text_of_row[number])[:num_top]}
        for i, piece in enumerate(np.array_split(np.arange(len(number)), num_slices)):
            drawn = rng.permutation(piece)
            kinds[f"q{num_slices - i}"] = np.sort(drawn[_first_of_texts(text_of_row[number[drawn]])[:per_slice]])
        for kind, picked in kinds.items():
            table = rows[["example_id", "row", "position"]].iloc[number[picked]]
            found.append(
                table.assign(latent=latent, kind=kind, rank=np.arange(len(picked)), activation=activation[picked])
            )
    columns = ["latent", "kind", "rank", "example_id", "row", "position", "activation"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _first_of_texts(texts: np.ndarray) -> np.ndarray:
    """Where each text occurs first, in order."""
    return np.sort(np.unique(texts, return_index=True)[1])


def text_tokens(store: FeatureStore, examples: pd.DataFrame) -> pd.DataFrame:
    """The tokens of some texts, of the first window of each; only the rows of the store between them are read.

    Parameters
    ----------
    examples
        Rows of `store.examples()`, at least one.

    Returns
    -------
    tokens
        example_id, row, segment, position, token, word_id, char_start, char_end, is_special (as in the store), in the
        order of `examples`.
    """
    first, n_rows = examples["first_row"].to_numpy(), examples["n_rows"].to_numpy()
    start = int(first.min())
    tokens = store.tokens([*TOKEN_COLUMNS, "window_id"], (start, int((first + n_rows).max())))
    rows = np.concatenate([np.arange(row, row + n) for row, n in zip(first, n_rows, strict=True)])
    tokens = tokens.iloc[rows - start].assign(example_id=np.repeat(examples["example_id"].to_numpy(), n_rows))
    return tokens[tokens["window_id"] == 0].drop(columns="window_id").reset_index(drop=True)


def example_tokens(
    array: np.ndarray, dictionary: Dictionary, shown: pd.DataFrame, tokens: pd.DataFrame, examples: pd.DataFrame
) -> pd.DataFrame:
    """The texts of examples, token by token, with the activation of the latent that each is shown for.

    Parameters
    ----------
    array
        [rows of the store, width]: the token rows of the state and layer that `shown` is of.
    shown
        latent and example_id, as in `latent_examples`; a pair that occurs twice is given once.
    tokens
        From `text_tokens`: of the shown texts, or of more.
    examples
        Those that `tokens` are of: example_id, text, [text_pair].

    Returns
    -------
    tokens
        latent and the columns of `tokens`; word, piece (see `add_words`), activation; special tokens among them. In
        the order of `shown`.

    Raises
    ------
    InputError
        If an example or latent is not there, or the dictionary is of another width.
    """
    check_latents(shown["latent"], dictionary.num_latents)
    if array.shape[1] != dictionary.width:
        raise InputError(f"rows of width {array.shape[1]}; the dictionary is of width {dictionary.width}")
    pairs = shown[["latent", "example_id"]].drop_duplicates(ignore_index=True)
    if missing := sorted(set(pairs["example_id"]) - set(examples["example_id"])):
        raise InputError(f"there is no example {missing[0]!r}; the first is {examples['example_id'].iloc[0]!r}")
    own = examples[examples["example_id"].isin(pairs["example_id"])].set_index("example_id")
    columns = [name for name in ("text", "text_pair") if name in own]
    texts = dict(zip(own.index, own[columns].itertuples(index=False, name=None), strict=True))
    chosen = add_words(tokens[tokens["example_id"].isin(own.index)], "example_id", texts)
    chosen = pairs.merge(chosen, on="example_id", how="left")
    numbers = (chosen[name].to_numpy() for name in ("row", "latent"))
    return chosen.assign(activation=_activations(dictionary, array, *numbers))


def _activations(dictionary: Dictionary, array: np.ndarray, rows: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Activation of latent i in row i of the store, [pairs], float32."""
    activations = np.zeros(len(rows), dtype=np.float32)
    order = np.argsort(rows, kind="stable")
    for start in range(0, len(order), ROWS_AT_ONCE):
        pairs = order[start : start + ROWS_AT_ONCE]
        distinct, which = np.unique(rows[pairs], return_inverse=True)
        block = torch.from_numpy(np.asarray(array[distinct])).to(dictionary.encoder.device)
        codes = encode(dictionary, block)
        activations[pairs] = codes[which, latents[pairs]].cpu().numpy()
    return activations


def add_words(tokens: pd.DataFrame, text_column: str, texts: Mapping[object, Sequence[str]]) -> pd.DataFrame:
    """What the original text has where the tokens are.

    Parameters
    ----------
    tokens
        One row a token, those of a text in order: `text_column`, segment, word_id, char_start, char_end, is_special,
        token.
    text_column
        The column that says which text a token is of.
    texts
        Key of a text → (its text, and for pairs its second text).

    Returns
    -------
    tokens
        With the columns word (all characters of the word that the token is a part of) and piece (those of the token
        that no token before it has; "" where several tokens share the same ones, as the bytes of a character do and
        the tokens of a word in slow tokenizers). Of a special token both are its name.
    """
    content = tokens[~tokens["is_special"]]
    keys = [content[text_column], content["segment"], content["word_id"]]
    start = content.groupby(keys, sort=False, observed=True)["char_start"].transform("min")
    end = content.groupby(keys, sort=False, observed=True)["char_end"].transform("max")
    reached = content.groupby(keys[:2], sort=False, observed=True)["char_end"].cummax()
    before = reached.groupby(keys[:2], sort=False, observed=True).shift(fill_value=0)
    strings = [texts[key][segment] for key, segment in zip(*keys[:2], strict=True)]
    first = np.maximum(before, content["char_start"])
    word = [text[a:b] for text, a, b in zip(strings, start, end, strict=True)]
    piece = [text[a:b] for text, a, b in zip(strings, first, content["char_end"], strict=True)]
    tokens = tokens.assign(word=tokens["token"].astype(object), piece=tokens["token"].astype(object))
    tokens.loc[~tokens["is_special"], ["word", "piece"]] = pd.DataFrame(
        {"word": word, "piece": piece}, index=content.index, dtype=object
    )
    return tokens


def check_latents(latents: Sequence[int] | pd.Series, num_latents: int) -> None:
    """Raise `InputError` unless all `latents` are numbers from 0 to before `num_latents`."""
    wrong = [latent for latent in latents if not 0 <= latent < num_latents]
    if wrong:
        raise InputError(f"there is no latent {wrong[0]}; the dictionary has the latents 0 to {num_latents - 1}")
