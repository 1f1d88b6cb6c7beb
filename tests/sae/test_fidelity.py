"""Scores with replaced rows and effects of latents: both against one text at a time, spliced by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from scipy.special import softmax
from scipy.stats import entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.batching import make_batches
from bertdyn.data.synthetic import generate
from bertdyn.models.recording import recording
from bertdyn.models.splicing import splicing
from bertdyn.models.unpadded import run_unpadded
from bertdyn.sae.baselines import random_dictionary
from bertdyn.sae.dictionary import Dictionary, encode
from bertdyn.sae.fidelity import Means, latent_effects, special_ids_of, splice_fidelity
from tests.families import LAYERS

TEXTS = 14
WAYS = [("bert", True), ("albert", True), ("camembert", False), ("flaubert", False)]


def make(checkpoint, unpadded):
    """A model in float64 whose head says something, a tokenizer, and tokenised texts of many lengths."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3).double().eval()
    for name, weight in model.named_parameters():
        if not name.startswith(model.base_model_prefix):
            weight.data *= 100
    if unpadded:
        run_unpadded(model)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    frame = generate(TEXTS, 0, "probe")
    texts = [" ".join(text.split()[: 1 + 2 * number]) for number, text in enumerate(frame["text"])]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    labels = np.random.default_rng(0).integers(3, size=TEXTS)
    return model, tokenizer, Dataset.from_dict({"input_ids": ids, "label": labels, "length": list(map(len, ids))})


def alone(model, ids):
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def logits_of(model, dataset, layer, edit):
    """Each text alone, by the general splice."""
    found = []
    for ids in dataset["input_ids"]:
        with torch.inference_mode(), splicing(model, layer, edit):
            found.append(model(**alone(model, ids)).logits[0].numpy())
    return np.array(found)


def wanted(where, rows):
    """[tokens, 1]: first is the first; content what is neither it nor the closing token."""
    chosen = torch.zeros(len(rows), 1, dtype=torch.bool)
    chosen[1:-1] = where != "first"
    chosen[0] = where != "content"
    return chosen


@pytest.mark.parametrize(("family", "unpadded"), WAYS)
def test_the_table_is_that_of_texts_alone(checkpoints, family, unpadded):
    model, tokenizer, dataset = make(checkpoints[family], unpadded)
    labels = np.array(dataset["label"])
    means = {layer: Means(*torch.randn(2, 32, dtype=torch.float64)) for layer in (0, 2, LAYERS)}
    replacements = {layer: {"half": lambda rows: rows / 2, "same": lambda rows: rows} for layer in means}
    batches = make_batches(dataset, tokenizer, 4, shuffle=False, token_rows=True)
    table = splice_fidelity(model, batches, replacements, means, special_ids_of(tokenizer))
    assert len(table) == 3 * 3 * 4
    clean = logits_of(model, dataset, 0, lambda rows: rows)
    for (layer, where), group in table.groupby(["layer", "where"]):
        edits = {
            "half": lambda rows: rows / 2,
            "same": lambda rows: rows,
            "mean": lambda rows, layer=layer: torch.cat(
                [means[layer].first[None], means[layer].content.expand(len(rows) - 1, -1)]
            ),
            "zero": torch.zeros_like,
        }
        accuracies, divergences = {}, {}
        for name, change in edits.items():

            def edit(rows, change=change, where=where):
                return torch.where(wanted(where, rows), change(rows), rows)

            spliced = logits_of(model, dataset, layer, edit)
            row = group[group["replacement"] == name].iloc[0]
            accuracies[name] = (spliced.argmax(axis=1) == labels).mean()
            divergences[name] = entropy(softmax(clean, axis=1), softmax(spliced, axis=1), axis=1).mean()
            assert row["accuracy"] == pytest.approx(accuracies[name], abs=1e-12)
            assert row["accuracy_clean"] == pytest.approx((clean.argmax(axis=1) == labels).mean(), abs=1e-12)
            assert row["difference"] == pytest.approx(row["accuracy"] - row["accuracy_clean"], abs=1e-12)
            assert row["agreement"] == (spliced.argmax(axis=1) == clean.argmax(axis=1)).mean()
            assert row["kl"] == pytest.approx(divergences[name], rel=1e-6, abs=1e-10)
            assert row["kl_low"] <= row["kl"] <= row["kl_high"]
            assert row["agreement_low"] <= row["agreement"] <= row["agreement_high"]
        for row in group.itertuples():
            for ablation in ("mean", "zero"):
                lost = row.accuracy_clean - accuracies[ablation]
                expected = (row.accuracy - accuracies[ablation]) / lost if lost else np.nan
                assert getattr(row, f"recovered_{ablation}") == pytest.approx(expected, abs=1e-9, nan_ok=True)
                floor = divergences[ablation]
                expected = 1 - row.kl / floor if floor > 1e-4 else np.nan
                assert getattr(row, f"recovered_kl_{ablation}") == pytest.approx(expected, abs=1e-5, nan_ok=True)
    same = table[table["replacement"] == "same"]
    assert (same["agreement"] == 1).all()
    assert same["kl"].abs().max() < 1e-12
    assert table["kl"].max() > 0.05  # else nothing was tested
    assert table["recovered_kl_mean"].notna().sum() > 12
    last = table[(table["layer"] == LAYERS) & (table["where"] == "content")]
    assert (last["agreement"] == 1).all()  # these heads read first tokens only
    assert last["recovered_kl_zero"].isna().all()


