"""SQuAD 2.0 files: what is read, what is refused, and that no article or context is on two sides."""

import copy
import json

import pytest

from bertdyn.data import squad
from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.squad import load_squad, read_squad
from bertdyn.data.text_data import fingerprint_parts
from bertdyn.errors import InputError


def article(title, paragraphs=4, questions=3):
    """Every second question has an answer; contexts name their article and number."""
    content = []
    for p in range(paragraphs):
        context = f"Éditions {title} number {p} say so."
        qas = []
        for q in range(questions):
            start = context.index("number")
            answers = [{"text": f"number {p}", "answer_start": start}, {"text": f"{p}", "answer_start": start + 7}]
            impossible = q % 2 == 1
            qas.append(
                {
                    "id": f"{title}-{p}-{q}",
                    "question": f" What {q}? ",
                    "answers": [] if impossible else answers,
                    "is_impossible": impossible,
                    "plausible_answers": answers if impossible else [],
                }
            )
        content.append({"context": context, "qas": qas, "extra": 1})
    return {"title": title, "paragraphs": content}


def write(path, articles):
    path.write_text(json.dumps({"version": "v2.0", "data": articles}, ensure_ascii=False), encoding="utf-8")
    return path


def load(folder, **flags):
    return load_data(DataConfig(dataset="squad_v2", data_dir=str(folder), **flags))


def test_rows_are_the_questions_with_all_their_golds(tmp_path):
    frame = read_squad(write(tmp_path / "a.json", [article("A", 2, 2)]))
    assert frame.columns.tolist() == ["example_id", "text", "text_pair", "label", "title", "answers", "answer_starts"]
    first, second = frame.iloc[0], frame.iloc[1]
    assert (first.example_id, first.text, first.title, first.label) == ("A-0-0", "What 0?", "A", 1)
    assert (first.answers, first.answer_starts) == (["number 0", "0"], [11, 18])
    assert (second.label, second.answers, second.answer_starts) == (0, [], [])
    assert frame["label"].dtype == "int64"


def test_squad_1_has_no_is_impossible(tmp_path):
    old = article("A", 1, 1)
    del old["paragraphs"][0]["qas"][0]["is_impossible"]
    assert read_squad(write(tmp_path / "a.json", [old]))["label"].tolist() == [1]


def test_the_16_articles_by_fixed_titles(real_data):
    data = load(real_data / "squad2")
    assert data.task == "question-answering"
    assert data.label_names == ["unanswerable", "answerable"]
    assert {part: len(data.parts[part]) for part in PARTS} == {
        "train": 3789,
        "validation": 766,
        "probe": 755,
        "test": 768,
    }
    counts = data.class_counts().query("label == 'answerable'").set_index("part")["rows"]
    for part in PARTS:
        assert counts[part] / len(data.parts[part]) == pytest.approx(2910 / 6078, abs=0.015), part
    titles = {part: set(data.parts[part]["title"]) for part in PARTS}
    assert titles["test"] == titles["probe"] == set(squad.TEST_ARTICLES)
    assert (titles["train"], titles["validation"]) == (set(squad.TRAIN_ARTICLES), set(squad.VALIDATION_ARTICLES))
    contexts = [set(data.parts[part]["text_pair"]) for part in PARTS]
    assert len(set.union(*contexts)) == sum(map(len, contexts)) == 646, "no context is in two parts"
    assert data.report["paragraphs"] == dict(zip(PARTS, map(len, contexts), strict=True))
    assert (data.report["repeated_contexts_dropped"], data.report["repeated_questions_kept"]) == (0, 6)
    json.dumps(data.report)
    paragraphs = {part: data.parts[part].groupby("title")["text_pair"].nunique() for part in ("probe", "test")}
    assert (paragraphs["test"] - paragraphs["probe"]).isin([0, 1]).all()


