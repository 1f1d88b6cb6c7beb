"""A pipeline's file is checked whole before anything runs."""

from pathlib import Path

import pytest

from bertdyn.errors import InputError
from bertdyn.steps.pipeline_config import PipelineConfig
from bertdyn.steps.pipeline_file import EXPERIMENTS, KINDS, load_pipeline


@pytest.fixture
def load(tmp_path):
    def from_text(text: str, **options):
        path = tmp_path / "my-study.yaml"
        path.write_text(text)
        return load_pipeline(PipelineConfig(preset=str(path), **options))

    return from_text


def test_names_stand_for_runs(load):
    found = load("""
        title: two models
        steps:
          fine-tune: {learning_rate: 2e-5, max_train_samples: 100}
          scratch: {step: fine-tune, from_scratch: true}
          one: {step: extract, source_run_id: fine-tune, layers: [0, 3, -1]}
          two: {step: extract, source_run_id: scratch}
          compare: {run_ids: [one, two]}
          probe: {source_run_id: one, compare_run_id: compare}
    """)
    assert (found.name, found.title) == ("my-study", "two models")
    steps = {step.name: step for step in found.steps}
    assert list(steps) == ["fine-tune", "scratch", "one", "two", "compare", "probe"]
    assert [step.stage for step in found.steps] == ["fine-tune", "fine-tune", "extract", "extract", "compare", "probe"]
    config = steps["fine-tune"].configure({})
    assert (config.learning_rate, config.max_train_samples, config.from_scratch) == (2e-5, 100, False)
    assert steps["scratch"].configure({}).from_scratch is True
    assert steps["one"].configure({"fine-tune": "a1"}).source_run_id == "a1"
    assert steps["one"].configure({"fine-tune": "a1"}).layers == "0,3,-1"
    assert steps["compare"].configure({"one": "b1", "two": "b2", "fine-tune": "a1"}).run_ids == "b1,b2"
    assert steps["compare"].sources(steps) == ["one", "two"]
    probe = steps["probe"].configure({"one": "b1", "compare": "c1"})
    assert (probe.source_run_id, probe.compare_run_id) == ("b1", "c1")


def test_a_run_that_is_there_keeps_its_id(load):
    [step] = load("steps: {extract: {source_run_id: 0123abcd}}").steps
    assert step.configure({"fine-tune": "a1"}).source_run_id == "0123abcd"
    assert step.sources({"fine-tune": 0}) == []


def test_own_options_are_those_of_steps_that_start_from_nothing(load):
    text = """
        steps:
          fine-tune: {seed: 3, num_train_epochs: 5}
          model: {step: extract, model_name_or_path: minilm}
          prune: {source_run_id: fine-tune, num_train_epochs: 1}
    """
    found = load(text, dataset="sst2", model_name_or_path="bert-base-uncased", num_train_epochs=2, seed=7)
    tuned, model, pruned = (step.configure({"fine-tune": "a1"}) for step in found.steps)
    assert (tuned.dataset, tuned.model_name_or_path, tuned.num_train_epochs, tuned.seed) == (
        "sst2", "bert-base-uncased", 2, 7,
    )  # fmt: skip
    assert (model.dataset, model.model_name_or_path) == ("sst2", "bert-base-uncased")
    assert (pruned.dataset, pruned.num_train_epochs, pruned.seed) == ("synthetic", 1, 0)
    tuned = load(text).steps[0].configure({})
    assert (tuned.dataset, tuned.num_train_epochs, tuned.seed) == ("synthetic", 5, 3)


def test_overrides_are_options_of_steps(load):
    text = "steps: {fine-tune: {seed: 3}, extract: {source_run_id: fine-tune, rows: first}}"
    found = load(text, overrides="{extract: {rows: 'first,mean', dtype: float32}, fine-tune: {learning_rate: 1e-4}}")
    tuned, extracted = (step.configure({}) for step in found.steps)
    assert (tuned.seed, tuned.learning_rate) == (3, 1e-4)
    assert (extracted.rows, extracted.dtype, extracted.source_run_id) == ("first,mean", "float32", "fine-tune")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [a]", "accepted is a YAML mapping with a title and steps"),
        ("steps: {}", "there are no steps"),
        ("steps: {fine-tune: {}}\nothers: 1", "accepted is a YAML mapping with a title and steps"),
        ("steps: {fine-tune: [1]}", "'fine-tune': accepted is a mapping of options"),
        ("steps: {", "is no YAML"),
        ("steps: {train: {}}", "step 'train': 'train' is no step; accepted are fine-tune, extract"),
        ("steps: {a: {step: tune}}", "step 'a': 'tune' is no step"),
        ("steps: {fine-tune: {learning_rte: 1}}", "step 'fine-tune': unknown option --learning_rte: did you mean"),
        ("steps: {fine-tune: {num_train_epochs: many}}", "step 'fine-tune'.*invalid int value: 'many'"),
        ("steps: {fine-tune: {num_train_epochs: 0}}", "step 'fine-tune': .*accepted are values from 1"),
        ("steps: {extract: {}}", "step 'extract': give --source_run_id"),
        ("steps: {fine-tune: {}, compare: {source_run_id: fine-tune}}", "'fine-tune' is a fine-tune; compare starts"),
        ("steps: {fine-tune: {}, extract: {source_run_id: fine-tune}, e: {step: extract, source_run_id: extract}}",
         "step 'e': 'extract' is a extract; extract starts from"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_the_step(load, text, message):
    with pytest.raises(InputError, match=message):
        load(text)


def test_wrong_overrides(load):
    text = "steps: {fine-tune: {}}"
    with pytest.raises(InputError, match="no step 'tune'; there are fine-tune"):
        load(text, overrides="{tune: {seed: 1}}")
    with pytest.raises(InputError, match="accepted is '{step: {option: value}}'"):
        load(text, overrides="seed")
    with pytest.raises(InputError, match="step 'fine-tune': accepted is a mapping"):
        load(text, overrides="{fine-tune: 3}")
    with pytest.raises(InputError, match="no such file; accepted are .*full.*quick"):
        load_pipeline(PipelineConfig(preset="slow"))


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_the_project_is_accepted_and_says_how_to_run_it(path: Path):
    found = load_pipeline(PipelineConfig(preset=path.stem))
    assert {step.stage for step in found.steps} <= set(KINDS)
    head = path.read_text().partition("\ntitle:")[0]
    assert "mlflow run . " in head
    assert "minutes" in head
    assert "Expected" in head
