"""Stored rows are those of each text alone, whatever the batches, the processes and the interruptions."""

import filecmp
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification

from bertdyn.errors import InputError
from bertdyn.features import extraction, writing
from bertdyn.features.extraction import extract_state, plan_chunks
from bertdyn.features.store import FeatureStore
from tests.families import FAMILIES, LAYERS
from tests.features.texts import make_model, make_store, make_texts
from tests.models.test_recording import alone


def extract(folder, checkpoint, model=None, texts=None, state="epoch_000", resume=False, **options) -> FeatureStore:
    made, tokenizer = make_texts(checkpoint)
    texts, model = texts or made, model or make_model(checkpoint)
    store = FeatureStore.open(folder) if resume else make_store(folder, model, texts, tokenizer, **options)
    accelerator = Accelerator(cpu=True)
    extract_state(accelerator, model, texts, tokenizer, store, state, batch_size=4, resume=resume, fingerprint="x")
    return FeatureStore.open(folder)


def same_folders(one: Path, other: Path) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert len(files) > 10
    return [path for path in files if not filecmp.cmp(one / path, other / path, shallow=False)] == []


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks even of nine texts."""
    monkeypatch.setattr(extraction, "BYTES_PER_CHUNK", 100_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_a_direct_forward_on_each_unpadded_text(checkpoints, family, tmp_path, small_chunks):
    model = make_model(checkpoints[family]).train()
    store = extract(tmp_path / "f", checkpoints[family], model)
    assert model.training
    texts, tokenizer = make_texts(checkpoints[family])
    assert len(plan_chunks(texts, store)) > 2
    examples, tokens = store.examples(), store.tokens()
    for i, text in enumerate(examples["text"]):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        expected, logits = alone(checkpoints[family], ids)
        first, count = examples.loc[i, ["first_row", "n_rows"]]
        rows = slice(first, first + count)
        assert tokens["token_id"][rows].tolist() == ids.tolist()
        assert set(tokens["example_id"][rows]) == {examples["example_id"][i]}
        np.testing.assert_allclose(store.logits("epoch_000")[i], logits, atol=1e-5)
        assert examples["prediction_epoch_000"][i] == logits.argmax()
        for (site, layer), values in expected.items():
            if site == "attention":
                np.testing.assert_allclose(store.array("attention", "epoch_000", layer)[rows], values, atol=1e-5)
                continue
            prefix = "" if site == "hidden" else f"{site}_"
            stored = store.array(f"{prefix}tokens", "epoch_000", layer)
            np.testing.assert_allclose(stored[rows], values, atol=1e-5)
            np.testing.assert_array_equal(
                store.example(examples["example_id"][i], f"{prefix}tokens", "epoch_000", layer), stored[rows]
            )
            np.testing.assert_allclose(store.array(f"{prefix}first", "epoch_000", layer)[i], values[0], atol=1e-5)
            np.testing.assert_allclose(store.array(f"{prefix}mean", "epoch_000", layer)[i], values.mean(0), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "flaubert"])
def test_an_interrupted_state_ends_byte_identical_and_only_missing_chunks_are_computed(
    checkpoints, family, tmp_path, small_chunks, monkeypatch
):
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_SYNCS", 0)
    whole = extract(tmp_path / "whole", checkpoints[family], rows=("first", "tokens"))
    chunks = plan_chunks(make_texts(checkpoints[family])[0], whole)
    for stop in range(len(chunks)):
        folder = tmp_path / f"cut-{stop}"
        with monkeypatch.context() as cut:
            written = []

            def write(self, *args, written=written, stop=stop, original=extraction._ChunkRows.write):
                if len(written) == stop:
                    raise KeyboardInterrupt
                written.append(self.chunk)
                original(self, *args)

            cut.setattr(extraction._ChunkRows, "write", write)
            with pytest.raises(KeyboardInterrupt):
                extract(folder, checkpoints[family], rows=("first", "tokens"))
        assert FeatureStore.open(folder).states == []  # nothing half-written is visible
        with monkeypatch.context() as counted:
            again = []

            def write(self, *args, again=again, original=extraction._ChunkRows.write):
                again.append(self.chunk.name)
                original(self, *args)

            counted.setattr(extraction._ChunkRows, "write", write)
            extract(folder, checkpoints[family], resume=True)
        assert again == [chunk.name for chunk in chunks[stop:]]
        assert same_folders(tmp_path / "whole", folder)


def test_a_state_cut_while_it_finishes_is_finished(checkpoints, tmp_path, monkeypatch):
    extract(tmp_path / "whole", checkpoints["bert"], rows=["tokens"])
    with monkeypatch.context() as cut:
        cut.setattr(writing, "name_state", lambda *args: 1 / 0)
        cut.setattr(writing.shutil, "rmtree", lambda *args, **kwargs: None)  # the marks are still there
        with pytest.raises(ZeroDivisionError):
            extract(tmp_path / "cut", checkpoints["bert"], rows=["tokens"])
    extract(tmp_path / "cut", checkpoints["bert"], resume=True)
    assert same_folders(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_rows_are_the_rounded_ones(checkpoints, family, tmp_path):
    full = extract(tmp_path / "f32", checkpoints[family])
    half = extract(tmp_path / "f16", checkpoints[family], dtype="float16")
    rounded = full.array("tokens", "epoch_000", LAYERS).astype(np.float16)
    np.testing.assert_array_equal(half.array("tokens", "epoch_000", LAYERS), rounded)


def test_a_bfloat16_model_is_stored(checkpoints, tmp_path):
    model = make_model(checkpoints["bert"]).to(torch.bfloat16)
    store = extract(tmp_path / "f", checkpoints["bert"], model)
    exact = extract(tmp_path / "g", checkpoints["bert"])
    for kind in ("tokens", "mean", "ffn_post_tokens", "attention"):
        found, expected = (s.array(kind, "epoch_000", LAYERS) for s in (store, exact))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 0.1


def test_what_float16_cannot_hold_is_said(checkpoints, tmp_path):
    model = make_model(checkpoints["bert"])
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.bias[0] = 1e5
    with pytest.raises(InputError, match="--dtype float16: tokens of layer 2, epoch_000 .* accepted here: float32"):
        extract(tmp_path / "f", checkpoints["bert"], model, rows=["tokens"], dtype="float16")
    assert FeatureStore.open(tmp_path / "f").states == []
    assert extract(tmp_path / "g", checkpoints["bert"], model).states == ["epoch_000"]


def test_values_that_are_not_finite_are_an_error(checkpoints, tmp_path):
    model = make_model(checkpoints["bert"])
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite: first of layer 2, epoch_000"):
        extract(tmp_path / "f", checkpoints["bert"], model)


def test_padded_and_unpadded_rows_agree(checkpoints, tmp_path):
    one = extract(tmp_path / "a", checkpoints["camembert"])
    other = extract(tmp_path / "b", checkpoints["camembert"], make_model(checkpoints["camembert"], unpadded=False))
    for kind, info in one.manifest.arrays.items():
        for layer in info.layers:
            found, expected = (s.array(kind, "epoch_000", layer) for s in (one, other))
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_the_asked_layers_and_sites_are_there(checkpoints, tmp_path):
    store = extract(tmp_path / "f", checkpoints["albert"], sites=["hidden", "ffn_pre"], rows=["first"], layers=[0, 3])
    files = sorted(
        str(path.relative_to(tmp_path / "f/epoch_000")) for path in (tmp_path / "f/epoch_000").rglob("*.npy")
    )
    assert files == ["ffn_pre_first/layer_03.npy", "first/layer_00.npy", "first/layer_03.npy", "logits.npy"]
    with pytest.raises(InputError, match="has no layer 1: accepted are 0, 3"):
        store.array("first", "epoch_000", 1)
    assert AutoModelForSequenceClassification.from_pretrained(checkpoints["albert"]).config.num_labels == 2
