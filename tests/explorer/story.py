"""Small runs of every step, by one command, on texts that would do harm if a page did not escape them."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from mlflow.entities import Run

from bertdyn.data.synthetic import generate
from tests.end_to_end.conftest import Workplace, make_workplace

HARMFUL = "<script>window.harmed = 1</script> <b>so</b> & `so`"
LABELS = ["<i>bad</i>", "good"]
STEPS = {
    "fine-tune": {
        "text_column": "text", "label_column": "label", "from_scratch": True,
        "config_overrides": "num_hidden_layers=2,hidden_size=64,num_attention_heads=4,intermediate_size=128",
        "max_train_samples": 240, "max_validation_samples": 60, "max_probe_samples": 60, "max_test_samples": 60,
        "per_device_train_batch_size": 16, "learning_rate": 1e-3, "num_train_epochs": 2,
    },
    "extract": {"source_run_id": "fine-tune", "rows": "tokens,first,mean"},
    "compare": {"source_run_id": "extract"},
    "probe": {"source_run_id": "extract", "num_folds": 3, "random_init": False},
    "sae": {
        "source_run_id": "extract", "width": 24, "k": 3, "num_train_epochs": 2, "layers": "1,2", "seeds": "0,1",
        "page_latents": 6, "random_init": False,
    },
    "prune": {
        "source_run_id": "fine-tune", "budget": 0.6, "num_train_epochs": 1, "calibration_examples": 40,
        "latency_shapes": "1x8", "latency_rounds": 3, "controls": "random", "export_onnx": False,
    },
    "sweep-pruning": {
        "source_run_id": "fine-tune", "n_trials": 5, "seeds": 0, "num_train_epochs": 1, "calibration_examples": 40,
        "latency_shapes": "none", "controls": "random", "export_onnx": False,
    },
}  # fmt: skip


@dataclass
class Story:
    """A store with one pipeline, whose steps are all there."""

    workplace: Workplace
    pipeline: Run

    def step(self, name: str) -> str:
        """The id of a step's run."""
        return self.pipeline.data.tags[f"bertdyn.step.{name}"]

    def run(self, name: str) -> Run:
        return self.workplace.client().get_run(self.step(name))


def make_story(folder: Path) -> Story:
    """Do all steps."""
    workplace = make_workplace(folder)
    texts = pd.concat([generate(210, seed, "train") for seed in (0, 1)], ignore_index=True)
    harmful = texts.index % 3 == 0
    texts["text"] = texts["text"].where(~harmful, texts["text"] + " " + HARMFUL)
    texts["label"] = [LABELS[label] for label in texts["label"]]
    texts[["text", "label"]].to_csv(folder / "reviews.csv", index=False)
    steps = {name: dict(options) for name, options in STEPS.items()}
    steps["fine-tune"]["dataset"] = str(folder / "reviews.csv")
    steps["sweep-pruning"]["storage"] = str(folder / "optuna.journal")
    (folder / "story.yaml").write_text(yaml.safe_dump({"title": "All steps", "steps": steps}, sort_keys=False))
    workplace.run("--preset", str(folder / "story.yaml"), module="entrypoints.main")
    [pipeline] = workplace.runs(filter_string="tags.bertdyn.stage = 'pipeline'")
    return Story(workplace, pipeline)
