"""What stands beside what on a page, that its words are true of it, and that the tables hold what it shows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from bertdyn.features.store import FeatureStore
from bertdyn.sae.dictionary import Dictionary, encode
from bertdyn.sae.fates import MIN_ROWS
from bertdyn.sae.latents import activation_change
from bertdyn.sae.naming import Name
from bertdyn.steps import sae_page_sides, sae_pages
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sae_latents import latent_tables
from bertdyn.steps.sae_page_pairs import chosen, measured, pairs_of, right_seeds
from bertdyn.steps.sae_page_sides import OneSide, Reader
from bertdyn.steps.sae_page_words import METRICS
from bertdyn.steps.sae_pages import write_pages
from bertdyn.steps.sae_report import Studied
from bertdyn.steps.sae_rows import part_rows
from bertdyn.tracking.tracker import Tracker
from tests.features.test_aligned import write_store

WIDTH, LATENTS, ROWS = 16, 12, 400


# Pairs ---------------------------------------------------------------------------------------------------------------


def side(state, seed, *, comparison="independent", directions=None, rare=()) -> OneSide:
    """Random codes; `rare` latents are on in one row, the last latent in none."""
    rng = np.random.default_rng([seed, len(state)])
    codes = np.where(rng.random((ROWS, LATENTS)) < 0.2, rng.exponential(size=(ROWS, LATENTS)), 0)
    codes[1:, list(rare)] = 0
    codes[0, list(rare)] = 1
    codes[:, -1] = 0
    directions = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:LATENTS] if directions is None else directions
    features = pd.DataFrame(
        {
            "latent": np.arange(LATENTS),
            "density": (codes > 0).mean(axis=0),
            "variance": codes.var(axis=0),
            "strength": np.sqrt((codes**2).mean(axis=0)),
            "auc": np.where(codes.any(axis=0), rng.random(LATENTS), np.nan),
        }
    )
    name = Name(comparison, state, 1, seed, 2.0)
    return OneSide(name, None, directions, scipy.sparse.csr_array(codes), features, pd.DataFrame(), None)


def fate_rows(side, **columns) -> pd.DataFrame:
    filled = {"fate": "kept", "partner": -1, "partner_seed": -1, "cosine": 0.9, "floor_cosine": 0.95}
    return pd.DataFrame({"side": side} | filled | columns)


def test_the_same_seed_is_never_beside_itself():
    assert right_seeds("independent", [3]) == [3]  # where nothing is paired
    assert right_seeds("independent", [3, 1]) == [1]
    assert right_seeds("independent", [3, 1, 2]) == [3, 1, 2]
    assert right_seeds("shared", [3, 1, 2]) == right_seeds("stagewise", [3, 1]) == [3]


def test_of_three_seeds_the_partners_are_those_of_the_fates():
    before, after = side("pretrained", 3), {seed: side("best", seed) for seed in (3, 1, 2)}
    fates = pd.concat(
        [
            fate_rows("before", latent=[0, 1], partner=[5, 5], partner_seed=[1, 2], fate=["kept", "rotated"]),
            fate_rows("before", latent=[2, 3], fate=["died", "unstable"], cosine=[0.2, 0.3], floor_cosine=[0.8, 0.4]),
            fate_rows("after", latent=[0, 1], partner=[7, 8], partner_seed=2),
            fate_rows("after", latent=[4, 5], fate=["born", "unstable"], cosine=[0.1, 0.2]),
        ]
    )
    pairs = measured(pairs_of(before, after, fates, [3, 1, 2]), before, after)
    left = pairs[pairs["left"] >= 0]
    assert left["left"].tolist() == list(range(LATENTS))
    assert left[["right", "right_seed"]].to_numpy().tolist() == [[5, 1], [5, 2]] + [[-1, -1]] * (LATENTS - 2)
    assert left["fate"].tolist() == ["kept", "rotated", "died", "unstable"] + [""] * (LATENTS - 4)
    assert left["cosine"].tolist()[:4] == [0.9, 0.9, 0.2, 0.3]
    assert left["floor_cosine"].tolist()[:4] == [0.95, 0.95, 0.8, 0.4]
    right = pairs[pairs["left"] < 0].set_index("right")
    assert right.index.tolist() == list(range(2, LATENTS))  # not those that have a partner before
    assert set(right["right_seed"]) == {3}
    assert right.loc[[4, 5], "fate"].tolist() == ["born", "unstable"]
    assert right.loc[4, "cosine"] == 0.1
    for number, seed in ((0, 1), (1, 2)):
        columns = before.codes[:, [number]], after[seed].codes[:, [5]]
        assert pairs.loc[number, "change"] == activation_change(*map(scipy.sparse.csr_array, columns))[0]
        strengths = [of.features["strength"][latent] for of, latent in ((after[seed], 5), (before, number))]
        assert pairs.loc[number, "norm_ratio"] == pytest.approx(strengths[0] / strengths[1], rel=1e-12)
        assert pairs.loc[number, "auc"] == max(before.features["auc"][number], after[seed].features["auc"][5])
    assert pairs.loc[2:, ["change", "norm_ratio"]].isna().all().all()


def test_two_seeds_are_matched_where_they_are_near():
    """Latents of the other seed in another order, one turned by 80 degrees, one on too rarely to take part."""
    basis, order = np.eye(WIDTH), np.random.default_rng(0).permutation(LATENTS - 1)
    turned = basis[:LATENTS].copy()
    turned[3] = np.cos(np.radians(80)) * basis[3] + np.sin(np.radians(80)) * basis[-1]
    other = np.concatenate([turned[order], basis[[LATENTS - 1]]])
    before = side("pretrained", 3, directions=basis[:LATENTS], rare=[5])
    after = {1: side("best", 1, directions=other)}
    fates = fate_rows("before", latent=np.arange(LATENTS - 1), fate="", floor_cosine=0.8)
    pairs = pairs_of(before, after, fates, [3, 1])
    place = np.argsort(order)
    expected = [-1 if latent in (3, 5, LATENTS - 1) else place[latent] for latent in range(LATENTS)]
    left = pairs[pairs["left"] >= 0]
    assert left["right"].tolist() == expected
    assert left["right_seed"].tolist() == [-1 if partner < 0 else 1 for partner in expected]
    assert left["cosine"][0] == pytest.approx(1)
    assert left["floor_cosine"][0] == 0.8
    assert set(pairs["fate"]) == {""}
    assert set(pairs.loc[pairs["left"] < 0, "right"]) == {place[3], place[5], LATENTS - 1}
    assert set(pairs.loc[pairs["left"] < 0, "right_seed"]) == {1}


def test_one_seed_and_one_state_have_no_pairs():
    before = side("pretrained", 3)
    alone = pairs_of(before, {}, pd.DataFrame(), [3, 1])
    assert alone[["left", "right"]].to_numpy().tolist() == [[latent, -1] for latent in range(LATENTS)]
    both = pairs_of(before, {3: side("best", 3, directions=before.directions)}, pd.DataFrame(), [3])
    assert not ((both["left"] >= 0) & (both["right"] >= 0)).any()
    assert len(both) == 2 * LATENTS


def test_latents_that_keep_their_number_stand_beside_themselves():
    before, after = side("pretrained", 3, comparison="shared"), {3: side("best", 3, comparison="shared")}
    fates = fate_rows("both", latent=[0, 2], fate=["doubled", "died"])
    pairs = pairs_of(before, after, fates, [3, 1, 2])
    assert pairs[["left", "right", "right_seed"]].to_numpy().tolist() == [[i, i, 3] for i in range(LATENTS)]
    assert pairs["fate"].tolist() == ["doubled", "", "died"] + [""] * (LATENTS - 3)


def test_rankings_take_turns_and_change_has_pairs_alone():
    """Ten pairs among a hundred latents without one, which are all larger in everything else."""
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame({"left": np.arange(110), "density": 0.9 - 0.008 * np.arange(110)})
    pairs["variance"] = rng.permutation(110)[::-1] + 1.0
    pairs["auc"] = rng.random(110)
    pairs["change"] = np.where(pairs["left"] >= 100, rng.random(110), np.nan)
    pairs.loc[105, "density"] = (MIN_ROWS - 1) / ROWS  # too rare for AUC and change
    pairs.loc[105, ["auc", "change"]] = 1
    pairs.loc[104, ["density", "variance"]] = 0  # never on
    pairs.loc[7, "auc"] = np.nan
    found = chosen(pairs, 12, ROWS)
    known = pairs.drop(104)
    orders = [
        known.drop(105).dropna(subset="auc").sort_values("auc", ascending=False)["left"],
        known.drop(105).dropna(subset="change").sort_values("change", ascending=False)["left"],
        known.sort_values("variance", ascending=False)["left"],
        known.sort_values("density", ascending=False)["left"],
    ]
    expected = list(dict.fromkeys(np.stack([order[:8] for order in orders], axis=1).ravel().tolist()))
    assert found["left"].tolist() == expected[:12]
    assert (found["left"] >= 100).sum() >= 3
    every = chosen(pairs, 500, ROWS)
    assert sorted(every["left"]) == [i for i in range(110) if i != 104]
    assert len(chosen(pairs.drop(columns=["auc", "change"]), 5, ROWS)) == 5


# Pages ---------------------------------------------------------------------------------------------------------------

TEXTS = [(part, [f"[{'abcdefghij'[number % 5 : number % 5 + 5]}]"]) for part in ("train", "probe", "test")
         for number in range(60)]  # fmt: skip


def dictionary(seed) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, generator=generator), dim=1)
    zero, one = torch.zeros(WIDTH), torch.ones(WIDTH)
    return Dictionary("topk", 2, decoder.T.clone(), torch.zeros(LATENTS), decoder, zero, torch.tensor(0.0), zero, one)


class Case(SimpleNamespace):
    """What `write_pages` takes, of dictionaries that nobody has trained."""

    def write(self, folder, **options):
        config = SaeConfig(source_run_id="a1", comparisons=",".join(self.comparisons), page_latents=8)
        tracker = Tracker(folder)
        arguments = {"readable": [], "texts": None} | options
        return write_pages(config, tracker, self.run, self.found, self.dictionaries, self.rows, **arguments)


def make_case(folder, seeds=(0, 1, 2), states=("pretrained", "best"), comparisons=("shared", "independent")) -> Case:
    rng = np.random.default_rng(0)
    num_tokens = sum(len(windows[0]) for _, windows in TEXTS)
    arrays = {state: {1: rng.normal(size=(num_tokens, WIDTH)).astype(np.float32)} for state in states}
    store = write_store(folder / "store", arrays, TEXTS)
    tokens = store.tokens()
    tokens = tokens.assign(segment=0, word_id=tokens["position"], char_start=tokens["position"])
    tokens.assign(char_end=tokens["position"] + 1).to_parquet(store.folder / "tokens.parquet", index=False)
    examples = store.examples()
    predictions = {f"prediction_{state}": (np.arange(len(examples)) + 1) % 2 for state in states}
    examples.assign(**predictions).to_parquet(store.folder / "examples.parquet", index=False)
    store = FeatureStore.open(store.folder)
    names = [Name(comparison, state, 1, seed, 2.0) for comparison in comparisons for state in states for seed in seeds]
    # seeds find the same but for a turn; shared dictionaries are the same in both states
    first, noise = dictionary(9), [dictionary(seed).decoder for seed in range(30)]
    dictionaries = {}
    for name in names:
        turn = noise[name.seed + (10 * states.index(name.state) if name.comparison == "independent" else 0)]
        decoder = torch.nn.functional.normalize(first.decoder + 0.3 * turn, dim=1)
        dictionaries[name] = first._replace(encoder=decoder.T.clone(), decoder=decoder)
    rows = part_rows(store, states, [1], "content", ["probe"])
    latents = latent_tables(dictionaries, dict.fromkeys(states, rows), states, [1], 2, comparisons=comparisons)
    errors = pd.DataFrame([name._asdict() | {"rows": "content", "num_latents": LATENTS} for name in names])
    numbers = {column: np.arange(len(names)) + 0.01 * i for i, (column, _) in enumerate(METRICS.values())}
    fields = dict.fromkeys(Studied._fields, ()) | {
        "label": "toy", "rows": "content", "part": "probe", "states": list(states), "layers": [1],
        "seeds": list(seeds), "sparsity": 2.0, "errors": errors.assign(**numbers), "latents": latents,
    }  # fmt: skip
    run = ExtractRun("a1", "toy", ExtractConfig(model_name_or_path="model-a1"), store, list(states))
    found = Studied(**fields)
    return Case(run=run, found=found, dictionaries=dictionaries, rows=rows, comparisons=comparisons)


@pytest.fixture
def shown_pages(monkeypatch) -> list:
    """What the pages are made of."""
    pages, make = [], sae_pages.feature_page
    monkeypatch.setattr(sae_pages, "feature_page", lambda page: (pages.append(page), make(page))[1])
    return pages


def column(case, state, seed, latent, comparison="independent") -> np.ndarray:
    """Activations in the rows of the part, by hand."""
    name = Name(comparison, state, 1, seed, 2.0)
    rows = torch.from_numpy(case.run.store.array("tokens", state, 1)[case.rows.numbers])
    return encode(case.dictionaries[name], rows)[:, latent].double().numpy()


def test_pages_and_tables_say_the_same(tmp_path, shown_pages, monkeypatch):
    case = make_case(tmp_path)
    read, every = [], FeatureStore.tokens
    monkeypatch.setattr(FeatureStore, "tokens", lambda *args: (read.append(args[1:]), every(*args))[1])
    done = case.write(tmp_path / "run")
    assert done == (done.examples, done.latents, ["pages/shared_layer_01.html", "pages/independent_layer_01.html"])
    probe = case.run.store.examples().query("part == 'probe'")
    [(_, span)] = read  # once for all pages, and no other part
    assert span == (probe["first_row"].min(), probe["first_row"].max() + probe["n_rows"].iloc[-1])
    fates = case.found.latents.fates.query("comparison == 'independent' and seed == 0 and side == 'before'")
    fates = fates.set_index("latent")
    page = shown_pages[1]
    assert len(page.cards) == 8
    assert {card.fate for card in page.cards} & {"kept", "rotated"}
    table = done.latents.query("comparison == 'independent'").set_index(["state", "seed", "latent"])
    assert len(table) == sum(of is not None for card in page.cards for of in card.sides)
    for card in page.cards:
        left, right = card.sides
        if left is None or right is None:
            assert np.isnan(card.change)
            continue
        expected = fates.loc[left.latent]
        assert (right.latent, right.dictionary) == (expected["partner"], f"seed {expected['partner_seed']}")
        assert (card.cosine, card.fate) == (expected["cosine"], expected["fate"])
        assert f"{expected['floor_cosine']:.2f} with another seed in pretrained" in card.note
        a, b = column(case, "pretrained", 0, left.latent), column(case, "best", expected["partner_seed"], right.latent)
        change = ((a - b) ** 2).sum() / ((a**2).sum() + (b**2).sum())
        assert card.change == pytest.approx(change, rel=1e-6)
        row = table.loc["pretrained", 0, left.latent]
        assert (row["partner"], row["partner_seed"]) == (right.latent, expected["partner_seed"])
        assert row["change"] == card.change
        mirrored = table.loc["best", expected["partner_seed"], right.latent]
        assert (mirrored["partner"], mirrored["partner_seed"], mirrored["change"]) == (left.latent, 0, card.change)
    for (state, seed, latent), row in table.iterrows():
        other = {"pretrained": "best", "best": "pretrained"}[state]
        assert row["nearest_seed"] != seed
        of, near = (case.dictionaries[Name("independent", s, 1, int(n), 2.0)].directions.numpy()
                    for s, n in ((state, seed), (other, row["nearest_seed"])))  # fmt: skip
        cosines = near @ of[latent]
        assert row["nearest"] == cosines.argmax()
        assert row["nearest_cosine"] == pytest.approx(cosines.max(), rel=1e-6)
    shared = done.latents.query("comparison == 'shared'")
    assert (shared["partner"] == shared["latent"]).all()
    assert set(zip(shared["state"], shared["seed"], strict=True)) == {("pretrained", 0), ("best", 0)}


def test_examples_have_the_names_of_their_classes(tmp_path, shown_pages, monkeypatch):
    """Predictions only where a head was trained; effects are what is lost, with the opposite sign."""
    case = make_case(tmp_path)

    def effects(model, dictionary, layer, texts, sequences, tokenizer, *, where):
        logits = np.array([[latent, 2 * latent] for latent in texts], dtype=float)
        return SimpleNamespace(latents=np.array(list(texts)), effects=logits)

    monkeypatch.setattr(sae_page_sides, "latent_effects", effects)
    monkeypatch.setattr(sae_pages, "_reader", lambda *_: Reader(None, None, None, "content"))
    done = case.write(tmp_path / "run", texts=object(), readable=["best"])
    labels = case.run.store.examples().set_index("example_id")["label"]
    for row in done.examples.itertuples():
        assert row.label == ["no", "yes"][labels[row.example_id]]
    best = done.examples["state"] == "best"
    predicted = [["yes", "no"][int(name[-4:]) % 2] for name in done.examples.loc[best, "example_id"]]
    assert done.examples.loc[best, "prediction"].tolist() == predicted
    assert done.examples.loc[~best, "prediction"].isna().all()
    table = done.latents
    assert table.loc[table["state"] == "pretrained", ["effect_no", "effect_yes"]].isna().all().all()
    of = table[table["state"] == "best"]
    assert (of["effect_no"] == -of["latent"]).all()
    assert (of["effect_yes"] == -2 * of["latent"]).all()
    for page in shown_pages:
        for left, right in (card.sides for card in page.cards):
            shown = [e for of in (left, right) if of for group in of.groups for e in group.examples]
            assert {e.label for e in shown} <= {"no", "yes"}
            assert right is None or [e.change for e in right.effects] == [-right.latent, -2 * right.latent]
            assert left is None or not left.effects
    done.examples.to_parquet(tmp_path / "examples.parquet")
    done.latents.to_parquet(tmp_path / "latents.parquet")


@pytest.mark.parametrize(("seeds", "paired", "said"), [
    ((0, 1, 2), True, "Left is seed 0 on pretrained; right, if the latent was kept or rotated, the nearest"),
    ((4, 1), True, "Left is seed 4 on pretrained, right seed 1 on best; latents are matched one to one"),
    ((4,), False, "no latent beside another: those of pretrained stand left, those of best right"),
])  # fmt: skip
def test_the_words_are_those_of_the_pairing(tmp_path, shown_pages, seeds, paired, said):
    case = make_case(tmp_path, seeds, comparisons=("independent",))
    done = case.write(tmp_path / "run")
    [page] = shown_pages
    assert said in page.summary[0]
    assert any(all(card.sides) for card in page.cards) == paired
    assert all(of.dictionary != "seed 0" for card in page.cards if all(card.sides) for of in card.sides[1:])
    seed = {1: 4, 2: 1, 3: 0}[len(seeds)]  # of the header, right
    errors = case.found.errors.set_index(["state", "seed"])
    assert page.metrics[0].values == [errors.loc[("pretrained", seeds[0]), "fvu_standardized"],
                                      errors.loc[("best", seed), "fvu_standardized"]]  # fmt: skip
    for card in page.cards:
        if not all(card.sides):
            assert card.absent
            assert "counterpart" not in card.absent or card.fate in ("born", "died")
    if len(seeds) < 3:
        assert {card.fate for card in page.cards} == {""}
        assert not any("In this layer" in caveat for caveat in page.caveats)
    if len(seeds) == 1:
        assert {card.absent for card in page.cards} == {"Not paired: there is one seed."}
        assert (done.latents[["partner", "nearest"]] == -1).all().all()


def test_one_state_has_a_page_of_one_side(tmp_path, shown_pages):
    case = make_case(tmp_path, (0, 1), ("best",), ("independent",))
    done = case.write(tmp_path / "run")
    [page] = shown_pages
    assert list(page.states) == list(page.metric_columns) == ["best"]
    assert {len(card.sides) for card in page.cards} == {1}
    assert [len(metric.values) for metric in page.metrics] == [1] * len(METRICS)
    assert len(page.densities) == 1
    assert page.summary[0] == "Features of layer 1: a dictionary for the rows of best."
    assert set(done.latents["seed"]) == {0}
    assert (done.latents[["partner", "nearest"]] == -1).all().all()
    assert not done.examples.duplicated(["latent", "kind", "rank"]).any()


def test_the_classifier_is_on_the_device(tmp_path, monkeypatch):
    case = make_case(tmp_path, (0, 1), ("best",), ("independent",))
    texts = SimpleNamespace(data=None, tokens=None, tokenizer=None)
    sequences = SimpleNamespace(select=lambda numbers: numbers)
    of_part = SimpleNamespace(examples=case.run.store.examples().query("part == 'probe'"), sequences=sequences)
    monkeypatch.setattr(sae_pages, "texts_of", lambda *_: of_part)
    monkeypatch.setattr(sae_pages, "find_states", lambda *_: [None])
    monkeypatch.setattr(sae_pages, "load_state", lambda *_: torch.nn.Linear(2, 2))
    reader = sae_pages._reader(SaeConfig(source_run_id="a1"), case.run, texts, "best", case.rows, "meta")
    assert reader.model.weight.device.type == "meta"
    assert not reader.model.training
    assert reader.sequences.tolist() == list(range(60))
