"""The synthetic grammar: nested and disjoint in any size, and more than words can tell."""

import re

import pandas as pd
import pytest

from bertdyn.data import synthetic
from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.synthetic import DEFAULT_SIZES, generate
from bertdyn.tasks.classification import baselines


def test_parts_are_nested_and_disjoint():
    parts = {part: generate(size, 0, part) for part, size in DEFAULT_SIZES.items()}
    larger = generate(2500, 0, "train")
    pd.testing.assert_frame_equal(larger.head(2000), parts["train"])
    assert pd.concat([larger, parts["validation"], parts["probe"], parts["test"]])["text"].is_unique
    assert not parts["train"]["text"].str.contains(r"\n|  ").any()
    assert 0.45 < parts["train"]["label"].mean() < 0.55
    assert generate(50, 1, "train")["text"].tolist() != generate(50, 0, "train")["text"].tolist()


def test_any_size():
    small = load_data(DataConfig(max_train_samples=300, max_test_samples=10)).parts
    large = load_data(DataConfig(max_train_samples=3000)).parts
    assert len(large["train"]) == 3000
    assert len(small["train"]) == 300
    assert len(small["test"]) == 10
    assert set(small["train"]["text"]) < set(large["train"]["text"])
    assert set(small["test"]["text"]) < set(large["test"]["text"])


@pytest.mark.parametrize(
    ("data_seed", "stated"),
    [(0, r"accuracy of (0\.\d+) with --data_seed 0"), (1, r"(0\.\d+) with 1"), (2, r"(0\.\d+) with 2")],
)
def test_word_counts_reach_what_the_docstring_says(data_seed, stated):
    """The baseline of every run's report, on the parts that a run would use."""
    parts = load_data(DataConfig(data_seed=data_seed)).parts
    accuracy = baselines(parts["train"], {"test": parts["test"]})["tfidf"]["test"]
    expected = float(re.search(stated, synthetic.__doc__)[1])
    assert accuracy == pytest.approx(expected, abs=0.01)
    assert accuracy < 0.7
