"""Two steps have the same recipe if, and only if, they would find the same."""

import pytest

from bertdyn.tracking import recipes
from bertdyn.tracking.recipes import recipe

ONE = {"step": "sae", "options": {"k": 32, "layers": "2,4"}, "data": "", "sources": {"source_run_id": "abc"}}


def test_the_same_is_the_same_in_any_order():
    assert recipe(**ONE) == recipe(**ONE | {"options": {"layers": "2,4", "k": 32}})


@pytest.mark.parametrize(
    "change",
    [
        {"step": "probe"},
        {"options": {"k": 16, "layers": "2,4"}},
        {"options": {"k": 32}},
        {"data": "f00"},
        {"sources": {"source_run_id": "abd"}},
        {"sources": {"run_ids": "abc"}},
    ],
)
def test_whatever_decides_changes_it(change):
    assert recipe(**ONE | change) != recipe(**ONE)


def test_another_code_is_another_recipe(monkeypatch, tmp_path):
    before = recipe(**ONE)
    (tmp_path / "bertdyn").mkdir()
    (tmp_path / "sweeps").mkdir()
    monkeypatch.setattr(recipes, "source_folder", lambda: tmp_path)
    found = {before}
    for path, text in (("bertdyn/a.py", "x = 1"), ("bertdyn/a.py", "x = 2"), ("sweeps/b.yaml", "x: 1")):
        (tmp_path / path).write_text(text)
        recipes.code_version.cache_clear()
        found.add(recipe(**ONE))
    recipes.code_version.cache_clear()
    assert len(found) == 4
    (tmp_path / "README.md").write_text("words")
    assert recipe(**ONE) in found
    recipes.code_version.cache_clear()
