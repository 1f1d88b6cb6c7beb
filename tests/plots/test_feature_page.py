"""The page says what it was given, in elements and attributes of its own only."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.plots.feature_cards import (
    Effect,
    Example,
    ExampleGroup,
    Fact,
    Histogram,
    LabelStatistic,
    LatentCard,
    Metric,
    Neighbour,
    Page,
    Piece,
    Side,
    Word,
    shown_example,
)
from bertdyn.plots.feature_page import LEVELS, feature_page

NAN = math.nan


class Parsed(HTMLParser):
    """Elements in order, with the texts within them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.stack, self.comments = [], [], []
        self.feed(html)
        self.close()
        assert not self.stack, "an element is not closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        for index in self.stack:
            self.elements[index][2].append("")
        if tag not in ("meta", "input", "rect", "line", "path"):
            self.stack.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self.stack[-1]][0] == tag
        self.stack.pop()

    def handle_data(self, data):
        for index in self.stack:
            self.elements[index][2].append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    handle_pi = unknown_decl = handle_comment

    def structure(self):
        return [(tag, sorted(attributes)) for tag, attributes, _ in self.elements]

    def texts(self, tag, **attributes):
        """What is written in elements of a tag that have these attributes."""
        named = {name.rstrip("_"): value for name, value in attributes.items()}
        return ["".join(texts) for name, own, texts in self.elements if name == tag and named.items() <= own.items()]


WORDS = [Word([Piece("an", 0.0)]), Word([Piece("aw", 1.5), Piece("ful", 3.0)], True, 1), Word([Piece("!", 0.0)], False)]


def example(words=WORDS, **changes):
    return Example("dev-7", 2, 3.0, "negative", "positive", words)._replace(**changes)


def side(latent=12, **changes):
    groups = [ExampleGroup("Strongest", [example()]), ExampleGroup("Weakest quarter", [example(), example()])]
    return Side(
        latent, 0.0123, 0.25, 2.5, 6.0, 0.5, "negative", 0.875, 1.25,
        Histogram([4, 0, 2, 1], 0.0, 6.0),
        [LabelStatistic("negative", 0.5, 0.25, 40), LabelStatistic("positive", 0.1, NAN, 1)],
        [Effect("negative", -0.5), Effect("positive", 0.25)],
        groups,
        [Neighbour(34, 0.9), Neighbour(99, 0.1)],
    )._replace(**changes)  # fmt: skip


def card(left=12, right=34, **changes):
    sides = [None if latent is None else side(latent) for latent in (left, right)]
    return LatentCard("rotated", 0.9, 1.5, 0.125, sides)._replace(**changes)


def page(cards=None, **changes):
    cards = [card(), card(None, 12, fate="born", cosine=NAN, note="a note")] if cards is None else cards
    return Page(
        "The title", ("pretrained", "fine-tuned"), ["What this is."], [Fact("run", "abc")], ["pretrained", "twin"],
        [Metric("FVU", [0.125, NAN], "a share")], ["The floor."], cards,
        [Histogram([1, 2], -5.0, 0.0), Histogram([0, 0], -5.0, 0.0)],
    )._replace(**changes)  # fmt: skip


def test_what_the_page_says():
    html = feature_page(page())
    parsed = Parsed(html)
    assert parsed.texts("title") == parsed.texts("h1") == ["The title"]
    assert parsed.texts("h2") == ["2 latents", "Latent 12 → 34", "Latent 12"]
    text = "".join(parsed.texts("body")[0])
    for said in ("What this is.", "abc", "0.125", "a share", "The floor.", "a note", "cosine 0.90", "norm ratio 1.50"):
        assert said in text, said
    for said in ("1.2%", "25.0%", "2.50", "0.875", "0.500 ± 0.250", "0.100 ± –", "−0.500", "dev-7 @2", "7 tokens"):
        assert said in text, said
    assert not [t for tag in ("td", "dd", "span") for t in parsed.texts(tag) if "nan" in t]
    assert parsed.texts("span", class_="wrong") == ["✗ predicted positive"] * 9
    assert parsed.texts("p", class_="t") == [" an awful!"] * 9
    assert parsed.texts("p", class_="none") == ["No counterpart in this state."]
    assert ["open" in a for tag, a, _ in parsed.elements if tag == "details"] == [True, False] * 3


