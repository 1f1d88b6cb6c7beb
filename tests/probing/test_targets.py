import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.probing import targets
from bertdyn.probing.targets import control_labels, make_targets

TEXTS = ["The cat sat on the mat.", "Don't do it!", "...", "An incomprehensible, well-known argumentation: long."]


def _examples(texts=TEXTS, repeats=3):
    texts = list(texts) * repeats
    return pd.DataFrame(
        {"example_id": [f"e{i}" for i in range(len(texts))], "text": texts, "label": [i % 2 for i in range(len(texts))]}
    )


def _nothing(name):
    raise InputError(f"--targets {name!r}: no such column in rows.csv; accepted: one of text, label")


def _make(wanted, examples=None, column=None, num_folds=2):
    examples = _examples() if examples is None else examples
    read = _nothing if column is None else lambda name: pd.Series(column, index=examples["example_id"])
    return make_targets(wanted, examples, ["no", "yes"], read, num_folds=num_folds)


def test_properties_by_hand():
    found = {target.name: target for target in _make([*targets.PROPERTIES, "label"])}
    assert found["num_words"].values[:4].tolist() == [6, 3, 0, 5]
    assert found["num_characters"].values[:4].tolist() == [23, 12, 3, 52]
    np.testing.assert_allclose(found["word_length"].values[:4], [17 / 6, 3, 0, (2 + 16 + 10 + 13 + 4) / 5])
    np.testing.assert_allclose(found["type_token_ratio"].values[:4], [5 / 6, 1, 0, 1])
    # 0.39 words/sentences + 11.8 syllables/words - 15.59, Kincaid's formula: six words of one syllable
    assert found["flesch_kincaid"].values[0] == pytest.approx(0.39 * 6 + 11.8 - 15.59, abs=0.01)
    assert all(target.class_names is None and target.values.dtype == np.float64 for target in _make(["num_words"]))
    assert found["label"].values.tolist() == [0, 1] * 6
    assert found["label"].class_names == ["no", "yes"]


def test_a_property_is_computed_once_a_text(monkeypatch):
    seen = []
    monkeypatch.setitem(targets.PROPERTIES, "num_words", lambda text: seen.append(text) or len(text))
    _make(["num_words", "num_words:2"])
    assert sorted(seen) == sorted(TEXTS)


def test_bins_of_equal_size():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=99)
    (target,) = _make(["score:3"], _examples("a", 99), [str(number) for number in numbers])
    assert np.bincount(target.values).tolist() == [33, 33, 33]
    edges = [numbers[target.values == k].max() for k in (0, 1)]
    low, high = (np.format_float_positional(edge, 2, trim="-") for edge in edges)
    assert target.class_names == [f"≤ {low}", f"{low} – {high}", f"> {high}"]
    assert numbers[target.values == 1].min() > edges[0]
    assert numbers[target.values == 2].min() > edges[1]


def test_bins_keep_ties_together_and_lose_no_class():
    # four fifths of the texts have the lowest value: quantiles alone would leave two classes empty
    (target,) = _make(["score:3"], _examples("a", 20), ["1"] * 16 + ["2.004", "2.001", "7", "9"])
    assert target.values.tolist() == [0] * 16 + [1, 1, 2, 2]
    assert target.class_names == ["≤ 1", "1 – 2", "> 2"]
    (target,) = _make(["score:3"], _examples("a", 20), [*"12345678", *["9"] * 12])  # and from the other end
    assert np.bincount(target.values).tolist() == [4, 4, 12]
    assert target.class_names == ["≤ 4", "4 – 8", "> 8"]
    (target,) = _make(["score:3"], _examples("a", 9), ["2.001", "2.002", "9"] * 3)
    assert target.class_names == ["≤ 2.001", "2.001 – 2.002", "> 2.002"]
    (target,) = _make(["score:3"], _examples("a", 12), ["2.001"] * 4 + ["2.002", "2.003"] * 2 + ["1000000.25"] * 4)
    assert target.class_names == ["≤ 2.001", "2.001 – 2.003", "> 2.003"]


