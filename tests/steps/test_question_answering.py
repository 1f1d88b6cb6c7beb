"""Fine-tuning on SQuAD 2.0 as a function, without MLflow, for every family."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.features.store import FeatureStore
from bertdyn.models import unpadded
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.findings import Findings
from bertdyn.steps.fine_tuning import FineTuneResult, fine_tune
from bertdyn.steps.question_answering_report import question_answering_outcome
from bertdyn.tasks.question_answering import Answers, QuestionAnswering
from bertdyn.tasks.squad_metric import answer_scores, squad_scores
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import TRAINING_STATE
from tests.families import FAMILIES, LAYERS
from tests.squad_files import write_squad
from tests.steps.test_fine_tuning import SMALL, _Breaks, _Interrupted

pytestmark = pytest.mark.slow

SCORES = ("exact", "f1", "has_ans_exact", "has_ans_f1", "no_ans_f1")
WINDOWS = {"dataset": "squad_v2", "max_length": 96, "doc_stride": 16, "per_device_train_batch_size": 16}


@pytest.fixture(scope="module")
def squad(tmp_path_factory) -> Path:
    return write_squad(tmp_path_factory.mktemp("squad"))


class Trained(NamedTuple):
    """A finished run of one family."""

    family: str
    config: FineTuneConfig
    folder: Path
    result: FineTuneResult
    data: TextData

    def scores(self) -> pd.DataFrame:
        return self.result.scores.set_index(["part", "state", "baseline"])

    def predictions(self, part: str) -> pd.DataFrame:
        """In the order of the part's questions."""
        table = pd.read_parquet(self.folder / "predictions.parquet")
        return table[table["part"] == part].set_index("example_id").loc[self.data.parts[part]["example_id"]]

    def first_windows(self) -> list[dict[str, Any]]:
        """What the tokenizer itself makes of each question of the probe part and the beginning of its context."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "checkpoints/epoch_002")
        names = tokenizer.model_input_names
        windows = []
        for row in self.data.parts["probe"].itertuples():
            cut = tokenizer(row.text, row.text_pair, truncation="only_second", max_length=96, return_tensors="pt")
            windows.append({name: value for name, value in cut.items() if name in names})
        return windows


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, checkpoints, squad, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints[request.param]),
        data_dir=str(squad),
        num_train_epochs=2,
        learning_rate=1e-3,
        store_attention=True,
        **WINDOWS,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTDYN_CACHE", str(folder / "cache"))
        result = fine_tune(config, Tracker(folder / "run"))
    return Trained(request.param, config, folder / "run", result, load_data(config))


def test_scores_are_those_of_the_predictions_at_the_threshold_of_validation(trained):
    """Test, too: its F1 is that of its spans with the threshold that is best on validation."""
    history = json.loads((trained.folder / "checkpoints/manifest.json").read_text())["history"]
    best = trained.result.best_epoch
    assert best == 1 + int(np.argmax([epoch["eval/f1"] for epoch in history[1:]]))
    scores = trained.scores()
    threshold = scores.at[("validation", "best", "none"), "null_threshold"]
    assert threshold == scores.at[("test", "best", "none"), "null_threshold"]
    assert threshold == pytest.approx(history[best]["eval/null_threshold"], abs=1e-5)
    for part in ("validation", "test"):
        frame, table = trained.data.parts[part], trained.predictions(part)
        golds = dict(zip(frame["example_id"], frame["answers"], strict=True))
        said = {
            name: row["best_span"] if row["score_difference"] <= threshold else "" for name, row in table.iterrows()
        }
        assert said == table["answer"].to_dict()
        official, found = squad_scores(said, golds), scores.loc[(part, "best", "none")]
        assert {name: 100 * found[name] for name in SCORES} == pytest.approx({name: official[name] for name in SCORES})
        assert found["f1_low"] <= found["f1"] <= found["f1_high"]
        unanswerable = (frame["label"] == 0).mean()
        assert 0 < unanswerable < 1
        always_null = scores.loc[(part, "none", "always_null"), ["exact", "f1"]].tolist()
        assert always_null == [pytest.approx(unanswerable)] * 2
    graded = trained.predictions("validation")
    totals = [
        sum(answer_scores(row.best_span if row.score_difference <= limit else "", golds)[1] for row, golds in
            zip(graded.itertuples(), trained.data.parts["validation"]["answers"], strict=True))
        for limit in [-np.inf, *graded["score_difference"]]
    ]  # fmt: skip
    assert scores.at[("validation", "best", "none"), "f1"] == pytest.approx(max(totals) / len(graded))


def test_predictions_are_pieces_of_their_contexts(trained):
    for part in ("validation", "test"):
        frame, table = trained.data.parts[part], trained.predictions(part)
        assert len(table) == len(frame)
        assert (table["best_span"] != "").all()
        for row, context, golds in zip(table.itertuples(), frame["text_pair"], frame["answers"], strict=True):
            assert row.best_span == context[row.char_start : row.char_end]
            assert (row.exact, row.f1) == answer_scores(row.answer, golds)


def test_everything_moves_and_has_its_place(trained):
    dynamics = pd.read_parquet(trained.folder / "dynamics.parquet")
    components = set(dynamics["component"])
    assert {"head", "query", "ffn_in", "word_embeddings", "position_embeddings"} <= components
    assert not {"other", "pooler"} & components
    assert dynamics["layer"].max() == (1 if trained.family == "albert" else LAYERS)
    still = dynamics[(dynamics["epoch"] > 0) & ~(dynamics["update_norm"] > 0)]
    assert still.empty, still["parameter"].tolist()
    for epoch in (1, 2):
        before, after = (
            load_file(trained.folder / f"checkpoints/epoch_00{e}/model.safetensors") for e in (epoch - 1, epoch)
        )
        for row in dynamics[dynamics["epoch"] == epoch].itertuples():
            moved = (after[row.parameter] - before[row.parameter]).double().norm().item()
            assert row.update_norm == pytest.approx(moved, rel=1e-6, abs=1e-12)


def test_features_are_those_of_the_first_window_of_each_question(trained):
    """Every layer, first token and mean, as the kept checkpoint gives them to transformers alone."""
    store = FeatureStore.open(trained.folder / "features")
    assert store.states == ["epoch_000", "epoch_001", "epoch_002"]
    assert store.layers("first") == list(range(LAYERS + 1))
    examples, frame = store.examples(), trained.data.parts["probe"]
    assert examples["example_id"].tolist() == frame["example_id"].tolist()
    windows, tokens = trained.first_windows(), store.tokens()
    data = json.loads((trained.folder / "data.json").read_text())
    assert 0 < data["questions_in_windows"]["probe"] < len(frame), "some questions have several windows, some one"
    in_first = tokens[tokens["window_id"] == 0]
    assert in_first["token_id"].tolist() == [i for w in windows for i in w["input_ids"][0].tolist()]
    by_example = tokens.groupby("example_id", sort=False)["row"]
    assert examples["n_rows"].tolist() == by_example.size().tolist()
    assert examples["first_row"].tolist() == by_example.min().tolist()
    assert tokens["window_id"].max() > 0
    for epoch in (1, 2):
        state = f"epoch_00{epoch}"
        model = AutoModelForQuestionAnswering.from_pretrained(trained.folder / "checkpoints" / state).eval()
        with torch.inference_mode():
            hidden = [model(**window, output_hidden_states=True).hidden_states for window in windows]
        for layer in range(LAYERS + 1):
            first, mean = (torch.tensor(store.array(kind, state, layer)) for kind in ("first", "mean"))
            assert torch.isfinite(first).all()
            assert torch.isfinite(mean).all()
            torch.testing.assert_close(first, torch.stack([h[layer][0, 0] for h in hidden]), atol=1e-5, rtol=0)
            torch.testing.assert_close(mean, torch.stack([h[layer][0].mean(0) for h in hidden]), atol=1e-5, rtol=0)
        looks = tokens.assign(attention=store.array("attention", state, LAYERS).astype(np.float64))
        looks = looks.groupby(["example_id", "window_id"])["attention"].sum()
        np.testing.assert_allclose(looks, 1, atol=1e-5)


def test_the_kept_checkpoint_loads_whole(trained):
    _, loading = AutoModelForQuestionAnswering.from_pretrained(
        trained.folder / "checkpoints/epoch_002", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]


def test_the_token_cache_is_not_rebuilt(checkpoints, squad, tmp_path, caplog):
    """A run writes nothing into the cache entries of its tokens: the next one finds them whole."""
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["bert"]), data_dir=str(squad), num_train_epochs=1, **WINDOWS
    )
    files = []
    with caplog.at_level(logging.WARNING, "bertdyn"):
        for run in ("one", "two"):
            fine_tune(config, Tracker(tmp_path / run))
            files.append({path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.arrow")})
    assert files[0] == files[1]
    assert not [message for message in caplog.messages if "damaged" in message]


@pytest.mark.parametrize("family", ["distilbert", "flaubert"])
def test_interrupted_after_an_epoch_and_resumed_is_uninterrupted(checkpoints, squad, family, tmp_path):
    """With padding (FlauBERT) and without, bit for bit, the predictions included."""
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints[family]),
        data_dir=str(squad),
        num_train_epochs=2,
        max_train_samples=12,
        max_validation_samples=8,
        **WINDOWS,
    )
    whole = _Breaks(tmp_path / "whole", at=0)
    fine_tune(config, whole)
    at = whole.published.index(TRAINING_STATE, whole.published.index(TRAINING_STATE) + 1) + 2  # epoch 1 is complete
    with pytest.raises(_Interrupted):
        fine_tune(config, _Breaks(tmp_path / "cut", at))
    assert (tmp_path / "cut/checkpoints/epoch_001").exists()
    assert not (tmp_path / "cut/checkpoints/epoch_002").exists()
    fine_tune(dataclasses.replace(config, resume_run_id="this one"), Tracker(tmp_path / "cut"))
    files = ["checkpoints/*/model.safetensors", TRAINING_STATE, "features/*/*/*.npy"]
    names = {p.relative_to(tmp_path / "whole") for pattern in files for p in (tmp_path / "whole").glob(pattern)}
    assert len(names) == 3 + 1 + 3 * 2 * (LAYERS + 1)
    for name in sorted(names - {Path(TRAINING_STATE)}):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    states = [load_file(tmp_path / run / TRAINING_STATE) for run in ("whole", "cut")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    for table in ("scores", "predictions", "threshold_curve", "dynamics"):
        tables = [pd.read_parquet(tmp_path / run / f"{table}.parquet") for run in ("whole", "cut")]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "classification"),
        ("albert", "classification"),
        ("bert", "question-answering"),
        ("conv2d_bert", "question-answering"),
    ],
)
def test_a_training_without_padding_is_the_training_with_it(checkpoints, squad, family, task, tmp_path, monkeypatch):
    """Same weights after an epoch without dropout. By SGD: Adam makes steps of a gradient's rounding error, too."""
    options = {"data_dir": str(squad), **WINDOWS} if task == "question-answering" else SMALL
    packed = []
    packing_of = unpadded.packing_of
    monkeypatch.setattr(unpadded, "packing_of", lambda *inputs: packed.append(1) or packing_of(*inputs))
    model = tmp_path / "model"
    model.mkdir()
    for path in checkpoints[family].iterdir():
        (model / path.name).symlink_to(path)
    settings = json.loads((model / "config.json").read_text())
    dropouts = [name for name in settings if "drop" in name and isinstance(settings[name], float)]
    assert len(dropouts) >= 2
    (model / "config.json").unlink()
    (model / "config.json").write_text(json.dumps(settings | dict.fromkeys(dropouts, 0.0)))
    weights, calls = {}, {}
    for option in ("true", "false"):
        packed.clear()
        config = FineTuneConfig(
            model_name_or_path=str(model), num_train_epochs=1, unpadded=option, optimizer="sgd", learning_rate=0.05,
            store_features=False, **options,
        )  # fmt: skip
        fine_tune(config, Tracker(tmp_path / option))
        weights[option] = load_file(tmp_path / option / "checkpoints/epoch_001/model.safetensors")
        calls[option] = len(packed)
    assert calls["true"] > 0
    assert calls["false"] == 0
    start = load_file(tmp_path / "true/checkpoints/epoch_000/model.safetensors")
    assert max((weights["true"][name] - start[name]).abs().max() for name in start) > 1e-3
    for name, tensor in weights["true"].items():
        torch.testing.assert_close(tensor, weights["false"][name], atol=1e-5, rtol=0, msg=name)


