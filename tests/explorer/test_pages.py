"""Every page on real runs: what it shows is what the runs found."""

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.features.store import FeatureStore
from bertdyn.geometry.pca import fixed_basis
from bertdyn.models.loading import load_encoder, load_tokenizer
from bertdyn.sae.export import load_dictionary
from bertdyn.sae.reading import read_text
from tests.end_to_end.conftest import artifacts
from tests.explorer.story import LABELS


def html_of(page: AppTest) -> str:
    return "\n".join(element.proto.body for element in page.get("html"))


def pictures(page: AppTest) -> int:
    return len(page.get("image"))


def captions(page: AppTest) -> str:
    return "\n".join(element.value for element in page.caption)


def headings(page: AppTest) -> list[str]:
    return [element.value for element in page.subheader]


def box(page: AppTest, label: str):
    return next(each for each in page.selectbox if each.label.startswith(label))


def table(story, step: str, name: str) -> pd.DataFrame:
    return pd.read_parquet(artifacts(story.run(step)) / f"{name}.parquet")


def test_dynamics(open_page, store):
    page = open_page("dynamics")
    assert headings(page) == [
        "What moved, by layer and epoch",
        "How the texts part ways",
        "Loss and validation score",
        "What moved, by component",
    ]
    assert pictures(page) == 3
    slider = page.select_slider[0]
    assert slider.options == ["epoch 0", "epoch 1", "epoch 2"]
    features = FeatureStore.open(artifacts(store.run("fine-tune")) / "features")
    for layer, state in ((2, 2), (1, 0)):
        box(page, "Layer").set_value(layer)
        page.select_slider[0].set_value(state)
        page.run()
        across, up = fixed_basis([features.array("first", s, layer) for s in features.states]).explained[state]
        assert (
            f"Layer {layer}, first token, epoch {state}: {across:.0%} of its variance across, {up:.0%} up"
            in captions(page)
        )


def test_dynamics_of_a_run_that_has_not_drawn_its_figures_yet(open_page, monkeypatch):
    monkeypatch.setattr("explorer.artifacts.figure", lambda run, name: None)
    assert pictures(open_page("dynamics")) == 3


def test_similarity(open_page, store):
    page = open_page("similarity")
    assert pictures(page) == 2
    similarity = table(store, "compare", "similarity")
    pd.testing.assert_frame_equal(
        page.dataframe[0].value.reset_index(drop=True), similarity.reset_index(drop=True), check_dtype=False
    )
    for what in box(page, "What of it").options:
        assert what in (
            "Isotropy and rank",
            "How far the classes are apart",
            "Cosines between tokens of one text",
            "Norms and outlier dimensions",
        )
    for what in ("class_geometry", "cosine_distributions", "norms"):
        box(page, "What of it").set_value(what).run()
        assert not page.exception
        assert pictures(page) == 2


def test_probes(open_page, store):
    page = open_page("probes")
    assert pictures(page) == 2
    for what in ("paired", "selectivity", "code length", "transfer"):
        box(page, "What").set_value(what).run()
        assert not page.exception
    page.multiselect[0].set_value(["best"]).run()
    probes = table(store, "probe", "probes")
    assert set(page.dataframe[0].value["state"].dropna()) - {""} == {"best"}
    shown = page.dataframe[0].value
    assert len(shown) == len(probes[(probes["state"] == "best") | probes["layer"].isna()])
    page.multiselect[0].set_value([]).run()
    assert [info.value for info in page.info] == ["Choose a state."]


def test_features_are_found_sorted_and_escaped(open_page, store):
    page = open_page("features")
    shown = table(store, "sae", "shown_latents")
    box(page, "Dictionaries").set_value("shared").run()
    cards = page.dataframe[0].value
    layer = box(page, "Layer").value
    own = shown[(shown["comparison"] == "shared") & (shown["layer"] == layer) & (shown["state"] == "pretrained")]
    assert sorted(cards["before"]) == sorted(own["latent"])
    assert cards["before"].tolist() == cards["after"].tolist()
    auc = cards[["auc_before", "auc_after"]].max(axis="columns").sub(0.5).abs()
    assert auc.tolist() == sorted(auc, reverse=True)
    box(page, "Sort by").set_value("on most often").run()
    density = page.dataframe[0].value[["density_before", "density_after"]].max(axis="columns")
    assert density.tolist() == sorted(density, reverse=True)
    number = int(cards["before"].iloc[-1])
    page.text_input[0].set_value(f" {number} ").run()
    assert str(number) in box(page, "Latent").options[0]
    page.text_input[0].set_value("nowhere to be found").run()
    assert "Nothing is found for `nowhere to be found`" in page.info[0].value


