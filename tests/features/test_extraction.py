import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.batching import make_batches
from bertdyn.data.synthetic import generate
from bertdyn.features.extraction import example_rows, extract_pooled, pooled_layers, token_rows
from bertdyn.features.store import FeatureStore, Manifest
from tests.families import FAMILIES


def _prepare(folder, checkpoint, attention=True, n=9):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    table = generate(n, 0, "probe").assign(example_id=[f"probe-{i}" for i in range(n)])
    table.loc[0, "text"] = "good"
    encoded = tokenizer(table["text"].tolist())
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    columns = {name: encoded[name] for name in names}
    lengths = np.array([len(ids) for ids in columns["input_ids"]])
    tokens = Dataset.from_dict(
        {"index": list(range(n)), **columns, "label": table["label"].tolist(), "length": lengths.tolist()}
    )
    manifest = Manifest(
        width=32,
        layers=pooled_layers(model),
        num_examples=n,
        num_tokens=int(lengths.sum()) if attention else 0,
        kinds=["first", "mean"] + (["attention"] if attention else []),
        dtype="float32",
        fingerprints={},
    )
    rows = token_rows(table["example_id"], columns["input_ids"], tokenizer) if attention else None
    store = FeatureStore.create(folder, example_rows(table, "probe", lengths), manifest, rows)
    accelerator = Accelerator(cpu=True)
    batches = accelerator.prepare(make_batches(tokens, tokenizer, 4, shuffle=False))
    return accelerator, model, batches, store, table, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_a_direct_forward_on_each_unpadded_text(checkpoints, family, tmp_path):
    accelerator, model, batches, store, table, tokenizer = _prepare(tmp_path / "f", checkpoints[family])
    model.train()
    backend = model.config._attn_implementation
    logits = extract_pooled(accelerator, model, batches, store, "epoch_000")
    assert model.training
    assert model.config._attn_implementation == backend

    model.eval()
    model.set_attn_implementation("eager")
    examples, tokens = store.examples(), store.tokens()
    for i, text in enumerate(table["text"]):
        inputs = tokenizer(text, return_tensors="pt")
        inputs = {k: v for k, v in inputs.items() if k in tokenizer.model_input_names}
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True, output_attentions=True)
        np.testing.assert_allclose(logits[i], output.logits[0], atol=1e-5)
        first, count = examples.loc[i, ["first_row", "n_rows"]]
        assert tokens["token_id"][first : first + count].tolist() == inputs["input_ids"][0].tolist()
        assert set(tokens["example_id"][first : first + count]) == {table["example_id"][i]}
        for layer, hidden in enumerate(output.hidden_states):
            np.testing.assert_allclose(store.array("first", "epoch_000", layer)[i], hidden[0, 0], atol=1e-5)
            np.testing.assert_allclose(store.array("mean", "epoch_000", layer)[i], hidden[0].mean(0), atol=1e-5)
        for layer, attention in enumerate(output.attentions, start=1):
            stored = store.array("attention", "epoch_000", layer)[first : first + count]
            np.testing.assert_allclose(stored, attention[0, :, 0].mean(0), atol=1e-5)
            assert stored.sum() == pytest.approx(1, abs=1e-5)
    special = tokens.groupby("example_id")["is_special"].sum()
    assert (special == 2).all()


def test_predictions_stand_beside_their_examples(checkpoints, tmp_path):
    accelerator, model, batches, store, table, _ = _prepare(tmp_path / "f", checkpoints["bert"], attention=False)
    logits = extract_pooled(accelerator, model, batches, store, "epoch_000")
    examples = pd.read_parquet(tmp_path / "f/examples.parquet")
    assert examples["prediction_epoch_000"].tolist() == logits.argmax(1).tolist()
    assert examples["label"].tolist() == table["label"].tolist()


def test_values_that_are_not_finite_are_an_error(checkpoints, tmp_path):
    accelerator, model, batches, store, _, _ = _prepare(tmp_path / "f", checkpoints["bert"], attention=False)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="epoch_000 are not finite"):
        extract_pooled(accelerator, model, batches, store, "epoch_000")
    assert FeatureStore.open(tmp_path / "f").states == []
