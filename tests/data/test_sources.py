"""Named sources on the real files, and hub datasets in a local folder."""

import json

import datasets
import pandas as pd
import pytest

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data

EXPECTED = {
    # dataset, folder: label names, rows of train / validation / probe / test, repeats dropped
    ("sst2", "sst2_sentences"): (["negative", "positive"], (6218, 691, 872, 1821), 11),
    ("sst2", "sst2_glue"): (["negative", "positive"], (58280, 6698, 2000, 872), 371),
    ("imdb", "imdb"): (["negative", "positive"], (1999, 250, 250, 2500), 1),
    ("news", "news5"): (
        ["wellness", "sports", "entertainment", "politics", "food"],
        (16101, 2263, 2000, 2263),
        2373,
    ),
    ("spotify", "spotify_reviews"): (["1", "2", "3", "4", "5"], (2249, 321, 321, 321), 18),
    ("flue_cls", "allocine_fr"): (["negative", "positive"], (1598, 200, 200, 997), 0),
}


@pytest.mark.parametrize(("name", "folder"), EXPECTED)
def test_real_sources(real_data, name, folder):
    label_names, sizes, repeats = EXPECTED[name, folder]
    data = load_data(DataConfig(dataset=name, data_dir=str(real_data / folder)))
    assert data.label_names == label_names
    assert tuple(len(data.parts[part]) for part in PARTS) == sizes
    assert data.report["repeats_dropped"] == repeats
    texts = pd.concat(data.parts.values())["text"]
    assert texts.is_unique
    assert (texts != "").all()
    assert pd.concat(data.parts.values())["example_id"].is_unique
    for part in PARTS:
        assert set(data.parts[part]["label"]) == set(range(len(label_names)))
    json.dumps(data.report)


def test_labels_and_ids_are_those_of_the_files(real_data, monkeypatch):
    monkeypatch.setenv("BERTDYN_DATA", str(real_data))
    test = load_data(DataConfig(dataset="sst2")).parts["test"].set_index("example_id")
    lines = (real_data / "sst2_sentences" / "test.tsv").read_text(encoding="utf-8").split("\n")
    for row in (0, 777, 1820):
        label, text = lines[row].split("\t")
        assert tuple(test.loc[f"test-{row:06d}", ["text", "label"]]) == (text.strip(), int(label))
    imdb = load_data(DataConfig(dataset="imdb")).parts["test"].set_index("example_id")
    first = json.loads((real_data / "imdb" / "test_2500.jsonl").open(encoding="utf-8").readline())
    assert tuple(imdb.loc[f"test/{first['id']}", ["text", "label"]]) == (
        first["text"].strip(),
        first["label"],
    )
    spotify = load_data(DataConfig(dataset="spotify")).parts["train"].set_index("example_id")
    raw = pd.read_csv(real_data / "spotify_reviews" / "ratings_1_5.csv")
    ids = spotify.index.str.removeprefix("train-").astype(int)
    assert list(spotify["label"] + 1) == list(raw["rating"].iloc[ids])


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A dataset as on the hub: ClassLabel names in its card, GLUE's unlabelled test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "reviews"
    folder.mkdir()
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, rows in {"train": 60, "validation": 12, "test": 5}.items():
        labels = [-1] * rows if split == "test" else [i % 2 for i in range(rows)]
        columns = {"sentence": [f"{split} {i}" for i in range(rows)], "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-0.parquet")
    return folder


def test_hub_dataset_with_declared_names_and_unlabelled_test(hub_folder):
    data = load_data(DataConfig(dataset=str(hub_folder)))
    assert data.label_names == ["bad", "good"]
    assert [len(data.parts[part]) for part in PARTS] == [48, 6, 6, 12]
    assert data.parts["test"]["text"].str.startswith("validation").all()
    assert all(int(row.text.split()[1]) % 2 == row.label for row in data.parts["train"].itertuples())
