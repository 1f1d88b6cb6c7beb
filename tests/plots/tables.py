"""Made-up tables in the shape of the real ones."""

import numpy as np
import pandas as pd

INTERVALS = {"cka": "jackknife", "procrustes": "none", "knn_overlap": "none", "knn_chance": "none"}


def similarity(
    layers=13,
    states=("pretrained", "best"),
    run="sst2-minilm-s0",
    kind="states",
    rows=("content", "first", "mean"),
    change=1.0,
    seed=0,
):
    """`states[0]` against each of the others; the change grows with the layer and with the state."""
    generator = np.random.default_rng(seed)
    found = []
    for order, state in enumerate(states[1:], start=1):
        for kind_of_rows in rows:
            for layer in range(layers):
                depth = layer / (layers - 1)
                moved = (
                    change * depth**2.5 * (order / (len(states) - 1)) ** 0.5 * (1.2 if kind_of_rows == "first" else 1)
                )
                level = 0.12 + 0.35 * depth + (0.1 if kind_of_rows != "content" else 0)
                constant = kind_of_rows == "first" and layer == 0
                values = {
                    "cosine": 1 - 0.5 * moved,
                    "cosine_centered": np.nan if constant else 1 - 0.68 * moved,
                    "cosine_random_pairs_a": 1.0 if constant else level,
                    "cosine_random_pairs_b": 1.0 if constant else level + 0.25 * moved,
                    "cosine_mismatched": 1.0 if constant else level - 0.18 * moved,
                    "cosine_of_means": 1 - 0.3 * moved,
                    "cka": np.nan if constant else 1 - 0.72 * moved,
                    "procrustes": np.nan if constant else 1.4 * moved,
                    "knn_overlap": np.nan if constant else 1 - 0.6 * moved,
                    "knn_chance": 0.004,
                }
                for measure, value in values.items():
                    interval = INTERVALS.get(measure, "bootstrap")
                    value += generator.normal(scale=0.004) * (value not in (1.0, 0.004))
                    value = max(value, 0) if measure == "procrustes" else min(value, 1)
                    half = 0.01 + 0.03 * depth if interval != "none" else np.nan
                    found.append(
                        (run, f"id-{run}", kind, states[0], state, layer, kind_of_rows, measure)
                        + (value, value - half, min(value + half, max(value, 1)))
                        + (2000 if interval == "none" else 17344 if kind_of_rows == "content" else 872, 872, interval)
                    )
    columns = "run run_id kind state_a state_b layer rows measure value low high num_rows num_examples interval"
    return pd.DataFrame(found, columns=columns.split())


def reseeded(layers=13, pairs=3, state="best"):
    """The same state of runs that differ by the seed."""
    tables = [
        similarity(layers, (state, state), f"sst2-minilm-s0 / s{i}", "reseeded", change=0.45 + 0.08 * i, seed=i)
        for i in range(1, pairs + 1)
    ]
    return pd.concat(tables, ignore_index=True)


