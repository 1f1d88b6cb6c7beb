"""Every token at its word and its characters, and what is special said by place, not by id."""

import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.synthetic import generate
from bertdyn.data.text_data import PARTS, TextData, fingerprint_parts
from bertdyn.data.token_table import token_table
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.data.windows import make_windows
from tests.data.test_windows import ANSWERS, CONTEXT, frame
from tests.families import FAMILIES

pytestmark = pytest.mark.slow  # many tokenizers; `make check` stays short

DTYPES = {
    "row": "int64",
    "example_id": "category",
    "window_id": "int32",
    "segment": "int8",
    "position": "int32",
    "token_id": "int32",
    "token": "category",
    "word_id": "int32",
    "char_start": "int32",
    "char_end": "int32",
    "is_special": "bool",
}
BY_WHITE_SPACE, BY_PUNCTUATION = r"\S+", r"\w+|[^\w\s]"
BYTE_LEVEL = r"'(?:s|t|re|ve|m|ll|d)|\w+|[^\w\s]+"


@pytest.fixture
def tokenised(tmp_path):
    """Texts, and the rows that `tokenize_parts` makes of them."""

    def tokenise(tokenizer, texts, pairs=None, max_length=100):
        rows = pd.DataFrame({"example_id": [f"x{i}" for i in range(len(texts))], "text": texts, "label": 0})
        if pairs is not None:
            rows["text_pair"] = pairs
        parts = {part: rows if part == "train" else rows.head(1) for part in PARTS}
        data = TextData(parts, ["a"], "name", "source", fingerprint_parts(parts, ["a"]), {})
        return rows, tokenize_parts(data, tokenizer, max_length, tmp_path)["train"]

    return tokenise


@pytest.fixture(params=FAMILIES)
def any_tokenizer(request, checkpoints):
    return AutoTokenizer.from_pretrained(checkpoints[request.param])


def words_of(tokenizer) -> str:
    """The pattern of a tokenizer's words (without the data folder CamemBERT's is byte-level)."""
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if not tokenizer.is_fast or any(name.startswith("▁") for name in names):
        return BY_WHITE_SPACE
    return BYTE_LEVEL if any(name.startswith("Ġ") for name in names) else BY_PUNCTUATION


def bare(token: str) -> str:
    return re.sub("^##|^[▁Ġ]|</w>$", "", token)


