"""What tells the dictionaries of a run from one another, and where each of them lies."""

from typing import Any, NamedTuple

CONTROL = "control"


class Name(NamedTuple):
    """Which dictionary."""

    comparison: str
    """Of `sae.config.COMPARISONS`; "random_init": on the rows of random weights; "control": continued on the first
    state for as long as the stage-wise one was continued up to `state`."""
    state: str
    """Whose rows it is for; a shared one has one name for each state."""
    layer: int
    seed: int
    sparsity: float
    """k, or the L1 coefficient."""

    def rows_state(self, first: str) -> str:
        """The state whose rows it is measured on."""
        return first if self.comparison == CONTROL else self.state

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from others of its sparsity: columns of a table."""
        return {column: value for column, value in self._asdict().items() if column != "sparsity"}

    def folder(self) -> str:
        """Where it is saved, relative to the run's folder."""
        return f"dictionaries/{self.comparison}/{self.state}/layer_{self.layer:02d}/seed_{self.seed}_{self.sparsity:g}"
