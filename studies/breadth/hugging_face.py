# SPDX-License-Identifier: BSD-3-Clause
"""Small networks of Hugging Face's transformers: the class of each, the class of its configuration, and options."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

TEXT: dict[str, Any] = {"vocab_size": 50}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE = {"image_size": 32, "patch_size": 8}


class Kind(NamedTuple):
    """A network: names of classes in the library, and the options of its configuration."""

    model: str
    config: str
    options: dict[str, Any]


KINDS = {
    "bert": Kind("BertModel", "BertConfig", TEXT | SMALL),
    "gpt2": Kind(
        "GPT2Model",
        "GPT2Config",
        TEXT | {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "use_cache": False},
    ),
    "llama": Kind("LlamaModel", "LlamaConfig", TEXT | SMALL | {"use_cache": False}),
    "t5_encoder": Kind(
        "T5EncoderModel", "T5Config", TEXT | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    ),
    "distilbert": Kind(
        "DistilBertModel", "DistilBertConfig", TEXT | {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
    ),
    "vit": Kind("ViTModel", "ViTConfig", SMALL | IMAGE),
    "clip_vision": Kind("CLIPVisionModel", "CLIPVisionConfig", SMALL | IMAGE),
    "dinov2": Kind("Dinov2Model", "Dinov2Config", SMALL | {"image_size": 28, "patch_size": 14}),
    "swin": Kind(
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4},
    ),
    "segformer": Kind(
        "SegformerModel",
        "SegformerConfig",
        {
            **{"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]},
            **{"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]},
        },
    ),
    "resnet": Kind(
        "ResNetModel",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "convnext": Kind("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "regnet": Kind(
        "RegNetModel",
        "RegNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    ),
    "mobilenet_v2": Kind("MobileNetV2Model", "MobileNetV2Config", {"image_size": 64}),
    "whisper_encoder": Kind(
        "models.whisper.modeling_whisper.WhisperEncoder",
        "WhisperConfig",
        {
            **{"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
            **{"num_mel_bins": 16, "max_source_positions": 50},
        },
    ),
    "wav2vec2": Kind(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        SMALL
        | {
            **{"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2},
            **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
        },
    ),
}


def build(name: str) -> nn.Module:
    """The network of this name, with random weights."""
    kind = KINDS[name]
    config = getattr(import_module("transformers"), kind.config)(**kind.options)
    module, _, model = kind.model.rpartition(".")
    network: nn.Module = getattr(import_module(f"transformers.{module}".rstrip(".")), model)(config)
    return network
