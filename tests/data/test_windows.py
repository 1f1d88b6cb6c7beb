"""Windows of questions and contexts: the tokenizers' own ids, and every token at its place in the context."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import RobertaProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bertdyn.data.batching import make_batches, model_inputs
from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.data.windows import WORD, make_windows
from bertdyn.errors import InputError

NUMBERS = ["index", "example", "window", "length", "start_position", "end_position", "context_start", "context_end"]
FAST = ["bert", "roberta", "camembert", "distilbert", "albert"]
CONTEXT = (
    "The Normans\u00a0(Latin:  Normanni)  were the people who\tin the 10th and 11th centuries gave their name to "
    "Normandy, a région in Frànce.\n They came from Denmark , Iceland and Norway; 12.5 % of them under “Rollo”. "
)


def frame(*questions, context=CONTEXT):
    """One row a (question, answer or None)."""
    return pd.DataFrame(
        {
            "example_id": [f"q{i}" for i in range(len(questions))],
            "text": [question for question, _ in questions],
            "text_pair": context,
            "label": [int(answer is not None) for _, answer in questions],
            "title": "Normans",
            "answers": [[answer] if answer else [] for _, answer in questions],
            "answer_starts": [[context.index(answer)] if answer else [] for _, answer in questions],
        }
    )


ANSWERS = ["Normans", "Latin:  Normanni", "10th and 11th centuries", "région", "Frànce", "12.5", "Rollo", "The"]


@pytest.fixture(scope="module")
def squad_rows(real_data):
    return load_data(DataConfig(dataset="squad_v2", data_dir=str(real_data / "squad2"))).parts["train"].head(150)


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (200, 0), (150, 70)])
def test_ids_and_windows_are_those_of_the_tokenizer(checkpoints, squad_rows, family, max_length, stride):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    if family in ("roberta", "albert"):  # almost one token a letter
        max_length, stride = max_length + 200, stride + 50
    rows = squad_rows
    found = make_windows(rows, tokenizer, max_length, stride)
    expected = tokenizer(
        rows["text"].tolist(),
        rows["text_pair"].tolist(),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(found) > len(rows), "some contexts must be split for this to say anything"
    assert found["input_ids"][:] == expected["input_ids"]
    assert found["example"][:] == expected["overflow_to_sample_mapping"]
    assert found["index"][:] == list(range(len(found)))
    if "token_type_ids" in tokenizer.model_input_names:
        assert found["token_type_ids"][:] == expected["token_type_ids"]
    else:
        assert "token_type_ids" not in found.column_names
    for row in range(len(found)):
        inside = [position for position, text in enumerate(expected.sequence_ids(row)) if text == 1]
        assert (found[row]["context_start"], found[row]["context_end"]) == (inside[0], inside[-1] + 1)


@pytest.mark.parametrize("family", [*FAST, "flaubert"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_answer_cut_by_its_tokens_is_the_gold(checkpoints, family, side):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family], padding_side=side)
    rows = frame(*((f"Which is number {i}?", answer) for i, answer in enumerate(ANSWERS)), ("And what?", None))
    windows = make_windows(rows, tokenizer, 512, 0).to_pandas()
    assert windows["window"].max() == 0
    for window, gold in zip(windows.itertuples(), [*ANSWERS, None], strict=True):
        context = range(window.context_start, window.context_end)
        assert len(window.char_start) == len(window.char_end) == len(window.input_ids) == window.length
        for position, (low, high) in enumerate(zip(window.char_start, window.char_end, strict=True)):
            if position not in context:
                assert (low, high) == (-1, -1)
            else:
                assert 0 <= low <= high <= len(CONTEXT)
                assert CONTEXT[low:high] == CONTEXT[low:high].strip()
        if gold is None:
            assert (window.start_position, window.end_position) == (0, 0)
        else:
            low, high = window.char_start[window.start_position], window.char_end[window.end_position]
            assert CONTEXT[low:high] == gold
            assert window.start_position in context
            assert window.end_position in context
        covered = {c for low, high in zip(window.char_start, window.char_end, strict=True) for c in range(low, high)}
        missing = [c for c in range(len(CONTEXT)) if c not in covered and not CONTEXT[c].isspace()]
        assert not missing, "every character belongs to a token"


@pytest.mark.parametrize("gold", ["Normans", "people who\tin", "12.5 %", "Frànce.", "Iceland and Norway"])
def test_a_token_that_brings_its_space_along_is_trimmed(checkpoints, gold):
    """Byte-level files may say trim_offsets false: then " Normans" is one token from the space on."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["roberta"])
    backend = tokenizer.backend_tokenizer
    specials = ("</s>", tokenizer.sep_token_id), ("<s>", tokenizer.cls_token_id)
    backend.post_processor = RobertaProcessing(*specials, trim_offsets=False)
    raw = tokenizer(CONTEXT, return_offsets_mapping=True)["offset_mapping"]
    assert any(CONTEXT[low:high].startswith(" ") for low, high in raw)
    window = make_windows(frame(("Why?", gold)), tokenizer, 512, 0)[0]
    pieces = [CONTEXT[low:high] for low, high in zip(window["char_start"], window["char_end"], strict=True) if low >= 0]
    assert pieces == [piece.strip() for piece in pieces]
    low, high = window["char_start"][window["start_position"]], window["char_end"][window["end_position"]]
    assert CONTEXT[low:high] == gold