def test_tokens_have_the_colour_of_their_activation_and_words_their_values():
    words = [
        Word([Piece("off", 0.0)]),
        Word([Piece("weak", 0.001)]),
        Word([Piece("a", 0.0), Piece("b", 6.0), Piece("c", 3.0)], True, 1),
        Word([Piece("peak", 0.0)], False, 0),
    ]
    shown = [ExampleGroup("Strongest", [example(words)])]
    html = feature_page(page([card(sides=[side(max=6.0, groups=shown), side(34, max=4.0, groups=())])]))
    line = re.search(r'<p class="t" dir="auto">(.*?)</p>', html).group(1)
    assert line == (
        ' off <i class="c1" title="1.0e−3">weak</i> <u title="a 0.00 · b 6.00 · c 3.00">a<b class="c9">b</b>'
        '<i class="c5">c</i></u><b class="c0" title="0.00">peak</b>'
    )
    assert LEVELS == 9
    beyond = [ExampleGroup("Strongest", [example([Word([Piece("more", 60.0)])])])]
    assert 'class="c9" title="60.00">more' in feature_page(page([card(sides=[side(groups=beyond), None])]))


def test_predictions_are_marked_where_they_are_wrong():
    shown = [example(prediction=None), example(prediction="negative"), example(prediction="positive")]
    groups = [ExampleGroup("Strongest", shown)]
    parsed = Parsed(feature_page(page([card(sides=[side(groups=groups), None])])))
    lines = parsed.texts("p", class_="m")
    assert ["predicted" in line for line in lines] == [False, True, True]
    assert ["✗" in line for line in lines] == [False, False, True]


def test_words_of_the_list_stand_apart():
    """As chips: of punctuation, a list with commas cannot be read."""
    peaks = [[Word([Piece(text, 1.0)], True, 0)] for text in (".", ",", "film", ".")]
    groups = [ExampleGroup("Strongest", [example(words) for words in peaks])]
    parsed = Parsed(feature_page(page([card(sides=[side(groups=groups), None])])))
    assert parsed.texts("bdi", class_="chip") == [".", ",", "film"] * 2  # of the list, and of the card
    [cell] = [text for text in parsed.texts("td", class_="wide") if "film" in text]
    assert cell.split() == ["○", ".", ",", "film", "●", "–"]


def test_a_fate_without_a_sign_has_a_dot():
    parsed = Parsed(feature_page(page([card(fate="split"), card(fate="kept"), card(50, 60, fate="")])))
    assert parsed.texts("span", class_="fate other") == ["· split"] * 2
    assert parsed.texts("span", class_="fate kept") == ["= kept"] * 2
    [select] = parsed.texts("select", id_="fate")
    assert select == "allkeptsplit"


def test_a_page_of_one_state_has_one_column_and_compares_nothing():
    found = feature_page(page([card(sides=[side(neighbours=())])], states=("best",), densities=[Histogram([1], -5, 0)]))
    parsed, two = Parsed(found), Parsed(feature_page(page([card()])))
    assert [a["aria-label"] for tag, a, _ in parsed.elements if tag == "section"] == ["best"]
    assert parsed.texts("h2") == ["1 latents", "Latent 12"]
    heads = list(parsed.texts("th", scope="col", **{"data-sort": "1"}))
    assert heads == two.texts("th", scope="col", **{"data-sort": "1"})[:-3]
    text = "".join(parsed.texts("main"))
    for said in ("cosine", "norm ratio", "change 0", "●", "nearest in"):
        assert said not in text, said
        assert said in "".join(two.texts("main")), said
    assert [a["value"] for tag, a, _ in parsed.elements if tag == "option" and a["value"] != ""] == ["rotated", "0"]
    with pytest.raises(ValueError, match="a page of 3 states"):
        feature_page(page([], states=("a", "b", "c")))


def test_latents_of_several_dictionaries_of_a_state_are_told_apart():
    """12 of seed 1 and 12 of seed 2 are two latents, and so are 12 and 12 of a pair."""
    left = [
        side(n, dictionary="seed 0", neighbours=[Neighbour(12, 0.9, of)]) for n, of in ((12, "seed 2"), (7, "seed 1"))
    ]
    right = [side(12, dictionary=of, neighbours=()) for of in ("seed 1", "seed 2")]
    cards = [card(sides=[one, other]) for one, other in zip(left, right, strict=True)]
    parsed = Parsed(feature_page(page([*cards, card(None, 9, absent="Two seeds say nothing of it.")])))
    assert parsed.texts("h2")[1:3] == ["Latent 12 → 12", "Latent 7 → 12"]
    near = [text for text in parsed.texts("p", class_="soft") if text.startswith("nearest")]
    assert near[:2] == ["nearest in fine-tuned, seed 2: 12 (0.90)", "nearest in fine-tuned, seed 1: 12 (0.90)"]
    links = [a["href"] for tag, a, texts in parsed.elements if tag == "a" and texts == ["12"]]
    assert links == ["#card-2", "#card-1"]
    assert "● fine-tuned latent 12, seed 1" in parsed.texts("h3")
    assert parsed.texts("p", class_="none") == ["Two seeds say nothing of it."]


