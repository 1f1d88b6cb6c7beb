"""Every wrong input is one line that names the option or file, the value, and what is accepted."""

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
        ({"max_train_samples": 0}, "^--max_train_samples 0: .* 1 or more"),
        ({"max_probe_samples": -5}, "^--max_probe_samples -5: "),
        ({"max_length": 2}, "^--max_length 2: .* 3 or more"),
        ({"data_seed": -1}, "^--data_seed -1: "),
        ({"dataset": ""}, "^--dataset '': empty"),
        ({"dataset": "synthetic", "text_column": "review"}, "^--text_column 'review': .*--dataset 'synthetic'"),
        ({"doc_stride": -1}, "^--doc_stride -1: negative; accepted: 0 or more"),
        ({"doc_stride": 16}, "^--doc_stride 16: 'synthetic' has no windows; accepted with squad_v2"),
        (
            {"dataset": "squad_v2", "max_length": 132},
            "^--doc_stride 128: leaves no room .*--max_length 132 tokens; accepted: .*larger --max_length",
        ),
        ({"dataset": "squad_v2", "clean_text": True}, "^--clean_text True: .*squad_v2.*positions"),
        ({"dataset": "squad_v2", "label_column": "x"}, "^--label_column 'x': .*--dataset 'squad_v2'"),
        ({"dataset": "squad_v2", "test_file": "x"}, "^--test_file 'x': .*--dataset 'squad_v2'"),
        ({"dataset": "squad_v2", "data_dir": "/nowhere"}, "^--data_dir '/nowhere': no folder /nowhere;"),
        ({"dataset": "nowhere/reviews.csv"}, "nowhere/reviews.csv: no such file"),
        ({"dataset": "imdb", "data_dir": "/nowhere"}, "^--data_dir '/nowhere': no folder /nowhere;"),
    ],
)
def test_flags(flags, match):
    refused(match, **flags)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"rows\.csv: empty"),
        (b"text,label\n", r"rows\.csv: empty"),
        (
            b"review,label\na,1\n",
            "^--text_column is not given, .*no column 'text' or 'sentence'; .*one of review, label",
        ),
        (b"text,rating\na,1\n", "^--label_column is not given, .*no column 'label'; .*one of text, rating"),
        (b"text,label\na,1\nb,\n", "column 'label' is empty in data row 2"),
        (b"text,label\na,1\nb\n", "column 'label' is empty in data row 2"),
        (b"text,label\ncaf\xe9,1\n", r"rows\.csv: byte 0xe9 at offset 14 is not UTF-8"),
        (re.sub(r",\d", ",1", GOOD).encode(), "every training row has the label '1'; accepted: two classes"),
        (b"text,label\na,1\nb,0\nc,1\n", r"rows\.csv: no row is left for the train part .3 different"),
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


def test_column_that_is_not_there(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(GOOD)
    refused(
        r"^--text_column 'review': no such column in .*rows\.csv; accepted: one of text, label$",
        dataset=str(path),
        text_column="review",
    )
    (tmp_path / "ratings_1_5.csv").write_text("text,stars\na,1\n")
    # No option to correct here: --label_column does not go with a named dataset.
    refused(r"ratings_1_5\.csv: no column 'rating', found: text, stars", dataset="spotify", data_dir=str(tmp_path))


def test_subset_of_train_with_one_class():
    refused(
        "^--max_train_samples 1: every training row left has the label '(neg|pos)ative'; accepted: [0-9]+ or more$",
        max_train_samples=1,
    )


def test_subset_of_train_without_a_class_that_is_scored(tmp_path):
    path = tmp_path / "rows.csv"
    rare = "".join(f"rare {i},7\n" for i in range(6))
    path.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(200)) + rare)
    (tmp_path / "test.csv").write_text("text,label\nnew,0\nother,1\nodd,7\n")
    flags = {"dataset": str(path), "test_file": str(tmp_path / "test.csv"), "data_seed": 1}
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(max_train_samples=5, **flags))
    found = re.fullmatch(
        "--max_train_samples 5: the label '7' occurs in (?:validation|probe|test) but in none of the training rows "
        "left, and a class that is never trained cannot be scored; accepted: ([0-9]+) or more",
        str(caught.value),
    )
    assert found
    least = int(found[1])
    refused(f"^--max_train_samples {least - 1}: .*accepted: {least} or more", max_train_samples=least - 1, **flags)
    train = load_data(DataConfig(max_train_samples=least, **flags)).parts["train"]
    assert train["label"].iloc[-1] == 2, "the smallest size that is accepted ends with the missing class"


def test_rating_out_of_range_and_missing_folder_variable(tmp_path, monkeypatch):
    (tmp_path / "ratings_1_5.csv").write_text("text,rating\ngood,5\nbetter,7\n")
    refused("column 'rating' holds '7' in data row 2; .*1, 2, 3, 4, 5", dataset="spotify", data_dir=str(tmp_path))
    monkeypatch.delenv("BERTDYN_DATA", raising=False)
    refused("^--dataset 'sst2': nothing says where .*--data_dir .*BERTDYN_DATA", dataset="sst2")
    monkeypatch.setenv("BERTDYN_DATA", "/nowhere")
    refused("^BERTDYN_DATA '/nowhere': no folder /nowhere/sst2_sentences;", dataset="sst2")


def test_unknown_dataset_lists_the_known_ones(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refused("^--data_dir '/tmp': it does not go with --dataset 'imbd'", dataset="imbd", data_dir="/tmp")
    refused("^--dataset 'imbd': none of synthetic, sst2, .*load_dataset said", dataset="imbd")
