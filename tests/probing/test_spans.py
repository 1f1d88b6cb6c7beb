"""Span probes against loops over single windows, on stores written by hand."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoTokenizer

from bertdyn.data.windows import make_windows
from bertdyn.errors import InputError
from bertdyn.features.store import ArrayInfo, FeatureStore, Manifest
from bertdyn.features.texts import TokenisedTexts
from bertdyn.features.writing import StateWriter, begin_state, create_store, finish_state
from bertdyn.probing.spans import (
    FittedSpans,
    SpanProbes,
    fit_span_probes,
    load_directions,
    position_weights,
    predict_spans,
    save_directions,
    span_losses,
)
from bertdyn.probing.window_rows import WindowRows, mean_and_scale, stored_windows
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.tasks.test_question_answering import questions

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
LONG = " ".join(ALPHABET)
MAX_LENGTH, STRIDE = 15, 4


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_frame(part: str, size: int, seed: int) -> pd.DataFrame:
    """Questions over contexts of one to four windows; a third of them have no answer."""
    draw, rows = np.random.default_rng(seed), []
    for i in range(size):
        low = draw.integers(0, 20)
        words = ALPHABET[low : low + draw.integers(3, 27)]
        start = draw.integers(0, len(words))
        rows.append(("Why?", " ".join(words), [] if i % 3 == 0 else [" ".join(words[start : start + 2])]))
    # Two neighbours that only their number tells apart.
    rows[1:3] = [("Why?", LONG, ["b c"]), ("Why?", LONG, ["y z"])]
    return questions(*rows).assign(example_id=[f"{part}-{i}" for i in range(size)])


class Prepared(NamedTuple):
    store: FeatureStore
    frames: dict
    windows: dict
    tokenizer: object

    def rows(self, part, state="best", layers=(0, 2), **options) -> WindowRows:
        stored = stored_windows(self.store, part, self.frames[part], self.windows[part], **options)
        return WindowRows(self.store, state, layers, stored)

    def task(self) -> QuestionAnswering:
        return QuestionAnswering(self.frames, self.windows)


def one_hot(windows) -> np.ndarray:
    """Rows [tokens, 3]: e0 at each window's start, e1 at its end, at the first token where it has no answer."""
    lengths = np.array(windows["length"][:])
    first = np.cumsum(lengths) - lengths
    rows = np.zeros((lengths.sum(), 3))
    rows[first + windows["start_position"][:], 0] += 1
    rows[first + windows["end_position"][:], 1] += 1
    return rows


def random_rows(windows, seed=0, width=4) -> np.ndarray:
    """Dimensions of other means and scales, one of them constant, that give a hint of the answer."""
    draw, shape = np.random.default_rng(seed), (sum(windows["length"][:]), width)
    rows = draw.normal(size=shape) * 10.0 ** np.arange(-1, width - 1) + np.arange(width)
    rows[:, :2] += one_hot(windows)[:, :2] * [0.2, 2]
    rows[:, 2] = 7
    return rows


def prepare(folder, tokenizer, features_of, sizes=None, layers=(0, 1, 2)) -> Prepared:
    """A store of three parts (in another order than they are used) in one state; `features_of(windows, layer)`."""
    sizes = sizes or {"probe": 9, "train": 24, "validation": 12}
    frames = {part: make_frame(part, size, seed) for seed, (part, size) in enumerate(sizes.items())}
    windows = {part: make_windows(frame, tokenizer, MAX_LENGTH, STRIDE) for part, frame in frames.items()}
    texts = TokenisedTexts([frame.assign(part=part) for part, frame in frames.items()], list(windows.values()))
    rows = {layer: np.concatenate([features_of(w, layer) for w in windows.values()]) for layer in layers}
    info = ArrayInfo("hidden", "tokens", "float64", list(layers), [values.shape[1] for values in rows.values()])
    examples = texts.example_table()[["example_id", "part", "label", "text", "text_pair", "first_row", "n_rows"]]
    manifest = Manifest({"tokens": info}, 2, len(examples), len(rows[layers[0]]), 0, ["no", "yes"], {})
    store = create_store(folder, manifest, examples, texts.token_pieces(tokenizer))
    begin_state(store, "best", "weights", resume=False)
    writer = StateWriter(store, "best")
    for layer, values in rows.items():
        writer.write("tokens", layer, 0, values)
    writer.sync()
    finish_state(store, "best", "best", model="weights")
    return Prepared(FeatureStore.open(folder), frames, windows, tokenizer)


