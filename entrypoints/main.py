"""The short story on the embedded data: fine-tune a real encoder and see what moved.

mlflow run . --env-manager local
python -m entrypoints.main
"""

from bertdyn.steps.config import FineTuneConfig
from entrypoints.command import parse, run
from entrypoints.fine_tune import launch

DESCRIPTION = (
    "Fine-tune the packaged MiniLM encoder on generated film-review sentences (no hub, no files) and report what "
    "moved. Takes all options of fine-tune: with --dataset and --model_name_or_path it is a real study."
)


def main() -> None:
    config, given = parse(FineTuneConfig, DESCRIPTION)
    launch(config, given)


if __name__ == "__main__":
    run(main)
