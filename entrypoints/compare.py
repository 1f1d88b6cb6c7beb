"""Compare what an encoder makes of the same texts in several states, or several encoders, with controls.

mlflow run . -e compare --env-manager local -P source_run_id=<extract run>
python -m entrypoints.compare --run_ids <extract run>,<extract run>
"""

from bertdyn.steps.config import CompareConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Compare the states of an extract run (before and after fine-tuning, epoch by epoch), layer by layer: cosines with "
    "their anisotropy controls, debiased CKA, Procrustes, neighbourhoods; and the geometry of each state: isotropy, "
    "rank, spread, classes. Everything with an interval over texts. --run_ids compares several runs."
)


def main() -> None:
    config, _ = parse(CompareConfig, DESCRIPTION)
    launch(config)


def launch(config: CompareConfig) -> None:
    """Open the run, compare, and say what can follow."""
    from bertdyn.steps.comparison import compare
    from bertdyn.steps.extract_runs import name_of, open_runs, tags_of

    runs = open_runs(config)
    with open_tracker("compare", run_name=config.run_name or name_of("compare", runs), tags=tags_of(runs)) as tracker:
        result = compare(config, tracker, runs)
    print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")


if __name__ == "__main__":
    run(main)