@pytest.fixture
def tokenizer(checkpoints):
    return AutoTokenizer.from_pretrained(checkpoints["bert"])


@pytest.fixture
def prepared(tmp_path, tokenizer) -> Prepared:
    return prepare(tmp_path / "store", tokenizer, lambda windows, layer: random_rows(windows, layer))


def fit(prepared, rates=(0.01, 0.1), layers=(0, 2), epochs=3, **options) -> FittedSpans:
    train, validation = (prepared.rows(part, layers=layers) for part in ("train", "validation"))
    options = {"learning_rates": rates, "num_epochs": epochs, "batch_size": 5} | options
    return fit_span_probes(Accelerator(cpu=True), train, validation, **options)


def naive_loss(features, window, start, end, weights=(1.0, 1.0)) -> float:
    """Of one window: features [length, width]."""
    candidates = [0, *range(window["context_start"], window["context_end"])]
    losses = []
    for direction, name in ((start, "start_position"), (end, "end_position")):
        logits = [float(features[i] @ direction) for i in candidates]
        largest = max(logits)
        total = largest + math.log(sum(math.exp(logit - largest) for logit in logits))
        losses.append(total - logits[candidates.index(window[name])])
    return (weights[0] * losses[0] + weights[1] * losses[1]) / 2


def test_one_hot_tokens_give_exactly_their_spans(tmp_path, tokenizer):
    """Also where windows are several, questions alike, and the context's first or last token is the answer."""
    prepared = prepare(tmp_path / "store", tokenizer, lambda windows, layer: one_hot(windows) * (1 + layer))
    assert max(prepared.windows["probe"]["window"][:]) > 1
    directions = torch.eye(3)[:2].expand(2, 2, 3)
    for part, frame in prepared.frames.items():
        found = predict_spans(Accelerator(cpu=True), directions, prepared.rows(part), prepared.task(), part)
        assert len(found) == 2
        for layer, answers in zip((0, 2), found, strict=True):
            table = answers.table
            assert table["example_id"].tolist() == frame["example_id"].tolist()
            golds = [gold[0] if gold else None for gold in frame["answers"]]
            assert [said for said, gold in zip(table["answer"], golds, strict=True) if gold] == list(
                filter(None, golds)
            )
            scale = 2.0 * (1 + layer)
            assert table["score_difference"].tolist() == [-scale if gold else scale for gold in golds]
            assert prepared.task().metrics(answers, part, threshold=0.0)["exact"] == 1.0


def test_directions_of_zeros_and_no_answer_score_the_unanswerable_rate(prepared):
    [answers] = predict_spans(
        Accelerator(cpu=True), torch.zeros(1, 2, 4), prepared.rows("probe", layers=[1]), prepared.task(), "probe"
    )
    assert (answers.table["score_difference"] == 0).all()
    found = prepared.task().metrics(answers, "probe", threshold=-1.0)
    assert found["exact"] == found["f1"] == (prepared.frames["probe"]["label"] == 0).mean() == 3 / 9
    assert found["has_ans_f1"] == 0
    candidates = [w["context_end"] - w["context_start"] + 1 for w in prepared.windows["probe"]]
    assert answers.loss == pytest.approx(np.log(candidates).mean(), abs=1e-12)


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_losses_are_those_of_a_loop_over_windows_with_normalised_features(prepared, normalize, weigh):
    """Mean and scale are subtracted and divided there, and folded into the directions here."""
    rows = prepared.rows("train")
    windows = list(prepared.windows["train"])
    named = [("start_positions", "start_position"), ("end_positions", "end_position")]
    weights = torch.ones(2, len(windows))
    if weigh:
        weights = torch.stack([position_weights(rows.numbers[name], rows.numbers[name]) for name, _ in named])
        rows = dataclasses.replace(rows, weights=weights)
        for row, (_, name) in zip(weights, named, strict=True):
            positions = np.array([window[name] for window in windows])
            known = np.unique(positions)
            by_hand = dict(zip(known, compute_class_weight("balanced", classes=known, y=positions), strict=True))
            np.testing.assert_allclose(row, [by_hand[position] for position in positions], rtol=1e-12)
    mean, scale = mean_and_scale(rows)
    probes = SpanProbes(3, mean, scale if normalize else torch.ones(2, 4))
    for parameter in probes.weights:
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(windows)))
    [batch] = rows.batches(len(windows))
    losses = span_losses(probes(batch), batch)
    assert losses.shape == (3, 2)
    for column, layer in enumerate((0, 2)):
        array = np.array(prepared.store.array("tokens", "best", layer))
        first = rows.windows.first_rows
        part = array[first[0] : first[-1] + windows[-1]["length"]]
        mean, std = part.mean(axis=0), part.std(axis=0)
        std[2] = 1  # constant
        for rate in range(3):
            start, end = probes.weights[rate][column].detach().numpy()
            expected = []
            for number, window in enumerate(windows):
                features = array[first[number] : first[number] + window["length"]]
                features = (features - mean) / std if normalize else features
                expected.append(naive_loss(features, window, start, end, weights[:, number].tolist()))
            assert losses[rate, column].item() == pytest.approx(np.mean(expected), rel=1e-10)
    # One window at a time there is no padding.
    alone = [span_losses(probes(b), b).detach() for b in rows.batches(1)]
    torch.testing.assert_close(torch.stack(alone).mean(dim=0), losses.detach(), rtol=1e-12, atol=0)