def test_answers_are_learned(tmp_path):
    """From scratch, answers that are known by their words: far above never answering, on validation and test."""
    squad = write_squad(tmp_path / "squad", articles=24, paragraphs=8, longest=4)
    config = FineTuneConfig(
        model_name_or_path="minilm",
        from_scratch=True,
        config_overrides="num_hidden_layers=1,hidden_size=48,num_attention_heads=2,intermediate_size=96",
        data_dir=str(squad),
        num_train_epochs=2,
        learning_rate=3e-3,
        store_features=False,
        **(WINDOWS | {"max_length": 48, "doc_stride": 8}),
    )
    result = fine_tune(config, Tracker(tmp_path / "run"))
    scores = result.scores.set_index(["part", "state", "baseline"])
    for part in ("validation", "test"):
        assert scores.at[(part, "none", "always_null"), "f1"] < 0.6
        assert scores.at[(part, "pretrained", "none"), "has_ans_f1"] < 0.3
        best = scores.loc[(part, "best", "none")]
        assert best["f1"] > 0.9
        assert min(best["has_ans_exact"], best["no_ans_f1"]) > 0.8
    data = json.loads((tmp_path / "run/data.json").read_text())
    assert data["questions_in_windows"]["validation"] > 10


def test_the_threshold_of_test_is_not_its_own():
    """Where the best thresholds of the two parts differ, validation's counts, for both states."""
    frames = {
        part: pd.DataFrame(
            {
                "example_id": [f"{part}-{i}" for i in range(4)],
                "title": "A",
                "text": "Where?",
                "text_pair": [f"a red house {i}" for i in range(4)],
                "label": [1, 1, 0, 0],
                "answers": [["red"], ["red"], [], []],
            }
        )
        for part in ("validation", "test")
    }

    def answers(part: str, differences: list[float]) -> Answers:
        ids = frames[part]["example_id"]
        table = pd.DataFrame({"example_id": ids, "answer": "red", "char_start": 2, "char_end": 5})
        return Answers(table.assign(span_score=0.0, null_score=differences, score_difference=differences), 1.0)

    predictions = {
        ("validation", "best"): answers("validation", [1.0, 2.0, 3.0, 4.0]),  # 2.0 is the best
        ("test", "best"): answers("test", [1.0, 2.5, 3.0, 4.0]),  # 2.5 would be; at 2.0 three of four are right
        ("validation", "pretrained"): answers("validation", [3.0, 4.0, 5.0, 6.0]),
        ("test", "pretrained"): answers("test", [1.0, 1.0, 4.0, 5.0]),  # at 4.0 three of four are right
    }
    task = QuestionAnswering(frames, {})
    history = [{"eval/f1": 0.5}, {"eval/f1": 1.0}]
    data = TextData(frames, ["unanswerable", "answerable"], "squad_v2", "here", "", {}, "question-answering")
    found = Findings(FineTuneConfig(dataset="squad_v2"), data, task, history, 1, predictions, pd.DataFrame(), None)
    outcome = question_answering_outcome(found, "a title")
    scores = outcome.scores.set_index(["part", "state", "baseline"])
    for state, threshold in (("best", 2.0), ("pretrained", 4.0)):
        assert scores.at[("validation", state, "none"), "null_threshold"] == threshold
        assert scores.at[("test", state, "none"), "null_threshold"] == threshold
        assert scores.at[("validation", state, "none"), "f1"] == 1.0
        assert scores.at[("test", state, "none"), "f1"] == 0.75
    assert (outcome.final["best/null_threshold"], outcome.final["test/f1"]) == (2.0, 0.75)
    said = outcome.tables["predictions"].query("part == 'test'")["answer"].tolist()
    assert said == ["red", "", "", ""]
    assert outcome.final["test/baseline_always_null"] == 0.5
