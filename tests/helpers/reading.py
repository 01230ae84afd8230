# SPDX-License-Identifier: BSD-3-Clause
"""A small network of token ids with a mask, and ids of several lengths."""

import math

import torch
from torch import Tensor, nn

N, T, VOCABULARY, CLASSES = 60, 7, 11, 3
_generator = torch.Generator().manual_seed(0)
LENGTHS = torch.randint(2, T + 1, (N,), generator=_generator)
MASK = (torch.arange(T) < LENGTHS[:, None]).long()
IDS = torch.randint(1, VOCABULARY, (N, T), generator=_generator) * MASK
TOKENS = {"input_ids": IDS, "attention_mask": MASK}
COUNTED = MASK.bool()


class Reader(nn.Module):
    """Token ids with a mask: attention, a GELU at every position, and the class of each position."""

    def __init__(self, convolution: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words, self.qkv, self.up = nn.Embedding(VOCABULARY, 12), nn.Linear(12, 36), nn.Linear(12, 20)
        self.down, self.act = nn.Linear(20, 12), nn.GELU()
        self.around = nn.Conv1d(12, 14, 1) if convolution else None
        self.act_2, self.last = nn.ReLU(), nn.Linear(14 if convolution else 12, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.words(input_ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / math.sqrt(12)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        x = x + self.down(self.act(self.up(x + scores.softmax(-1) @ v)))
        if self.around is not None:
            x = self.act_2(self.around(x.transpose(1, 2))).transpose(1, 2)
        return {"logits": self.last(x), "hidden": x}
