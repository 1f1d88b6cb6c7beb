"""Optional text cleaning, the recipe of the SAE study that this project continues, without its two faults.

There, punctuation went first, so that its patterns for URLs and tags could never match ("<br />" became the
words "br br"), and the stop words took the negations along, from data about sentiment. Here URLs and tags go
first and negations stay. Letters of any language and apostrophes inside words are kept; digits are not.
"""

import html
import re
import unicodedata

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

_NEGATIONS = "no not nor never none nobody nothing neither nowhere cannot cant couldnt hasnt without hardly barely"
STOP_WORDS = ENGLISH_STOP_WORDS - set(_NEGATIONS.split())
CONTRACTED = frozenset({"s", "m", "d", "re", "ve", "ll"})
"""What follows the apostrophe in "it's", "i'm", "they'd", and stands alone in pre-tokenised text."""

_URL = re.compile(r"(?:https?://|www\.)[^\s<>]+", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|</?[a-z][^<>]*>", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def _is_stop_word(word: str) -> bool:
    head, _, tail = word.partition("'")
    return word in STOP_WORDS or word in CONTRACTED or (tail in CONTRACTED and head in STOP_WORDS)


def clean_text(text: str) -> str:
    """Words of `text` in lower case, without URLs, HTML, punctuation, digits and stop words.

    Cleaning a cleaned text changes nothing. The result may be empty.

    >>> clean_text("It's <br /><br />NOT a good film, isn't it? See http://a.b/c")
    "not good film isn't"
    """
    text = _TAG.sub(" ", _URL.sub(" ", html.unescape(text)))
    text = unicodedata.normalize("NFC", text.lower()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(word for word in _WORD.findall(text) if not _is_stop_word(word))
