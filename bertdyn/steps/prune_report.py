"""What a pruning run says at its end: tables, figures, scalars and a page of Markdown."""

from typing import NamedTuple

import pandas as pd

from bertdyn.plots.pruning import architecture, head_scores, latency_figure, neuron_scores, scores_figure
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.search import Found
from bertdyn.steps.deployment import Deployment
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.tracking.tracker import Tracker

CONTROL_WORDS = {
    "dense": "the unpruned model",
    "pruned": "pruned",
    "random": "random units of the same sizes",
    "magnitude": "the units of the largest weights, same sizes",
}
"""Model → what a reader sees."""
STAGES = {"surgery": "after surgery", "recovery": "after recovery"}


class Findings(NamedTuple):
    """Everything that the report of a pruning is made from."""

    config: PruneConfig
    label: str
    plan: Plan
    found: Found
    seconds: float
    """From calibration texts to the pruned weights."""
    scores: pd.DataFrame
    differences: pd.DataFrame
    deployment: Deployment
    best: int
    """Epoch of the recovery; 0 without one."""


def write_report(findings: Findings, tracker: Tracker) -> tuple[str, dict[str, float]]:
    """Write tables, figures and metrics into `tracker`; return the report, Markdown, and the final scores."""
    label, found, deployment = findings.label, findings.found, findings.deployment
    tables = {
        "scores": findings.scores,
        "differences": findings.differences,
        "plan": findings.plan.table(),
        "unit_scores": unit_table(findings),
        "compensation": compensation_table(found),
        "criteria": pd.DataFrame(sorted(found.tried.items(), key=lambda item: item[1]), columns=["criterion", "kl"]),
        "costs": deployment.costs,
        "latency": deployment.latency,
    }
    tables = {name: table for name, table in tables.items() if not table.empty}
    for name, table in tables.items():
        tracker.log_table(table, name)
    figures = {
        "architecture": architecture(findings.plan.table(), f"What stays of each layer: {label}"),
        "scores": scores_figure(findings.scores, CONTROL_WORDS, f"Nearness to the dense model, test part: {label}"),
    }
    if "unit_scores" in tables:
        by = f"{found.criteria[0]}: {label}"
        figures["head_scores"] = head_scores(tables["unit_scores"], f"Scores of heads by {by}")
        figures["neuron_scores"] = neuron_scores(tables["unit_scores"], f"Scores of neurons by {by}")
    if "latency" in tables:
        figures["latency"] = latency_figure(deployment.latency, f"Time of a batch, pruned / dense: {label}")
    for name, figure in figures.items():
        tracker.log_figure(figure, name)
    final = "recovery" if findings.config.recover else "surgery"
    measured = scalars(findings.scores, "pruned", final)
    metrics = measured | surgery_scalars(findings) | cost_scalars(deployment)
    tracker.log_metrics(metrics, findings.config.num_train_epochs if findings.config.recover else 0)
    return markdown(findings, list(figures), list(tables)), measured


def scalars(scores: pd.DataFrame, model: str, stage: str) -> dict[str, float]:
    """The scalars by which runs are compared, of one model: `best/…` (validation) and `test/…`."""
    rows = scores[(scores["model"] == model) & (scores["stage"] == stage)].set_index("part")
    names = [name for name in ("accuracy", "macro_f1", "f1", "exact", "loss", "kl", "agreement") if name in rows]
    found = {f"test/{name}": float(rows.at["test", name]) for name in names}
    return found | {f"best/{name}": float(rows.at["validation", name]) for name in names if name in ("accuracy", "f1")}


def surgery_scalars(findings: Findings) -> dict[str, float]:
    """`prune/…`: how near the pruned model was before any recovery, and what it took."""
    rows = findings.scores
    row = rows[(rows["model"] == "pruned") & (rows["stage"] == "surgery") & (rows["part"] == "test")].iloc[0]
    score = score_name(rows)
    return {
        "prune/surgery_kl": float(row["kl"]),
        "prune/surgery_agreement": float(row["agreement"]),
        f"prune/surgery_{score}": float(row[score]),
        "prune/calibration_kl": findings.found.kl,
        "prune/seconds": findings.seconds,
    }


