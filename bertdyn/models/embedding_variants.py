"""BERT with another rule for how word and position vectors become one: `fft` and `conv2d` (System 0).

    base     LayerNorm(word + position + token type)
    fft      LayerNorm(word ⊛ position + token type), ⊛ the circular convolution over the hidden axis
    conv2d   LayerNorm(GELU(Conv2d([word, position])) + token type), over the image [seq, hidden]

Everything else is BERT's own: names of modules, so that a plain checkpoint loads with nothing but the convolution's
kernel new; the initial scale of the tables; and, with the same seed, every shared weight of a fresh model. What differs
between two variants is then the rule alone. (In System 0 the variants' tables started 50 times larger than BERT's.)

Importing this module registers the variants with the Auto classes of transformers. A saved variant brings a copy of
it, so that it also loads where bertdyn is not installed, with trust_remote_code=True: import nothing of bertdyn here.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertPooler
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


@strict
class FusedBertConfig(BertConfig):
    """What the variants' configurations share: they are encoders."""

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.is_decoder:
            raise ValueError("is_decoder=True: these embeddings are made for encoders only")


@strict
class FftBertConfig(FusedBertConfig):
    """BERT whose embeddings are circular convolutions of word and position vectors."""

    model_type = "fft_bert"

    normalize_embeddings: bool = False
    """Whether the convolved vector is scaled to length 1 before the token type is added."""


@strict
class Conv2dBertConfig(FusedBertConfig):
    """BERT whose embeddings are a convolution over tokens and hidden axis of word and position vectors."""

    model_type = "conv2d_bert"

    conv_kernel_size: Literal[1, 3] = 3
    """3 mixes each value with its neighbours in both directions, 1 leaves tokens and hidden axis alone."""


class FusedEmbeddings(BertEmbeddings):
    """BERT's tables, LayerNorm and dropout around a rule of one's own."""

    def fuse(self, words: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[batch, seq, hidden] and [1 or batch, seq, hidden] → [batch, seq, hidden]"""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """As BERT's, with the padding mask [batch, seq] in addition → [batch, seq, hidden]"""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = self.position_ids[:, past_key_values_length : words.shape[1] + past_key_values_length]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        fused = self.fuse(words, self.position_embeddings(position_ids), attention_mask)
        return self.dropout(self.LayerNorm(fused + self.token_type_embeddings(token_type_ids)))


class FftEmbeddings(FusedEmbeddings):
    """Binds word and position by circular convolution over the hidden axis, fused[i] = Σ_j word[j] · position[i - j].

    It mixes no tokens, so that padding needs no care.
    """

    def __init__(self, config: FftBertConfig) -> None:
        super().__init__(config)
        self.normalize = config.normalize_embeddings

    def fuse(self, words: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        # Sums of hidden_size products, and half-precision transforms do not exist everywhere.
        dtype = torch.promote_types(words.dtype, torch.float32)
        spectrum = torch.fft.rfft(words.to(dtype)) * torch.fft.rfft(positions.to(dtype))
        fused = torch.fft.irfft(spectrum, n=words.shape[-1])  # n: an odd width cannot be told from the spectrum
        if self.normalize:
            fused = F.normalize(fused, dim=-1)
        return fused.to(words.dtype)


class WordPositionConv(nn.Conv2d):
    """The bias-free kernel over word and position image: two channels in, one out, same size.

    It starts as the plain sum of both channels, with no weight on neighbours: what pretrained word and position
    vectors say reaches the first layer nearly as before (BERT's usual N(0, 0.02) would hand on noise), and neighbours
    come in as far as training finds them useful. Nothing is drawn, so that a seed gives all other weights as in BERT.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def reset_parameters(self) -> None:
        centre = self.kernel_size[0] // 2
        delta = torch.zeros_like(self.weight)
        delta[:, :, centre, centre] = 1
        init.copy_(self.weight, delta)


class Conv2dEmbeddings(FusedEmbeddings):
    """Convolves word and position vectors, stacked as the two channels of an image [seq, hidden]."""

    def __init__(self, config: Conv2dBertConfig) -> None:
        super().__init__(config)
        self.conv = WordPositionConv(config.conv_kernel_size)

    def fuse(self, words: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        image = torch.stack([words, positions.expand_as(words)], dim=1)  # [batch, 2, seq, hidden]
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(
                    f"attention_mask {list(attention_mask.shape)}: accepted is the padding mask [batch, seq]"
                )
            # The kernel reaches over the last real token: it must find there what it finds beyond the image's edge.
            image = image.masked_fill(attention_mask[:, None, :, None] == 0, 0.0)
        return F.gelu(self.conv(image).squeeze(1))


class FusedBertModel(BertModel):
    """BertModel around the embeddings of a variant, to which it hands the attention mask."""

    embeddings_class: ClassVar[type[FusedEmbeddings]]

    def __init__(self, config: FusedBertConfig, add_pooling_layer: bool = True) -> None:
        # Not BertModel's own __init__: it would draw the tables of plain embeddings first.
        super(BertModel, self).__init__(config)
        self.gradient_checkpointing = False
        self.embeddings = self.embeddings_class(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, WordPositionConv):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[override]  # no decoder's arguments: the configuration refuses decoders
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """As BertModel's, except that the embeddings know the padding."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        embedded = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
        )
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embedded, attention_mask=attention_mask)
        hidden_states = self.encoder(
            embedded, attention_mask=mask, position_ids=position_ids, **kwargs
        ).last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states) if self.pooler is not None else None,
        )


