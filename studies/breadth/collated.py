# SPDX-License-Identifier: BSD-3-Clause
"""Networks of transformers on batches as its tokenizers and collators make them: dicts, masks, labels."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tracing.agreement import distances
from studies.breadth.hugging_face import IMAGE, SMALL, TEXT

SAMPLES, LENGTH, CLASSES = 100, 12, 3
WORDS: dict[str, Any] = TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WHISPER = {
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 16, "max_source_positions": 50},
    **{"max_target_positions": 20, "decoder_start_token_id": 1},
}


class Case(NamedTuple):
    """A network: its class and that of its configuration, options, the inputs of a batch, and the output that counts.

    Inputs are names of `_inputs`; "labels" stands for one class a sample, "token labels" for one a token.
    """

    model: str
    config: str
    options: dict[str, Any]
    inputs: tuple[str, ...]
    output: str | None = None


TOKENS = ("input_ids", "attention_mask")
CASES = {
    "bert, a class a text": Case(
        "BertForSequenceClassification", "BertConfig", WORDS | SMALL | {"num_labels": CLASSES}, (*TOKENS, "labels")
    ),
    "roberta, a class a token": Case(
        "RobertaForTokenClassification", "RobertaConfig", WORDS | SMALL | {"num_labels": CLASSES},
        (*TOKENS, "token labels"),
    ),
    "bert, embeddings": Case("BertModel", "BertConfig", WORDS | SMALL, ("inputs_embeds", "attention_mask")),
    "distilbert": Case(
        "DistilBertForSequenceClassification", "DistilBertConfig",
        WORDS | {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "num_labels": CLASSES},
        (*TOKENS, "labels"),
    ),
    "gpt2": Case(
        "GPT2LMHeadModel", "GPT2Config", WORDS | {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}, TOKENS
    ),
    "llama": Case("LlamaModel", "LlamaConfig", WORDS | SMALL, TOKENS),
    "t5": Case(
        "T5Model", "T5Config", WORDS | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
        (*TOKENS, "decoder_input_ids"),
    ),
    "vit": Case(
        "ViTForImageClassification", "ViTConfig", SMALL | IMAGE | {"num_labels": CLASSES}, ("pixel_values", "labels")
    ),
    "clip": Case(
        "CLIPModel", "CLIPConfig",
        {"text_config": WORDS | SMALL | {"max_position_embeddings": 20}, "vision_config": SMALL | IMAGE},
        ("input_ids", "pixel_values", "attention_mask"), "text_embeds",
    ),
    "whisper": Case("WhisperModel", "WhisperConfig", WORDS | WHISPER, ("input_features", "decoder_input_ids")),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The network of a case, with random weights from seed 0, in eval mode."""
    case, library = CASES[name], import_module("transformers")
    torch.manual_seed(0)
    network: nn.Module = getattr(library, case.model)(getattr(library, case.config)(**case.options))
    return network.eval()


def batch(name: str) -> dict[str, Tensor]:
    """The batch of a case, from seed 1: texts of 4 to 12 tokens, padded by zeros."""
    tensors = _inputs()
    return {key.removeprefix("token "): tensors[key] for key in CASES[name].inputs}


def record(name: str) -> Record:
    """What is sampled of one network, and how right it is.

    Keys: "non-linearities" and "sampled"; "counted" and "positions", how many positions of tokens count, and that the
    first site with as many positions has counted; "identity", the distance to the reference with the reference's own
    neurons, and "materialize", of the plain wide module to a network twice as wide, relative to the largest output.
    """
    network, data, output = build(name), batch(name), CASES[name].output
    inputs = {key: value for key, value in data.items() if key != "labels"}
    sites = rf.sites(network, data)
    options: dict[str, Any] = {"holdout": 0, "output": output}
    wide, report = rf.sample(network, data, factor=2, **options)
    same, _ = rf.sample(network, data, law="identity", **options)
    wanted = {key: value for key, value in network(**inputs).items() if key in same(**inputs)}  # without caches
    counts = [site.samples for site in report.sites]
    mask = data.get("attention_mask")
    return {
        "batch": name,
        "inputs": ", ".join(data),
        "sites": len(sites),
        "sampled": len(counts),
        "positions": None if mask is None else int(mask.sum()),
        "counted": None if mask is None else min(counts, key=lambda count: abs(count - int(mask.sum()))),
        "accuracy": "accuracy" if report.accuracy else None,
        "identity": float(f"{distances(dict(same(**inputs)), wanted):.1e}"),
        "materialize": float(f"{distances(wide.materialize()(**inputs), wide(**inputs)):.1e}"),
    }


def _inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(1)
    mask = (torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (SAMPLES, 1), generator=source)).long()
    labels = torch.randint(0, CLASSES, (SAMPLES, LENGTH), generator=source)
    ids = torch.randint(3, TEXT["vocab_size"], (SAMPLES, LENGTH), generator=source)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "decoder_input_ids": ids[:, :8],
        "labels": labels[:, 0],
        "token labels": torch.where(mask == 1, labels, -100),
        "inputs_embeds": torch.randn(SAMPLES, LENGTH, SMALL["hidden_size"], generator=source),
        "pixel_values": torch.randn(SAMPLES, 3, IMAGE["image_size"], IMAGE["image_size"], generator=source),
        "input_features": torch.randn(SAMPLES, 16, 100, generator=source),
    }