def test_positions_without_an_answer_in_training_weigh_nothing():
    weights = position_weights(torch.tensor([0, 0, 0, 5]), torch.tensor([0, 5, 3, 9]))
    assert weights.tolist() == pytest.approx([4 / 3 / 2, 4 / 2, 0, 0])


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"weigh_positions": True}])
def test_probes_fitted_together_are_those_fitted_alone(prepared, options):
    together = fit(prepared, **options)
    assert together.layers == [0, 2]
    record = together.record.set_index(["layer", "learning_rate"])
    assert len(record) == 2 * 2 * 4
    for column, layer in enumerate((0, 2)):
        alone = [fit(prepared, (rate,), [layer], **options) for rate in (0.01, 0.1)]
        for rate, one in zip((0.01, 0.1), alone, strict=True):
            for name in ("epoch", "train_loss", "validation_loss"):
                np.testing.assert_allclose(one.record[name], record.loc[(layer, rate), name], rtol=1e-9)
        best = min(alone, key=lambda one: one.validation_losses[0])
        assert together.learning_rates[column] == best.learning_rates[0]
        torch.testing.assert_close(together.directions[column], best.directions[0], rtol=1e-8, atol=1e-10)


def test_the_record_starts_at_zero_and_names_the_best_on_validation(prepared):
    fitted = fit(prepared, epochs=4)
    record = fitted.record
    start = record[record["epoch"] == 0]
    assert start["train_loss"].isna().all()
    candidates = [w["context_end"] - w["context_start"] + 1 for w in prepared.windows["validation"]]
    np.testing.assert_allclose(start["validation_loss"], np.log(candidates).mean(), rtol=1e-12)
    for column, layer in enumerate(fitted.layers):
        of_layer = record[record["layer"] == layer]
        [chosen] = of_layer[of_layer["chosen"]].to_dict("records")
        assert chosen["validation_loss"] == of_layer["validation_loss"].min() == fitted.validation_losses[column]
        assert chosen["learning_rate"] == fitted.learning_rates[column]
        # and the directions that are kept are those of that epoch
        rows = prepared.rows("validation", layers=[layer])
        [answers] = predict_spans(
            Accelerator(cpu=True), fitted.directions[[column]], rows, prepared.task(), "validation", batch_size=3
        )
        assert answers.loss == pytest.approx(chosen["validation_loss"], rel=1e-10)
    assert fitted.validation_losses[0] < start["validation_loss"].iloc[0], "something was learned"


def test_weights_of_training_count_on_validation(prepared):
    """Before training all candidates have one probability, and only the weights differ."""
    expected = []
    for window in prepared.windows["validation"]:
        weights = []
        for name in ("start_position", "end_position"):
            known = prepared.windows["train"][name][:]
            weights.append(len(known) / known.count(window[name]) / len(set(known)) if window[name] in known else 0)
        expected.append(np.mean(weights) * np.log(window["context_end"] - window["context_start"] + 1))
    record = fit(prepared, epochs=1, weigh_positions=True).record
    np.testing.assert_allclose(record.loc[record["epoch"] == 0, "validation_loss"], np.mean(expected), rtol=1e-12)


def test_what_only_gets_worse_on_validation_stays_at_zero(tmp_path, tokenizer):
    """Training tokens say where the answer is, those of validation where it is not."""
    calls = iter([0, 1, -1])  # probe, train, validation
    prepared = prepare(tmp_path / "store", tokenizer, lambda windows, layer: one_hot(windows) * next(calls), layers=[0])
    fitted = fit(prepared, layers=[0])
    assert fitted.directions.abs().max() == 0
    record = fitted.record
    assert record.loc[record["chosen"], ["learning_rate", "epoch"]].values.tolist() == [[0.01, 0]]
    assert (record.loc[record["epoch"] > 0, "validation_loss"] > fitted.validation_losses[0]).all()


