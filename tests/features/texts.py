"""Texts, tokens and a store for a tiny checkpoint."""

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.synthetic import generate
from bertdyn.features.extraction import make_manifest
from bertdyn.features.store import FeatureStore
from bertdyn.features.texts import TokenisedTexts
from bertdyn.features.writing import create_store
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.config import SITES
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded


def make_texts(checkpoint, n=9) -> tuple[TokenisedTexts, AutoTokenizer]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    table = generate(n, 0, "probe").assign(example_id=[f"probe-{i}" for i in range(n)], part="probe")
    table.loc[0, "text"] = "good"
    encoded = tokenizer(table["text"].tolist())
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    columns = {name: encoded[name] for name in names}
    lengths = [len(ids) for ids in columns["input_ids"]]
    sequences = Dataset.from_dict({"index": list(range(n)), **columns, "length": lengths})
    return TokenisedTexts([table], [sequences]), tokenizer


def make_model(checkpoint, unpadded=True):
    torch.manual_seed(0)  # the head is new
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    if unpadded and can_run_unpadded(model):
        run_unpadded(model)
    return model


def make_store(
    folder, model, texts, tokenizer, sites=SITES, rows=("first", "mean", "tokens"), layers=None, dtype="float32"
) -> FeatureStore:
    layers = range(anatomy_of(model).depth + 1) if layers is None else layers
    manifest = make_manifest(
        model,
        texts,
        sites=sites,
        rows=rows,
        layers=layers,
        dtype=dtype,
        label_names=["no", "yes"],
        fingerprints={"data": "x"},
    )
    return create_store(folder, manifest, texts.example_table(), texts.token_pieces(tokenizer))
