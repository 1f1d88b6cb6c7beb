"""The rows of `dynamics.Dynamics`, combined over groups of parameters: embeddings, each layer, pooler, head.

Apart from what measures them, so that who only reads a table does not wait for PyTorch.
"""

from typing import Any

import pandas as pd


def by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `Dynamics.table` → one row per epoch and group, with the group's own norms.

    Groups are `embeddings`, `layer_01` …, `pooler`, `head`. Norms of tensors combine as the root of
    the sum of squares, which is exact for `norm`, `distance_from_init`, `relative_update` and the
    root mean square of the gradient's norm (`grad_norm_rms`), and for nothing else.
    """
    rows = rows.assign(group=[_group(c, layer) for c, layer in zip(rows["component"], rows["layer"], strict=True)])
    squared = ["norm", "distance_from_init", "update_norm", "previous_norm", "grad_norm_rms"]
    sums = (rows[squared] ** 2).groupby([rows["epoch"], rows["group"]]).sum(min_count=1) ** 0.5
    sums["relative_update"] = sums["update_norm"] / sums["previous_norm"]
    return sums.drop(columns=["update_norm", "previous_norm"]).reset_index()


def _group(component: str, layer: Any) -> str:
    if not pd.isna(layer):
        return f"layer_{int(layer):02d}"
    return component if component in ("pooler", "head") else "embeddings"
