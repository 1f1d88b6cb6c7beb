from hypothesis import given, settings
from hypothesis import strategies as st

from bertdyn.data.cleaning import clean_text


def test_tags_and_urls_go_before_punctuation():
    assert clean_text("Great.<br /><br />See <a href='x'>this</a> http://a.b/c?d=1 www.e.org!") == "great"
    assert clean_text("3 < 4 and so x > y &amp; z") == "x y z"


def test_negations_stay_and_contractions_of_stop_words_go():
    assert (
        clean_text("It's NOT good, I’m never going; it isn't fun. You can't.") == "not good never going isn't fun can't"
    )
    assert clean_text("it 's n't hardly a film without no one") == "n't hardly film without no"


def test_accents_and_inner_apostrophes_stay():
    assert clean_text("C'est l'été, À VOIR ! Rock'n'roll e\u0301te\u0301") == "c'est l'été à voir rock'n'roll été"


@given(st.text(max_size=60) | st.text(alphabet="aeßİé'’<>/.nt&; not", max_size=60))
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_changes_nothing(text):
    assert clean_text(clean_text(text)) == clean_text(text)
