"""What can be cut from an encoder: how many heads and feed-forward neurons each physical layer has."""

from typing import NamedTuple, cast

from torch import nn
from transformers import PreTrainedModel

from bertdyn.models.anatomy import anatomy_of

KINDS = ("attention", "ffn")
"""The two blocks of a layer; the units of the first are whole heads, those of the second neurons."""
UNIT_NAMES = {"attention": "heads", "ffn": "neurons"}


class Site(NamedTuple):
    """A block of a physical layer, whose units are scored, kept and removed."""

    kind: str
    """One of `KINDS`."""
    layer: int
    """1 to the number of physical layers."""

    def __str__(self) -> str:
        return f"{self.kind} of layer {self.layer}"


class Shape(NamedTuple):
    """The sizes of an encoder that its cost depends on."""

    heads: tuple[int, ...]
    """A number a physical layer."""
    neurons: tuple[int, ...]
    head_size: int
    hidden_size: int
    depth: int
    """Layers in the forward pass; more than physical ones where they are shared."""

    def units(self, site: Site) -> int:
        """How many units a block has."""
        return (self.heads if site.kind == "attention" else self.neurons)[site.layer - 1]

    def unit_width(self, kind: str) -> int:
        """How many inputs of the output projection a unit has: the size of a head, or one."""
        return self.head_size if kind == "attention" else 1

    @property
    def sites(self) -> list[Site]:
        """All blocks that have a unit."""
        every = [Site(kind, layer) for layer in range(1, len(self.heads) + 1) for kind in KINDS]
        return [site for site in every if self.units(site)]

    @property
    def shares_layers(self) -> bool:
        return self.depth > len(self.heads)


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of an encoder, pruned or not, with or without a head.

    Raises
    ------
    InputError
        If its family is unknown.
    """
    anatomy = anatomy_of(model)

    def widths(component: str) -> list[int]:
        layers = (layer.get(component) for layer in anatomy.layers)
        return [0 if module is None else cast(nn.Linear, module).out_features for module in layers]

    return Shape(
        heads=tuple(width // anatomy.head_size for width in widths("query")),
        neurons=tuple(widths("ffn_in")),
        head_size=anatomy.head_size,
        hidden_size=model.config.hidden_size,
        depth=anatomy.depth,
    )


def projection(model: PreTrainedModel, site: Site) -> nn.Linear:
    """The output projection of a block: its inputs are what the units give out."""
    component = "attention_output" if site.kind == "attention" else "ffn_out"
    return cast(nn.Linear, anatomy_of(model).layers[site.layer - 1][component])
