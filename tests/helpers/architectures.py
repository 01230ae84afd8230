# SPDX-License-Identifier: BSD-3-Clause
"""Small networks as users write them. Their forward methods mix modules, functions and in-place methods.

`build(Mixer)` is one of them, in eval mode. It maps images (N, *net.image) to logits (N, 10). torch.fx traces them all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build(kind: type[nn.Module], *, seed: int = 0, **options: object) -> nn.Module:
    """A network with weights from `seed` and batch norms that have seen images. The global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind(**options)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.normal_(part.weight, 1, 0.3)
                nn.init.normal_(part.bias, 0, 0.3)
        with torch.no_grad():
            net.train()(torch.randn(64, *net.image))
    return net.eval()


class Residual(nn.Module):
    """Convolutions with batch norm and a skip, in place where possible, then a perceptron with dropout."""

    def __init__(self, image: tuple[int, int, int] = (1, 8, 8), width: int = 6):
        super().__init__()
        self.image = image
        self.stem = nn.Conv2d(image[0], width, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.fc1, self.fc2 = nn.Linear(width * 4, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        out = self.relu(out)
        out = F.adaptive_avg_pool2d(out, 2)
        out = torch.relu(self.fc1(out.view(out.size(0), -1)))
        return self.fc2(F.dropout(out, 0.5, training=self.training))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens1, self.tokens2 = nn.Linear(tokens, hidden), nn.Linear(hidden, tokens)
        self.channels1, self.channels2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).transpose(1, 2)
        x = x + self.tokens2(self.gelu(self.tokens1(y))).transpose(1, 2)
        return x + self.channels2(F.gelu(self.channels1(self.norm2(x))))


class Mixer(nn.Module):
    """Perceptrons over tokens and over channels, alternately (Tolstikhin et al. 2021, MLP-Mixer)."""

    def __init__(
        self, image: tuple[int, int, int] = (1, 8, 8), patch: int = 2, width: int = 8, hidden: int = 12, depth: int = 2
    ):
        super().__init__()
        self.image = image
        tokens = (image[1] // patch) * (image[2] // patch)
        self.embed = nn.Conv2d(image[0], width, patch, stride=patch)
        self.blocks = nn.ModuleList(MixerBlock(tokens, width, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.act, self.contract = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.contract(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Depthwise 7x7 convolutions and perceptrons over channels, two stages (Liu et al. 2022)."""

    def __init__(self, image: tuple[int, int, int] = (3, 16, 16), width: int = 4):
        super().__init__()
        self.image = image
        self.stem = nn.Conv2d(image[0], width, 2, stride=2)
        self.stage1 = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.stage2 = nn.Sequential(ConvNeXtBlock(2 * width))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(y)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A vision transformer with a class token (Dosovitskiy et al. 2021)."""

    def __init__(
        self, image: tuple[int, int, int] = (1, 8, 8), patch: int = 2, width: int = 8, heads: int = 2, depth: int = 2
    ):
        super().__init__()
        self.image = image
        tokens = (image[1] // patch) * (image[2] // patch)
        self.embed = nn.Conv2d(image[0], width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(0.5 * torch.randn(1, tokens + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 2 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class UNet(nn.Module):
    """A U-Net: down by max-pooling and up again, concatenating maps from the way down (Ronneberger et al. 2015).

    Its logits are the mean over the map of the logits of each pixel.
    """

    def __init__(self, image: tuple[int, int, int] = (3, 16, 16), width: int = 4):
        super().__init__()
        self.image = image
        self.down1, self.down2 = self.convolution(image[0], width), self.convolution(width, 2 * width)
        self.bottom = self.convolution(2 * width, 4 * width)
        self.up2, self.up1 = self.convolution(6 * width, 2 * width), nn.Conv2d(3 * width, width, 3, padding=1)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(width, 10, 1)

    @staticmethod
    def convolution(before: int, width: int) -> nn.Sequential:
        conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(self.pool(first))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.up2(torch.cat((self.upsample(x), second), dim=1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.leaky_relu(self.up1(torch.cat((x, first), dim=1)), 0.1)
        return self.head(x).mean(dim=(2, 3))


KINDS = (Residual, Mixer, ConvNeXt, Transformer, UNet)


@torch.no_grad()
def settle(net: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms with exactly the mean and the (population) variance of x."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            grab: list[Tensor] = []
            handle = module.register_forward_pre_hook(lambda _, inputs, grab=grab: grab.append(inputs[0]))
            net.eval()(x)
            handle.remove()
            dims = [0, *range(2, grab[0].dim())]
            module.running_mean.copy_(grab[0].mean(dims))
            module.running_var.copy_(grab[0].var(dims, unbiased=False))
    return net
