"""Rows of the same texts in several states, against the same rows picked one by one."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.features import aligned as module
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import ArrayInfo, FeatureStore, Manifest
from bertdyn.features.writing import StateWriter, begin_state, create_store, finish_state

# Part, and windows: a character is a token, brackets are special.
TEXTS = [
    ("train", ["[abcd]"]),
    ("train", ["[ab]", "[bc]"]),
    ("train", ["[]"]),
    ("probe", ["[abc]"]),
    ("probe", ["[]"]),
    ("probe", ["[abcdef]", "[efgh]", "[gh]"]),
    ("probe", ["ab]"]),  # as of a tokenizer without a first special token
    ("probe", ["[]", "[z]"]),  # its content is in the second window only
    ("probe", ["[a]"]),
    ("probe", ["[a[b]"]),  # a separator inside
    ("test", ["[ab]"]),
    ("test", ["[b]"]),
]
WIDTH = 5


def num_tokens(texts=TEXTS) -> int:
    return sum(len(window) for _, windows in texts for window in windows)


def random_states(names=("pretrained", "best"), layers=(0, 1, 2), width=WIDTH, texts=TEXTS, seed=0):
    """State → layer → [tokens, width]."""
    rng = np.random.default_rng(seed)
    shape = (num_tokens(texts), width)
    return {name: {layer: rng.normal(size=shape).astype(np.float32) for layer in layers} for name in names}


def rows_of(texts, tokens, kind, part="probe", special_too=False):
    """The rows [n, width] of each example of a part, picked by hand; of a stored mean, special ones too."""
    rows, start = [], 0
    for of, windows in texts:
        first = [start + i for i, token in enumerate(windows[0]) if special_too or token not in "[]"]
        values = np.asarray(tokens, dtype=np.float64)
        chosen = {
            "content": values[first],
            "first": values[[start]],
            "mean": values[first].mean(0, keepdims=True) if first else values[:0],
        }
        if of == part:
            rows.append(chosen[kind])
        start += sum(map(len, windows))
    return rows


def write_store(
    folder: Path, states, texts=TEXTS, kinds=("tokens",), labels=None, ids=None, pairs=None
) -> FeatureStore:
    """A store with these token rows, and the first and mean rows that extraction would derive from them."""
    tokens = [
        (row, number, window, position, token)
        for row, (number, window, position, token) in enumerate(
            (number, w, position, token)
            for number, (_, windows) in enumerate(texts)
            for w, window in enumerate(windows)
            for position, token in enumerate(window)
        )
    ]  # fmt: skip
    table = pd.DataFrame(tokens, columns=["row", "number", "window_id", "position", "token"])
    names = [f"id-{number:04d}" for number in range(len(texts))] if ids is None else ids
    counts = table["number"].value_counts().sort_index().to_numpy()
    examples = pd.DataFrame(
        {
            "example_id": names,
            "part": [part for part, _ in texts],
            "label": [number % 2 for number in range(len(texts))] if labels is None else labels,
            "text": ["|".join(windows) for _, windows in texts],
            "first_row": np.cumsum(counts) - counts,
            "n_rows": counts,
        }
    )
    if pairs is not None:
        examples["text_pair"] = pairs
    table["example_id"] = [names[number] for number in table.pop("number")]
    table["token_id"] = [ord(token) for token in table["token"]]
    table["is_special"] = table["token"].isin(["[", "]"])
    by_layer = next(iter(states.values()))
    widths = [rows.shape[1] for rows in by_layer.values()]
    arrays = {kind: ArrayInfo("hidden", kind, "float32", list(by_layer), widths) for kind in kinds}
    manifest = Manifest(arrays, max(by_layer), len(texts), len(table), 0, ["no", "yes"], {"data": "0" * 64})
    store = create_store(folder, manifest, examples, [table])
    for state, layers in states.items():
        begin_state(store, state, "weights", resume=False)
        writer = StateWriter(store, state)
        for layer, rows in layers.items():
            for kind in kinds:
                values = rows
                if kind != "tokens":
                    parts = dict.fromkeys(part for part, _ in texts)
                    of = [r for part in parts for r in rows_of(texts, rows, kind, part, special_too=True)]
                    values = np.concatenate(of)
                writer.write(kind, layer, 0, values)
        writer.sync()
        finish_state(store, state, state, model="weights")
    return FeatureStore.open(folder)


def joined(aligned, layer, **limits):
    """Kind → example → [states, rows, width] over all blocks, and the number of blocks."""
    found, blocks = {}, 0
    for block in aligned.blocks(layer, **limits):
        blocks += 1
        for kind, rows in block.items():
            assert all(state.dtype == np.float64 for state in rows.states)
            assert rows.offsets[0] == 0
            assert rows.offsets[-1] == len(rows.states[0])
            for text, start, end in zip(rows.examples, rows.offsets[:-1], rows.offsets[1:], strict=True):
                assert end > start
                assert text not in found.setdefault(kind, {}), "a text in two blocks"
                found[kind][text] = np.stack([state[start:end] for state in rows.states])
    return found, blocks


@pytest.mark.parametrize(("size", "blocks"), [(1, 7), (8 * 2 * WIDTH * 8, None), (10**9, 1)])
def test_blocks_of_any_size_give_the_rows_of_each_text(tmp_path, monkeypatch, size, blocks):
    monkeypatch.setattr(module, "BYTES_PER_BLOCK", size)
    states = random_states()
    store = write_store(tmp_path / "store", states)
    aligned = AlignedRows([(store, "best"), (store, "pretrained")], "probe")
    assert aligned.kinds == ("content", "first", "mean")
    assert aligned.num_states == 2
    assert aligned.layers == [0, 1, 2]
    assert aligned.examples["example_id"].tolist() == [f"id-{number:04d}" for number in range(3, 10)]
    assert aligned.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    for layer in aligned.layers:
        found, count = joined(aligned, layer)
        assert count == blocks if blocks else 1 < count < 7
        for kind in aligned.kinds:
            expected = [rows_of(TEXTS, states[state][layer], kind) for state in ("best", "pretrained")]
            assert sorted(found[kind]) == ([0, 1, 2, 3, 4, 5, 6] if kind == "first" else [0, 2, 3, 5, 6])
            for text, rows in found[kind].items():
                np.testing.assert_allclose(rows, [of[text] for of in expected], rtol=1e-14)
    # content is what the text contains: neither brackets, nor what a later window repeats
    assert [found["content"][text].shape[1] for text in (0, 2, 3, 5, 6)] == [3, 6, 2, 1, 2]
    whole, _ = joined(aligned, 1)
    part, _ = joined(aligned, 1, first=2, last=5)
    assert {kind: sorted(texts) for kind, texts in part.items()} == {
        "content": [2, 3],
        "first": [2, 3, 4],
        "mean": [2, 3],
    }
    for kind, texts in part.items():
        for text, rows in texts.items():
            np.testing.assert_array_equal(rows, whole[kind][text])


@pytest.mark.parametrize(
    ("part", "most", "numbers"), [("train", None, [0, 1, 2]), ("probe", 4, [3, 4, 5, 6]), ("test", 9, [10, 11])]
)
@pytest.mark.parametrize("kinds", [("tokens",), ("first", "mean")])
def test_a_part_and_its_first_examples(tmp_path, part, most, numbers, kinds):
    states = random_states()
    store = write_store(tmp_path / "store", states, kinds=kinds)
    aligned = AlignedRows([(store, "best")], part, max_examples=most)
    assert aligned.examples["example_id"].tolist() == [f"id-{number:04d}" for number in numbers]
    found, _ = joined(aligned, 2)
    expected = rows_of(TEXTS, states["best"][2], "first", part)
    assert sorted(found["first"]) == list(range(len(numbers)))
    for text, rows in found["first"].items():
        np.testing.assert_array_equal(rows[0], expected[text])


@pytest.mark.parametrize("size", [1, 10**9])
def test_stores_of_pooled_rows_give_them_as_they_are(tmp_path, monkeypatch, size):
    """Alone, and next to a store that has token rows too: that mean is over special tokens as well in both."""
    monkeypatch.setattr(module, "BYTES_PER_BLOCK", size)
    states = random_states()
    pooled = write_store(tmp_path / "pooled", states, kinds=("first", "mean"))
    both = write_store(tmp_path / "both", states, kinds=("first", "mean", "tokens"))
    for sources in ([(pooled, "pretrained"), (pooled, "best")], [(both, "pretrained"), (pooled, "best")]):
        aligned = AlignedRows(sources, "probe")
        assert aligned.kinds == ("first", "mean")
        found, blocks = joined(aligned, 1)
        assert blocks == (7 if size == 1 else 1)
        for kind in aligned.kinds:
            expected = [rows_of(TEXTS, states[state][1], kind, special_too=True) for _, state in sources]
            for text in range(7):
                np.testing.assert_allclose(found[kind][text], [of[text] for of in expected], rtol=1e-6)
    only_mean = write_store(tmp_path / "mean", states, kinds=("mean",))
    assert AlignedRows([(both, "best"), (only_mean, "best")], "probe").kinds == ("mean",)


def test_states_of_two_stores_side_by_side(tmp_path):
    """Of other widths and other layers, but the same rows."""
    one = random_states(("best",), (0, 1, 2, 3), width=4)
    other = random_states(("last",), (0, 2, 3), width=6, seed=1)
    stores = [write_store(tmp_path / name, states) for name, states in (("one", one), ("other", other))]
    aligned = AlignedRows([(stores[0], "best"), (stores[1], "last")], "probe")
    assert aligned.layers == [0, 2, 3]
    for block in aligned.blocks(2):
        np.testing.assert_array_equal(
            block["content"].states[0], np.concatenate(rows_of(TEXTS, one["best"][2], "content"))
        )
        np.testing.assert_array_equal(
            block["content"].states[1], np.concatenate(rows_of(TEXTS, other["last"][2], "content"))
        )


def swapped(number: int, text):
    return [*TEXTS[:number], text, *TEXTS[number + 1 :]]


NAMES = [f"id-{number:04d}" for number in range(len(TEXTS))]
OTHERS = {
    "another order": ({"ids": [*NAMES[:4], NAMES[5], NAMES[4], *NAMES[6:]]}, "another order"),
    "another example": ({"ids": [*NAMES[:-1], "id-9999"]}, "different examples"),
    "one example less": ({"texts": TEXTS[:-1]}, "different examples"),
    "another text": ({"texts": swapped(3, ("probe", ["[abd]"]))}, "other texts under the same example ids"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_stores_of_other_rows_are_not_compared(tmp_path, case):
    options, said = OTHERS[case]
    one = write_store(tmp_path / "one", random_states())
    texts = options.get("texts", TEXTS)
    other = write_store(tmp_path / "other", random_states(texts=texts), **options)
    with pytest.raises(InputError, match=said):
        AlignedRows([(one, "pretrained"), (one, "best"), (other, "best")], "probe")


def test_stores_of_other_tokens_are_not_compared(tmp_path):
    """The same texts, the same number of tokens."""
    one, other = (write_store(tmp_path / name, random_states()) for name in ("one", "other"))
    AlignedRows([(one, "best"), (other, "best")], "probe")
    tokens = other.tokens()
    tokens.loc[20, "token_id"] += 1
    tokens.to_parquet(other.folder / "tokens.parquet", index=False)
    with pytest.raises(InputError, match="tokenised differently"):
        AlignedRows([(one, "best"), (other, "best")], "probe")


def test_nothing_to_compare(tmp_path):
    states = random_states()
    store = write_store(tmp_path / "store", states)
    with pytest.raises(InputError, match=r"0 texts of the part 'validation'; its parts are train, probe, test"):
        AlignedRows([(store, "best")], "validation")
    pooled = write_store(tmp_path / "pooled", states, kinds=("first",))
    with pytest.raises(InputError, match="has no hidden states"):
        AlignedRows([(store, "best"), (pooled, "best")], "probe")
    with pytest.raises(InputError, match="no state 'last'"):
        list(AlignedRows([(store, "last")], "probe").blocks(1))


@pytest.mark.parametrize("part", ["train", "probe"])
def test_a_sample_of_content_rows_is_the_same_in_all_layers(tmp_path, part):
    """Every row is one of the text that it is said to be of."""
    states = random_states()
    store = write_store(tmp_path / "store", states)
    aligned = AlignedRows([(store, "pretrained"), (store, "best")], part)
    expected = {
        name: {layer: rows_of(TEXTS, rows, "content", part) for layer, rows in of.items()}
        for name, of in states.items()
    }
    total = sum(map(len, expected["best"][0]))
    assert total == {"train": 6, "probe": 14}[part]
    for size in (4, total, 100):
        numbers = []
        for layer in aligned.layers:
            (before, after), examples = aligned.content_sample(layer, size, seed=3)
            assert len(before) == len(after) == len(examples) == min(size, total)
            numbers.append([])
            for a, b, text in zip(before, after, examples, strict=True):
                [row] = np.flatnonzero((expected["pretrained"][layer][text] == a).all(axis=1))
                np.testing.assert_array_equal(expected["best"][layer][text][row], b)
                numbers[-1].append((int(text), int(row)))
        assert numbers[0] == numbers[1] == numbers[2] == sorted(set(numbers[0]))
    drawn = [tuple(aligned.content_sample(1, 4, seed)[0][0][:, 0]) for seed in (0, 0, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 2


@pytest.mark.parametrize("kinds", [("tokens",), ("first", "mean")])
@pytest.mark.parametrize("size", [1, 10**9])
def test_of_questions_about_one_context_the_first_takes_part(tmp_path, monkeypatch, kinds, size):
    """Within a part; the others' rows, which lie in between, are of no example."""
    monkeypatch.setattr(module, "BYTES_PER_BLOCK", size)
    contexts = ["one", "one", "two", *("two", "two", "one", "two", "six", "one", "ten"), "one", "two"]
    states = random_states()
    store = write_store(tmp_path / "store", states, kinds=kinds, pairs=contexts)
    for most, numbers in ((None, [0, 2, 4, 6]), (3, [0, 2, 4])):
        aligned = AlignedRows([(store, "pretrained"), (store, "best")], "probe", most)
        assert aligned.examples["example_id"].tolist() == [f"id-{3 + number:04d}" for number in numbers]
        assert aligned.labels.tolist() == [(3 + number) % 2 for number in numbers]
        found, blocks = joined(aligned, 1)
        assert blocks == (len(numbers) if size == 1 else 1)
        for kind, texts in found.items():
            for text, (before, after) in texts.items():
                for state, rows in (("pretrained", before), ("best", after)):
                    expected = rows_of(TEXTS, states[state][1], kind, special_too="tokens" not in kinds)
                    np.testing.assert_allclose(rows, expected[numbers[text]], rtol=1e-6)
        if "tokens" in kinds:
            assert sorted(found["first"]) == list(range(len(numbers)))
            (_, rows), examples = aligned.content_sample(1, 100, seed=0)
            for text, number in enumerate(numbers):
                expected = rows_of(TEXTS, states["best"][1], "content")[number]
                np.testing.assert_array_equal(rows[examples == text], expected)