def test_batches_change_nothing(checkpoints):
    model, tokenizer, dataset = make(checkpoints["bert"], True)
    means = {1: Means(*torch.randn(2, 32, dtype=torch.float64))}
    tables = [
        splice_fidelity(
            model,
            make_batches(dataset, tokenizer, size, shuffle=False, token_rows=True),
            {1: {"flip": lambda rows: rows.flip(1)}},
            means,
            special_ids_of(tokenizer),
            where=["content"],
        )
        for size in (1, 5, TEXTS)
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], rtol=1e-9, atol=1e-9)
    assert list(tables[0]["replacement"]) == ["flip", "mean", "zero"]


def never_on(dictionary: Dictionary, latent: int) -> Dictionary:
    bias = dictionary.encoder_bias.clone()
    bias[latent] = -1e6
    return dictionary._replace(encoder_bias=bias)


@pytest.mark.parametrize("where", ["content", "first", "both"])
@pytest.mark.parametrize(("family", "unpadded"), WAYS)
def test_the_effect_of_a_latent_is_that_of_a_splice_by_hand(checkpoints, family, unpadded, where):
    model, tokenizer, dataset = make(checkpoints[family], unpadded)
    for layer in (1, LAYERS):
        with recording(model, {"hidden": [layer]}) as record, torch.inference_mode():
            rows = torch.cat([record(alone(model, ids)).values["hidden", layer] for ids in dataset["input_ids"]])
        mean, scale = rows.mean(dim=0), rows.std(dim=0)
        dictionary = never_on(random_dictionary([rows], mean, scale, num_latents=24, k=6, seed=0), 11)
        texts = {3: [0, 5, 9], 11: [0, 1], 0: [5, 2, 13, 4], 20: [7], 8: list(range(TEXTS))}
        found = latent_effects(model, dictionary, layer, texts, dataset, tokenizer, where=where, batch_size=4)
        assert found.latents.tolist() == list(texts)
        assert found.texts.tolist() == [len(of) for of in texts.values()]
        clean = logits_of(model, dataset, 0, lambda rows: rows)
        for position, (latent, of) in enumerate(texts.items()):
            on = []

            def ablate(rows, dictionary=dictionary, latent=latent, on=on):
                codes = encode(dictionary, rows)[:, latent, None] * wanted(where, rows)
                on.append(bool(codes.any()))
                return rows - codes * dictionary.decoder[latent]

            chosen = dataset.select(of)
            expected = (clean[of] - logits_of(model, chosen, layer, ablate)).mean(axis=0)
            np.testing.assert_allclose(found.effects[position], expected, atol=1e-6)
            assert found.on[position] == sum(on)
        assert not found.effects[1].any()
        assert found.on[1] == 0
        if layer < LAYERS or where != "content":  # these heads read first tokens only
            assert np.abs(found.effects).max() > 1e-3


def test_an_unknown_word_is_content(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    found = special_ids_of(tokenizer).tolist()
    assert sorted(found) == sorted([tokenizer.cls_token_id, tokenizer.sep_token_id])
