"""Tokenised once, never padded, and a cache that cannot lie."""

import logging
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts, tokenizer_fingerprint
from bertdyn.errors import InputError


@pytest.fixture(scope="module")
def data():
    limits = {f"max_{part}_samples": 30 for part in PARTS}
    return load_data(DataConfig(**limits))


class Deaf:
    """The same tokenizer to look at, but it fails when it is asked to tokenise."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **kwargs):
        raise AssertionError("tokenised a second time")


def test_ids_are_the_tokenizers_own_unpadded_and_cut_texts_are_counted(data, tokenizer, tmp_path):
    parts = tokenize_parts(data, tokenizer, 12, tmp_path)
    for part in PARTS:
        dataset, frame = parts[part], data.parts[part]
        assert set(dataset.column_names) == {"index", "input_ids", "token_type_ids", "label", "length"}
        assert dataset["index"][:] == list(range(len(frame)))
        assert dataset["label"][:] == frame["label"].tolist()
        whole = [tokenizer(text, padding=False)["input_ids"] for text in frame["text"]]
        for row, ids in zip(dataset, whole, strict=True):
            assert row["length"] == len(row["input_ids"]) == min(12, len(ids))
            assert tokenizer.pad_token_id not in row["input_ids"]
            assert row["input_ids"] == ids[: row["length"] - 1] + [tokenizer.sep_token_id]
        assert parts.truncated[part] == sum(len(ids) > 12 for ids in whole)
    assert 0 < sum(parts.truncated.values()) < 120
    assert parts["train"].cache_files, "not memory-mapped"


def test_second_call_does_not_tokenise_and_a_damaged_entry_is_rebuilt(data, tokenizer, tmp_path):
    first = tokenize_parts(data, tokenizer, 32, tmp_path)
    tokenizer("a call in between", truncation=True, max_length=5, padding="max_length")
    second = tokenize_parts(data, Deaf(tokenizer), 32, tmp_path)
    assert second["train"][:] == first["train"][:]
    assert second.truncated == first.truncated
    with pytest.raises(AssertionError, match="second time"):
        tokenize_parts(data, Deaf(tokenizer), 31, tmp_path)
    expected = first["train"][:]
    arrow = next((first.path / "train").glob("*.arrow"))
    damaged = bytearray(arrow.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    arrow.unlink()
    arrow.write_bytes(damaged)
    assert tokenize_parts(data, tokenizer, 32, tmp_path)["train"][:] == expected
    (first.path / "info.json").unlink()
    assert tokenize_parts(data, tokenizer, 32, tmp_path)["train"][:] == expected
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name], "scratch folders left behind"


def test_cut_texts_are_logged_on_a_hit_too(data, tokenizer, tmp_path, caplog):
    logged = []
    for now in (tokenizer, Deaf(tokenizer)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "bertdyn"):
            parts = tokenize_parts(data, now, 12, tmp_path)
        logged.append(caplog.messages)
    assert parts.truncated["train"] > 0
    assert logged[0] == [f"{part}: {n} of 30 texts cut to 12 tokens" for part, n in parts.truncated.items() if n]
    assert logged[1] == logged[0]


class Overtaken(Deaf):
    """A tokenizer during whose first call another process completes the same cache entry."""

    def __init__(self, tokenizer, meanwhile):
        super().__init__(tokenizer)
        self.meanwhile = meanwhile

    def __call__(self, *args, **kwargs):
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return self.tokenizer(*args, **kwargs)


@pytest.mark.parametrize("broken", [False, True])
def test_the_first_of_two_writers_wins(data, tokenizer, tmp_path, broken):
    if broken:
        (tokenize_parts(data, tokenizer, 32, tmp_path).path / "info.json").write_text("{")
    faster = []

    def meanwhile():
        path = tokenize_parts(data, tokenizer, 32, tmp_path).path
        faster.append((path, (path / "info.json").stat().st_ino))

    parts = tokenize_parts(data, Overtaken(tokenizer, meanwhile), 32, tmp_path)
    assert faster == [(parts.path, (parts.path / "info.json").stat().st_ino)]
    assert list(tmp_path.iterdir()) == [parts.path]


def test_fingerprint_is_the_same_in_another_process_and_differs_between_tokenizers(tokenizer, tokenizer_folder):
    program = (
        "import sys; from transformers import AutoTokenizer; "
        "from bertdyn.data.tokenization import tokenizer_fingerprint; "
        "print(tokenizer_fingerprint(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tokenizer_folder)]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == tokenizer_fingerprint(tokenizer)
    tokenizer.add_tokens(["nonword"])
    assert other != tokenizer_fingerprint(tokenizer)


def test_camembert_has_no_token_types(real_data, data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "camembert")
    parts = tokenize_parts(data, tokenizer, 64, tmp_path)
    assert "token_type_ids" not in parts["train"].column_names
    assert parts["test"][0]["input_ids"] == tokenizer(data.parts["test"]["text"][0])["input_ids"]


def test_pairs_have_two_segments(tokenizer, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("text,other,label\n" + "".join(f"a {i},b {i},{i % 2}\n" for i in range(40)))
    pairs = load_data(DataConfig(dataset=str(path), text_pair_column="other"))
    row = tokenize_parts(pairs, tokenizer, 32, tmp_path / "cache")["train"][0]
    expected = tokenizer(pairs.parts["train"]["text"][0], pairs.parts["train"]["text_pair"][0], padding=False)
    assert (row["input_ids"], row["token_type_ids"]) == (expected["input_ids"], expected["token_type_ids"])
    assert 1 in row["token_type_ids"]


def test_slow_tokenizer(data, tmp_path):
    """A tokenizer that is Python only, as FlauBERT's is."""
    import json

    from transformers import CTRLTokenizer

    words = sorted({word for part in PARTS for text in data.parts[part]["text"] for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<pad>", *"abc", *words])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    slow = CTRLTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt", pad_token="<pad>")
    assert not slow.is_fast
    parts = tokenize_parts(data, slow, 8, tmp_path / "cache")
    assert max(parts["train"]["length"]) == 8
    assert parts.truncated["train"] > 0
    assert tokenize_parts(data, Deaf(slow), 8, tmp_path / "cache")["train"][:] == parts["train"][:]


def test_longer_than_the_model_takes(data, tokenizer, tmp_path):
    with pytest.raises(InputError, match="^--max_length 513: more .*; accepted: at most 512"):
        tokenize_parts(data, tokenizer, 513, tmp_path)
