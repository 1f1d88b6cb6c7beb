"""What the comparisons have in common: who is alive, and shares of fates."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from bertdyn.errors import InputError
from bertdyn.sae.fates import FATES, POSSIBLE, alive, share_table
from bertdyn.sae.independent_fates import independent_fates
from tests.sae.test_independent_fates import BEFORE, DIED, FOUND_ONCE, before_and_after


def test_alive_takes_some_rows_however_few_there_are():
    density = np.array([0, 1 / 800, 7 / 800, 8 / 800])
    assert alive(density, 800).tolist() == [False, False, False, True]
    assert alive(np.array([4e-4, 5e-4]), 1_000_000).tolist() == [False, True]


def test_shares_are_means_over_seeds_with_students_interval():
    states, _ = before_and_after()
    shares = share_table(pd.concat([independent_fates(states).assign(layer=layer) for layer in (2, 4)]))
    assert shares.groupby(["layer", "side"], sort=False)["share"].sum().to_list() == pytest.approx([1] * 4)
    assert shares.groupby(["layer", "side"], sort=False)["floor"].sum().to_list() == pytest.approx([1] * 4)
    row = shares.set_index(["layer", "side", "fate"]).loc[(4, "before", "died")]
    assert row["share"] == pytest.approx(len(DIED) / len(BEFORE))  # of stable latents alone
    assert (row["floor"], row["num_seeds"]) == (0, 3)
    assert (row["num_counted"], row["num_latents"]) == (len(BEFORE), len(BEFORE) + FOUND_ONCE)
    made = pd.DataFrame(
        {"comparison": "shared", "layer": 2, "state": "best", "side": "both", "seed": [0] * 4 + [1] * 4 + [2] * 5}
    )
    made["share_fate"] = ["died", *["kept"] * 3] * 2 + ["died", "died", *["kept"] * 3]
    made["floor_fate"] = ["died", *["kept"] * 3] + ["kept"] * 9
    row = share_table(made).set_index("fate").loc["died"]
    for column, values in (("share", [0.25, 0.25, 0.4]), ("floor", [0.25, 0, 0]), ("excess", [0, 0.25, 0.4])):
        mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(3)
        expected = np.array([mean, *student_t.interval(0.95, 2, mean, error)])
        expected = expected if column == "excess" else expected.clip(0, 1)
        np.testing.assert_allclose(row[[column, f"{column}_low", f"{column}_high"]].to_numpy(dtype=float), expected)
    with pytest.raises(InputError, match="no column layer"):
        share_table(made.drop(columns="layer"))


def test_fewer_than_three_seeds_have_no_interval():
    made = pd.DataFrame({"comparison": "shared", "layer": 2, "state": "best", "side": "both", "seed": [0, 0, 1, 1, 2]})
    made["share_fate"], made["floor_fate"] = ["died", "kept", "kept", "kept", "died"], "kept"
    ends = [f"{name}_{end}" for name in ("share", "floor", "excess") for end in ("low", "high")]
    for seeds, share in ((1, 0.5), (2, 0.25), (3, 0.5)):
        row = share_table(made[made["seed"] < seeds]).set_index("fate").loc["died"]
        assert row["share"] == pytest.approx(share)
        assert row[ends].notna().all() == (seeds == 3)
        assert row[ends].isna().all() == (seeds < 3)


def test_a_seed_without_stable_latents_has_no_share():
    made = pd.DataFrame({"comparison": "independent", "layer": 2, "state": "best", "side": "before"}, index=range(6))
    made["seed"] = [0, 0, 1, 1, 2, 2]
    made["share_fate"] = ["died", "unstable", "kept", "kept", "unstable", "unstable"]
    made["floor_fate"] = ["kept", "unstable", "kept", "kept", "unstable", "unstable"]
    row = share_table(made).set_index("fate").loc["died"]
    assert (row["share"], row["floor"], row["num_seeds"]) == (0.5, 0, 2)
    assert (row["num_latents"], row["num_counted"]) == (2, 1)
    assert np.isnan(row["share_low"])
    assert share_table(made[made["seed"] == 2]).empty


def test_every_fate_that_is_counted_is_one():
    assert {fate for fates in POSSIBLE.values() for fate in fates} == set(FATES)