def test_a_token_with_its_space_behind_it_is_trimmed_and_no_special_tokens_are_needed():
    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = Split(" ", "merged_with_previous")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    context = "the film was good"
    window = make_windows(frame(("Why not?", "film"), context=context), tokenizer, 512, 0)[0]
    assert tokenizer(context, return_offsets_mapping=True)["offset_mapping"][1] == (4, 9), "with the space"
    assert window["char_start"] == [-1, -1, 0, 4, 9, 13]
    assert window["char_end"] == [-1, -1, 3, 8, 12, 17]
    assert (window["context_start"], window["context_end"], window["start_position"]) == (2, 6, 3)


def test_a_window_that_does_not_hold_the_whole_answer_says_null(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    context = " ".join("abcdefghijklmnopqrstuvwxyz")
    rows = frame(("Why?", "i j k l"), context=context)
    windows = make_windows(rows, tokenizer, 15, 4).to_pandas()
    # [CLS] why ? [SEP] ... [SEP]: ten letters a window, six new ones each
    texts = [context[w.char_start[w.context_start] : w.char_end[w.context_end - 1]] for w in windows.itertuples()]
    assert texts == ["a b c d e f g h i j", "g h i j k l m n o p", "m n o p q r s t u v", "s t u v w x y z"]
    assert windows["window"].tolist() == [0, 1, 2, 3]
    assert list(zip(windows["start_position"], windows["end_position"], strict=True)) == [
        (0, 0),
        (6, 9),
        (0, 0),
        (0, 0),
    ]


def test_the_first_gold_trains_also_where_another_stands_before_it(checkpoints):
    rows = frame(("Who?", "Rollo"))
    rows["answers"], rows["answer_starts"] = [["Rollo", "The"]], [[CONTEXT.index("Rollo"), 0]]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    window = make_windows(rows, tokenizer, 512, 0)[0]
    assert tokenizer.decode(window["input_ids"][window["start_position"] : window["end_position"] + 1]) == "rollo"


def test_slow_tokenizer_sees_the_same_words_and_sub_tokens_share_their_range(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["flaubert"])
    assert not tokenizer.is_fast
    context = CONTEXT.replace("\t", " ")  # the tokenizer itself glues words at a tab; ours are apart
    window = make_windows(frame(("What is it?", "région"), context=context), tokenizer, 512, 0)[0]
    pair = tokenizer("What is it?", context)["input_ids"]
    inside = window["input_ids"][window["context_start"] : window["context_end"]]
    own = tokenizer(context, add_special_tokens=False)["input_ids"]
    assert window["input_ids"][: window["context_start"]] == pair[: window["context_start"]]
    assert window["input_ids"][window["context_end"] :] == pair[-1:]
    assert inside == own
    ranges = list(zip(window["char_start"], window["char_end"], strict=True))
    assert {ranges[p] for p in range(window["start_position"], window["end_position"] + 1)} == {
        (CONTEXT.index("région"), CONTEXT.index("région") + 6)
    }
    assert window["end_position"] - window["start_position"] == 5, "letters are its tokens"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L'homme d’État, 12,5 % !", ["L'", "homme", "d’", "État", ",", "12,5", "%", "!"]),
        ("'l'eau'", ["'", "l'", "eau", "'"]),
        ("arc-en-ciel (1960s)... 1.", ["arc-en-ciel", "(", "1960s", ")", "...", "1", "."]),
    ],
)
def test_words(text, words):
    assert WORD.findall(text) == words