def test_data_seed_moves_the_contexts_of_test_and_probe_only_and_subsets_are_nested(real_data):
    folder = real_data / "squad2"
    zero, one = load(folder), load(folder, data_seed=1, max_test_samples=50)
    assert set(zero.parts["train"]["example_id"]) == set(one.parts["train"]["example_id"])
    assert set(zero.parts["test"]["text_pair"]) != set(load(folder, data_seed=1).parts["test"]["text_pair"])
    assert len(one.parts["test"]) == 50
    assert (
        one.parts["test"]["example_id"].tolist() == load(folder, data_seed=1).parts["test"]["example_id"][:50].tolist()
    )
    assert zero.fingerprint == load(folder).fingerprint != one.fingerprint


@pytest.mark.parametrize(("articles", "sizes"), [(3, (1, 1, 1)), (16, (10, 2, 4)), (32, (20, 4, 8))])
def test_articles_of_another_file_are_divided_10_2_4(tmp_path, articles, sizes):
    write(tmp_path / "mine.json", [article(f"A{i}") for i in range(articles)])
    data = load(tmp_path)
    assert tuple(len(data.report["articles"][part]) for part in ("train", "validation", "test")) == sizes
    assert data.report["articles"]["probe"] == data.report["articles"]["test"]
    assert data.report["rows"] == {
        "train": 12 * sizes[0],
        "validation": 12 * sizes[1],
        "probe": 6 * sizes[2],
        "test": 6 * sizes[2],
    }
    other = load(tmp_path, data_seed=3).report["articles"]
    assert articles == 3 or other != data.report["articles"]


def test_the_official_pair_keeps_its_dev_for_test_and_probe(tmp_path):
    write(tmp_path / "train-v2.0.json", [article(f"T{i}") for i in range(40)])
    write(tmp_path / "dev-v2.0.json", [article(f"D{i}") for i in range(3)])
    report = load(tmp_path).report
    assert report["articles"]["test"] == report["articles"]["probe"] == ["D0", "D1", "D2"]
    assert len(report["articles"]["validation"]) == 2
    assert len(report["articles"]["train"]) == 38
    assert report["rows_read"] == {"train-v2.0.json": 480, "dev-v2.0.json": 36}


def test_a_context_of_two_articles_stays_where_it_is_held_out_most(tmp_path):
    articles = [article(f"A{i}") for i in range(16)]
    write(tmp_path / "mine.json", articles)
    tests = load(tmp_path).report["articles"]["test"]
    shared = next(a for a in articles if a["title"] == tests[0])["paragraphs"]
    target = next(a for a in articles if a["title"] not in tests)
    for number, paragraph in enumerate(copy.deepcopy(shared)):
        for question in paragraph["qas"]:
            question["id"] += "-again"
        target["paragraphs"][number] = paragraph
    write(tmp_path / "mine.json", articles)
    data = load(tmp_path)
    assert data.report["repeated_contexts_dropped"] == 12
    contexts = [set(data.parts[part]["text_pair"]) for part in PARTS]
    assert len(set.union(*contexts)) == sum(map(len, contexts))
    assert data.report["rows"]["test"] == data.report["rows"]["probe"] == 24


def test_the_fingerprint_sees_the_golds(tmp_path):
    write(tmp_path / "mine.json", [article(f"A{i}") for i in range(4)])
    data = load(tmp_path)
    assert fingerprint_parts(data.parts, data.label_names) == data.fingerprint
    changed = {part: frame.copy() for part, frame in data.parts.items()}
    row = changed["train"]["label"].tolist().index(1)
    changed["train"].at[row, "answer_starts"] = [0, 0]
    assert fingerprint_parts(changed, data.label_names) != data.fingerprint


def change(path, value):
    """A change of the first article at `path`: a value set, or the field taken away."""

    def apply(articles):
        record = articles[0]
        for step in path[:-1]:
            record = record[step]
        if value is None:
            del record[path[-1]]
        else:
            record[path[-1]] = value

    return apply


FIRST = ("paragraphs", 0, "qas", 0)
SECOND = ("paragraphs", 0, "qas", 1)