def test_links_lead_to_cards_of_the_page():
    parsed = Parsed(feature_page(page([card(12, 34), card(50, 60), card(34, None)])))
    ids = [a["id"] for _, a, _ in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [(a["href"], "".join(texts)) for tag, a, texts in parsed.elements if tag == "a"]
    assert {href[1:] for href, _ in links} <= set(ids)
    assert all(href.startswith("#") for href, _ in links)
    near = [(href, text) for href, text in links if text == "34" and href.startswith("#card")]
    # 34 is near in the other state: to the right it is on the first card, to the left on the third, which is its own
    # line of the list, too
    assert near == [("#card-3", "34"), ("#card-1", "34"), ("#card-3", "34"), ("#card-1", "34"), ("#card-3", "34"),
                    ("#card-1", "34")]  # fmt: skip


def test_the_list_can_be_sorted():
    parsed = Parsed(feature_page(page()))
    rows = [index for index, (tag, a, _) in enumerate(parsed.elements) if tag == "tr" and "data-fate" in a]
    assert [parsed.elements[index][1]["data-fate"] for index in rows] == ["rotated", "born"]
    cells = [
        [(a.get("data-0"), a.get("data-1")) for tag, a, _ in parsed.elements[first:last] if tag == "td"]
        for first, last in ((rows[0], rows[1]), (rows[1], rows[1] + 60))
    ]
    both = [("12", "34"), (None, None), ("0.0123",) * 2, ("0.5",) * 2, ("0.875",) * 2, ("1.25",) * 2, ("0.5",) * 2]
    assert cells[0] == [*both, ("0.9",) * 2, ("1.5",) * 2, ("0.125",) * 2]
    assert cells[1][0] == (None, "12")
    assert cells[1][2] == (None, "0.0123")
    assert cells[1][7] == (None, None)
    heads = ["data-sort" in a for tag, a, _ in parsed.elements if tag == "th" and a.get("scope") == "col"]
    assert heads[-len(cells[0]) :] == [cell != (None, None) for cell in cells[0]]


def test_nothing_is_loaded_and_no_script_runs_but_its_own():
    html = feature_page(page())
    parsed = Parsed(html)
    [script] = parsed.texts("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [a["content"] for _, a, _ in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?:|//[a-z]|url\(|@import|Storage|cookie", html)
    for _, attributes, _ in parsed.elements:
        assert not {"src", "srcset", "action", "style"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]


NASTY = [
    "<script>alert(1)</script>", "</script>", "</p></li>", "<!--", "]]>", "\"'`= onload=x", "'", "&lt;b&gt; &amp;amp;",
    "{{ 7 * 7 }}{% x %}", "\u202eevil\u2066", "שלום", "\x00\x07\x1b\x85", "🙂\U0001f469\u200d\U0001f680", "\ud800",
    "\u2028", "",
]  # fmt: skip
STRINGS = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=12))


def with_strings(texts):
    """A page with a text at every place where there is one."""
    take = iter(texts).__next__
    first = [Word([Piece(take(), 1.0), Piece(take(), 0.0)], True, 0), Word([Piece(take(), 2.0)])]
    shown = example([*first, Word([Piece(take(), 0.0)])], example_id=take(), label=take(), prediction=take())
    statistics = [LabelStatistic(take(), 1.0, 1.0, 3)]
    groups = [ExampleGroup(take(), [shown])]
    one = side(label=take(), groups=groups, effects=[Effect(take(), 1.0)], label_statistics=statistics)
    return page(
        [LatentCard(take(), 0.5, 1.0, 0.0, [one, None], take())],
        title=take(), states=(take(), take()), summary=[take()], facts=[Fact(take(), take())],
        metric_columns=[take()], metrics=[Metric(take(), [1.0], take())], caveats=[take()],
    )  # fmt: skip


NUM_STRINGS = 24


