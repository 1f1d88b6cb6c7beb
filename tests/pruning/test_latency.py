"""What is timed against what, on which batches, and what the ratio's interval covers."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from bertdyn.pruning.export import export_onnx
from bertdyn.pruning.latency import measure, onnx_latency, random_batches, ratio_interval, torch_latency

COLUMNS = ["backend", "model", "batch_size", "sequence_length", "latency_ms", "latency_ms_min", "rounds", "threads"]
COLUMNS += ["device", "ratio", "ratio_low", "ratio_high"]


class Work:
    """Runners that take the time they say, on a clock of their own."""

    def __init__(self, **seconds):
        self.now, self.calls = 0.0, []
        self.runners = {name: lambda name=name: self._take(name, seconds[name]) for name in seconds}

    def _take(self, name, seconds):
        self.calls.append(name)
        self.now += seconds


def test_each_round_calls_each_model_once_in_changing_order():
    work = Work(dense=3.0, half=2.0, quarter=1.0)
    seconds = measure(work.runners, 50, 2, seed=0, clock=lambda: work.now)
    assert list(seconds) == ["dense", "half", "quarter"]
    assert seconds.shape == (50, 3)
    assert np.allclose(seconds, [3.0, 2.0, 1.0])  # no call's time is another's
    assert len(work.calls) == 3 * 52
    rounds = np.array(work.calls[6:]).reshape(50, 3)
    assert all(sorted(names) == ["dense", "half", "quarter"] for names in rounds.tolist())
    assert {names[0] for names in rounds.tolist()} == {"dense", "half", "quarter"}
    assert len({tuple(names) for names in rounds.tolist()}) == 6  # who follows whom, too

    again, other = (Work(dense=3.0, half=2.0, quarter=1.0) for _ in range(2))
    measure(again.runners, 50, 2, seed=0, clock=lambda: 0.0)
    measure(other.runners, 50, 2, seed=1, clock=lambda: 0.0)
    assert again.calls == work.calls != other.calls


def test_interval_covers_the_true_ratio():
    """Of medians, in about 95 % of repetitions, and narrower with more rounds."""
    rng = np.random.default_rng(0)
    inside, widths = [], {}
    for rounds in (30, 300):
        for _ in range(100):
            dense = rng.lognormal(0, 0.3, rounds)
            low, high = ratio_interval(0.7 * rng.lognormal(0, 0.3, rounds), dense, seed=0, resamples=300)
            inside.append(low <= 0.7 <= high)
            widths.setdefault(rounds, []).append(high - low)
    assert 0.9 <= np.mean(inside) <= 0.995
    assert np.median(widths[300]) < np.median(widths[30]) / 2


def test_what_slows_a_whole_round_cancels():
    rng = np.random.default_rng(0)
    drift = rng.lognormal(0, 0.5, 60)
    dense, half = drift * rng.normal(1, 0.01, 60), 0.5 * drift * rng.normal(1, 0.01, 60)
    low, high = ratio_interval(half, dense, seed=0)
    assert 0.48 < low <= 0.5 <= high < 0.52
    apart_low, apart_high = ratio_interval(rng.permutation(half), dense, seed=0)
    assert high - low < (apart_high - apart_low) / 5
    assert ratio_interval(half, dense, seed=0) == (low, high)
    assert ratio_interval(dense, dense, seed=0) == (1.0, 1.0)


@pytest.mark.parametrize("family", ["bert", "roberta", "flaubert"])
def test_batches_are_padded_as_real_ones(checkpoints, family):
    config = AutoConfig.from_pretrained(checkpoints[family])
    shapes = [(1, 7), (16, 33)]
    one, many = random_batches(config, shapes, seed=0)
    assert [tuple(batch["input_ids"].shape) for batch in (one, many)] == shapes
    assert one["attention_mask"].all()
    mask, ids = many["attention_mask"].bool(), many["input_ids"]
    lengths = mask.sum(dim=1)
    assert lengths.max() == 33
    assert lengths.min() >= 17
    assert len(lengths.unique()) > 5
    assert torch.equal(mask, torch.arange(33) < lengths[:, None])
    assert torch.equal(mask, ids != config.pad_token_id)
    assert ids.min() >= 0
    assert ids.max() < config.vocab_size
    assert torch.equal(ids, random_batches(config, shapes, seed=0)[1]["input_ids"])
    assert not torch.equal(ids, random_batches(config, shapes, seed=1)[1]["input_ids"])


def _models(folder):
    """A model of three layers, in training mode, and the same with the first layer only."""
    dense, short = (AutoModelForSequenceClassification.from_pretrained(folder) for _ in range(2))
    short.bert.encoder.layer = short.bert.encoder.layer[:1]
    return {"dense": dense.train(), "short": short.eval()}


def _check(table, backend, shapes):
    assert list(table.columns) == COLUMNS
    assert list(zip(table["model"], table["batch_size"], table["sequence_length"], strict=True)) == [
        (name, *shape) for shape in shapes for name in ("dense", "short")
    ]
    assert set(table["backend"]) == {backend}
    assert set(table["device"]) == {"cpu"}
    assert set(table["threads"]) == {1}
    assert set(table["rounds"]) == {12}
    assert (table["latency_ms_min"] <= table["latency_ms"]).all()
    assert (table["ratio_low"] <= table["ratio_high"]).all()
    dense, short = table.iloc[::2], table.iloc[1::2]
    assert (dense[["ratio", "ratio_low", "ratio_high"]] == 1.0).all(axis=None)
    assert np.allclose(short["ratio"], short["latency_ms"].to_numpy() / dense["latency_ms"].to_numpy())
    assert (short["ratio"] < 0.9).all()  # a third of the layers


def test_torch_table(checkpoints):
    models, shapes = _models(checkpoints["bert"]), [(1, 16), (4, 24)]
    seen = []
    models["short"].register_forward_hook(
        lambda model, *_: seen.append((torch.get_num_threads(), model.training, torch.is_inference_mode_enabled()))
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _check(torch_latency(models, shapes, rounds=12), "torch", shapes)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {(1, False, True)}
    assert models["dense"].training
    assert not models["short"].training


def test_onnx_table(checkpoints, tmp_path):
    models, shapes = _models(checkpoints["bert"]), [(1, 16), (4, 24)]
    files = {name: tmp_path / f"{name}.onnx" for name in models}
    for name, model in models.items():
        export_onnx(model, files[name])
    _check(onnx_latency(files, models["dense"].config, shapes, rounds=12), "onnxruntime", shapes)


def test_threads_and_modes_come_back_after_an_exception(checkpoints):
    models = _models(checkpoints["bert"])

    def fail(*_):
        raise KeyError("stop")

    models["short"].register_forward_pre_hook(fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError, match="stop"):
            torch_latency(models, [(1, 16)], rounds=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert models["dense"].training


def test_wrong_input(checkpoints):
    models = _models(checkpoints["bert"])
    with pytest.raises(ValueError, match="positions for 1 to 512"):
        torch_latency(models, [(1, 513)])
    with pytest.raises(ValueError, match=r"cpu.*meta"):
        torch_latency({**models, "elsewhere": models["short"].to("meta")}, [(1, 8)])
    with pytest.raises(ValueError, match="at least one"):
        torch_latency({}, [(1, 8)])
    with pytest.raises(ValueError, match="at least one"):
        onnx_latency({}, models["dense"].config, [(1, 8)])