def geometry(layers=13, states=("pretrained", "best"), run="sst2-minilm-s0", width=384, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for order, state in enumerate(states):
        tuned = order / max(len(states) - 1, 1)
        for kind_of_rows in ("content", "first", "mean"):
            for layer in range(layers):
                depth = layer / (layers - 1)
                moved = tuned**0.5 * depth**2.5 * (0.8 if kind_of_rows == "mean" else 1)
                norm = 9 + 14 * depth + 6 * moved
                values = {
                    "random_pair_cosine": 0.12 + 0.35 * depth + 0.1 * moved,
                    "within_text_cosine": 0.2 + 0.4 * depth + 0.3 * moved,
                    "within_text_cosine_variance": 0.03 * (1 - 0.6 * depth) + 0.01 * moved,
                    "total_variance": norm**2 * 0.7,
                    "total_variance_normalised": 0.85 - 0.4 * depth - 0.1 * moved,
                    "within_text_variance": norm**2 * 0.5,
                    "within_text_variance_normalised": 0.6 - 0.3 * depth - 0.2 * moved,
                    "effective_rank": width * (0.8 - 0.2 * depth - 0.35 * moved),
                    "effective_rank_uncentered": width * (0.74 - 0.2 * depth - 0.35 * moved),
                    "iso_score": 0.3 - 0.1 * depth - 0.15 * moved,
                    **{f"norm_q{q:02d}": norm * (0.7 + 0.6 * q / 100) for q in (5, 25, 50, 75, 95)},
                }
                if kind_of_rows != "content":
                    constant = kind_of_rows == "first" and layer == 0
                    if constant:
                        values = dict.fromkeys(values, np.nan)
                    classes = {
                        "class_cosine_within": 0.4 + 0.2 * depth + 0.35 * moved,
                        "class_cosine_between": 0.39 + 0.18 * depth - 0.4 * moved,
                        "fisher_ratio": 0.01 + 0.08 * depth + 6 * moved,
                        "silhouette": 0.01 + 0.03 * depth + 0.55 * moved,
                        "nearest_centroid_accuracy": 0.58 + 0.15 * depth + 0.19 * moved,
                        "nc1": 40 * np.exp(-1.5 * depth - 5 * moved),
                    }
                    values |= dict.fromkeys(classes, np.nan) if constant else classes
                for measure, value in values.items():
                    interval = "none" if measure.startswith(("norm_", "nc1", "fisher")) else "bootstrap"
                    value = value * (1 + generator.normal(scale=0.01))
                    half = abs(value) * 0.05 if interval != "none" else np.nan
                    found.append(
                        (run, f"id-{run}", state, layer, kind_of_rows, measure, value, value - half, value + half)
                        + (17344 if kind_of_rows == "content" else 872, 872, interval)
                    )
    columns = "run run_id state layer rows measure value low high num_rows num_examples interval"
    return pd.DataFrame(found, columns=columns.split())


def cosine_histogram(layers=13, states=("pretrained", "best"), run="sst2-minilm-s0", bins=80):
    edges = np.linspace(-1, 1, bins + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    found = []
    for order, state in enumerate(states):
        for layer in range(layers):
            depth = layer / (layers - 1)
            center, scale = 0.2 + 0.35 * depth + 0.3 * order * depth**2, 0.18 - 0.07 * depth
            density = np.exp(-(((middles - center) / scale) ** 2) / 2)
            density /= density.sum() * (edges[1] - edges[0])
            found += [(run, state, layer, *row) for row in zip(edges[:-1], edges[1:], density, strict=True)]
    return pd.DataFrame(found, columns=["run", "state", "layer", "low", "high", "density"])


def dimensions(layers=13, states=("pretrained", "best"), run="sst2-minilm-s0", width=384, seed=0):
    generator = np.random.default_rng(seed)
    ordinary = generator.normal(scale=0.25, size=width)
    found = []
    for order, state in enumerate(states):
        for layer in range(layers):
            depth = layer / (layers - 1)
            mean = ordinary * (1 + depth) + generator.normal(scale=0.05, size=width)
            std = np.abs(generator.normal(0.5, 0.08, size=width))
            large = {61: 4.0, 63: -3.0, 64: 2.5, 180: -6.0, 308: 9.0, 309: 3.5, 375: 3.0, 381: 5.0} if layer else {}
            for dimension, value in large.items():
                mean[dimension] = value * depth * (1 - 0.3 * order)
            rows = pd.DataFrame({"dimension": np.arange(width), "mean": mean, "std": std})
            found.append(rows.assign(run=run, state=state, layer=layer, outlier=rows["dimension"].isin(list(large))))
    columns = ["run", "state", "layer", "dimension", "mean", "std", "outlier"]
    return pd.concat(found, ignore_index=True)[columns]


def probes(layers=13, states=("pretrained", "best"), targets=("sentiment", "word_count"), mlp=False, seed=0):
    """Text targets that the deep layers of the later states know best; the target `*_count` is a number."""
    generator = np.random.default_rng(seed)
    found = []

    def add(layer, state, rows, target, probe, baseline, metric, value, half=0.02):
        value = value + generator.normal(scale=0.004)
        row = (layer, state, rows, target, probe, baseline, metric, value, value - half, value + half, 872, 0.01, 5)
        found.append(row)

    for number, target in enumerate(targets):
        counts = target.endswith("_count")
        for rows in ("first", "mean"):
            for probe in ["ridge" if counts else "logistic", *["mlp"] * mlp]:
                for order, state in enumerate(["random_init", *states]):
                    tuned = order / len(states)
                    for layer in range(layers):
                        depth = layer / (layers - 1)
                        known = 0.1 if order == 0 else 0.25 + 0.3 * depth + 0.4 * tuned * depth**2 - 0.05 * number
                        known += 0.05 * (probe == "mlp")
                        baseline = "none" if order else "random_init"
                        if counts:
                            score = known - (1.5 if layer == 0 and rows == "first" else 0)
                            add(layer, state, rows, target, probe, baseline, "r2", score)
                            add(layer, state, rows, target, probe, baseline, "mae", 10 - 10 * known)
                            continue
                        add(layer, state, rows, target, probe, baseline, "accuracy", 0.5 + 0.48 * known)
                        add(layer, state, rows, target, probe, baseline, "macro_f1", 0.5 + 0.47 * known)
                        add(layer, state, rows, target, probe, baseline, "compression", 1 + 2 * known, 0.1)
                        if order:
                            add(layer, state, rows, target, probe, "shuffled", "accuracy", 0.5, np.nan)
                            add(layer, state, rows, target, probe, "none", "selectivity", 0.48 * known)
        metric, needless = ("r2", (0.0, 0.41)) if counts else ("accuracy", (0.51, 0.79))
        for baseline, value in zip(("majority", "tfidf"), needless, strict=True):
            add(pd.NA, pd.NA, pd.NA, target, "ridge" if counts else "logistic", baseline, metric, value)
    columns = "layer state rows target probe baseline metric value low high n fold_std num_folds"
    return pd.DataFrame(found, columns=columns.split()).astype({"layer": "Int64"})


def transfer(layers=13, states=("pretrained", "best"), targets=("sentiment",)):
    """The further apart two states are, the worse a probe is carried over; recentring wins back a part."""
    found = []
    for target in targets:
        for rows in ("first", "mean"):
            for layer in range(layers):
                depth = layer / (layers - 1)
                for i, fitted_on in enumerate(states):
                    for j, scored_on in enumerate(states):
                        away = abs(i - j) / (len(states) - 1) * depth
                        accuracy = 0.6 + 0.2 * depth + 0.15 * depth * j / (len(states) - 1) - 0.35 * away
                        scores = (accuracy, accuracy + 0.2 * away, 1 - 1.1 * away, 0.5, 872)
                        found.append((target, rows, "logistic", layer, fitted_on, scored_on, *scores))
    columns = "target rows probe layer fitted_on scored_on accuracy accuracy_recentred cosine cosine_by_chance n"
    return pd.DataFrame(found, columns=columns.split()).astype({"layer": "Int64"})


def stage_scores(layers=13, states=("pretrained", "best")):
    """Scores that rise at a third and at two thirds of the states, most in the deep layers."""
    places = np.arange(len(states)) / len(states)
    rise = 0.2 * (places >= 1 / 3) + 0.15 * (places >= 2 / 3)
    found = [
        (s, n, 0.55 + rise[i] * n / layers + 0.02 * places[i]) for i, s in enumerate(states) for n in range(layers)
    ]
    return pd.DataFrame(found, columns=["state", "layer", "value"])


def associations(measures=("cosine", "cka", "effective_rank", "nc1"), seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for measure in measures:
        for coefficient in ("spearman", "partial_layer", "partial_state", "partial_layer_state"):
            value = generator.uniform(-0.9, 0.9)
            found.append((measure, coefficient, value, max(value - 0.15, -1), min(value + 0.2, 1), 156, 12))
    return pd.DataFrame(found, columns=["measure", "coefficient", "value", "low", "high", "n", "groups"])


def paired(layers=13, states=("pretrained", "best"), targets=("sentiment",), seed=0):
    """Each of `states` against the first, at each layer; each layer against the one before, in each state; the
    differences of the target `*_count` are of squared errors, so that less is better."""
    generator = np.random.default_rng(seed)
    found = []
    for target in targets:
        probe, metric, sign = (
            ("ridge", "squared_error", -100) if target.endswith("_count") else ("logistic", "accuracy", 1)
        )
        for rows in ("first", "mean"):
            changes = [("states", states[0], n, s, n) for s in states[1:] for n in range(layers)]
            changes += [("layers", s, n - 1, s, n) for s in states for n in range(1, layers)]
            for kind, state_a, layer_a, state_b, layer_b in changes:
                order = states.index(state_b) / max(len(states) - 1, 1)
                value = 0.12 * order * layer_b / (layers - 1) + generator.normal(scale=0.004)
                p = min(1.0, 0.0002 / max(value, 0.0002))
                interval = (*sorted((sign * (value - 0.02), sign * (value + 0.02))), p, min(1.0, 4 * p), 872)
                change = (kind, metric, state_a, layer_a, state_b, layer_b, sign * value)
                found.append((target, rows, probe, *change, *interval))
    columns = "target rows probe kind metric state_a layer_a state_b layer_b difference low high p_value q_value n"
    return pd.DataFrame(found, columns=columns.split())
