"""Gates scale what units give out, text by text where wanted, and leave nothing on the model."""

import pytest
import torch

from bertdyn.pruning.gates import gated
from bertdyn.pruning.shape import Site, projection, shape_of
from tests.families import FAMILIES, tolerance_of
from tests.pruning.models import batch, load, outputs


def no_hooks(model):
    return not any(
        hooks
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_change_nothing_bit_for_bit(checkpoints, family):
    model = load(checkpoints[family], dtype=torch.float32)
    shape, inputs = shape_of(model), batch(model)
    [expected] = outputs(model, inputs)
    for texts in ((), (len(expected),)):
        with gated(model, {site: torch.ones(*texts, shape.units(site)) for site in shape.sites}):
            assert torch.equal(outputs(model, inputs)[0], expected)
    assert no_hooks(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_has_gates_of_its_own(checkpoints, family):
    """As if each text ran alone, unpadded, with one gate a unit."""
    model = load(checkpoints[family])
    shape, inputs = shape_of(model), batch(model)
    generator = torch.Generator().manual_seed(3)
    gates = {site: torch.rand(3, shape.units(site), generator=generator).double() for site in shape.sites}
    with gated(model, gates):
        [together] = outputs(model, inputs)
    for i, length in enumerate(inputs["attention_mask"].sum(dim=1)):
        with gated(model, {site: gate[i] for site, gate in gates.items()}):
            [alone] = outputs(model, {name: value[i : i + 1, :length] for name, value in inputs.items()})
        torch.testing.assert_close(together[i : i + 1], alone, atol=tolerance_of(family, 1e-12), rtol=0)
    assert (together - outputs(model, inputs)[0]).abs().min() > 1e-4


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "flaubert"])
@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_gate_leads_from_the_centre_to_the_output(checkpoints, family, kind):
    model = load(checkpoints[family])
    site, inputs = Site(kind, 1), batch(model)
    shape, own = shape_of(model), projection(model, site)
    generator = torch.Generator().manual_seed(4)
    units, width = shape.units(site), own.in_features
    gate = torch.rand(units, generator=generator).double()
    centre = torch.randn(width, generator=generator).double()
    seen = []

    def first_call():
        handle = own.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        outputs(model, inputs)
        handle.remove()
        first = seen[0]  # later calls of a shared layer have other inputs already
        seen.clear()
        return first

    dense = first_call()
    factors = torch.tensor([gate[i // (width // units)] for i in range(width)], dtype=torch.float64)
    with gated(model, {site: gate}):
        torch.testing.assert_close(first_call(), factors * dense, atol=1e-12, rtol=0)
    with gated(model, {site: gate}, {site: centre}):
        torch.testing.assert_close(first_call(), centre + factors * (dense - centre), atol=1e-12, rtol=0)
    with gated(model, {site: torch.zeros(units)}, {site: centre}):
        torch.testing.assert_close(first_call(), centre.expand_as(dense), atol=1e-12, rtol=0)


def test_no_hook_stays_after_an_exception(checkpoints):
    model = load(checkpoints["bert"])
    shape, inputs = shape_of(model), batch(model)
    expected = outputs(model, inputs)
    with pytest.raises(KeyboardInterrupt), gated(model, {s: torch.zeros(shape.units(s)) for s in shape.sites}):
        assert not no_hooks(model)
        raise KeyboardInterrupt
    assert no_hooks(model)
    assert torch.equal(outputs(model, inputs)[0], expected[0])
    # a site that is not there fails while hooks are being made
    with pytest.raises(IndexError), gated(model, {shape.sites[0]: torch.zeros(4), Site("ffn", 9): torch.zeros(4)}):
        pass
    assert no_hooks(model)
