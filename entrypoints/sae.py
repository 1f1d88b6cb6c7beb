"""Sparse autoencoders: which features of an encoder appear, survive and die in fine-tuning, and pages to read them.

mlflow run . -e sae --env-manager local -P source_run_id=<extract run>
python -m entrypoints.sae --source_run_id <extract run> --layers 2,4,6 --k 32 --frontier 8,16,64 --seeds 0,1,2
"""

from bertdyn.steps.sae_config import SaeConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Train sparse dictionaries on the layers of an extract run, before and after fine-tuning: shared by all states, "
    "continued from state to state, and independent ones that are matched. Says which latents were born, kept, "
    "turned, grew, faded or died beside what happens without fine-tuning, how good the dictionaries are beside PCA, "
    "random directions and random weights, and what the classifier loses with reconstructions in place; with pages "
    "to read."
)


def main() -> None:
    config, given = parse(SaeConfig, DESCRIPTION)
    launch(config, given)


def launch(config: SaeConfig, given: set[str]) -> None:
    """Open the run (or the interrupted one), train, study, and say where to look."""
    from bertdyn.steps.dictionaries import sae
    from bertdyn.steps.extract_runs import label_of_runs, open_runs, tags_of
    from bertdyn.steps.resuming import resumed_config

    if config.resume_run_id:
        config = resumed_config(config, given)
    runs = open_runs(config)
    with open_tracker(
        "sae",
        run_name=config.run_name or f"sae-{label_of_runs(runs)}",
        tags=tags_of(runs),
        resume_run_id=config.resume_run_id,
    ) as tracker:
        result = sae(config, tracker, runs[0])
    if result.summary:  # the main process's
        print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    if result.summary and (tracker.folder / "pages").exists():
        print(f"read     {tracker.folder / 'pages'}   (in a browser, or under Artifacts in the MLflow UI)")


if __name__ == "__main__":
    run(main)