@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (change(("title",), None), "an article: no field 'title'"),
        (change(("paragraphs",), "x"), "article 'A': 'paragraphs' is 'x', no list"),
        (change(("paragraphs", 0), 7), "paragraph of article 'A': '7' is no JSON object"),
        (change(("paragraphs", 0, "context"), " "), "article 'A': its context is empty"),
        (change((*FIRST, "id"), None), "a question: no field 'id'"),
        (change((*FIRST, "id"), "A-0-1"), "question 'A-0-1': a repeated id"),
        (change((*FIRST, "question"), " \n"), "question 'A-0-0': the question is empty"),
        (change((*FIRST, "answers"), None), "question 'A-0-0': no field 'answers'"),
        (change((*FIRST, "answers"), []), "question 'A-0-0': no answers; accepted: one or more"),
        (change((*FIRST, "answers", 1, "answer_start"), 17), "'A-0-0': answer '0' is not at character 17 .*' ' stands"),
        (change((*FIRST, "answers", 1, "answer_start"), -1), "'A-0-0': answer '0' is not at character -1 "),
        (change((*FIRST, "answers", 0, "answer_start"), "11"), "'A-0-0': 'answer_start' is '11', no int"),
        (change((*FIRST, "answers", 0, "answer_start"), True), "'A-0-0': 'answer_start' is 'True', no int"),
        (change((*FIRST, "answers", 0, "text"), ""), "'A-0-0': an answer is empty"),
        (change((*FIRST, "is_impossible"), True), "'A-0-0': is_impossible, but it has answers"),
        (change((*FIRST, "is_impossible"), "no"), "'A-0-0': 'is_impossible' is 'no', no bool"),
        (change((*SECOND, "is_impossible"), None), "'A-0-1': no answers; accepted"),
    ],
)
def test_bad_files(tmp_path, apply, match):
    articles = [article("A"), article("B"), article("C")]
    apply(articles)
    path = write(tmp_path / "mine.json", articles)
    with pytest.raises(InputError, match=match) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "accepted" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({}, "it holds no .json file; accepted: one JSON file, or train-v2.0.json and dev-v2.0.json"),
        ({"a.json": "", "b.json": ""}, "it holds a.json, b.json; accepted"),
        ({"train-v2.0.json": "", "other.json": ""}, "it holds other.json, train-v2.0.json; accepted"),
        ({"a.json": "{"}, "a.json: cannot be read as JSON"),
        ({"a.json": b"\xff{}"}, "a.json: cannot be read as JSON"),
        ({"a.json": "[1]"}, "a.json: .* is no JSON object; accepted: a file in the layout of SQuAD 2.0"),
        ({"a.json": '{"rows": []}'}, "a.json: no field 'data'"),
        ({"a.json": '{"data": []}'}, "a.json: no question"),
        ({"a.json": [article("A"), article("B")]}, "2 article.s. in all; accepted: 3 or more"),
        ({"a.json": [article(name, 1) for name in "ABC"]}, "no question is left for the probe part"),
        (
            {"train-v2.0.json": [article("A"), article("B")], "dev-v2.0.json": [article("B")]},
            "question 'B-0-0' stands in both files",
        ),
        ({"train-v2.0.json": [article("A")], "dev-v2.0.json": [article("B")]}, "train-v2.0.json has 1 article.s."),
    ],
)
def test_bad_folders(tmp_path, files, match):
    for name, content in files.items():
        if isinstance(content, list):
            write(tmp_path / name, content)
        else:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=match) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_one_article_in_both_official_files(tmp_path):
    write(tmp_path / "train-v2.0.json", [article("A"), article("B")])
    again = article("B")
    for paragraph in again["paragraphs"]:
        for question in paragraph["qas"]:
            question["id"] += "-dev"
    write(tmp_path / "dev-v2.0.json", [again])
    with pytest.raises(InputError, match="article 'B' stands in both files"):
        load_squad(DataConfig(dataset="squad_v2", data_dir=str(tmp_path)))
