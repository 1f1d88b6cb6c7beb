"""Checkpoints in memory, and what they and their dictionaries make of a text: what loads transformers."""

from threading import Lock
from typing import NamedTuple

import pandas as pd
import streamlit as st
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from bertdyn.models.anatomy import max_length
from bertdyn.models.loading import HEADS, load_config, load_encoder, load_model, load_tokenizer
from bertdyn.plots.feature_cards import Word, shown_example
from bertdyn.sae.naming import Name
from bertdyn.sae.reading import read_text
from bertdyn.tracking.locations import resolve_model
from explorer.latents import dictionary
from explorer.runs import RunInfo

MAX_MODELS = 4
"""Kept in memory, of all runs that are looked at."""
CLASSIFICATION = "classification"
RECORDING = Lock()
"""Visitors share models, and what is recorded of one text must not be another's."""


class Reader(NamedTuple):
    """One state of a model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    label_names: list[str]
    """By class id; empty without a classification head."""


@st.cache_resource(max_entries=MAX_MODELS, show_spinner="Loading the model …")
def reader(name: str) -> Reader:
    """A model with its tokenizer, and with its head if it classifies.

    Parameters
    ----------
    name
        As `--model_name_or_path` takes it: `runs:/<id>/checkpoints/<state>`, a folder, a hub id.

    Raises
    ------
    InputError
        If it cannot be loaded.
    """
    logging.set_verbosity_error()  # that an encoder is read without its head is no news here
    logging.disable_progress_bar()
    place = resolve_model(name)
    config = load_config(place)
    labels: list[str] = []
    if HEADS[CLASSIFICATION] in (config.architectures or [""])[0]:
        labels = list((config.id2label or {}).values())
        model = load_model(place, CLASSIFICATION, label_names=labels)
    else:
        model = load_encoder(place)
    return Reader(model.eval(), load_tokenizer(place), labels)


@torch.inference_mode()
def probabilities(reading: Reader, text: str) -> list[float]:
    """What the classifier says of a text, by class."""
    longest = min(max_length(reading.model.config), reading.tokenizer.model_max_length)
    tokens = reading.tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
    return reading.model(**tokens).logits[0].softmax(dim=-1).tolist()


def read(reading: Reader, run: RunInfo, name: Name, text: str) -> pd.DataFrame:
    """Activations of all latents of a dictionary in the tokens of a text: see `sae.reading.read_text`."""
    with RECORDING:
        return read_text(reading.model, reading.tokenizer, dictionary(run, name), name.layer, [text])


def words_of(reading: pd.DataFrame, latent: int) -> list[Word]:
    """The words of a text, its tokens with the activation of one latent; the strongest is the peak."""
    own = reading[reading["latent"] == latent].set_index("position")["activation"]
    tokens = reading.drop_duplicates("position").assign(example_id="", segment=0)
    tokens["activation"] = tokens["position"].map(own).fillna(0.0)
    content = tokens[~tokens["is_special"]]
    if content.empty:
        return []
    peak = content.loc[content["activation"].idxmax()]
    words = shown_example(tokens, int(peak["position"]), "", around=len(tokens)).words
    return list(words) if peak["activation"] > 0 else [word._replace(peak=-1) for word in words]


def strongest(reading: pd.DataFrame) -> pd.Series:
    """The largest activation of each latent in what the text contains, the strongest first."""
    content = reading[~reading["is_special"] & (reading["latent"] >= 0)]
    return content.groupby("latent")["activation"].max().sort_values(ascending=False)
