"""Whatever example is shown can be found again, and its activation is that of the model's own hidden state."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from accelerate import Accelerator

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.extraction import extract_state
from bertdyn.features.store import FeatureStore
from bertdyn.sae import examples as module
from bertdyn.sae.dictionary import Dictionary, encode, sparse_codes
from bertdyn.sae.examples import add_words, example_tokens, latent_examples, text_tokens
from tests.features.test_aligned import random_states, write_store
from tests.features.texts import make_model, make_store, make_texts

NUM_LATENTS, K, LAYER = 40, 5, 2


def random_dictionary(width, latents=NUM_LATENTS, k=K, seed=0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = (
        torch.randn(width, latents, generator=generator),
        torch.randn(latents, width, generator=generator),
    )
    zero, one = torch.zeros(width), torch.ones(width)
    return Dictionary("topk", k, encoder, torch.zeros(latents), decoder, zero, torch.tensor(0.0), zero, one)


def random_codes(num_rows=600, num_texts=50, seed=0):
    """[rows, latents]: latent 0 is never on, 1 in one row, 2 in three rows of a text, 3 often, 4 with ties."""
    rng = np.random.default_rng(seed)
    codes = np.zeros((num_rows, 5), dtype=np.float32)
    codes[77, 1] = 2.0
    codes[[10, 11, 12], 2] = [1.0, 3.0, 3.0]
    codes[:, 3] = np.where(rng.random(num_rows) < 0.4, rng.exponential(size=num_rows), 0)
    codes[:, 4] = rng.integers(0, 3, num_rows)
    text = np.sort(rng.integers(0, num_texts, num_rows))
    text[10:13] = text[10]
    position = np.arange(num_rows) - np.searchsorted(text, text)
    rows = pd.DataFrame({"example_id": [f"id-{t}" for t in text], "row": np.arange(num_rows) + 1000})
    return scipy.sparse.csr_array(codes), rows.assign(position=position)


def test_top_examples_are_the_strongest_token_of_each_text():
    codes, rows = random_codes()
    found = latent_examples(codes, rows, [3, 1, 0, 2, 4], num_top=6)
    assert found["latent"].drop_duplicates().tolist() == [3, 1, 2, 4]
    top = found[found["kind"] == "top"]
    for latent, of in top.groupby("latent"):
        activations = codes[:, [latent]].toarray().ravel()
        by_text = pd.Series(activations).groupby(rows["example_id"]).max().sort_values(ascending=False)
        expected = by_text[by_text > 0][:6].to_numpy()
        np.testing.assert_array_equal(of["activation"], expected)
        assert of["rank"].tolist() == list(range(len(expected)))
        assert of["example_id"].is_unique
    [row] = top[top["latent"] == 2].itertuples()
    assert (row.row, row.activation) == (1011, 3.0)  # of two equal ones the first
    for row in found.itertuples():
        number = row.row - 1000
        assert codes[number, row.latent] == row.activation > 0
        assert (rows.loc[number, "example_id"], rows.loc[number, "position"]) == (row.example_id, row.position)


def test_samples_come_from_equal_slices_of_what_is_on():
    codes, rows = random_codes(num_rows=4000, num_texts=900)
    activations = codes[:, [3]].toarray().ravel()
    order = np.sort(activations[activations > 0])[::-1]
    slices = dict(zip(["q4", "q3", "q2", "q1"], np.array_split(order, 4), strict=True))
    drawn = {kind: set() for kind in slices}
    for seed in range(60):
        found = latent_examples(codes, rows, [3], num_top=1, per_slice=3, seed=seed)
        assert found["kind"].drop_duplicates().tolist() == ["top", *slices]
        for kind, inside in slices.items():
            of = found[found["kind"] == kind]
            assert len(of) == 3
            assert of["example_id"].is_unique
            assert of["activation"].is_monotonic_decreasing
            assert of["activation"].between(inside.min(), inside.max()).all()
            drawn[kind] |= set(of["activation"])
    for kind, inside in slices.items():  # from all over the slice
        assert len(drawn[kind]) > 100
        ranks = np.searchsorted(-inside, -np.array(sorted(drawn[kind])))
        assert np.mean(ranks) == pytest.approx(len(inside) / 2, rel=0.2)


def test_samples_are_a_function_of_seed_and_latent():
    codes, rows = random_codes()
    together = latent_examples(codes, rows, [3, 4], seed=5)
    alone = latent_examples(codes, rows, [4], seed=5)
    pd.testing.assert_frame_equal(together[together["latent"] == 4].reset_index(drop=True), alone)
    other = latent_examples(codes, rows, [4], seed=6)
    assert not other.equals(alone)
    assert other[other["kind"] == "top"].equals(alone[alone["kind"] == "top"])
    few = latent_examples(codes, rows, [2], num_slices=4, per_slice=2)
    assert few["kind"].tolist() == ["top", "q4", "q3", "q2"]  # three rows fill three slices
    assert latent_examples(codes, rows, [0]).empty
    assert list(latent_examples(codes, rows, [])) == list(alone)


def test_examples_that_do_not_fit():
    codes, rows = random_codes()
    with pytest.raises(InputError, match="600 rows of codes, but 599 tokens"):
        latent_examples(codes, rows[1:], [0])
    with pytest.raises(InputError, match="no latent 5; the dictionary has the latents 0 to 4"):
        latent_examples(codes, rows, [5])


@pytest.fixture(scope="module", params=["bert", "roberta", "flaubert"])
def encoded(request, checkpoints, tmp_path_factory):
    """A store of a tiny encoder, its codes, and the examples of its latents."""
    checkpoint = checkpoints[request.param]
    texts, tokenizer = make_texts(checkpoint, n=40)
    model = make_model(checkpoint)
    store = make_store(tmp_path_factory.mktemp("store"), model, texts, tokenizer, ("hidden",), ("tokens",))
    extract_state(Accelerator(cpu=True), model, texts, tokenizer, store, "pretrained")
    store = FeatureStore.open(store.folder)
    dictionary = random_dictionary(model.config.hidden_size)
    numbers, owner = AlignedRows([(store, "pretrained")], "probe").content_rows(10**9, 0)
    codes = sparse_codes(dictionary, [torch.from_numpy(store.array("tokens", "pretrained", LAYER)[numbers])])
    rows = store.tokens(["example_id", "row", "position"]).iloc[numbers].reset_index(drop=True)
    assert (rows["example_id"] == store.examples()["example_id"].to_numpy()[owner]).all()
    shown = latent_examples(codes, rows, [7, 3, 11, 30])
    return store, model, tokenizer, dictionary, shown


@torch.inference_mode()
def test_encoding_the_shown_token_again_gives_the_shown_activation(encoded):
    """From the text of the example id, by transformers alone."""
    store, model, tokenizer, dictionary, shown = encoded
    texts = store.examples().set_index("example_id")["text"]
    assert set(shown["kind"]) == {"top", "q1", "q2", "q3", "q4"}
    for row in shown.itertuples():
        inputs = tokenizer(texts[row.example_id], return_tensors="pt")
        hidden = model.eval()(**inputs, output_hidden_states=True).hidden_states[LAYER][0, row.position]
        assert encode(dictionary, hidden)[row.latent].item() == pytest.approx(row.activation, abs=1e-4)
        assert row.activation > 0


def test_texts_of_examples_hold_the_shown_activation_and_every_other(encoded, monkeypatch):
    store, _, _, dictionary, shown = encoded
    array, examples = store.array("tokens", "pretrained", LAYER), store.examples()
    examples = examples[examples["part"] == "probe"]
    every = text_tokens(store, examples)
    found = example_tokens(array, dictionary, shown, every, examples)
    pairs = shown[["latent", "example_id"]].drop_duplicates()
    assert found[["latent", "example_id"]].drop_duplicates().to_numpy().tolist() == pairs.to_numpy().tolist()
    merged = shown.merge(found, on=["latent", "example_id", "row", "position"], how="left")
    np.testing.assert_allclose(merged["activation_x"], merged["activation_y"], rtol=1e-5)
    table = store.examples().set_index("example_id")
    for (latent, name), tokens in found.groupby(["latent", "example_id"]):
        rows = store.example(name, "tokens", "pretrained", LAYER)
        expected = encode(dictionary, torch.from_numpy(np.array(rows)))[:, latent].numpy()
        np.testing.assert_allclose(tokens["activation"], expected, rtol=1e-5, atol=1e-6)
        assert tokens["position"].tolist() == list(range(table.loc[name, "n_rows"]))
        text = table.loc[name, "text"]
        content = tokens[~tokens["is_special"]]
        assert "".join(content["piece"]) == "".join(text.split())  # every character once, in its own case
        assert "".join(content.drop_duplicates("word_id")["word"]) == "".join(text.split())
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    pd.testing.assert_frame_equal(example_tokens(array, dictionary, shown, every, examples), found)


def test_texts_of_examples_end_with_their_first_window(tmp_path):
    store = write_store(tmp_path / "store", random_states())
    dictionary = random_dictionary(5)
    tokens = store.tokens()
    for name in ("word_id", "char_start", "char_end"):
        content = tokens["position"] - 1
        tokens[name] = np.where(tokens["is_special"], -1, content + (name == "char_end"))
    tokens["segment"] = np.where(tokens["is_special"], -1, 0)
    tokens.to_parquet(store.folder / "tokens.parquet", index=False)
    examples = store.examples().query("part == 'probe'").drop(4)  # a text in between is left out
    tokens, array = text_tokens(store, examples), store.array("tokens", "best", 1)
    assert "".join(tokens["token"]) == "[abc][abcdef]ab][][a][a[b]"
    shown = pd.DataFrame({"latent": [1, 2], "example_id": ["id-0005", "id-0003"]})
    found = example_tokens(array, dictionary, shown, tokens, examples)
    assert found["token"].tolist() == list("[abcdef][abc]")
    for latent, of in found.groupby("latent"):
        expected = encode(dictionary, torch.from_numpy(array[of["row"]]))[:, latent]
        np.testing.assert_allclose(of["activation"], expected, rtol=1e-6)
    for wrong, said in (
        (shown.assign(example_id="id-0004"), "no example 'id-0004'; the first is 'id-0003'"),
        (shown.assign(latent=NUM_LATENTS), f"no latent {NUM_LATENTS}"),
    ):
        with pytest.raises(InputError, match=said):
            example_tokens(array, dictionary, wrong, tokens, examples)
    with pytest.raises(InputError, match="rows of width 5; the dictionary is of width 6"):
        example_tokens(array, random_dictionary(6), shown, tokens, examples)


def test_only_the_rows_between_the_texts_are_read(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", random_states())
    tokens = store.tokens().assign(segment=0, word_id=0, char_start=0, char_end=1)
    tokens.to_parquet(store.folder / "tokens.parquet", index=False)
    read, every = [], FeatureStore.tokens
    monkeypatch.setattr(FeatureStore, "tokens", lambda *args: (read.append(every(*args)), read[-1])[1])
    examples = store.examples().iloc[3:6]
    found = text_tokens(store, examples)
    span = list(range(examples["first_row"].min(), (examples["first_row"] + examples["n_rows"]).max()))
    assert [of["row"].tolist() for of in read] == [span]
    assert found["row"].tolist() == tokens.query("row in @span and window_id == 0")["row"].tolist()


def test_words_are_those_of_the_original_text():
    """Of pairs too; where tokens share characters, the first has them; a mark alone has none."""
    columns = ["text", "segment", "word_id", "char_start", "char_end", "is_special", "token"]
    rows = [
        ("a", -1, -1, -1, -1, True, "[CLS]"),
        ("a", 0, 0, 0, 3, False, "vin"),
        ("a", 0, 1, 4, 7, False, "die"),
        ("a", 0, 1, 7, 10, False, "##sel"),
        ("a", -1, -1, -1, -1, True, "[SEP]"),
        ("a", 1, 0, 0, 1, False, "byte 1"),
        ("a", 1, 0, 0, 1, False, "byte 2"),
        ("a", 1, 0, 1, 2, False, "!"),
        ("b", 0, 0, 1, 1, False, "Ġ"),
        ("b", 0, 0, 1, 3, False, "No"),
    ]
    tokens = pd.DataFrame(rows, columns=columns, index=np.arange(10) * 3)
    found = add_words(tokens, "text", {"a": ("Vin DieSel", "é!"), "b": (" No",)})
    assert found["word"].tolist() == ["[CLS]", "Vin", "DieSel", "DieSel", "[SEP]", "é!", "é!", "é!", "No", "No"]
    assert found["piece"].tolist() == ["[CLS]", "Vin", "Die", "Sel", "[SEP]", "é", "", "!", "", "No"]
    assert add_words(tokens[:0], "text", {})["word"].empty