class FftBertModel(FusedBertModel):
    config_class = FftBertConfig
    embeddings_class = FftEmbeddings


class Conv2dBertModel(FusedBertModel):
    config_class = Conv2dBertConfig
    embeddings_class = Conv2dEmbeddings


class FusedBertForSequenceClassification(BertForSequenceClassification):
    """BertForSequenceClassification around the encoder of a variant."""

    encoder_class: ClassVar[type[FusedBertModel]]

    def __init__(self, config: FusedBertConfig) -> None:
        super(BertForSequenceClassification, self).__init__(config)  # see FusedBertModel
        self.num_labels = config.num_labels
        self.bert = self.encoder_class(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)  # type: ignore[arg-type]
        self.post_init()


class FftBertForSequenceClassification(FusedBertForSequenceClassification):
    config_class = FftBertConfig
    encoder_class = FftBertModel


class Conv2dBertForSequenceClassification(FusedBertForSequenceClassification):
    config_class = Conv2dBertConfig
    encoder_class = Conv2dBertModel


class FusedBertForQuestionAnswering(BertForQuestionAnswering):
    """BertForQuestionAnswering around the encoder of a variant."""

    encoder_class: ClassVar[type[FusedBertModel]]

    def __init__(self, config: FusedBertConfig) -> None:
        super(BertForQuestionAnswering, self).__init__(config)  # see FusedBertModel
        self.num_labels = config.num_labels
        self.bert = self.encoder_class(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, self.num_labels)  # type: ignore[arg-type]
        self.post_init()


class FftBertForQuestionAnswering(FusedBertForQuestionAnswering):
    config_class = FftBertConfig
    encoder_class = FftBertModel


class Conv2dBertForQuestionAnswering(FusedBertForQuestionAnswering):
    config_class = Conv2dBertConfig
    encoder_class = Conv2dBertModel


VARIANTS: dict[str, type[FusedBertConfig]] = {"fft": FftBertConfig, "conv2d": Conv2dBertConfig}

for _config, _classes in (
    (FftBertConfig, (FftBertModel, FftBertForSequenceClassification, FftBertForQuestionAnswering)),
    (Conv2dBertConfig, (Conv2dBertModel, Conv2dBertForSequenceClassification, Conv2dBertForQuestionAnswering)),
):
    AutoConfig.register(_config.model_type, _config)
    AutoTokenizer.register(_config, tokenizer_class=BertTokenizer)
    _config.register_for_auto_class()
    for _auto, _class in zip(
        (AutoModel, AutoModelForSequenceClassification, AutoModelForQuestionAnswering), _classes, strict=True
    ):
        _auto.register(_config, _class)
        _class.register_for_auto_class(_auto.__name__)  # type: ignore[attr-defined]