@settings(max_examples=60, deadline=None)
@given(st.lists(STRINGS, min_size=NUM_STRINGS, max_size=NUM_STRINGS))
def test_no_element_or_attribute_comes_from_a_text(texts):
    """The page has the structure of one with harmless texts, empty and equal where these are."""
    harmless = {text: f"w{i}" if text else "" for i, text in enumerate(dict.fromkeys(texts))}
    html = feature_page(with_strings(texts))
    found, expected = Parsed(html), Parsed(feature_page(with_strings([harmless[text] for text in texts])))
    assert found.structure() == expected.structure()
    assert found.comments == expected.comments == []
    assert found.texts("script") == expected.texts("script")
    assert found.texts("style") == expected.texts("style")
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    [line] = found.texts("p", class_="t")
    if all(text.isprintable() for text in texts[:4]):
        assert line == f" {texts[0]}{texts[1]} {texts[2]} {texts[3]}"


def test_a_page_needs_both_sides_of_a_card():
    for sides in ([side()], [None, None], [side()] * 3):
        with pytest.raises(ValueError, match="a card of"):
            feature_page(page([card(sides=sides)]))
    empty = Parsed(feature_page(page([], metrics=[], densities=[], caveats=[], facts=[])))
    assert empty.texts("h2") == ["0 latents"]


@pytest.mark.slow
def test_a_large_page_stays_small():
    """100 latents, 16 examples a side of 25 tokens that are all on."""
    rng = np.random.default_rng(0)

    def words():
        lengths, activations = rng.integers(2, 8, 25).tolist(), rng.random(25).tolist()
        return [Word([Piece("w" * n, activation)]) for n, activation in zip(lengths, activations, strict=True)]

    def cards():
        for latent in range(100):
            groups = [[ExampleGroup(str(i), [example(words()) for _ in range(4)]) for i in range(4)] for _ in range(2)]
            yield card(sides=[side(latent, groups=of) for of in groups])

    html = feature_page(page(list(cards())))
    assert html.count('class="t"') == 3200
    assert len(html.encode()) < 6e6


def tokens_of(pieces, activations):
    """`pieces`: (piece, segment, word, start); None: special."""
    rows = [
        (-1, -1, "[SEP]", -1, -1) if p is None else (p[1], p[2], p[0], p[3], p[3] + max(1, len(p[0]))) for p in pieces
    ]
    table = pd.DataFrame(rows, columns=["segment", "word_id", "piece", "char_start", "char_end"])
    activations = np.array(activations, dtype=np.float32)
    return table.assign(
        example_id="dev-1", position=range(len(rows)), is_special=table["segment"] < 0, activation=activations
    )


VIN_DIESEL = [("Vin", 0, 0, 0), ("Die", 0, 1, 4), ("sel", 0, 1, 7), ("'", 0, 2, 10), ("", 0, 2, 10)]
PIECES = [None, *VIN_DIESEL, None, ("ok", 1, 0, 0), None]


def test_an_example_joins_the_pieces_of_its_words():
    tokens = tokens_of(PIECES, [9, 0, 0.5, 1.5, 0.25, 0.75, 9, 0, 9])
    found = shown_example(tokens, 3, "yes", "no")
    assert found[:5] == ("dev-1", 3, 1.5, "yes", "no")
    assert (found.cut_before, found.cut_after) == (False, False)
    assert [(tuple(word.pieces), word.spaced, word.peak) for word in found.words] == [
        ((("Vin", 0.0),), True, -1),
        ((("Die", 0.5), ("sel", 1.5)), True, 1),
        ((("'", 0.75),), False, -1),  # two tokens that share a character
        ((("ok", 0.0),), True, -1),
    ]
    assert shown_example(tokens, 5, "yes").words[2] == Word([Piece("'", 0.75)], False, 0)
    special = shown_example(tokens, 0, "yes")
    assert (special.activation, special.words[0]) == (9.0, Word([Piece("[SEP]", 9.0)], True, 0))


def test_long_texts_are_cut_around_the_token_between_words():
    pieces = [(f"w{i // 2}"[: 2 + i % 2], 0, i // 2, 4 * i) for i in range(60)]
    tokens = tokens_of(pieces, np.zeros(60))
    found = shown_example(tokens, 30, "yes", around=5)
    assert sum(len(word.pieces) for word in found.words) == 12  # 25 to 35, and the other half of the first
    assert (found.cut_before, found.cut_after) == (True, True)
    first = shown_example(tokens, 2, "yes", around=5)
    assert (first.cut_before, first.cut_after) == (False, True)
    cut = card(sides=[side(groups=[ExampleGroup("g", [found])]), None])
    [line] = Parsed(feature_page(page([cut]))).texts("p", class_="t")
    assert line.startswith("… ")
    assert line.endswith(" …")