def texts_at(tokens: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The characters of each token; a special one has none."""
    of = {i: (row.text, getattr(row, "text_pair", None)) for i, row in rows.set_index("example_id").iterrows()}
    return [
        "" if token.segment < 0 else of[token.example_id][token.segment][token.char_start : token.char_end]
        for token in tokens.itertuples()
    ]


def flat(dataset, column="input_ids"):
    return [value for row in dataset[column] for value in row]


def test_tokens_are_the_characters_they_stand_for(any_tokenizer, tokenised):
    texts = generate(40, 1, "test")["text"].str.lower().tolist()
    rows, dataset = tokenised(any_tokenizer, texts)
    tokens = token_table(rows, dataset, any_tokenizer)
    assert tokens.dtypes.astype(str).to_dict() == DTYPES
    assert list(tokens.columns) == list(DTYPES)
    assert tokens["row"].tolist() == list(range(sum(dataset["length"])))
    assert tokens["token_id"].tolist() == flat(dataset)
    assert tokens["position"].tolist() == [position for n in dataset["length"] for position in range(n)]
    assert tokens["example_id"].tolist() == [f"x{i}" for i, n in enumerate(dataset["length"]) for _ in range(n)]
    assert tokens["token"].tolist() == any_tokenizer.convert_ids_to_tokens(flat(dataset))
    assert set(tokens["window_id"]) == {0}
    special = tokens["is_special"]
    assert special.sum() == 2 * len(rows)
    assert tokens[special]["token_id"].tolist() == any_tokenizer("")["input_ids"] * len(rows)
    assert (tokens.loc[special, ["segment", "word_id", "char_start", "char_end"]] == -1).all(axis=None)
    assert set(tokens[~special]["segment"]) == {0}

    tokens["chars"] = texts_at(tokens, rows)
    known = tokens[~special & (tokens["token_id"] != any_tokenizer.unk_token_id)]
    assert len(known) > 0.9 * (~special).sum()
    if any_tokenizer.is_fast:
        named = known[known["token"].map(bare) != ""]
        assert named["chars"].tolist() == [bare(token) for token in named["token"]]
    else:  # whole words
        spelled = known.groupby(["example_id", "char_start", "chars"], observed=True, sort=False)["token"]
        for (_, _, chars), pieces in spelled:
            assert "".join(map(bare, pieces)) == chars
    for example_id, text in rows.set_index("example_id")["text"].items():
        mine = tokens[(tokens["example_id"] == example_id) & ~special]
        ranges = dict.fromkeys(zip(mine["char_start"], mine["char_end"], strict=True))
        # SentencePiece counts a "▁" that stands alone to the character after it.
        ranges = [r for r in ranges if not any(r != o and o[0] <= r[0] and r[1] <= o[1] for o in ranges)]
        assert "".join(text[low:high] for low, high in ranges) == "".join(text.split())


def test_pieces_of_a_word_share_its_number(any_tokenizer, tokenised):
    texts = [*generate(30, 2, "test")["text"], "  the actors\u00a0were unbelievable ,\n and it wasn't\tbad. "]
    rows, dataset = tokenised(any_tokenizer, texts, pairs=texts[::-1], max_length=300)
    tokens = token_table(rows, dataset, any_tokenizer)
    tokens = tokens[~tokens["is_special"] & (tokens["char_start"] < tokens["char_end"])]
    assert tokens["word_id"].is_monotonic_increasing is False, "they begin anew in every text"
    most, pattern = 0, words_of(any_tokenizer)
    for i, both in enumerate(zip(texts, texts[::-1], strict=True)):
        for segment, text in enumerate(both):
            mine = tokens[(tokens["example_id"] == f"x{i}") & (tokens["segment"] == segment)]
            words = mine.groupby(mine["word_id"].rank(method="dense")).agg({"char_start": "min", "char_end": "max"})
            expected = [match.span() for match in re.finditer(pattern, text)]
            assert list(words.itertuples(index=False, name=None)) == expected, text
            if text in texts[:30]:
                assert mine["word_id"].drop_duplicates().tolist() == list(range(len(expected)))
            most = max(most, len(mine) - len(expected))
    assert most > 0, "some words must have several pieces for this to say anything"


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("paired", [False, True])
def test_what_is_cut_is_missing_and_the_rest_stays_in_place(any_tokenizer, tokenised, side, paired):
    any_tokenizer.truncation_side = side
    texts = ["good", *generate(12, 3, "test")["text"]]
    pairs = texts[::-1] if paired else None
    whole = token_table(*tokenised(any_tokenizer, texts, pairs, 500), any_tokenizer)
    rows, dataset = tokenised(any_tokenizer, texts, pairs, 17)
    tokens = token_table(rows, dataset, any_tokenizer)
    assert tokens["token_id"].tolist() == flat(dataset)
    assert max(dataset["length"]) == 17
    assert len(tokens) < len(whole)
    masks = any_tokenizer(texts, pairs, truncation=True, max_length=17, return_special_tokens_mask=True)
    assert tokens["is_special"].tolist() == [bool(m) for mask in masks["special_tokens_mask"] for m in mask]
    columns = ["token_id", "word_id", "char_start", "char_end"]
    for i in range(len(texts)):
        for segment in range(2 if paired else 1):
            cut, full = (
                t[(t["example_id"] == f"x{i}") & (t["segment"] == segment)][columns].values for t in (tokens, whole)
            )
            assert len(cut) > 0
            assert np.array_equal(cut, full[: len(cut)] if side == "right" else full[-len(cut) :])


def test_unknown_and_typed_special_tokens_are_content(any_tokenizer, tokenised):
    sep = any_tokenizer.sep_token
    text = f"the 🤖 was {sep} here"
    rows, dataset = tokenised(any_tokenizer, [text], ["so 🤖"])
    tokens = token_table(rows, dataset, any_tokenizer)
    tokens["chars"] = texts_at(tokens, rows)
    assert tokens["is_special"].sum() == any_tokenizer.num_special_tokens_to_add(pair=True)
    typed = tokens[(tokens["token"] == sep) & ~tokens["is_special"]]
    assert typed["chars"].tolist() == [sep]
    assert typed["segment"].tolist() == [0]
    assert (typed["word_id"] > 0).all()
    robots = tokens[tokens["chars"] == "🤖"]
    assert set(robots["segment"]) == {0, 1}
    assert not robots["is_special"].any()
    if any(name.startswith("Ġ") for name in any_tokenizer.get_vocab()):
        assert robots["segment"].tolist() == [0] * 4 + [1] * 4, "the bytes of a character share its range"
    else:
        assert robots["token"].isin(["<unk>", "[UNK]"]).sum() == 2


def test_white_space_at_the_end_does_not_lead_into_the_next_text(checkpoints, tokenised):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["roberta"])
    rows, dataset = tokenised(tokenizer, ["film \t ", "  film", " ", "film"])
    tokens = token_table(rows, dataset, tokenizer)
    tokens = tokens[~tokens["is_special"]]
    found = {i: set(zip(own["char_start"], own["char_end"], strict=True)) for i, own in tokens.groupby("example_id")}
    assert max(found["x0"]) == (7, 7)
    assert all(low >= 2 for low, _ in found["x1"])
    assert max(high for _, high in found["x1"]) == 6
    assert found["x2"] == {(1, 1)}
    assert min(found["x3"])[0] == 0


def test_a_slow_tokenizer_that_cuts_otherwise_gets_the_words_in_between(checkpoints, tokenised):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["flaubert"])
    rows, dataset = tokenised(tokenizer, ["the rat.the end"])
    tokens = token_table(rows, dataset, tokenizer)
    tokens["chars"] = texts_at(tokens, rows)
    found = tokens.loc[~tokens["is_special"], ["token", "chars", "word_id"]].itertuples(index=False, name=None)
    # Moses leaves "rat.the" as it is, so that neither t nor the full stop ends a word.
    assert list(found) == [
        ("the</w>", "the", 0),
        *[("r", "rat", 1), ("a", "rat", 1), ("t", "rat.", 1), (".", "rat.", 1), ("the</w>", "the", 1)],
        *[("e", "end", 2), ("n", "end", 2), ("d</w>", "end", 2)],
    ]


def test_windows_of_questions(any_tokenizer):
    rows = frame(*((f"Which is number {i}?", answer) for i, answer in enumerate(ANSWERS)), ("And what?", None))
    whole = token_table(rows, make_windows(rows, any_tokenizer, 512, 0), any_tokenizer)
    room = int(whole.groupby("example_id", observed=True).size().min() * 0.6)
    windows = make_windows(rows, any_tokenizer, room, 8)
    assert max(windows["window"]) > 0
    tokens = token_table(rows, windows, any_tokenizer)
    assert tokens["token_id"].tolist() == flat(windows)
    for name, column in (("window_id", "window"), ("example_id", "example")):
        each = [value if name == "window_id" else f"q{value}" for value in windows[column]]
        assert tokens[name].tolist() == np.repeat(each, windows["length"]).tolist()
    context = tokens["segment"] == 1
    for name in ("char_start", "char_end"):
        assert tokens[name].where(context, -1).tolist() == flat(windows, name)
    held = 0
    for window, (_, own) in zip(
        windows, tokens.groupby(np.repeat(range(len(windows)), windows["length"])), strict=True
    ):
        assert own.index[own["segment"] == 1].tolist() == list(
            own.index[window["context_start"] : window["context_end"]]
        )
        answers = rows["answers"][window["example"]]
        if window["start_position"]:
            low, high = own["char_start"].iloc[window["start_position"]], own["char_end"].iloc[window["end_position"]]
            assert CONTEXT[low:high] == answers[0]
            held += 1
    assert held >= len(ANSWERS)
    own = tokens[(tokens["segment"] == 0) & (tokens["window_id"] == 1)]
    assert own.groupby("example_id", observed=True)["char_start"].min().tolist() == [0] * own["example_id"].nunique()
    assert own.groupby("example_id", observed=True)["char_end"].max().tolist() == [
        len(rows["text"][int(i[1:])]) for i in own["example_id"].unique()
    ]
    assert tokens["is_special"].equals(tokens["segment"] == -1)
    assert tokens["is_special"].sum() == len(windows) * any_tokenizer.num_special_tokens_to_add(pair=True)
    # A token has its word and its place in whichever window it stands.
    key = ["example_id", "segment", "char_start", "char_end", "token_id", "token", "word_id"]
    distinct = [set(table[key].itertuples(index=False, name=None)) for table in (whole, tokens)]
    assert distinct[0] == distinct[1]
    # Windows may be missing.
    later = token_table(rows, windows.select(range(1, len(windows))), any_tokenizer)
    assert later[key].astype("str").values.tolist() == tokens[key][windows[0]["length"] :].astype("str").values.tolist()


def test_a_file_gives_back_what_was_written(any_tokenizer, tokenised, tmp_path):
    rows, dataset = tokenised(any_tokenizer, [*generate(20, 4, "test")["text"], ""])
    tokens = token_table(rows, dataset, any_tokenizer)
    tokens.to_parquet(tmp_path / "tokens.parquet")
    back = pd.read_parquet(tmp_path / "tokens.parquet")
    pd.testing.assert_frame_equal(back, tokens)
    assert (back["example_id"] == "x7").sum() == dataset[7]["length"]
    assert (back["example_id"] == "x20").sum() == 2, "an empty text has its special tokens"
    first = token_table(rows.head(5), dataset.select(range(5)), any_tokenizer)
    assert first.astype("str").equals(tokens.head(len(first)).astype("str"))


def test_a_tokenizer_or_text_that_is_not_what_it_was(any_tokenizer, tokenised):
    rows, dataset = tokenised(any_tokenizer, ["the film", "the cast", "the score of the film"])
    for changed in ("the film", "the cast the cast"):
        other = rows.assign(text=["the film", changed, "the score of the film"])
        with pytest.raises(RuntimeError, match="^example 'x1': the tokenizer does not give the token ids"):
            token_table(other, dataset, any_tokenizer)
    with pytest.raises(ValueError, match="token ids of example 2, but texts of 2 examples"):
        token_table(rows.head(2), dataset, any_tokenizer)
    questions = frame(("Which?", "Rollo"), ("Who?", "Rollo"))
    windows = make_windows(questions, any_tokenizer, 512, 0)
    for column, changed in (("text", "Whom?"), ("text_pair", CONTEXT.replace("Rollo", "Normans")), ("text_pair", "")):
        other = questions.assign(**{column: [questions[column][0], changed]})
        with pytest.raises(RuntimeError, match="^example 'q1'"):
            token_table(other, windows, any_tokenizer)


def uncased(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


def test_real_reviews(real_data, tokenizer, tmp_path):
    limits = {f"max_{part}_samples": 200 for part in PARTS}
    data = load_data(DataConfig(dataset="imdb", data_dir=str(real_data / "imdb"), **limits))
    dataset, rows = tokenize_parts(data, tokenizer, 128, tmp_path)["train"], data.parts["train"]
    tokens = token_table(rows, dataset, tokenizer)
    assert tokens["token_id"].tolist() == flat(dataset)
    tokens["chars"] = texts_at(tokens, rows)
    tokens = tokens[~tokens["is_special"] & (tokens["token"] != "[UNK]")]
    assert len(tokens) > 20_000
    assert [uncased(chars) for chars in tokens["chars"]] == [token.removeprefix("##") for token in tokens["token"]]


@pytest.mark.parametrize("family", ["bert", "camembert", "flaubert"])
def test_real_questions(real_data, checkpoints, family):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    config = DataConfig(dataset="squad_v2", data_dir=str(real_data / "squad2"), max_validation_samples=150)
    rows = load_data(config).parts["validation"]
    windows = make_windows(rows, tokenizer, 200, 50)
    tokens = token_table(rows, windows, tokenizer)
    assert tokens["token_id"].tolist() == flat(windows)
    assert tokens["window_id"].max() > 0
    for name in ("char_start", "char_end"):
        assert tokens[name].where(tokens["segment"] == 1, -1).tolist() == flat(windows, name)
    begins = np.cumsum(windows["length"]) - windows["length"]
    answered = [row for row in range(len(windows)) if windows[row]["start_position"]]
    assert len(answered) > 30
    for row in answered:
        window, own = windows[row], rows.iloc[windows[row]["example"]]
        low = tokens["char_start"][begins[row] + window["start_position"]]
        high = tokens["char_end"][begins[row] + window["end_position"]]
        found, gold = own.text_pair[low:high], own.answers[0]
        assert gold in found  # a gold answer may end within a token
        assert len(found) - len(gold) < 30
