"""The rules of `fft` and `conv2d` against their definitions, and that they are BERT in everything else."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
)

from bertdyn.errors import InputError
from bertdyn.models.anatomy import places
from bertdyn.models.config import EMBEDDINGS, ModelConfig
from bertdyn.models.embedding_variants import VARIANTS, Conv2dBertConfig, FftBertConfig
from bertdyn.models.loading import load_config, load_model
from entrypoints.command import parse

LABELS = ["negative", "positive"]
TASK_CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
}
CONFIGS = {
    "fft": FftBertConfig(**SIZES),
    "fft, normalised": FftBertConfig(**SIZES, normalize_embeddings=True),
    "conv2d 3": Conv2dBertConfig(**SIZES),
    "conv2d 1": Conv2dBertConfig(**SIZES, conv_kernel_size=1),
}


def _trained(config, auto_class=AutoModel, dtype=torch.float64):
    """A model in eval mode none of whose weights is that of a start."""
    torch.manual_seed(0)
    model = auto_class.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def _parts(model, seq=6, batch=3):
    """Words, positions, token types [batch, seq, hidden], and the inputs that they belong to."""
    torch.manual_seed(1)
    ids = torch.randint(1, SIZES["vocab_size"], (batch, seq))
    types = torch.randint(0, 2, (batch, seq))
    tables = model.embeddings
    words, token_types = tables.word_embeddings.weight[ids], tables.token_type_embeddings.weight[types]
    positions = tables.position_embeddings.weight[:seq].expand(batch, -1, -1)
    return words, positions, token_types, {"input_ids": ids, "token_type_ids": types}


def _norm(model, vectors):
    norm = model.embeddings.LayerNorm
    centred = vectors - vectors.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _first_state(model, **inputs):
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True).hidden_states[0]


@pytest.mark.parametrize("hidden", [12, 15])  # an odd width has another inverse transform
@pytest.mark.parametrize("normalize", [False, True])
def test_fft_is_the_circular_convolution(hidden, normalize):
    model = _trained(FftBertConfig(**SIZES | {"hidden_size": hidden}, normalize_embeddings=normalize))
    words, positions, token_types, inputs = _parts(model)
    fused = torch.zeros_like(words)
    for i in range(hidden):
        for j in range(hidden):
            fused[..., i] += words[..., j] * positions[..., (i - j) % hidden]
    if normalize:
        fused = fused / fused.pow(2).sum(-1, keepdim=True).sqrt()
    expected = _norm(model, fused + token_types)
    torch.testing.assert_close(_first_state(model, **inputs), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [1, 3])
def test_conv2d_is_the_sum_over_its_window(size):
    model = _trained(Conv2dBertConfig(**SIZES, conv_kernel_size=size))
    words, positions, token_types, inputs = _parts(model)
    kernel, reach = model.embeddings.conv.weight[0], size // 2
    assert kernel.shape == (2, size, size)
    fused = torch.zeros_like(words)
    for t in range(words.shape[1]):
        for h in range(words.shape[2]):
            for channel, image in enumerate((words, positions)):
                for dt in range(-reach, reach + 1):
                    for dh in range(-reach, reach + 1):
                        if 0 <= t + dt < words.shape[1] and 0 <= h + dh < words.shape[2]:
                            fused[:, t, h] += kernel[channel, dt + reach, dh + reach] * image[:, t + dt, h + dh]
    gelu = fused * 0.5 * (1 + torch.erf(fused / 2**0.5))
    expected = _norm(model, gelu + token_types)
    torch.testing.assert_close(_first_state(model, **inputs), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("name", "mixes"), [("conv2d 3", True), ("conv2d 1", False), ("fft", False)])
def test_only_the_wide_kernel_mixes_neighbours(name, mixes):
    model = _trained(CONFIGS[name])
    *_, inputs = _parts(model)
    before = _first_state(model, **inputs)
    inputs["input_ids"][:, 3] = 1 + inputs["input_ids"][:, 3] % 38
    changed = (_first_state(model, **inputs) != before).any(-1).any(0).tolist()
    assert changed == [False, False, mixes, True, mixes, False]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_padding_changes_neither_outputs_nor_gradients(config, side, given):
    model = _trained(config)
    torch.manual_seed(2)
    ids, weight = torch.randint(1, 40, (2, 7)), torch.randn(2, 7, 12, dtype=torch.float64)

    def run(padding: int, pad_id: int) -> list[torch.Tensor]:
        def padded(real: torch.Tensor, value: int) -> torch.Tensor:
            both = [real, torch.full((2, padding), value)]
            return torch.cat(both if side == "right" else both[::-1], dim=1)

        model.zero_grad()
        tokens, mask = padded(ids, pad_id), padded(torch.ones_like(ids), 0)
        inputs = {given: tokens if given == "input_ids" else model.embeddings.word_embeddings(tokens)}
        inputs["position_ids"] = padded(torch.arange(7).expand(2, -1), 9)
        output = model(**inputs, attention_mask=mask, output_hidden_states=True)
        states = torch.stack([state[mask == 1].view(2, 7, 12) for state in output.hidden_states])
        (states[-1] * weight).sum().backward()
        return [states, *(p.grad.clone() for name, p in model.named_parameters() if "pooler" not in name)]

    alone = run(0, 0)
    for padding, pad_id in ((1, 0), (5, 17)):  # a pad token may also stand for itself
        for padded, expected in zip(run(padding, pad_id), alone, strict=True):
            torch.testing.assert_close(padded, expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_texts_one_by_one(checkpoints, side):
    """In float32, through the tokenizer, as training sees it; the span head reads every position."""
    model = _trained(load_config(str(checkpoints["conv2d_bert"])), AutoModelForQuestionAnswering, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["conv2d_bert"], padding_side=side)
    texts = ["good", "the film is good", "the plot of this long film is dull and the actors are bored"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        together = model(**batch).start_logits
        for row, text in enumerate(texts):
            alone = model(**tokenizer(text, return_tensors="pt")).start_logits[0]
            torch.testing.assert_close(together[row][batch["attention_mask"][row] == 1], alone, atol=1e-5, rtol=0)


def test_without_a_mask_all_tokens_are_real():
    model = _trained(CONFIGS["conv2d 3"])
    *_, inputs = _parts(model)
    with_mask = _first_state(model, **inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
    assert torch.equal(_first_state(model, **inputs), with_mask)
    with pytest.raises(ValueError, match=r"accepted is the padding mask \[batch, seq\]"):
        model(**inputs, attention_mask=torch.ones(3, 1, 6, 6))
    with pytest.raises(ValueError, match="exactly one of"):
        model(**inputs, inputs_embeds=torch.ones(3, 6, 12).double())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("task", TASK_CLASSES)
def test_round_trip_is_bit_for_bit(config, task, tmp_path):
    auto_class = TASK_CLASSES[task]
    model = _trained(config, auto_class, torch.float32)
    model.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    for field in ("model_type", "conv_kernel_size", "normalize_embeddings"):
        assert getattr(again.config, field, None) == getattr(config, field, None)
    ids = torch.randint(1, 40, (2, 9))
    with torch.inference_mode():
        outputs, expected = (m(ids, attention_mask=(ids > 9).long()).to_tuple() for m in (again, model))
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        encoder = AutoModel.from_pretrained(tmp_path).eval()  # the encoder alone, out of a checkpoint with a head
        assert torch.equal(encoder(ids).last_hidden_state, model.bert(ids).last_hidden_state)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("task", TASK_CLASSES)
def test_a_plain_checkpoint_loads_with_only_the_new_tensors_missing(variant, prefix, task, tmp_path):
    torch.manual_seed(3)
    plain = BertForMaskedLM(BertConfig(**SIZES)) if prefix else AutoModel.from_config(BertConfig(**SIZES))
    plain.save_pretrained(tmp_path)
    config = load_config(str(tmp_path), embeddings=variant)
    auto_class = TASK_CLASSES[task]
    model, report = auto_class.from_pretrained(tmp_path, config=config, output_loading_info=True)
    head = {"classification": "classifier", "question-answering": "qa_outputs"}[task]
    new = {f"{head}.weight", f"{head}.bias"} | ({"bert.embeddings.conv.weight"} if variant == "conv2d" else set())
    if prefix and task == "classification":  # a language model has no pooler
        new |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert set(report["missing_keys"]) == new
    assert not report["mismatched_keys"]
    kept = {name: weight for name, weight in plain.base_model.state_dict().items() if not name.startswith("pooler")}
    loaded = model.bert.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in kept.items())
    if variant == "conv2d":
        assert torch.equal(model.bert.embeddings.conv.weight, _delta(3))


def _delta(size):
    kernel = torch.zeros(1, 2, size, size)
    kernel[:, :, size // 2, size // 2] = 1
    return kernel


@pytest.mark.parametrize("options", [{"embeddings": "fft"}, {"embeddings": "conv2d", "conv_kernel_size": 1}])
def test_minilm_as_a_variant_keeps_its_encoder_and_its_vectors_matter(options):
    plain = load_model("minilm", "classification", label_names=LABELS)
    model = load_model("minilm", "classification", label_names=LABELS, **options).eval()
    assert model.config.model_type == f"{options['embeddings']}_bert"
    assert (model.config.id2label, model.config.hidden_size) == ({0: "negative", 1: "positive"}, 384)
    for name, weight in plain.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], weight), name
    with torch.inference_mode():
        states = model.bert(torch.tensor([[101, 2204, 102], [101, 2919, 102]])).last_hidden_state
    assert states.isfinite().all()
    assert (states[0] - states[1]).norm() > 1


def test_a_new_convolution_hands_on_the_plain_sum():
    torch.manual_seed(0)
    model = AutoModel.from_config(Conv2dBertConfig(**SIZES)).double().eval()
    words, positions, token_types, inputs = _parts(model)
    expected = _norm(model, torch.nn.functional.gelu(words + positions) + token_types)
    torch.testing.assert_close(_first_state(model, **inputs), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", TASK_CLASSES)
def test_from_scratch_all_shared_weights_are_those_of_base(variant, task):
    """Same seed, same weights: what is compared between variants is the rule, not the start."""

    def fresh(embeddings):
        torch.manual_seed(5)
        overrides = "num_hidden_layers=2,hidden_size=96,num_attention_heads=4,intermediate_size=64"
        return load_model(
            "minilm", task, label_names=LABELS, from_scratch=True, config_overrides=overrides, embeddings=embeddings
        )

    base, model = fresh("base").state_dict(), fresh(variant).state_dict()
    assert set(model) - set(base) == ({"bert.embeddings.conv.weight"} if variant == "conv2d" else set())
    assert all(torch.equal(model[name], weight) for name, weight in base.items())
    for table in ("word", "position", "token_type"):
        weight = model[f"bert.embeddings.{table}_embeddings.weight"]
        error = 5 / (2 * weight.numel()) ** 0.5  # five standard errors of a standard deviation
        assert weight.std().item() == pytest.approx(0.02, rel=error + 1 / len(weight))  # one row is padding
    assert (model["bert.embeddings.word_embeddings.weight"][0] == 0).all()


def test_overrides_reach_the_variants_own_fields():
    config = load_config("minilm", "conv_kernel_size=1", embeddings="conv2d")
    assert config.conv_kernel_size == 1
    with pytest.raises(InputError, match=r"config_overrides 'conv_kernel_size=2'.*expected one of \(1, 3\)"):
        load_config("minilm", "conv_kernel_size=2", embeddings="conv2d")


def test_the_convolution_is_a_component_of_its_own():
    fft, conv2d = (places(AutoModelForSequenceClassification.from_config(CONFIGS[n])) for n in ("fft", "conv2d 3"))
    assert conv2d.pop("bert.embeddings.conv.weight") == ("embeddings_conv", None)
    assert conv2d == fft
    assert {"other", "embeddings_conv"}.isdisjoint(place.component for place in fft.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_half_precision_is_close_to_single(config, autocast):
    model = _trained(config, dtype=torch.float32)
    *_, inputs = _parts(model)
    expected = _first_state(model, **inputs)
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        state = _first_state(model, **inputs)
        output = model(**inputs).last_hidden_state
    assert output.isfinite().all()
    assert (state.float() - expected).abs().mean() < 0.03 * expected.abs().mean()
    if config.model_type == "fft_bert" and autocast:  # nothing in it is rounded to half precision
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=0)


def test_a_variant_checkpoint_stays_what_it_is(tmp_path):
    fft, conv2d = tmp_path / "fft", tmp_path / "conv2d"
    _trained(CONFIGS["fft, normalised"], dtype=torch.float32).save_pretrained(fft)
    _trained(CONFIGS["conv2d 1"], dtype=torch.float32).save_pretrained(conv2d)
    for options in ({}, {"embeddings": "fft"}, {"embeddings": "fft", "normalize_embeddings": True}):
        assert load_config(str(fft), **options).normalize_embeddings is True
    for options in ({}, {"embeddings": "conv2d"}, {"embeddings": "conv2d", "conv_kernel_size": 1}):
        assert load_config(str(conv2d), **options).conv_kernel_size == 1
    for folder, options, message in (
        (fft, {"embeddings": "conv2d"}, "--embeddings 'conv2d': .* with 'fft' embeddings.*accepted is 'fft'"),
        (fft, {"embeddings": "base"}, "--embeddings 'base': .* with 'fft' embeddings"),
        (conv2d, {"embeddings": "fft"}, "--embeddings 'fft': .* with 'conv2d' embeddings"),
        (conv2d, {"embeddings": "conv2d", "conv_kernel_size": 3}, "--conv_kernel_size 3: .* was trained with 1"),
        (fft, {"normalize_embeddings": False}, "--normalize_embeddings False: .* was trained with True"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_model(str(folder), "classification", label_names=LABELS, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["roberta", "camembert", "distilbert", "albert", "flaubert"])
def test_variants_are_made_for_bert_only(checkpoints, family):
    with pytest.raises(InputError, match=f"an encoder of the family '{family}'; accepted are encoders of .* 'bert'"):
        load_config(str(checkpoints[family]), embeddings="conv2d")
    assert load_config(str(checkpoints[family]), embeddings="base").model_type == family


def test_decoders_and_damaged_configurations(tmp_path):
    BertConfig(**SIZES, is_decoder=True).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a decoder of the family 'bert'; accepted are encoders"):
        load_config(str(tmp_path), embeddings="fft")
    content = json.loads(Conv2dBertConfig(**SIZES).to_json_string()) | {"conv_kernel_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'conv_kernel_size'.*expected one of \(1, 3\)"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--embeddings", "fourier"], "--embeddings 'fourier': accepted are base, fft, conv2d"),
        (["--embeddings", "conv2d", "--conv_kernel_size", "5"], "--conv_kernel_size 5: accepted are 1, 3"),
        (["--conv_kernel_size", "1"], "--conv_kernel_size 1 needs --embeddings conv2d"),
        (["--conv_kernel_size", "3", "--embeddings", "fft"], "--conv_kernel_size 3 needs --embeddings conv2d"),
        (["--normalize_embeddings", "true"], "--normalize_embeddings true needs --embeddings fft"),
        (["--normalize_embeddings", "true", "--embeddings", "conv2d"], "needs --embeddings fft"),
    ],
)
def test_wrong_options_are_told(argv, message):
    with pytest.raises(InputError, match=message):
        parse(ModelConfig, "a test", argv)


def test_right_options_and_their_defaults():
    config, _ = parse(ModelConfig, "a test", [])
    assert (config.embeddings, config.conv_kernel_size, config.normalize_embeddings) == (None, None, None)
    config, _ = parse(ModelConfig, "a test", ["--embeddings", "fft", "--normalize_embeddings", "true"])
    assert (config.embeddings, config.normalize_embeddings) == ("fft", True)
    assert parse(ModelConfig, "a test", ["--normalize_embeddings", "false"])[0].normalize_embeddings is False
    assert set(EMBEDDINGS) == {"base", *VARIANTS}


def test_a_fresh_process_loads_model_and_tokenizer(checkpoints, tmp_path):
    """Nothing but `bertdyn.models.loading` is imported there, and no option says what the checkpoint is."""
    torch.manual_seed(4)
    folder = tmp_path / "saved"
    model = load_model(str(checkpoints["bert"]), "classification", label_names=LABELS, embeddings="conv2d").eval()
    torch.nn.init.normal_(model.bert.embeddings.conv.weight)
    model.save_pretrained(folder)
    # without tokenizer_config.json it is the model type alone that says which tokenizer it is
    AutoTokenizer.from_pretrained(checkpoints["bert"]).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    code = f"""
