import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, GPT2Config

from bertdyn.errors import InputError
from bertdyn.models.anatomy import COMPONENTS, anatomy_of, check_family, max_length, places
from tests.families import FAMILIES, LAYERS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_every_parameter_has_its_place(checkpoints, family, auto_class):
    model = auto_class.from_pretrained(checkpoints[family])
    found = places(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert {place.component for place in found.values()} <= set(COMPONENTS) - {"other"}
    # every layer has all eight kinds of components, and the encoder's own names agree with ours
    anatomy = anatomy_of(model)
    assert anatomy.depth == LAYERS
    assert len(anatomy.layers) == (1 if family == "albert" else LAYERS)
    for number in range(1, len(anatomy.layers) + 1):
        parts = {p.component for p in found.values() if p.layer == number}
        assert len(parts) == 8
    head = {name for name, place in found.items() if place.component == "head"}
    encoder = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    assert head == set(found) - encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_components_do_what_their_names_say(checkpoints, family):
    """Query and key decide the attention, value and the outputs do not: told by zeroing them."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[family], attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    inputs = tokenizer("the film is good", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    layer = anatomy_of(model).layers[0]

    def first_attention() -> torch.Tensor:
        with torch.inference_mode():
            return model(**inputs, output_attentions=True).attentions[0]

    before = first_attention()
    for component in ("value", "attention_output", "ffn_in", "ffn_out", "attention_norm", "ffn_norm"):
        saved = {k: v.clone() for k, v in layer[component].state_dict().items()}
        torch.nn.init.normal_(layer[component].weight)
        assert torch.equal(first_attention(), before), component
        layer[component].load_state_dict(saved)
    for component in ("query", "key"):
        saved = {k: v.clone() for k, v in layer[component].state_dict().items()}
        torch.nn.init.normal_(layer[component].weight)
        assert not torch.allclose(first_attention(), before), component
        layer[component].load_state_dict(saved)
    assert layer["ffn_in"].out_features == layer["ffn_out"].in_features


@pytest.mark.parametrize("family", FAMILIES)
def test_max_length_is_the_longest_that_runs(checkpoints, family):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[family]).eval()
    longest = max_length(model.config)
    filler = 5
    with torch.inference_mode():
        model(input_ids=torch.full((1, longest), filler), attention_mask=torch.ones(1, longest))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, longest + 1), filler), attention_mask=torch.ones(1, longest + 1))


def test_unknown_family_names_the_known_ones():
    with pytest.raises(InputError, match="'gpt2' is not supported: accepted are albert, bert, camembert"):
        check_family(GPT2Config())
