# SPDX-License-Identifier: BSD-3-Clause
"""Masks of padding: padded positions enter no moment and no error."""

import math

import pytest
import torch
from reading import CLASSES, COUNTED, IDS, LENGTHS, MASK, TOKENS, N, Reader, T
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.maps import take
from rainbow_fast.rainbow.positions import Positions
from rainbow_fast.tracing.agreement import distances


def padded_with(value: int) -> dict[str, Tensor]:
    """The tokens with other ids at padded positions, which must not matter."""
    return {"input_ids": torch.where(COUNTED, IDS, value), "attention_mask": MASK}


@pytest.mark.parametrize("convolution", [False, True], ids=["last axis", "second axis"])
@pytest.mark.parametrize("options", [{"factor": 3}, {"factor": 1, "method": "calibrated"}, {"method": "regression"}])
def test_padded_positions_never_enter_moments(convolution, options):
    """Moments, errors and alignments are those of the positions that count, whatever stands at the others."""
    net = Reader(convolution)
    sampled = [rf.sample(net, padded_with(value), holdout=padded_with(value), **options) for value in (0, 5)]
    for site, other in zip(*(report.sites for _, report in sampled), strict=True):
        assert site.samples == int(MASK.sum()) and site == other
    outputs = [network(**padded_with(0))["logits"][COUNTED] for network, _ in sampled]
    assert torch.equal(*outputs)
    assert distances(sampled[0][0].materialize()(**TOKENS)["logits"][COUNTED], outputs[0]) < 1e-5


def test_moments_of_masked_positions():
    """Those of `fit` are the moments of the rows that count; also if only some of them are used."""
    net = Reader()
    z = net.up(net.words(IDS) + attended(net))[COUNTED].detach()
    model = rf.fit(net, TOKENS, holdout=0)
    moments = model.sites[0].z
    assert moments.count == len(z)
    torch.testing.assert_close(moments.mean_x, z.double().mean(0), rtol=1e-5, atol=1e-7)  # rounding of float32
    torch.testing.assert_close(moments.compute(), z.double().T @ z.double() / len(z), rtol=1e-5, atol=1e-7)
    for size in (7, 60):
        some = rf.fit(net, TOKENS, holdout=0, max_samples=50, batch_size=size).sites[0].z
        step = 2 * (-(-len(z) // 50) // 2) + 1
        step += 2 * (math.gcd(step, T) > 1)
        assert some.count == len(z[::step])
        torch.testing.assert_close(some.mean_x, z[::step].double().mean(0), rtol=1e-5, atol=1e-7)


def attended(net: Reader) -> Tensor:
    q, k, v = net.qkv(net.words(IDS)).chunk(3, -1)
    return (q @ k.transpose(1, 2) / math.sqrt(12)).masked_fill(MASK[:, None] == 0, -1e9).softmax(-1) @ v


def test_compare_leaves_padded_positions_out():
    a, b = Reader(), Reader()
    nn.init.normal_(b.up.weight, generator=torch.Generator().manual_seed(5))
    results = [rf.compare(a, b, padded_with(value), holdout=0) for value in (0, 5)]
    assert results[0].sites == results[1].sites and results[0].sites[0].samples == int(MASK.sum())


def test_masks_of_padding():
    """`...padding_mask` is true at padded positions; a network may have it by place."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x, padded = torch.randn(N, T, 8, generator=torch.Generator().manual_seed(3)), ~COUNTED
    data = {"src": x, "src_key_padding_mask": padded}
    network, report = rf.sample(layer, data, factor=2, holdout=0)
    assert [site.samples for site in report.sites] == [int(COUNTED.sum())]
    assert network(src=x, src_key_padding_mask=padded).shape == x.shape
    ones = rf.sample(layer, {"src": x, "src_key_padding_mask": torch.zeros_like(padded)}, holdout=0)[1]
    assert ones.sites[0].samples == N * T


def test_positions():
    """With a mask they are those of the rows that count, in batches of any size; without one those of `take`."""
    x = torch.arange(N * T * 2.0).view(N, T, 2)
    for step in (1, 3, 5):
        wanted = x[COUNTED][::step]
        positions = Positions(T, N, step, COUNTED)
        assert positions.count == len(wanted)
        for size in (1, 8, N):
            rows = [positions.of(x[i : i + size].flatten(0, 1), i) for i in range(0, N, size)]
            maps = [positions.of(x[i : i + size].movedim(-1, 1), i) for i in range(0, N, size)]
            assert torch.equal(torch.cat(rows), wanted) and torch.equal(torch.cat(maps), wanted)
        assert torch.equal(Positions(T, N, step).of(x.movedim(-1, 1), 4), take(x.movedim(-1, 1), 4 * T, step))
        assert Positions(T, N, step).count == len(range(0, N * T, step))


def test_batches_of_several_lengths():
    """A collator that pads each batch to its longest sample: samples and labels are padded to the longest of all."""
    labels = torch.where(COUNTED, IDS % CLASSES, -100)
    order = LENGTHS.argsort()
    loader = []
    for i in range(0, N, 12):
        rows = order[i : i + 12]
        longest = int(LENGTHS[rows].max())
        loader.append({name: t[rows, :longest] for name, t in (TOKENS | {"labels": labels}).items()})
    assert len({batch["input_ids"].shape[1] for batch in loader}) > 1
    for batches in (loader, loader[::-1]):
        rows = torch.cat([order[i : i + 12] for i in range(0, N, 12)][:: 1 if batches is loader else -1])
        whole = {name: t[rows] for name, t in (TOKENS | {"labels": labels}).items()}
        reports = [rf.sample(Reader(), data, holdout=0)[1] for data in (batches, whole)]
        assert reports[0] == reports[1]
    held = rf.sample(Reader(), loader[-1], holdout=loader[0])[1]
    assert held == rf.sample(Reader(), loader[-1], holdout=padded_dict(loader[0], T))[1]


def padded_dict(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    missing = length - batch["input_ids"].shape[1]
    return {name: F.pad(t, (0, missing), value=-100 if name == "labels" else 0) for name, t in batch.items()}


class Decoder(nn.Module):
    """Two readers, each with its own ids and mask."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Reader(), Reader()

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
        x = self.encoder(input_ids, attention_mask)["hidden"].mean(1, keepdim=True)
        return self.decoder(decoder_input_ids, decoder_attention_mask)["hidden"] + x


def test_two_masks():
    """Each applies to the sites with as many positions; two of one length must be equal."""
    short = {"decoder_input_ids": IDS[:, :5], "decoder_attention_mask": MASK[:, :5]}
    samples = [site.samples for site in rf.sample(Decoder(), TOKENS | short, holdout=0)[1].sites]
    assert samples == [int(MASK.sum()), int(MASK[:, :5].sum())]
    same = {"decoder_input_ids": IDS, "decoder_attention_mask": MASK}
    assert [site.samples for site in rf.sample(Decoder(), TOKENS | same, holdout=0)[1].sites] == [int(MASK.sum())] * 2
    other = same | {"decoder_attention_mask": MASK.flip(0)}
    with pytest.raises(ValueError, match="^data: inputs 'attention_mask' and 'decoder_attention_mask' disagree about"):
        rf.fit(Decoder(), TOKENS | other)
