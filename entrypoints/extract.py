"""Store what happens inside an encoder: hidden states and other activations of a run's checkpoints, or of any model.

mlflow run . -e extract --env-manager local -P source_run_id=<fine-tune run>
python -m entrypoints.extract --source_run_id <fine-tune run> --states all --rows first
"""

from bertdyn.steps.config import ExtractConfig
from entrypoints.command import open_tracker, parse, run
from entrypoints.fine_tune import see_it

DESCRIPTION = (
    "Store activations of a fine-tuned encoder, before and after training or at every epoch, aligned row by row: a "
    "feature store that compare, probe and sae read by this run's id, and NumPy and pandas without us. The texts are "
    "those of the fine-tune run; or give --model_name_or_path and the data options."
)


def main() -> None:
    config, given = parse(ExtractConfig, DESCRIPTION)
    launch(config, given)


def launch(config: ExtractConfig, given: set[str]) -> None:
    """Open the run (or the interrupted one), extract, and say what can follow."""
    from bertdyn.steps.extraction import extract
    from bertdyn.steps.resuming import resumed_config
    from bertdyn.steps.sources import label_of, tags_of, with_source_data

    if config.resume_run_id:
        config = resumed_config(config, given)
    config = with_source_data(config)
    with open_tracker(
        "extract",
        run_name=config.run_name or f"extract-{label_of(config)}",
        tags=tags_of(config),
        resume_run_id=config.resume_run_id,
    ) as tracker:
        result = extract(config, tracker)
    if result.summary:  # the main process's
        print(f"\n{result.summary}\nrun id   {tracker.run_id}\nresults  {tracker.folder}\n{see_it(tracker.uri)}")
        for number, step in enumerate(("compare", "probe", "sae")):
            word = "or   " if number else "go on"
            print(f"{word}    mlflow run . -e {step} --env-manager local -P source_run_id={tracker.run_id}")


if __name__ == "__main__":
    run(main)
