"""The whole story in one command: fine-tune, extract, compare, probe, sae, prune and a sweep, as runs inside one run.

mlflow run . --env-manager local
python -m entrypoints.main --preset full --dataset sst2 --model_name_or_path bert-base-uncased
"""

import os

from bertdyn.errors import InputError
from bertdyn.steps.pipeline_config import PipelineConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Fine-tune an encoder, store its activations, compare them before and after, probe them, find their sparse "
    "features, prune the model and sweep over pruning thresholds: each step a run inside one run, with a report over "
    "all. --preset quick needs no hub and no files; with --dataset and --model_name_or_path it is a real study; "
    "experiments/ has further ones. Steps that were done before with the same options, data and code are reused."
)


def main() -> None:
    config, _ = parse(PipelineConfig, DESCRIPTION)
    launch(config)


def launch(config: PipelineConfig) -> None:
    """Check all steps, open the run, do them, and say what came out."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a pipeline runs in one process: start it without torchrun, or its steps one by one with it")
    from bertdyn.steps.pipeline_file import load_pipeline
    from bertdyn.steps.pipelines import pipeline, tags_of_pipeline

    steps = load_pipeline(config)
    tags = tags_of_pipeline(steps)
    names = [tags[f"bertdyn.{word}"].rstrip("/").split("/")[-1] for word in ("dataset", "model")]
    name = config.run_name or "-".join([steps.name, *names])
    with open_tracker("pipeline", run_name=name, tags=tags) as tracker:
        result = pipeline(config, tracker, steps)
    print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    print(f"look     mlflow run . -e explore --env-manager local -P run_id={tracker.run_id}")


if __name__ == "__main__":
    run(main)