import torch
from bertdyn.models.loading import load_model, load_tokenizer
model = load_model({str(folder)!r}, "classification", label_names={LABELS!r}).eval()
tokenizer = load_tokenizer({str(folder)!r})
with torch.inference_mode():
    logits = model(**tokenizer(["the film is good", "bad"], padding=True, return_tensors="pt")).logits
classes = [type(model).__name__, type(tokenizer).__name__]
torch.save({{"logits": logits, "classes": classes}}, {str(tmp_path / "out")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    out = torch.load(tmp_path / "out")
    assert out["classes"] == ["Conv2dBertForSequenceClassification", BertTokenizer.__name__]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    with torch.inference_mode():
        expected = model(**tokenizer(["the film is good", "bad"], padding=True, return_tensors="pt")).logits
    assert torch.equal(out["logits"], expected)


@pytest.mark.parametrize("embeddings", ["fft", "conv2d"])
def test_a_saved_variant_loads_without_bertdyn(embeddings, tmp_path):
    """In a process that knows transformers only: the checkpoint brings its own code."""
    model = load_model("minilm", "classification", label_names=LABELS, embeddings=embeddings).eval()
    model.save_pretrained(tmp_path / "saved")
    ids = torch.tensor([[101, 2000, 2001, 102]])
    program = """
import sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not [name for name in sys.modules if name.startswith("bertdyn")]
torch.save(model(torch.tensor([[101, 2000, 2001, 102]])).logits, sys.argv[2])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "saved"), str(tmp_path / "logits.pt")]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-6, rtol=0)
