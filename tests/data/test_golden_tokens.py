"""The token ids of a few fixed texts: no version of a library may silently change what a model reads."""

import unicodedata
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from bertdyn.data.windows import make_windows
from tests.data.test_windows import frame

ENGLISH = {
    "Naïve café owners can't re-open — déjà vu!": [
        *(101, 15743, 7668, 5608, 2064, 1005, 1056, 2128, 1011, 2330, 1517, 2139, 3900, 24728, 999, 102)
    ],
    "zxqv Ωmega 你好 🤖 it's 12.5%": [
        *(101, 1062, 2595, 4160, 2615, 1179, 4168, 3654, 100, 100, 100, 2009, 1005, 1055, 2260, 1012, 1019, 1003, 102)
    ],
    "  Tabs\tand\nlines , unaffable [MASK] ": [101, 21628, 2015, 1998, 3210, 1010, 14477, 20961, 3468, 103, 102],
}
ENGLISH_PAIR = ("Who was Rollo?", "A Viking, c'est ça.")
ENGLISH_PAIR_IDS = [101, 2040, 2001, 4897, 2080, 1029, 102, 1037, 12886, 1010, 1039, 1005, 9765, 6187, 1012, 102]

FRENCH = {
    "L'été, c'est l'idée d'aujourd'hui…": [5, 71, 11, 1146, 7, 60, 11, 41, 17, 11, 1139, 18, 11, 3462, 11, 265, 3, 6],
    "Où est passé l’« œuvre » naïve ?": [5, 6753, 30, 562, 17, 12816, 1211, 94, 24134, 106, 6],
    "zxqv Ωmega 你好 🤖 12,5 %": [5, 4737, 290, 1631, 526, 21, 3, 573, 1616, 21, 3, 21, 3, 124, 22249, 453, 6],
}
FRENCH_PAIR = ("Qui était Rollon ?", "Un Viking, c'est ça.")
FRENCH_PAIR_IDS = [5, 1470, 149, 10879, 88, 106, 6, 6, 153, 2462, 4873, 7, 60, 11, 41, 136, 9, 6]


