"""A text that is read has the activations of the model's own hidden states, token by token."""

import numpy as np
import pandas as pd
import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.sae import reading as module
from bertdyn.sae.dictionary import encode
from bertdyn.sae.reading import read_text
from tests.features.texts import make_model, make_texts
from tests.sae.test_examples import LAYER, NUM_LATENTS, K, random_dictionary

TEXTS = ["A Gripping, unsentimental film: it's great", "bad", "", "naïve café <b>&amp; 'Good' </script>", "so so bad"]


def setup(checkpoints, family, unpadded=True):
    _, tokenizer = make_texts(checkpoints[family])
    model = make_model(checkpoints[family], unpadded)
    return model, tokenizer, random_dictionary(model.config.hidden_size)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "flaubert"])
def test_every_token_is_read_as_the_text_alone(checkpoints, monkeypatch, family):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    model, tokenizer, dictionary = setup(checkpoints, family)
    model.train()
    found = read_text(model, tokenizer, dictionary, LAYER, TEXTS)
    assert model.training
    model.eval()
    assert (found["activation"] > 0).all()
    assert found["text"].is_monotonic_increasing
    for number, text in enumerate(TEXTS):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[LAYER][0]
        codes = encode(dictionary, hidden).numpy()
        of_text = found[found["text"] == number]
        read = np.zeros_like(codes)
        read[of_text["position"], of_text["latent"]] = of_text["activation"]
        np.testing.assert_allclose(read, codes, atol=1e-4)
        assert len(of_text) == K * len(codes)
        tokens = of_text.drop_duplicates("position")
        assert tokens["position"].tolist() == list(range(len(codes)))
        assert tokens["token"].tolist() == tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
        content = tokens[~tokens["is_special"]]
        if family == "bert":
            assert "".join(content["piece"]) == "".join(text.split())
            starts, ends = content["char_start"], content["char_end"]
            assert content["piece"].tolist() == [text[a:b] for a, b in zip(starts, ends, strict=True)]
            assert all(piece in word for piece, word in zip(content["piece"], content["word"], strict=True))


def test_chosen_latents_and_the_strongest_of_each_text(checkpoints):
    model, tokenizer, dictionary = setup(checkpoints, "bert")
    every = read_text(model, tokenizer, dictionary, LAYER, TEXTS)
    chosen = read_text(model, tokenizer, dictionary, LAYER, TEXTS, latents=[3, 8])
    on = chosen[chosen["latent"] >= 0].reset_index(drop=True)
    expected = every[every["latent"].isin([3, 8])].reset_index(drop=True)
    assert on.equals(expected)
    assert 0 < len(on) < len(every)
    off = chosen[chosen["latent"] < 0]
    assert (off["activation"] == 0).all()
    keys = ["text", "position"]
    assert chosen[keys].drop_duplicates().to_numpy().tolist() == every[keys].drop_duplicates().to_numpy().tolist()
    assert not off.merge(on, on=keys).shape[0], "a token is on or off, not both"

    content = every[~every["is_special"]]
    strongest = read_text(model, tokenizer, dictionary, LAYER, TEXTS, strongest=2)
    for number in (0, 1, 3, 4):
        best = content[content["text"] == number].groupby("latent")["activation"].max().nlargest(2)
        of_text = strongest[(strongest["text"] == number) & (strongest["latent"] >= 0)]
        assert set(of_text["latent"]) == set(best.index)
    assert (strongest.loc[strongest["text"] == 2, "latent"] >= 0).any()  # no content: of its special tokens
    one = read_text(model, tokenizer, dictionary, LAYER, TEXTS[:1], latents=range(NUM_LATENTS), strongest=NUM_LATENTS)
    pd.testing.assert_frame_equal(one, every[every["text"] == 0], rtol=1e-4)


def test_texts_are_cut(checkpoints):
    model, tokenizer, dictionary = setup(checkpoints, "bert")
    long = " ".join(["good"] * 2000)
    assert read_text(model, tokenizer, dictionary, LAYER, [long])["position"].max() == 511
    cut = read_text(model, tokenizer, dictionary, LAYER, [long], max_length=7)
    assert cut["position"].max() == 6
    assert cut.drop_duplicates("position")["piece"].tolist() == ["[CLS]", *["good"] * 5, "[SEP]"]


def test_what_cannot_be_read(checkpoints):
    model, tokenizer, dictionary = setup(checkpoints, "bert")
    for change, said in (
        ({"texts": []}, "no text to read"),
        ({"texts": ["a", None]}, "no text to read"),
        ({"layer": 4}, "the layers 0 to 3"),
        ({"layer": -1}, "the layers 0 to 3"),
        ({"dictionary": random_dictionary(16)}, "width 16, the model of width 32"),
        ({"latents": [0, 40]}, "no latent 40"),
        ({"max_length": 513}, "1 to 512 tokens"),
    ):
        options = {"dictionary": dictionary, "layer": LAYER, "texts": ["a"]} | change
        with pytest.raises(InputError, match=said):
            read_text(model, tokenizer, **options)


def test_a_dictionary_of_another_layer_or_model_is_refused(checkpoints):
    model, tokenizer, dictionary = setup(checkpoints, "bert")
    metadata = {"layer": LAYER, "state": "best", "model": "sst2-bert-s0", "depth": 3}
    read = read_text(model, tokenizer, dictionary, LAYER, ["a"], metadata=metadata)
    pd.testing.assert_frame_equal(read, read_text(model, tokenizer, dictionary, LAYER, ["a"]))
    with pytest.raises(InputError, match="layer 1: the dictionary is of layer 2 of sst2-bert-s0, state best"):
        read_text(model, tokenizer, dictionary, 1, ["a"], metadata=metadata)
    with pytest.raises(InputError, match=r"the model has 3 layers; .*sst2-bert-s0, state best, a model of 12 layers"):
        read_text(model, tokenizer, dictionary, LAYER, ["a"], metadata=metadata | {"depth": 12})