def test_a_question_that_leaves_no_room(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    rows = frame(("Short?", "The"), ("very " * 20 + "long?", "The"))
    with pytest.raises(InputError, match="^--max_length 44: question 'q1' .* take 25 of them .*--doc_stride 20; ") as e:
        make_windows(rows, tokenizer, 44, 20)
    least = int(re.search("at least ([0-9]+)$", str(e.value))[1])
    assert len(make_windows(rows, tokenizer, least, 20)) > 2
    with pytest.raises(InputError, match="question 'q1'"):
        make_windows(rows, tokenizer, least - 1, 20)
    short = frame(("Short?", "abc"), ("very " * 20 + "long?", "abc"), context="abc def")
    assert len(make_windows(short, tokenizer, 44, 20)) == 2, "without a second window there is no overlap"
    with pytest.raises(InputError, match="question 'q1'"):
        make_windows(short, tokenizer, 20, 0)


@pytest.fixture(scope="module")
def squad_data(real_data):
    limits = {f"max_{part}_samples": 20 for part in PARTS}
    return load_data(DataConfig(dataset="squad_v2", data_dir=str(real_data / "squad2"), **limits))


def test_cache_knows_the_stride_and_split_questions_are_counted(squad_data, tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "bertdyn"):
        parts = tokenize_parts(squad_data, tokenizer, 200, tmp_path, doc_stride=40)
    split = len(set(np.asarray(parts["train"]["example"])[np.asarray(parts["train"]["window"]) > 0]))
    assert 0 < split == parts.truncated["train"] < 20
    assert f"train: {split} of 20 questions split into windows of at most 200 tokens" in caplog.messages
    assert tokenize_parts(squad_data, tokenizer, 200, tmp_path, doc_stride=40).path == parts.path
    assert tokenize_parts(squad_data, tokenizer, 200, tmp_path, doc_stride=41).path != parts.path
    assert parts["train"].column_names[: len(NUMBERS)] == NUMBERS
    assert parts["test"].cache_files, "not memory-mapped"


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_of_windows(squad_data, tokenizer, tmp_path, side):
    tokenizer.padding_side = side
    windows = tokenize_parts(squad_data, tokenizer, 200, tmp_path, doc_stride=40)["test"]
    for batch in make_batches(windows, tokenizer, 8, shuffle=False):
        assert set(batch) == {
            *("input_ids", "attention_mask", "token_type_ids", "index"),
            *("start_positions", "end_positions", "context_start", "context_end"),
        }
        assert set(model_inputs(batch)) == {"input_ids", "attention_mask", "token_type_ids"}
        for row, index in enumerate(batch["index"].tolist()):
            stored = windows[index]
            assert batch["input_ids"][row, : stored["length"]].tolist() == stored["input_ids"]
            assert not batch["attention_mask"][row, stored["length"] :].any()
            for name in ("start_position", "end_position"):
                assert batch[f"{name}s"][row] == stored[name]
            assert batch["context_end"][row] == stored["context_end"]
