"""The invariants of splitting: disjoint parts, nested subsets, ids that stay, labels that stay with texts."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.parts import PRIORITY, carve, drop_repeats, subset


def frame(texts, part="train"):
    return pd.DataFrame(
        {
            "example_id": [f"{part}-{i:06d}" for i in range(len(texts))],
            "text": texts,
            "label": range(len(texts)),
        }
    )


@given(small=st.integers(1, 60), more=st.integers(0, 60), seed=st.integers(0, 5), order=st.randoms())
@settings(max_examples=50, deadline=None)
def test_subsets_are_nested_and_do_not_depend_on_the_order_of_the_file(small, more, seed, order):
    rows = frame([str(i) for i in range(80)])
    shuffled = rows.sample(frac=1, random_state=order.randrange(1000))
    smaller, larger = subset(rows, small, seed), subset(shuffled, small + more, seed)
    assert list(smaller["example_id"]) == list(larger["example_id"])[:small]
    assert len(larger) == min(80, small + more)


def test_another_seed_or_purpose_takes_other_rows():
    rows = frame([str(i) for i in range(500)])
    assert set(subset(rows, 50, 0)["text"]) != set(subset(rows, 50, 1)["text"])
    parts, _ = carve({"train": rows}, 0, "rows.csv")
    assert {part: len(parts[part]) for part in PARTS} == {
        "train": 350,
        "validation": 50,
        "probe": 50,
        "test": 50,
    }
    assert sorted(pd.concat(parts.values())["text"]) == sorted(rows["text"])


@given(st.fixed_dictionaries({part: st.lists(st.sampled_from("abcdefgh"), min_size=1) for part in PARTS}))
@settings(max_examples=50, deadline=None)
def test_a_repeat_stays_where_it_is_held_out_most_and_first(texts):
    rows = {part: frame(texts[part], part) for part in PARTS}
    kept, counts = drop_repeats(rows)
    seen: set[str] = set()
    for part in PRIORITY:
        expected = rows[part][~rows[part]["text"].isin(seen)].drop_duplicates("text")
        assert list(kept[part]["example_id"]) == list(expected["example_id"])
        seen |= set(texts[part])
    assert counts["repeats_dropped"] == sum(map(len, texts.values())) - len(seen)


def test_a_pair_is_a_repeat_only_if_both_texts_are_and_label_conflicts_are_counted():
    rows = frame(["a", "a", "a", "b"]).assign(text_pair=["x", "y", "x", "x"])
    kept, counts = drop_repeats({"train": rows})
    assert list(kept["train"]["example_id"]) == ["train-000000", "train-000001", "train-000003"]
    assert counts == {"repeats_dropped": 1, "label_conflicts": 1}


def write_csv(path, rows):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return str(path)


def test_ids_stay_and_labels_follow_their_text_through_dropping_and_subsetting(tmp_path):
    rows = [(f"text {i % 90} of class {i % 3}", "abc"[i % 3]) for i in range(120)]
    path = write_csv(tmp_path / "rows.csv", rows)
    whole = load_data(DataConfig(dataset=path))
    limited = load_data(DataConfig(dataset=path, max_train_samples=20))
    assert whole.report["repeats_dropped"] == 30
    for data in (whole, limited):
        for part in PARTS:
            for row in data.parts[part].itertuples():
                text, label = rows[int(row.example_id.removeprefix("train-"))]
                assert (row.text, data.label_names[row.label]) == (text, label)
    pd.testing.assert_frame_equal(limited.parts["train"], whole.parts["train"].head(20))
    pd.testing.assert_frame_equal(limited.parts["test"], whole.parts["test"])
    assert limited.fingerprint != whole.fingerprint
    assert load_data(DataConfig(dataset=path)).fingerprint == whole.fingerprint
    counts = whole.class_counts()
    assert counts["rows"].sum() == 90
    assert set(counts["label"]) == set("abc")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "json", "parquet"])
def test_every_file_format_gives_the_same_data(tmp_path, suffix):
    rows = pd.DataFrame(
        {
            "first": [f'None, "{i}" é' for i in range(40)],
            "second": "NA",
            "stars": [i % 2 + 9 for i in range(40)],
        }
    )
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        rows.to_csv(path, index=False)
    elif suffix == "tsv":
        path.write_text("\n".join(["\t".join(rows.columns), *("\t".join(map(str, r)) for r in rows.to_numpy())]))
    elif suffix == "parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, orient="records", lines=True)
    data = load_data(
        DataConfig(
            dataset=path.name,
            data_dir=str(tmp_path),
            text_column="first",
            text_pair_column="second",
            label_column="stars",
        )
    )
    assert data.label_names == ["9", "10"]
    everything = pd.concat(data.parts.values()).sort_values("example_id")
    assert list(everything["text"]) == list(rows["first"])
    assert set(everything["text_pair"]) == {"NA"}
    assert list(everything["label"]) == [i % 2 for i in range(40)]
    assert everything["label"].dtype == "int64"


def test_cleaning_holds_for_every_part_and_is_recorded(tmp_path):
    path = write_csv(tmp_path / "rows.csv", [(f"NOT a word{'x' * i}!<br />", i % 2) for i in range(30)])
    data = load_data(DataConfig(dataset=path, clean_text=True))
    assert data.report["clean_text"] is True
    assert all(text.startswith("not word") and "br" not in text for part in PARTS for text in data.parts[part]["text"])