def wordpiece(text: str, vocabulary: dict[str, int]) -> list[int]:
    """BERT's uncased tokens, written out: words without accents, cut greedily from the left; no special tokens."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    words = [""]
    for c in text:
        alone = unicodedata.category(c).startswith("P") or c in "$+<=>^`|~" or "\u4e00" <= c <= "\u9fff"
        if alone or c.isspace():
            words += [c.strip(), ""]
        else:
            words[-1] += c
    ids: list[int] = []
    for word in filter(None, words):
        pieces, start = [], 0
        while start < len(word):
            candidates = ((("##" if start else "") + word[start:end], end) for end in range(len(word), start, -1))
            piece, start = next(((p, end) for p, end in candidates if p in vocabulary), ("", len(word) + 1))
            pieces.append(piece)
        ids += [vocabulary[piece] for piece in pieces] if "" not in pieces else [vocabulary["[UNK]"]]
    return ids


def bert_of_the_data_folder(real_data: Path) -> tuple[BertTokenizer, dict[str, int]]:
    folder = real_data / "tokenizers/bert-base-uncased"
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return BertTokenizer.from_pretrained(folder), {token: number for number, token in enumerate(lines) if token}


@pytest.mark.parametrize("text", ENGLISH)
def test_minilm(tokenizer, text):
    assert tokenizer(text)["input_ids"] == ENGLISH[text]


def test_minilm_pair(tokenizer):
    pair = tokenizer(*ENGLISH_PAIR)
    assert pair["input_ids"] == ENGLISH_PAIR_IDS
    assert pair["token_type_ids"] == [0] * 7 + [1] * 9


def test_bert_base_uncased_from_its_vocabulary(real_data):
    tokenizer, vocabulary = bert_of_the_data_folder(real_data)
    assert len(tokenizer) == len(vocabulary) == 30522
    assert {text: tokenizer(text)["input_ids"] for text in ENGLISH} == ENGLISH
    pair = tokenizer(*ENGLISH_PAIR)
    assert pair["input_ids"] == ENGLISH_PAIR_IDS
    assert pair["token_type_ids"] == [0] * 7 + [1] * 9
    special = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id)
    assert special == tuple(vocabulary[token] for token in ("[PAD]", "[UNK]", "[MASK]"))


def test_bert_is_the_greedy_algorithm(real_data):
    """On every word of the golden texts and on real film reviews."""
    tokenizer, vocabulary = bert_of_the_data_folder(real_data)
    reviews = (real_data / "sst2_glue").rglob("*.tsv")
    lines = [line.split("\t")[0] for path in sorted(reviews) for line in path.read_text(encoding="utf-8").split("\n")]
    texts = [text for text in ENGLISH if "[MASK]" not in text] + lines[1:2001]
    assert len(texts) > 1000
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert ids == [101, *wordpiece(text, vocabulary), 102], text


def test_camembert(real_data):
    """Also what the tokenizers library reads in the file itself: transformers builds its own from the vocabulary."""
    folder = real_data / "tokenizers/camembert"
    tokenizer, file = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert {text: tokenizer(text)["input_ids"] for text in FRENCH} == FRENCH
    assert tokenizer(*FRENCH_PAIR)["input_ids"] == FRENCH_PAIR_IDS == file.encode(*FRENCH_PAIR).ids
    assert "token_type_ids" not in tokenizer(*FRENCH_PAIR)
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 32004)
    texts = [*FRENCH, *ENGLISH, "  deux  espaces\tet\n une ligne ", "<mask> au milieu <mask>"]
    for text in texts:
        assert tokenizer(text)["input_ids"] == file.encode(text).ids, text


FLAUBERT = {
    # capitals are kept (there is a w, but no W); "th" and "the" are the two merges
    "the Weather isn't the other.": (
        "<s> the</w> <unk> e a th e r</w> i s n <unk> t</w> the</w> o th e r</w> .</w> </s>"
    ),
    # an apostrophe ends no word; numbers keep their points, punctuation is a word of its own
    "c'est d'aujourd'hui, 12.5 %": (
        "<s> c <unk> e s t</w> d <unk> a u j o u r d <unk> h u i</w> ,</w> <unk> <unk> . <unk> <unk> </s>"
    ),
    # an emoji is not known; … becomes three dots; compounds keep their hyphen
    "a robot 🤖 … re-open": "<s> a</w> r o b o t</w> <unk> . . .</w> r e <unk> o p e n</w> </s>",
    "la theière « theatre »": "<s> l a</w> th e i <unk> r e</w> <unk> th e a t r e</w> <unk> </s>",
}


@pytest.mark.parametrize("text", FLAUBERT)
def test_flaubert(checkpoints, text):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["flaubert"])
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == FLAUBERT[text].split()


def test_flaubert_ids_and_pair(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["flaubert"])
    assert tokenizer("the film")["input_ids"] == [0, 62, 12, 15, 18, 47, 1]
    pair = tokenizer("the film", "the cast")
    assert pair["input_ids"] == [0, 62, 12, 15, 18, 47, 1, 62, 9, 7, 25, 54, 1]
    assert set(pair) == {"input_ids", "attention_mask"}


def test_windows_have_the_same_ids(checkpoints, tokenizer):
    """Question answering puts its inputs together itself; for one window they are the tokenizer's pair."""
    rows = frame((ENGLISH_PAIR[0], None), context=ENGLISH_PAIR[1])
    window = make_windows(rows, tokenizer, 64, 0)[0]
    assert window["input_ids"] == ENGLISH_PAIR_IDS
    assert window["token_type_ids"] == [0] * 7 + [1] * 9
    rows = frame(("the film", None), context="the cast")
    flaubert = make_windows(rows, AutoTokenizer.from_pretrained(checkpoints["flaubert"]), 64, 0)[0]
    assert flaubert["input_ids"] == [0, 62, 12, 15, 18, 47, 1, 62, 9, 7, 25, 54, 1]
