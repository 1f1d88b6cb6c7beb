"""A column of the source beside text and label, by example id."""

import datasets
import pandas as pd
import pytest

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.reading import read_column
from bertdyn.errors import InputError
from tests.squad_files import write_squad


def _all_rows(config):
    return pd.concat(load_data(config).parts.values()).set_index("example_id")


def _write(path, split, size=40):
    rows = [f"{split} {i},{i % 2},{i / 2},{'' if i == 3 else f' {split}{i} '}\n" for i in range(size)]
    path.write_text("review,label,stars,author\n" + "".join(rows))
    return str(path)


def test_every_row_of_the_users_files_keeps_its_own_value(tmp_path):
    train, test = _write(tmp_path / "train.csv", "train"), _write(tmp_path / "test.csv", "test")
    config = DataConfig(dataset=train, test_file=test, text_column="review")
    authors, rows = read_column(config, "author"), _all_rows(config)
    assert sorted(authors.index) == sorted(rows.index)
    assert authors.name == "author"
    expected = [None if text.endswith(" 3") else text.replace(" ", "") for text in rows["text"]]
    assert authors[rows.index].tolist() == expected
    stars = read_column(config, "stars")
    assert [stars["train-000002"], stars["train-000003"], stars["test-000039"]] == ["1.0", "1.5", "19.5"]
    assert read_column(config, "review")[rows.index].tolist() == rows["text"].tolist()
    assert set(rows.columns) == {"text", "label"}  # nothing new where no column was asked for


def test_a_column_of_squad_and_of_a_hub_dataset(tmp_path, monkeypatch):
    config = DataConfig(dataset="squad_v2", data_dir=str(write_squad(tmp_path / "squad")))
    titles, rows = read_column(config, "title"), _all_rows(config)
    assert titles[rows.index].tolist() == rows["title"].tolist()
    assert set(titles) == {f"Film_{i}" for i in range(6)}

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        columns = {"text": [f"{split} {i}" for i in range(40)], "label": [0, 1] * 20, "page": list(range(40))}
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "hub" / f"{split}-0.parquet")
    config = DataConfig(dataset=str(tmp_path / "hub"))
    pages, rows = read_column(config, "page"), _all_rows(config)
    assert pages[rows.index].tolist() == rows["text"].str.split().str[1].tolist()


def test_a_column_that_is_not_there(tmp_path):
    path = _write(tmp_path / "rows.csv", "train")
    found = "accepted: one of review, label, stars, author$"
    with pytest.raises(InputError, match=rf"^--targets 'date': no such column in .*rows\.csv; {found}"):
        read_column(DataConfig(dataset=path, text_column="review"), "date")
    with pytest.raises(InputError, match=r"^--targets 'date': no such column in 'synthetic'; accepted: label$"):
        read_column(DataConfig(), "date")
    config = DataConfig(dataset="squad_v2", data_dir=str(write_squad(tmp_path / "squad")))
    found = "accepted: one of text, text_pair, label, title$"
    with pytest.raises(InputError, match=rf"^--targets 'date': no such column in squad_v2; {found}"):
        read_column(config, "date")


def test_columns_of_a_named_source(real_data):
    config = DataConfig(dataset="spotify", data_dir=str(real_data / "spotify_reviews"))
    raw = pd.read_csv(real_data / "spotify_reviews" / "ratings_1_5.csv", dtype=str)
    rows = _all_rows(config)
    number = rows.index.str.removeprefix("train-").astype(int)
    for column in ("source", "date"):
        values = read_column(config, column)
        assert len(values) == len(raw)
        expected = raw[column].iloc[number].str.strip()
        assert values[rows.index].fillna("?").tolist() == expected.fillna("?").tolist()
    imdb = read_column(DataConfig(dataset="imdb", data_dir=str(real_data / "imdb")), "id")
    assert {index.split("/", 1)[1] for index in imdb.index} == set(imdb)
    assert {index.split("/", 1)[0] for index in imdb.index} == {"train", "test"} <= set(PARTS)
