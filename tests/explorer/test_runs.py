"""Which runs belong together."""

from datetime import datetime

from explorer.runs import RunInfo, family_of, how_to_make


def run(run_id: str, stage: str, *sources: str, parent: str = "", steps: tuple[str, ...] = (), status="FINISHED"):
    started = datetime(2026, 1, 1)
    return RunInfo(run_id, run_id, stage, status, "sst2", "minilm", started, "1", "bertdyn", sources, parent, steps)


TUNED, OTHER = run("tuned", "fine-tune"), run("other", "fine-tune")
EXTRACT, EXTRACT_2 = run("extract", "extract", "tuned"), run("extract-2", "extract", "tuned")
SAE, PROBE, PROBE_2 = (
    run("sae", "sae", "extract"),
    run("probe", "probe", "extract"),
    run("probe-2", "probe", "extract-2"),
)
PRUNE, OF_OTHER = run("prune", "prune", "tuned"), run("extract-o", "extract", "other")
OF_BOTH = run("compare", "compare", "extract", "extract-o")
RUNS = [OF_BOTH, OF_OTHER, PRUNE, PROBE_2, PROBE, SAE, EXTRACT_2, EXTRACT, OTHER, TUNED]


def ids(runs: list[RunInfo]) -> list[str]:
    return [one.run_id for one in runs]


def test_everything_that_came_of_a_fine_tuning():
    family = family_of(TUNED, RUNS)
    assert family.runs[0] is TUNED
    assert set(ids(family.runs)) == {"tuned", "extract", "extract-2", "sae", "probe", "probe-2", "prune", "compare"}
    assert ids(family.of("extract")) == ["extract-2", "extract"]


def test_the_nearest_relatives_come_first():
    assert ids(family_of(SAE, RUNS).of("probe")) == ["probe", "probe-2"]
    assert ids(family_of(PROBE_2, RUNS).of("extract")) == ["extract-2", "extract"]
    assert ids(family_of(PROBE_2, RUNS).of("sae")) == ["sae"]


def test_a_comparison_of_two_encoders_brings_both():
    assert ids(family_of(OF_BOTH, RUNS).of("fine-tune")) == ["tuned", "other"]


def test_a_pipeline_shows_its_steps_first_also_those_that_were_there_before():
    pipeline = run("pipeline", "pipeline", steps=("tuned", "extract", "probe"))
    family = family_of(pipeline, [pipeline, *RUNS])
    assert ids(family.runs)[:4] == ["pipeline", "tuned", "extract", "probe"]
    assert ids(family.of("extract")) == ["extract", "extract-2"]
    assert "other" not in ids(family.runs)


def test_seeds_belong_to_their_run_and_not_to_each_other():
    parent = run("seeds", "fine-tune")
    seeds = [run(f"seed-{seed}", "fine-tune", parent="seeds") for seed in (0, 1)]
    assert ids(family_of(parent, [parent, *seeds]).of("fine-tune")) == ["seed-0", "seed-1", "seeds"]
    assert ids(family_of(seeds[0], [parent, *seeds]).of("fine-tune")) == ["seed-0"]


def test_what_is_over_is_shown_before_what_is_going_on():
    going = run("going", "sae", "extract", status="RUNNING")
    assert ids(family_of(TUNED, [going, *RUNS]).of("sae")) == ["sae", "going"]


def test_a_run_that_is_in_no_list_is_the_centre_of_its_family():
    trial = run("trial", "sweep-pruning-trial", parent="sweep")
    assert ids(family_of(trial, RUNS).runs) == ["trial"]


def test_a_circle_of_sources_ends():
    one, other = run("a", "fine-tune", "b"), run("b", "fine-tune", "a")
    assert ids(family_of(one, [one, other]).runs) == ["a", "b"]


def test_the_commands_that_make_what_is_missing():
    assert how_to_make("sae", family_of(EXTRACT, RUNS)) == [
        "mlflow run . -e sae --env-manager local -P source_run_id=extract"
    ]
    alone = family_of(OTHER, [OTHER])
    assert how_to_make("sae", alone) == [
        "mlflow run . -e extract --env-manager local -P source_run_id=other",
        "mlflow run . -e sae --env-manager local -P source_run_id=<extract run>",
    ]
    sweep = run("sweep", "sweep-freezing")
    assert how_to_make("probe", family_of(sweep, [sweep]))[0] == "mlflow run . -e fine-tune --env-manager local"
