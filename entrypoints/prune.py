"""Prune a fine-tuned encoder: whole heads and neurons go, and what is left is a smaller model that loads anywhere.

mlflow run . -e prune --env-manager local -P source_run_id=<fine-tune run>
python -m entrypoints.prune --source_run_id <fine-tune run> --budget 0.6 --criterion auto
"""

from bertdyn.steps.prune_config import PruneConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Cut the heads and feed-forward neurons that matter least out of a fine-tuned model, by a budget (of FLOPs, "
    "parameters or measured latency), thresholds or ratios; make up for them; train on; and measure what is left, "
    "beside the unpruned model and random and magnitude pruning of the same size. The result is a Hugging Face model "
    "that reloads without bertdyn, and an ONNX file."
)


def main() -> None:
    config, _ = parse(PruneConfig, DESCRIPTION)
    launch(config)


def launch(config: PruneConfig) -> None:
    """Open the run, prune, and say what came out and what can follow."""
    from bertdyn.steps.pruning import prune
    from bertdyn.steps.pruning_seeds import prune_seeds
    from bertdyn.steps.sources import MODEL_STAGES, label_of, tags_of
    from bertdyn.tracking.locations import require_source
    from bertdyn.tracking.logged_models import check_register_as

    if config.register_as:
        check_register_as(config.register_as)
    if config.source_run_id:
        require_source(config.source_run_id, MODEL_STAGES)
    name = config.run_name or f"prune-{label_of(config)}"
    with open_tracker("prune", run_name=name, tags=tags_of(config)) as tracker:
        result = prune_seeds(config, tracker) if config.seeds else prune(config, tracker)
    print(f"\n{result.summary}\n\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    if not config.seeds:
        print(f"load     bertdyn: --model_name_or_path runs:/{tracker.run_id}/checkpoints/best")
        print(f"go on    mlflow run . -e extract --env-manager local -P source_run_id={tracker.run_id}")


if __name__ == "__main__":
    run(main)
