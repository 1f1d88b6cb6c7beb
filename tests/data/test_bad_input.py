"""Every wrong input is one line that names the field or file, the value, and what is accepted."""

import re

import datasets
import pytest

from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.errors import InputError

GOOD = "text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(40))


def refused(match, **flags):
    with pytest.raises(InputError, match=match) as caught:
        load_data(DataConfig(**flags))
    message = str(caught.value)
    assert "\n" not in message
    assert "accepted" in message or "none of" in message


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"max_train_samples": 0}, "max_train_samples: 0; .* 1 or more"),
        ({"max_probe_samples": -5}, "max_probe_samples: -5"),
        ({"max_length": 2}, "max_length: 2; .* 3 or more"),
        ({"data_seed": -1}, "data_seed: -1"),
        ({"dataset": ""}, "dataset: empty"),
        ({"dataset": "synthetic", "text_column": "review"}, "text_column: 'review' .*'synthetic'"),
        ({"dataset": "squad_v2"}, "'squad_v2' is for question answering"),
        ({"dataset": "nowhere/reviews.csv"}, "nowhere/reviews.csv: no such file"),
        ({"dataset": "imdb", "data_dir": "/nowhere"}, "data_dir: no folder /nowhere"),
    ],
)
def test_flags(flags, match):
    refused(match, **flags)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"rows\.csv: empty"),
        (b"text,label\n", r"rows\.csv: empty"),
        (b"review,label\na,1\n", "text_column: no column 'text or sentence' .*found: review, label"),
        (b"text,rating\na,1\n", "label_column: no column 'label' .*found: text, rating"),
        (b"text,label\na,1\nb,\n", "column 'label' is empty in data row 2"),
        (b"text,label\na,1\nb\n", "column 'label' is empty in data row 2"),
        (b"text,label\ncaf\xe9,1\n", r"rows\.csv: byte 0xe9 at offset 14 is not UTF-8"),
        (re.sub(r",\d", ",1", GOOD).encode(), "every training row has the label '1'; accepted: two classes"),
        (b"text,label\na,1\nb,0\nc,1\n", "no row is left for the train part .3 different"),
        (b"text,label\n,1\n ,0\n", "no row has a text"),
        (b"text,label\none, two,1\nb,0\n", r"rows\.csv: cannot be read as csv"),
        (b"text,label\na,1\nb,0,1,2\n", r"rows\.csv: cannot be read as csv"),
    ],
)
def test_files(tmp_path, content, match):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    refused(match, dataset=str(path))


def test_json_lines_and_suffix(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 1}\n["b", 0]\n')
    refused(r"rows\.jsonl: line 2 .*one JSON object a line", dataset=str(tmp_path / "rows.jsonl"))
    (tmp_path / "rows.xlsx").write_text("x")
    refused(r"suffix '\.xlsx'; accepted: \.csv", dataset=str(tmp_path / "rows.xlsx"))


def test_label_in_test_that_train_never_shows(tmp_path):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.csv").write_text("text,label\nnew,0\nother,2\n")
    refused(
        r"test\.csv: column 'label' holds '2' in data row 2; accepted: 0, 1",
        dataset=str(tmp_path / "train.csv"),
        test_file=str(tmp_path / "test.csv"),
    )


def test_class_that_falls_into_held_out_parts_only(tmp_path):
    (tmp_path / "rows.csv").write_text(GOOD + "rare,7\n")
    messages = []
    for data_seed in range(30):
        try:
            load_data(DataConfig(dataset=str(tmp_path / "rows.csv"), data_seed=data_seed))
        except InputError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 30
    assert all(re.search("'7' occurs in (test|probe|validation) but in no row of train", m) for m in messages)


def test_rating_out_of_range_and_missing_folder_variable(tmp_path, monkeypatch):
    (tmp_path / "ratings_1_5.csv").write_text("text,rating\ngood,5\nbetter,7\n")
    refused("column 'rating' holds '7' in data row 2; .*1, 2, 3, 4, 5", dataset="spotify", data_dir=str(tmp_path))
    monkeypatch.delenv("BERTDYN_DATA", raising=False)
    refused("data_dir: not given for dataset 'sst2'; .*--data_dir .*BERTDYN_DATA", dataset="sst2")


def test_unknown_dataset_lists_the_known_ones(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refused("data_dir: '/tmp' does not go with dataset 'imbd'", dataset="imbd", data_dir="/tmp")
    refused("'imbd' is none of synthetic, sst2, .*load_dataset said", dataset="imbd")
