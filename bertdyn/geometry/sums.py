"""Sums over the same texts in several states, and the measures that follow from them in closed form.

One pass over blocks of rows; sums of blocks and of processes add up, and a group of texts subtracts, which is what
the jackknife needs. Nothing here grows with the number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bertdyn.geometry.cosines import unit
from bertdyn.geometry.moments import CrossMoments, Moments
from bertdyn.geometry.similarity import debiased_cka, procrustes_distance
from bertdyn.geometry.spectrum import iso_score


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the rows of some texts, each row in several states (of widths that may differ)."""

    origins: Sequence[np.ndarray]
    """[width] by state: what was subtracted from its rows before the moments; the same in all sums that are added."""
    rows: int
    squared_counts: int
    """Σ over texts of (rows of the text)²."""
    moments: list[Moments]
    """By state."""
    units: list[np.ndarray]
    """[width] by state: sum of unit vectors."""
    within: dict[tuple[int, int], float]
    """For a pair of states (a, b): Σ over texts of (sum of its unit vectors in a) · (that in b)."""
    crosses: dict[tuple[int, int], CrossMoments]
    """By pair of states."""

    @classmethod
    def of(
        cls,
        states: Sequence[np.ndarray],
        offsets: np.ndarray,
        origins: Sequence[np.ndarray],
        pairs: Sequence[tuple[int, int]],
    ) -> "Sums":
        """The sums over one block.

        Parameters
        ----------
        states
            [rows, width] by state, aligned.
        offsets
            [texts + 1]: text t has the rows offsets[t] to offsets[t + 1], at least one.
        origins
            [width] by state: about the mean, for the digits.
        pairs
            Pairs of states to compare; measures of cosine need equal widths.
        """
        texts = [np.add.reduceat(unit(rows), offsets[:-1], axis=0) for rows in states]
        moved = [np.asarray(rows, dtype=np.float64) - origin for rows, origin in zip(states, origins, strict=True)]
        alike = [(a, b) for a, b in pairs if texts[a].shape == texts[b].shape]
        both = [*((a, a) for a in range(len(states))), *alike]
        return cls(
            origins,
            len(states[0]),
            int(np.square(np.diff(offsets)).sum()),
            [Moments.of(rows) for rows in moved],
            [sums.sum(axis=0) for sums in texts],
            {(a, b): float(np.vdot(texts[a], texts[b])) for a, b in both},
            {(a, b): CrossMoments.of(moved[a], moved[b]) for a, b in pairs},
        )

    def __add__(self, other: "Sums") -> "Sums":
        return self._combined(other, 1)

    def __sub__(self, other: "Sums") -> "Sums":
        """Take out texts that are part of these sums."""
        return self._combined(other, -1)

    def _combined(self, other: "Sums", sign: int) -> "Sums":
        add = (lambda one, two: one + two) if sign > 0 else (lambda one, two: one - two)
        return replace(
            self,
            rows=add(self.rows, other.rows),
            squared_counts=add(self.squared_counts, other.squared_counts),
            moments=[add(one, two) for one, two in zip(self.moments, other.moments, strict=True)],
            units=[add(one, two) for one, two in zip(self.units, other.units, strict=True)],
            within={pair: add(value, other.within[pair]) for pair, value in self.within.items()},
            crosses={pair: add(value, other.crosses[pair]) for pair, value in self.crosses.items()},
        )

    def mean(self, state: int) -> np.ndarray:
        """[width]: mean row of a state."""
        return self.moments[state].mean + self.origins[state]

    def between_texts(self, a: int, b: int) -> float:
        """Mean of cos(x, y) over rows x in state a and y in state b that are of different texts.

        Within one state this is its anisotropy (Ethayarajh 2019): what a cosine is worth for unrelated rows.
        """
        pairs = self.rows**2 - self.squared_counts
        if (a, b) not in self.within or not pairs:
            return float("nan")
        return (float(self.units[a] @ self.units[b]) - self.within[a, b]) / pairs


def pair_measures(sums: Sums, a: int, b: int) -> dict[str, float]:
    """What the sums say of two states of the same rows, and the controls for their cosine."""
    x, y, cross = sums.moments[a], sums.moments[b], sums.crosses[a, b]
    measures = {"cka": debiased_cka(x, y, cross), "procrustes": procrustes_distance(x, y, cross)}
    if (a, b) in sums.within:
        measures |= {
            "cosine_random_pairs_a": sums.between_texts(a, a),
            "cosine_random_pairs_b": sums.between_texts(b, b),
            "cosine_mismatched": sums.between_texts(a, b),
            "cosine_of_means": float(unit(sums.mean(a)) @ unit(sums.mean(b))),
        }
    return measures


def state_measures(sums: Sums, state: int) -> dict[str, float]:
    """What the sums say of one state."""
    moments, origin = sums.moments[state], sums.origins[state]
    square_norm = moments.mean_square_norm + 2 * float(moments.mean @ origin) + float(origin @ origin)
    return {
        "random_pair_cosine": sums.between_texts(state, state),
        "total_variance": moments.total_variance,
        "total_variance_normalised": moments.total_variance / square_norm if square_norm else float("nan"),
        "iso_score": iso_score(moments.covariance),
    }
