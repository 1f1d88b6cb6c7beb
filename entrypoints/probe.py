"""Ask what each layer of an encoder knows, state by state, beside honest baselines.

mlflow run . -e probe --env-manager local -P source_run_id=<extract run>
python -m entrypoints.probe --source_run_id <extract run> --targets label,flesch_kincaid
"""

from bertdyn.steps.probe_config import ProbeConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Fit probes to every layer and state of an extract run: what can be read off (the label, properties of the text, "
    "any column), beside majority, TF-IDF, a random encoder, shuffled labels and layer 0; cross-validated, with "
    "intervals over texts and paired tests. On SQuAD 2.0: span probes, scored by the official metric."
)


def main() -> None:
    config, _ = parse(ProbeConfig, DESCRIPTION)
    launch(config)


def launch(config: ProbeConfig) -> None:
    """Open the run, probe, and say where to look."""
    from bertdyn.steps.extract_runs import label_of_runs, open_runs, tags_of
    from bertdyn.steps.probing import probe

    runs = open_runs(config)
    run_name = config.run_name or f"probe-{label_of_runs(runs)}"
    with open_tracker("probe", run_name=run_name, tags=tags_of(runs)) as tracker:
        result = probe(config, tracker, runs[0])
    print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
    if "train" in runs[0].config.parts.split(",") and "tokens" in runs[0].store.manifest.arrays:
        print(f"go on    mlflow run . -e sae --env-manager local -P source_run_id={config.source_run_id}")


if __name__ == "__main__":
    run(main)
