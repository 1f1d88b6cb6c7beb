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
    from bertdyn.steps.extract_runs import label_of_runs, open_runs, tags_of

    runs = open_runs(config)
    run_name = config.run_name or f"compare-{label_of_runs(runs)}"
    with open_tracker("compare", run_name=run_name, tags=tags_of(runs)) as tracker:
        result = compare(config, tracker, runs)
    print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    if len(runs) == 1 and config.part == CompareConfig.part and runs[0].config.task == "classification":
        sources = f"-P source_run_id={runs[0].run_id} -P compare_run_id={tracker.run_id}"
        print(f"go on    mlflow run . -e probe --env-manager local {sources}")


if __name__ == "__main__":
    run(main)