def test_normalised_probes_do_not_depend_on_means_and_units(tmp_path, tokenizer):
    """Means never matter; units do where features are not normalised."""
    draw = np.random.default_rng(5)
    mean, unit = draw.normal(size=4) * 10, 10.0 ** draw.integers(-2, 3, 4)
    stores = [
        prepare(tmp_path / "a", tokenizer, lambda windows, _: random_rows(windows)),
        prepare(tmp_path / "b", tokenizer, lambda windows, _: random_rows(windows) * unit),
        prepare(tmp_path / "c", tokenizer, lambda windows, _: random_rows(windows) + mean),
    ]
    losses = {n: [fit(store, normalize=n).record["validation_loss"] for store in stores] for n in (True, False)}
    np.testing.assert_allclose(losses[True][1], losses[True][0], rtol=1e-9)
    for normalize in (True, False):
        np.testing.assert_allclose(losses[normalize][2], losses[normalize][0], rtol=1e-9)
    assert not np.allclose(losses[False][1], losses[False][0], rtol=1e-2)


def test_batch_size_and_a_limit_change_no_answer(prepared):
    fitted, task = fit(prepared), prepared.task()
    whole, small = (
        predict_spans(Accelerator(cpu=True), fitted.directions, prepared.rows("probe"), task, "probe", batch_size=size)
        for size in (32, 1)
    )
    few = prepared.rows("probe", max_examples=4)
    limited = QuestionAnswering({"probe": few.windows.frame}, {"probe": few.windows.windows})
    first = predict_spans(Accelerator(cpu=True), fitted.directions, few, limited, "probe")
    for a, b, c in zip(whole, small, first, strict=True):
        pd.testing.assert_frame_equal(a.table, b.table, rtol=1e-12)
        pd.testing.assert_frame_equal(a.table[:4], c.table, rtol=1e-12)


def test_directions_come_back_from_their_file(prepared, tmp_path):
    fitted = fit(prepared, epochs=1)
    save_directions(tmp_path / "best.safetensors", fitted.layers, fitted.directions)
    layers, directions = load_directions(tmp_path / "best.safetensors")
    assert layers == [0, 2]
    assert torch.equal(directions, fitted.directions)


def test_windows_of_other_questions_or_tokens_are_refused(prepared):
    frame, windows = prepared.frames["train"], prepared.windows["train"]
    of_other = {
        "another order": (frame[::-1], windows),
        "another part": (prepared.frames["validation"], prepared.windows["validation"]),
        "fewer questions": (frame[:-1], windows),
        "another cut": (frame, make_windows(frame, prepared.tokenizer, MAX_LENGTH + 1, STRIDE)),
        "other words": (frame, make_windows(frame.assign(text="Who?"), prepared.tokenizer, MAX_LENGTH, STRIDE)),
    }
    for name, (questions_, windows_) in of_other.items():
        with pytest.raises(InputError, match="other questions or tokens"):
            raise AssertionError(name, stored_windows(prepared.store, "train", questions_, windows_))
    with pytest.raises(InputError, match="nothing of the part 'test': extract with --parts train,validation,test"):
        stored_windows(prepared.store, "test", frame, windows)
    prepared.store.manifest.arrays["first"] = prepared.store.manifest.arrays.pop("tokens")
    with pytest.raises(InputError, match="--rows tokens"):
        stored_windows(prepared.store, "train", frame, windows)


@pytest.mark.parametrize(("part", "value"), [("train", np.nan), ("validation", np.inf), ("probe", -np.inf)])
def test_a_feature_that_is_no_number_is_named(tmp_path, tokenizer, part, value):
    sizes = {"probe": 9, "train": 24, "validation": 12}
    order = iter(part_ for _ in (0, 1) for part_ in sizes)

    def features(windows, layer):
        rows = random_rows(windows, layer)
        rows[11, 3] = value if next(order) == part and layer == 1 else rows[11, 3]
        return rows

    prepared = prepare(tmp_path / "store", tokenizer, features, sizes, layers=(0, 1))
    row = 11 + prepared.rows(part, layers=[0]).windows.first_rows[0]
    with pytest.raises(InputError, match=f"state 'best', layer 1: row {row} "):
        fit(prepared, layers=(0, 1))
        rows = prepared.rows("probe", layers=(0, 1))
        predict_spans(Accelerator(cpu=True), torch.zeros(2, 2, 4), rows, prepared.task(), "probe")