def test_examples_are_those_of_the_run(open_page, store):
    page = open_page("features")
    box(page, "Dictionaries").set_value("shared").run()
    card = page.dataframe[0].value.iloc[0]
    examples = table(store, "sae", "examples")
    here = (examples["comparison"] == "shared") & (examples["layer"] == box(page, "Layer").value)
    body = html_of(page)
    for state, side in (("pretrained", "before"), ("best", "after")):
        own = examples[here & (examples["state"] == state) & (examples["latent"] == card[side])]
        assert len(own)
        for row in own.itertuples():
            assert f"<small>{row.activation:.2f} · " in body
            assert row.example_id in body
    assert "&lt;script&gt;" in body
    assert "<script" not in body
    assert f"{LABELS[0]}" not in body
    assert "&lt;i&gt;bad&lt;/i&gt;" in body


def test_independent_dictionaries_of_two_seeds(open_page):
    page = open_page("features")
    box(page, "Dictionaries").set_value("independent").run()
    assert not page.exception
    cards = page.dataframe[0].value
    assert set(cards.columns) >= {"before", "after", "cosine", "words_before", "words_after"}
    for number in range(len(cards)):
        box(page, "Latent").set_value(number).run()
        assert not page.exception


TEXT = "a <script>window.harmed = 1</script> truly wonderful film"


def test_a_sentence_is_read_as_the_checkpoints_read_it(open_page, store):
    page = open_page("sentence")
    page.text_area[0].set_value(TEXT).run()
    box(page, "Dictionaries").set_value("shared").run()
    assert not page.exception
    body = html_of(page)
    assert "<script" not in body
    assert "script" in body
    assert "wonderful" in body
    tuned, sae = artifacts(store.run("fine-tune")), artifacts(store.run("sae"))
    checkpoint = tuned / "checkpoints" / "epoch_000"
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )
    with torch.inference_mode():
        said = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].softmax(-1)
    most = int(said.argmax())
    told = next(each.value for each in page.markdown if each.value.startswith("pretrained: "))
    assert told.startswith(f"pretrained: **{said[most]:.1%}** `{LABELS[most]}`")
    for layer in (1, 2):
        dictionary = load_dictionary(sae / f"dictionaries/shared/pretrained/layer_{layer:02d}/seed_0_3")
        reading = read_text(load_encoder(str(checkpoint)), load_tokenizer(str(checkpoint)), dictionary, layer, [TEXT])
        content = reading[~reading["is_special"]]
        picked = [b.value for b in page.selectbox if b.label.startswith("Latent")][layer - 1]
        highest = content.loc[content["latent"] == picked, "activation"].max()
        highest = 0.0 if np.isnan(highest) else highest
        assert f"pretrained: latent {picked}, at most {highest:.2f}" in captions(page)


def test_an_empty_sentence_is_asked_for(open_page):
    page = open_page("sentence")
    page.text_area[0].set_value("   ").run()
    assert [info.value for info in page.info] == ["Type a text."]


def test_pruned_models_and_trials(open_page, store):
    page = open_page("pruning")
    assert headings(page)[:2] == ["What stays of each layer", "Nearness to the dense model, on the test part"]
    costs = table(store, "prune", "costs").set_index("model")
    box(page, "Run").set_value(store.step("prune")).run()
    shown = {metric.label: metric.value for metric in page.metric}
    for name, label in (("encoder_flops", "encoder FLOPs"), ("parameters", "parameters")):
        assert shown[label] == f"{costs.at['pruned', name] / costs.at['dense', name]:.1%}"
    page.segmented_control[0].set_value("Sweeps: what can be had at which cost").run()
    assert not page.exception
    assert headings(page) == ["What can be had at which cost"]
    assert len(page.dataframe[0].value) == len(table(store, "sweep-pruning", "trials"))


@pytest.mark.parametrize("step", ["fine-tune", "sae", "sweep-pruning"])
def test_any_run_fills_all_pages(open_page, store, step):
    for name, pictures_there in (("dynamics", 3), ("similarity", 2), ("probes", 2), ("pruning", 4)):
        page = open_page(name, store.step(step))
        assert pictures(page) >= pictures_there, name


def test_what_is_not_there_is_said_with_the_command_that_makes_it(open_page, store):
    client = store.workplace.client()
    experiment = client.get_experiment_by_name("bertdyn").experiment_id
    alone = client.create_run(experiment, run_name="`odd` <b>name</b>", tags={"bertdyn.stage": "fine-tune"})
    try:
        for name, stage in (("similarity", "compare"), ("probes", "probe"), ("features", "sae"), ("sentence", "sae")):
            page = open_page(name, alone.info.run_id)
            assert f"has no {stage} run" in page.info[0].value
            assert page.code[0].value.splitlines()[-1].startswith(f"mlflow run . -e {stage} --env-manager local")
        page = open_page("dynamics", alone.info.run_id)
        assert "has no dynamics yet" in page.info[0].value
        assert "This run is running" in page.warning[0].value
    finally:
        client.delete_run(alone.info.run_id)
