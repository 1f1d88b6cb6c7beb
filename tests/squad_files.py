"""Small SQuAD 2.0 files with real sentences, in the words that the tokenizers of `families` know."""

import json
import random
from pathlib import Path

from bertdyn.data.synthetic import generate

ADJECTIVES = ("golden", "hidden", "broken", "silver", "frozen", "distant")
NOUNS = ("garden", "castle", "river", "bridge", "tower", "harbour")
"""An adjective and a noun of these stand in no other sentence: a model can find an answer by its words."""
QUESTIONS = ("Where ?", "At what place ?")


def write_squad(folder: Path, articles: int = 6, paragraphs: int = 6, longest: int = 9) -> Path:
    """`folder` with one SQuAD 2.0 file: contexts of 1 to `longest` sentences, each with the same two questions.

    About half of the contexts have an answer to both, in any of their sentences. Some contexts fit into a
    window of 96 tokens in every family, others into none.
    """
    chance = random.Random(0)
    texts = iter(generate(articles * paragraphs * longest, 0, "train")["text"])
    content = []
    for article in range(articles):
        contexts = []
        for number in range(paragraphs):
            sentences = [next(texts) for _ in range((1, longest, chance.randint(1, longest))[number % 3])]
            answer = f"{chance.choice(ADJECTIVES)} {chance.choice(NOUNS)}" if chance.random() < 0.5 else None
            if answer:
                sentences.insert(chance.randint(0, len(sentences)), f"It was made in the {answer} , they say .")
            context = " ".join(sentences)
            golds = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
            qas = [
                {"id": f"{article}-{number}-{i}", "question": text, "answers": golds, "is_impossible": not golds}
                for i, text in enumerate(QUESTIONS)
            ]
            contexts.append({"context": context, "qas": qas})
        content.append({"title": f"Film_{article}", "paragraphs": contexts})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "films.json").write_text(json.dumps({"version": "v2.0", "data": content}), encoding="utf-8")
    return folder
