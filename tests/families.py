"""A small random checkpoint of every family, with a real tokenizer class, made on the spot.

BERT's vocabulary comes from the packaged MiniLM, CamemBERT's from the data folder where that is given;
the others are learned from a few sentences, since they cannot be had without a hub.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from transformers import (
    AlbertConfig,
    AlbertTokenizer,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    FlaubertConfig,
    FlaubertTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaTokenizer,
)

from bertdyn.data.synthetic import generate
from bertdyn.models.embedding_variants import Conv2dBertConfig, FftBertConfig
from bertdyn.models.loading import local_name

FAMILIES = ("bert", "roberta", "camembert", "distilbert", "albert", "flaubert", "fft_bert", "conv2d_bert")
LAYERS = 3


def tolerance_of(family: str, exact: float) -> float:
    """How far apart equal computations of different shapes may be in float64: `exact`, or what FlauBERT allows.

    Its attention takes the softmax in float32, whatever the rest is in, and a vectorised sum over a padded row adds in
    another order than one over the row alone.
    """
    return 1e-6 if family == "flaubert" else exact


def make_checkpoint(family: str, folder: Path) -> Path:
    """Config, weights and tokenizer of a tiny model of `family` in `folder`."""
    tokenizer = _TOKENIZERS[family](folder)
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    usual = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    configs: dict[str, Callable[[], PretrainedConfig]] = {
        "bert": lambda: BertConfig(**usual, **sizes),
        "fft_bert": lambda: FftBertConfig(**usual, **sizes),
        "conv2d_bert": lambda: Conv2dBertConfig(**usual, **sizes),
        "roberta": lambda: RobertaConfig(**usual, **sizes, max_position_embeddings=130, type_vocab_size=1),
        "camembert": lambda: CamembertConfig(**usual, **sizes, max_position_embeddings=130, type_vocab_size=1),
        "distilbert": lambda: DistilBertConfig(dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=64, **sizes),
        "albert": lambda: AlbertConfig(**usual, **sizes, embedding_size=16),
        "flaubert": lambda: FlaubertConfig(
            emb_dim=32, n_layers=LAYERS, n_heads=4, n_words=len(tokenizer), pad_index=tokenizer.pad_token_id
        ),
    }
    torch.manual_seed(0)
    AutoModel.from_config(configs[family]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _sentences() -> list[str]:
    return generate(300, 0, "train")["text"].tolist()


def _wordpiece(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(local_name("minilm"))


def _byte_level(folder: Path) -> PreTrainedTokenizerBase:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _sentences(), vocab_size=600, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    bpe.save_model(str(folder))
    return RobertaTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def _camembert(folder: Path) -> PreTrainedTokenizerBase:
    data = os.environ.get("BERTDYN_DATA")
    return AutoTokenizer.from_pretrained(Path(data) / "tokenizers/camembert") if data else _byte_level(folder)


def _unigram(folder: Path) -> PreTrainedTokenizerBase:
    unigram = SentencePieceUnigramTokenizer()
    unigram.train_from_iterator(
        _sentences(),
        vocab_size=400,
        special_tokens=["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        unk_token="<unk>",
        show_progress=False,
    )
    return AlbertTokenizer(vocab=[tuple(piece) for piece in json.loads(unigram.to_str())["model"]["vocab"]])


def _moses_bpe(folder: Path) -> PreTrainedTokenizerBase:
    letters = sorted({letter for sentence in _sentences() for letter in sentence if letter != " "})
    tokens = ["<s>", "</s>", "<pad>", "<unk>", "<special1>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["th", "the</w>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h 1\nth e</w> 1\n")
    return FlaubertTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


_TOKENIZERS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "bert": _wordpiece,
    "fft_bert": _wordpiece,
    "conv2d_bert": _wordpiece,
    "roberta": _byte_level,
    "camembert": _camembert,
    "distilbert": _wordpiece,
    "albert": _unigram,
    "flaubert": _moses_bpe,
}
