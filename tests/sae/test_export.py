import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from bertdyn.errors import InputError
from bertdyn.sae.config import ACTIVATIONS
from bertdyn.sae.dictionary import Dictionary, encode
from bertdyn.sae.export import CONFIG, STANDARDISATION, WEIGHTS, load_dictionary, load_metadata, save_dictionary

WIDTH, LATENTS = 6, 10


def _dictionary(activation: str, threshold: float = 0.3) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    return Dictionary(
        activation=activation,
        k={"topk": 3, "batch_topk": 4, "relu": 0}[activation],
        encoder=torch.randn(WIDTH, LATENTS, generator=generator),
        encoder_bias=torch.randn(LATENTS, generator=generator),
        decoder=torch.randn(LATENTS, WIDTH, generator=generator),
        decoder_bias=torch.randn(WIDTH, generator=generator),
        threshold=torch.tensor(threshold if activation == "batch_topk" else 0.0),
        mean=torch.randn(WIDTH, generator=generator),
        scale=torch.rand(WIDTH, generator=generator) + 0.1,
    )


def _assert_equal(one: Dictionary, other: Dictionary) -> None:
    for name, a, b in zip(Dictionary._fields, one, other, strict=True):
        if isinstance(a, torch.Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            assert a.contiguous().view(torch.int32).equal(b.contiguous().view(torch.int32)), name
        else:
            assert a == b, name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("threshold", [0.3, 0.0, 1e-45])
def test_comes_back_bit_for_bit(tmp_path, activation, threshold):
    dictionary = _dictionary(activation, threshold)
    metadata = {"layer": 4, "state": "epoch_001", "fvu": [0.25, None], "activation": "not ours", "name": "Zürich"}
    save_dictionary(tmp_path / "layer_04", dictionary, metadata)
    _assert_equal(load_dictionary(tmp_path / "layer_04"), dictionary)
    assert load_metadata(tmp_path / "layer_04") == metadata
    assert [path.name for path in tmp_path.iterdir()] == ["layer_04"]


def test_views_of_one_tensor_are_written_as_themselves(tmp_path):
    both = torch.randn(2, LATENTS, WIDTH, requires_grad=True)
    tied = _dictionary("topk")._replace(encoder=both[1].T, decoder=both[1])
    save_dictionary(tmp_path / "d", tied, {})
    loaded = load_dictionary(tmp_path / "d")
    _assert_equal(loaded, tied)
    assert not loaded.encoder.requires_grad


def test_strict_threshold_of_jumprelu_selects_what_ours_does(tmp_path):
    """Activations at the threshold, the next number above it and the next below, in SAELens' arithmetic and ours."""
    threshold = torch.tensor(0.3)
    at = torch.stack([threshold, *(torch.nextafter(threshold, torch.tensor(to)) for to in (math.inf, -math.inf))])
    dictionary = _dictionary("batch_topk")._replace(
        encoder=torch.zeros(WIDTH, LATENTS), encoder_bias=torch.cat([at, torch.zeros(LATENTS - 3)])
    )
    save_dictionary(tmp_path / "d", dictionary, {})
    weights = load_file(tmp_path / "d" / WEIGHTS)
    theirs = torch.relu(weights["b_enc"]) * (weights["b_enc"] > weights["threshold"])
    assert theirs.tolist() == encode(dictionary, torch.ones(WIDTH)).tolist()
    assert theirs.count_nonzero() == 2


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    save_dictionary(tmp_path / "d", _dictionary("relu"), {"number": 1})

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("bertdyn.sae.export.write_json", full)
    with pytest.raises(OSError, match="disk full"):
        save_dictionary(tmp_path / "d", _dictionary("topk"), {"number": 2})
    with pytest.raises(OSError, match="disk full"):
        save_dictionary(tmp_path / "new", _dictionary("topk"), {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    _assert_equal(load_dictionary(tmp_path / "d"), _dictionary("relu"))
    save_dictionary(tmp_path / "d", _dictionary("topk"), {"number": 3})
    _assert_equal(load_dictionary(tmp_path / "d"), _dictionary("topk"))
    assert load_metadata(tmp_path / "d") == {"number": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": torch.full((WIDTH, LATENTS), math.nan)}, "W_enc has values that are not finite"),
        ({"threshold": torch.tensor(math.inf)}, "threshold has values that are not finite"),
        (
            {"decoder": torch.zeros(LATENTS, WIDTH + 1)},
            r"W_dec is torch.float32 \(10, 7\), not .* \(10, 6\)",
        ),
        ({"mean": torch.zeros(WIDTH, dtype=torch.float64)}, "mean is torch.float64"),
        ({"activation": "gated"}, "unknown activation 'gated'; accepted are topk, batch_topk, relu"),
        ({"k": LATENTS + 1}, "k is 11; with batch_topk it is from 1 to 10"),
        ({"scale": torch.zeros(WIDTH)}, "scale must be above 0"),
        ({"activation": "relu", "k": 0}, "threshold is 0.3; with relu it is 0"),
    ],
)
def test_what_is_no_dictionary_is_not_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        save_dictionary(tmp_path / "d", _dictionary("batch_topk")._replace(**change), {})
    assert not list(tmp_path.iterdir())


def _edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def _edit_tensor(path, **changes):
    save_file(load_file(path) | changes, path)


DAMAGE = {
    "no such folder": (lambda d: d.rename(d.with_name("moved")), "there is no such folder"),
    "a file for a folder": (lambda d: (d.rename(d.with_name("moved")), d.touch()), "there is no such folder"),
    "weights missing": (lambda d: (d / WEIGHTS).unlink(), "sae_weights.safetensors missing"),
    "config missing": (lambda d: (d / CONFIG).unlink(), "cfg.json missing"),
    "two missing": (
        lambda d: ((d / STANDARDISATION).unlink(), (d / WEIGHTS).unlink()),
        "sae_weights.safetensors, standardisation.safetensors missing",
    ),
    "cut weights": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-4]), "cannot be read"),
    "empty weights": (lambda d: (d / WEIGHTS).write_bytes(b""), "cannot be read"),
    "cut config": (lambda d: (d / CONFIG).write_bytes((d / CONFIG).read_bytes()[:40]), "cfg.json cannot be read"),
    "binary config": (lambda d: (d / CONFIG).write_bytes(b"\xff\xfe\x00"), "cfg.json cannot be read"),
    "a list": (lambda d: (d / CONFIG).write_text("[]"), "cfg.json lacks a part"),
    "of SAELens alone": (lambda d: _edit(d / CONFIG, metadata={}), "lacks a part"),
    "unknown architecture": (
        lambda d: _edit(d / CONFIG, architecture="gated"),
        "unknown architecture 'gated'; accepted are topk, jumprelu, standard",
    ),
    "other architecture": (
        lambda d: _edit(d / CONFIG, architecture="standard"),
        "architecture is 'standard'; with batch_topk it must be 'jumprelu'",
    ),
    "other function": (lambda d: _edit(d / CONFIG, apply_b_dec_to_input=True), "apply_b_dec_to_input is True"),
    "other width": (lambda d: _edit(d / CONFIG, d_in=7), r"W_enc is torch.float32 \(6, 10\), .* \(7, 10\) as cfg.json"),
    "width is text": (lambda d: _edit(d / CONFIG, d_in="6"), "W_enc is torch.float32"),
    "NaN": (lambda d: _edit_tensor(d / WEIGHTS, b_dec=torch.full((WIDTH,), math.nan)), "b_dec has values"),
    "half precision": (lambda d: _edit_tensor(d / WEIGHTS, b_dec=torch.zeros(WIDTH).half()), "b_dec is torch.float16"),
    "one more": (lambda d: _edit_tensor(d / WEIGHTS, sparsity=torch.zeros(1)), r"sae_weights.safetensors has \["),
    "of two exports": (
        lambda d: _edit_tensor(d / STANDARDISATION, threshold=torch.tensor(0.4)),
        "have different thresholds",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_that_names_the_place(tmp_path, kind):
    damage, message = DAMAGE[kind]
    folder = tmp_path / "layer_04"
    save_dictionary(folder, _dictionary("batch_topk"), {})
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_dictionary(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_topk_of_another_k_is_refused(tmp_path):
    save_dictionary(tmp_path / "d", _dictionary("topk"), {})
    _edit(tmp_path / "d" / CONFIG, k=5)
    with pytest.raises(InputError, match="k is 5; with topk it must be 3"):
        load_dictionary(tmp_path / "d")
