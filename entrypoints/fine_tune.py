"""Fine-tune an encoder on text classification or question answering and keep what happens to it, epoch by epoch.

mlflow run . -e fine-tune --env-manager local -P dataset=sst2 -P seeds=0,1,2
python -m entrypoints.fine_tune --dataset sst2 --seeds 0,1,2
"""

from bertdyn.steps.config import FineTuneConfig
from entrypoints.command import open_tracker, parse, run

DESCRIPTION = (
    "Fine-tune an encoder on text classification, or on SQuAD 2.0 (--dataset squad_v2). Every epoch's checkpoint, "
    "parameter and gradient norms and pooled features are kept in an MLflow run, from before the first step on. The "
    "run id that is printed at the end is how later commands find it all."
)


def main() -> None:
    config, given = parse(FineTuneConfig, DESCRIPTION)
    launch(config, given)


def launch(config: FineTuneConfig, given: set[str]) -> None:
    """Open the run (or the interrupted one), fine-tune, and say what came out and what can follow."""
    from bertdyn.steps.fine_tuning import fine_tune
    from bertdyn.steps.resuming import resumed_config
    from bertdyn.steps.seeds import fine_tune_seeds
    from bertdyn.tracking.logged_models import check_register_as

    if config.resume_run_id:
        config = resumed_config(config, given)
    if config.register_as:
        check_register_as(config.register_as)
    with open_tracker(
        "fine-tune",
        run_name=config.run_name or config.label(),
        tags=config.tags(),
        resume_run_id=config.resume_run_id,
    ) as tracker:
        result = fine_tune_seeds(config, tracker) if config.seeds else fine_tune(config, tracker)
    if result.summary:  # the main process's
        print(f"\n{result.summary}\n\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
        if not config.seeds:
            print(f"go on    mlflow run . -e extract --env-manager local -P source_run_id={tracker.run_id}")
            print(f"or       mlflow run . -e prune --env-manager local -P source_run_id={tracker.run_id}")


def see_it(uri: str | None) -> str:
    """How to open the MLflow UI on what was recorded; a password in the URI is not shown."""
    from bertdyn.tracking.store import shown

    if not uri or uri.startswith("http"):
        return f"see it   {shown(uri or '')}"
    return f"see it   mlflow ui --workers 1 --backend-store-uri {shown(uri)}   (then http://127.0.0.1:5000)"


if __name__ == "__main__":
    run(main)
