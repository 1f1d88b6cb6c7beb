"""Coloured words as HTML."""

import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st

from bertdyn.plots.feature_cards import Piece, Word
from explorer.tokens import coloured, plain

texts = st.text(min_size=1, max_size=8)
words = st.builds(
    Word,
    st.lists(st.builds(Piece, texts, st.floats(0, 10)), min_size=1, max_size=3),
    st.booleans(),
    st.integers(-1, 2),
)


@given(st.lists(words, max_size=5), st.floats(0, 10))
def test_no_text_becomes_markup(found, full):
    html = coloured(found, full)
    tags = re.findall(r"<[^>]*>", html)
    assert all(re.fullmatch(r'</?(div|span)( style="[^"<>]*")?( title="[\d.]+")?>', tag) for tag in tags)
    assert html.count("<") == html.count(">") == len(tags)


def test_words_are_where_the_text_has_them():
    shown = coloured([Word([Piece("un", 0.0), Piece("known", 2.0)], False), Word([Piece("<b>", 0.0)], True)], 2.0)
    assert unescape(re.sub("<[^>]*>", "", shown)) == "unknown <b>"
    assert "&lt;b&gt;" in shown


def test_the_stronger_the_darker():
    def back(activation: float) -> str:
        return re.search(r"background:(#\w+)", coloured([Word([Piece("a", activation)])], 4.0)).group(1)

    light = [int(back(value)[1:3], 16) + int(back(value)[3:5], 16) + int(back(value)[5:], 16) for value in (1, 2, 3, 4)]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 4
    assert "background" not in coloured([Word([Piece("a", 0.0)])], 4.0)
    assert back(9.0) == back(4.0)  # beyond the scale is its end


def test_the_peak_is_outlined():
    html = coloured([Word([Piece("a", 1.0), Piece("b", 2.0)], True, 1)], 2.0)
    assert [("outline" in span) for span in re.findall(r"<span[^>]*>", html)] == [False, True]


def test_what_turns_the_direction_of_a_text_is_taken_out():
    assert "\u202e" not in plain("a\u202eb")