def cost_scalars(deployment: Deployment) -> dict[str, float]:
    """`prune/…_ratio`: costs as a share of the dense model's."""
    costs = deployment.costs.set_index("model")
    names = ("parameters", "encoder_parameters", "encoder_flops", "file_bytes", "model_memory_mb")
    found = {f"prune/{name}_ratio": float(costs.at["pruned", name] / costs.at["dense", name]) for name in names}
    found |= {f"prune/{name}": float(costs.at["pruned", name]) for name in ("parameters", "encoder_parameters")}
    if not deployment.latency.empty:
        for row in pruned_latency(deployment.latency).itertuples():
            backend = row.backend if row.device == "cpu" else f"{row.backend}_{row.device.replace(':', '_')}"
            found[f"prune/latency_ratio_{backend}_{row.batch_size}x{row.sequence_length}"] = float(row.ratio)
    return found


def pruned_latency(latency: pd.DataFrame) -> pd.DataFrame:
    """The rows of the pruned model, each beside the dense one's time."""
    return latency[latency["model"] == "pruned"]


def unit_table(findings: Findings) -> pd.DataFrame:
    """One row a unit of the dense model: kind, layer, unit, score, kept. Empty for a plan that was given."""
    rows = [
        pd.DataFrame(
            {
                "kind": site.kind,
                "layer": site.layer,
                "unit": range(len(values)),
                "score": values.numpy(),
                "kept": [unit in kept for unit in range(len(values))],
            }
        )
        for site, values in findings.found.scores.items()
        for kept in [set(findings.plan.kept[site])]
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def compensation_table(found: Found) -> pd.DataFrame:
    """One row a block: kind, layer, method."""
    rows = [(site.kind, site.layer, method) for site, method in found.methods.items()]
    return pd.DataFrame(rows, columns=["kind", "layer", "method"])


def score_name(scores: pd.DataFrame) -> str:
    """The task's main score."""
    return "accuracy" if "accuracy" in scores else "f1"


def markdown(findings: Findings, figures: list[str], tables: list[str]) -> str:
    """The page that the run carries in the MLflow UI."""
    config, found = findings.config, findings.found
    lines = [
        f"## Pruned: {findings.label}, criterion {', then '.join(dict.fromkeys(found.criteria))}",
        "",
        *cost_lines(findings.deployment),
        "",
        *score_lines(findings.scores),
        "",
        *difference_lines(findings.differences),
        f"From calibration texts to pruned weights: {findings.seconds:.0f} s ({config.calibration_examples} texts, "
        f"{config.pruning_rounds} round(s)); KL on the calibration texts that choices were made by: {found.kl:.3g}.",
        "",
        "### What stays",
        "",
        *plan_lines(findings),
    ]
    if found.tried:
        ranked = sorted(found.tried.items(), key=lambda item: item[1])
        lines += ["", "Criteria by KL on calibration texts: " + ", ".join(f"{name} {kl:.3g}" for name, kl in ranked)]
    lines += ["", "### Deployment", "", *deployment_lines(findings)]
    lines += [
        "",
        "### Files",
        "",
        f"`plan.json` (the kept indices); the model, `checkpoints/epoch_{findings.best:03d}` "
        f"({'the best epoch of the recovery' if config.recover else 'not recovered'}). Figures: "
        f"{', '.join(f'`{name}`' for name in figures)}. "
        f"Tables: {', '.join(f'`{name}`' for name in tables)} (parquet).",
    ]
    return "\n".join(lines)


def cost_lines(deployment: Deployment) -> list[str]:
    """Costs before and after, a Markdown table."""
    costs = deployment.costs.set_index("model")
    length = int(costs["flops_length"].iloc[0])
    names = {
        "parameters": ("parameters, all", 1e6, "M"),
        "encoder_parameters": ("parameters of the layers", 1e6, "M"),
        "encoder_flops": (f"FLOPs of the layers, {length} tokens", 1e9, "G"),
        "file_bytes": ("file", 1e6, "MB"),
        "model_memory_mb": ("memory of weights and activations", 1, "MB"),
        "peak_memory_mb": ("peak memory of a process", 1, "MB"),
    }
    lines = ["| | dense | pruned | change |", "|---|---|---|---|"]
    for name, (words, unit, sign) in names.items():
        before, after = float(costs.at["dense", name]), float(costs.at["pruned", name])
        lines.append(
            f"| {words} | {before / unit:.3g} {sign} | {after / unit:.3g} {sign} | {after / before - 1:+.1%} |"
        )
    if deployment.latency.empty:
        return lines
    dense = deployment.latency[deployment.latency["model"] == "dense"].set_index(
        ["backend", "device", "batch_size", "sequence_length"]
    )
    for row in pruned_latency(deployment.latency).itertuples():
        before = dense.at[(row.backend, row.device, row.batch_size, row.sequence_length), "latency_ms"]
        change = f"{row.ratio - 1:+.1%} ({row.ratio_low - 1:+.1%} to {row.ratio_high - 1:+.1%})"
        lines.append(
            f"| {row.backend} on {row.device}, {row.batch_size} × {row.sequence_length} tokens | {before:.1f} ms "
            f"| {row.latency_ms:.1f} ms | {change} |"
        )
    return lines


def score_lines(scores: pd.DataFrame) -> list[str]:
    """Scores of all models and stages on the test part, a Markdown table."""
    score = score_name(scores)
    lines = [
        f"| test part | stage | {score} | 95 % interval | KL from the dense model | same answers |",
        "|---|---|---|---|---|---|",
    ]
    test = scores[scores["part"] == "test"]
    for row in test.to_dict("records"):
        stage = "before" if (row["model"], row["stage"]) == ("dense", "surgery") else STAGES[row["stage"]]
        interval = f"{row[f'{score}_low']:.3f} – {row[f'{score}_high']:.3f}"
        lines.append(
            f"| {CONTROL_WORDS[row['model']]} | {stage} | {row[score]:.4f} | {interval} "
            f"| {row['kl']:.3g} ({row['kl_low']:.3g} – {row['kl_high']:.3g}) | {row['agreement']:.1%} |"
        )
    return lines


def difference_lines(differences: pd.DataFrame) -> list[str]:
    """Paired differences of accuracy on the test part, in words."""
    if differences.empty:
        return []
    lines = [
        "The pruned model's score on the test part less that of (points, 95 % interval over paired examples):",
        "",
    ]
    for row in differences[differences["part"] == "test"].to_dict("records"):
        before = (row["other"], row["other_stage"]) == ("dense", "surgery")
        other = "the dense model before" if before else CONTROL_WORDS[row["other"]]
        lines.append(
            f"- {STAGES[row['stage']]}, {other}: {100 * row['difference']:+.2f} "
            f"({100 * row['difference_low']:+.2f} to {100 * row['difference_high']:+.2f})"
        )
    return [*lines, ""]


def plan_lines(findings: Findings) -> list[str]:
    """Heads and neurons by layer, a Markdown table, with what makes up for the rest."""
    methods = findings.found.methods
    by_site = {(site.kind, site.layer): method.replace("_", " ") for site, method in methods.items()}
    lines = ["| layer | heads | neurons | compensation (attention, FFN) |", "|---|---|---|---|"]
    for row in findings.plan.table().itertuples():
        made_up = ", ".join(by_site.get((kind, row.layer), "–") for kind in ("attention", "ffn"))
        lines.append(
            f"| {row.layer} | {row.heads_kept} of {row.heads} | {row.neurons_kept:,} of {row.neurons:,} | {made_up} |"
        )
    return lines


def deployment_lines(findings: Findings) -> list[str]:
    """Where else the model was loaded, and what came out."""
    deployment = findings.deployment
    lines = [
        "Loaded in a fresh process that has no bertdyn (`trust_remote_code=True`): largest difference of outputs "
        f"{deployment.reload_difference:.1e}."
    ]
    if deployment.onnx_difference is not None:
        lines.append(
            "`onnx/model.onnx` in ONNX runtime, other shapes, with padding: largest difference "
            f"{deployment.onnx_difference:.1e}."
        )
    if deployment.onnx_problem:
        lines.append(f"No ONNX file: {deployment.onnx_problem}")
    return lines
