"""The short story on the embedded data: fine-tune a real encoder and see what moved.

mlflow run . --env-manager local
python -m entrypoints.main
"""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from bertdyn.steps.config import FineTuneConfig
from entrypoints.command import parse, run
from entrypoints.fine_tune import launch

DESCRIPTION = (
    "Fine-tune the packaged MiniLM encoder on generated film-review sentences (no hub, no files) and report what "
    "moved. Takes all options of fine-tune: with --dataset and --model_name_or_path it is a real study."
)


@dataclass
class MainConfig(FineTuneConfig):
    """Fine-tuning, small enough for a first look: two minutes on two cores."""

    max_train_samples: int | None = HfArg(default=1200, help="Use this many training examples (nested subsets).")
    max_test_samples: int | None = HfArg(default=500, help="Use this many test examples (nested subsets).")


def main() -> None:
    config, given = parse(MainConfig, DESCRIPTION)
    launch(config, given)


if __name__ == "__main__":
    run(main)
