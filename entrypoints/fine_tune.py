"""Fine-tune an encoder on text classification and keep what happens to it, epoch by epoch.

mlflow run . -e fine-tune --env-manager local -P dataset=sst2 -P seeds=0,1,2
python -m entrypoints.fine_tune --dataset sst2 --seeds 0,1,2
"""

from bertdyn.steps.config import FineTuneConfig
from entrypoints.command import parse, run

DESCRIPTION = (
    "Fine-tune an encoder on text classification. Every epoch's checkpoint, parameter and gradient norms and "
    "pooled features are kept; extract, compare, probe, sae and prune start from the run that this command prints."
)


def main() -> None:
    config, given = parse(FineTuneConfig, DESCRIPTION)
    launch(config, given)


def launch(config: FineTuneConfig, given: set[str]) -> None:
    """Open the run (or the interrupted one), fine-tune, and say what came out and what can follow."""
    from bertdyn.steps.fine_tune import fine_tune, fine_tune_seeds, resumed_config
    from bertdyn.tracking.runs import open_run

    if config.resume_run_id:
        config = resumed_config(config, given)
    seeds = config.seed_list()
    name = config.run_name or config.default_run_name(config.seed)
    with open_run(
        "fine-tune",
        run_name=name if not seeds else name.replace(f"-s{config.seed}-", f"-{len(seeds)}-seeds-"),
        tags={"bertdyn.model": config.model_name_or_path, "bertdyn.dataset": config.dataset},
        resume_run_id=config.resume_run_id,
    ) as tracker:
        result = fine_tune_seeds(config, tracker) if seeds else fine_tune(config, tracker)
    if tracker.run_id:
        print(f"\n{result.summary}\n")
        print(f"run id      {tracker.run_id}")
        print(f"results     {tracker.folder}")
        print(
            f"see it      mlflow ui --workers 1{'' if 'mlflow.db' in str(tracker.uri) else f' --backend-store-uri {tracker.uri}'}"
        )


if __name__ == "__main__":
    run(main)