def test_a_column_is_numbers_or_classes():
    many, few = [str(i / 4) for i in range(21)], [str(i % 20) for i in range(40)]
    (target,) = _make(["year"], _examples("a", 21), many)
    assert target.values.tolist() == [i / 4 for i in range(21)]
    assert target.class_names is None
    (target,) = _make(["year"], _examples("a", 40), few)
    assert target.class_names == [str(i) for i in range(20)]  # 9 before 10
    assert target.values.tolist() == [i % 20 for i in range(40)]
    (target,) = _make(["year:2"], _examples("a", 40), few)
    assert np.bincount(target.values).tolist() == [20, 20]
    (target,) = _make(["year"], _examples("a", 44), [*many, "?"] * 2)
    assert len(target.class_names) == 22  # one that is no number makes classes of all
    (target,) = _make(["a:b"], _examples("a", 4), ["x", "y"] * 2)
    assert (target.name, target.class_names) == ("a:b", ["x", "y"])


@pytest.mark.parametrize(
    ("wanted", "column", "match"),
    [
        (["word"], None, "'word': no such column .*text, label; or, .*label, flesch_kincaid, .*type_token_ratio$"),
        (["label", "label"], None, "'label': given twice"),
        (["label:2"], None, "'label:2': classes cannot be binned; accepted: .* without ':2'"),
        (["num_words:5"], None, "'num_words:5': 5 bins for 4 different values; accepted: 2 to 4 bins"),
        (["num_words:1"], None, "'num_words:1': 1 bins"),
        (["place"], ["x"] * 12, "'place': it is 'x' for every text; .* varies"),
        (["size:2"], ["1.50"] * 12, "'size:2': it is 1.5 for every text"),
        (["place:3"], ["x", "y"] * 6, "'place:3': classes cannot be binned"),
        (["place"], [*"xy" * 5, "x", None], "'place': no value for example 'e11'"),
        (["place"], [*"xy" * 5, "z", "x"], "'place': class 'z' has 1 row.*each of 2 folds, so fewer folds"),
    ],
)
def test_refused(wanted, column, match):
    with pytest.raises(InputError, match=f"^--targets {match}") as caught:
        _make(wanted, column=column)
    assert "\n" not in str(caught.value)


def test_a_label_that_no_text_has():
    with pytest.raises(InputError, match="class 'never' has 0 row"):
        make_targets(["label"], _examples(), ["no", "yes", "never"], _nothing, num_folds=2)


def test_rows_that_the_column_lacks_or_has_beside():
    values = pd.Series(["a", "b", "a", "b", "c"], index=["e3", "e2", "e1", "e0", "other"])
    (target,) = make_targets(["x"], _examples("t", 4), [], lambda name: values, num_folds=2)
    assert target.values.tolist() == [1, 0, 1, 0]
    assert target.class_names == ["a", "b"]
    with pytest.raises(InputError, match="no value for example 'e3'"):
        make_targets(["x"], _examples("t", 4), [], lambda name: values.drop("e3"), num_folds=2)


def test_control_labels_depend_on_seed_and_key_only():
    keys = [f"word{i}" for i in range(20_000)]
    labels = control_labels(keys, np.array([0.2, 0.0, 0.5, 0.3]), seed=3)
    np.testing.assert_allclose(np.bincount(labels, minlength=4) / 20_000, [0.2, 0, 0.5, 0.3], atol=0.015)
    some = np.random.default_rng(0).integers(20_000, size=500)
    again = control_labels([keys[i] for i in some], np.array([2, 0, 5, 3]), seed=3)
    assert again.tolist() == labels[some].tolist()
    other = control_labels(keys, np.array([0.2, 0.0, 0.5, 0.3]), seed=4)
    assert np.mean(other == labels) == pytest.approx(0.2**2 + 0.5**2 + 0.3**2, abs=0.02)
