"""The networks of the benchmarks in PyTorch, the baseline of score_jax.

Ordinary PyTorch modules, with images as [batch, channels, height, width]. `NCSN` and `NCSNv2`
load official state dicts; the other two networks load the parameters of their counterparts in
score_jax. benchmarks/speed.py checks that all of them give the same scores before it measures.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


def same_conv(
    features: int, out: int, size: int = 3, dilation: int = 1, bias: bool = True
) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(features, out, size, padding=padding, dilation=dilation, bias=bias)


def instance_norm_plus(h, gamma, alpha, beta):
    """Instance norm++ with coefficients [batch or 1, features, 1, 1]."""
    # The two are equal, but instance_norm returns channels first for any layout.
    if h.is_contiguous(memory_format=torch.channels_last):
        normalized = F.group_norm(h, h.shape[1])
    else:
        normalized = F.instance_norm(h)
    mu = h.mean((2, 3))
    mu = (mu - mu.mean(1, keepdim=True)) / torch.sqrt(mu.var(1, keepdim=True) + 1e-5)
    return gamma * (normalized + alpha * mu[:, :, None, None]) + beta


class ConditionalInstanceNormPlus(nn.Module):
    def __init__(self, features: int, num_levels: int):
        super().__init__()
        self.embed = nn.Embedding(num_levels, 3 * features)

    def forward(self, h, level):
        return instance_norm_plus(h, *self.embed(level)[:, :, None, None].chunk(3, dim=1))


class InstanceNormPlus(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))
        self.alpha = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features))

    def forward(self, h, level):
        coefficients = (self.gamma, self.alpha, self.beta)
        return instance_norm_plus(h, *(value[None, :, None, None] for value in coefficients))


class WithoutNorm(nn.Module):
    """Identity used where a norm is expected."""

    def __init__(self, features: int):
        super().__init__()

    def forward(self, h, level):
        return h


Norm = Callable[[int], nn.Module]
"""Constructor of a norm from the number of its features."""
Pool = Callable[[torch.Tensor], torch.Tensor]
"""5x5 pooling that keeps the resolution."""
mean_pool = functools.partial(F.avg_pool2d, kernel_size=5, stride=1, padding=2)
max_pool = functools.partial(F.max_pool2d, kernel_size=5, stride=1, padding=2)


class ConvMeanPool(nn.Module):
    def __init__(self, features: int, out: int, size: int):
        super().__init__()
        self.conv = same_conv(features, out, size)

    def forward(self, h):
        return F.avg_pool2d(self.conv(h), 2)


class ResidualBlock(nn.Module):
    def __init__(self, features: int, out: int, norm: Norm, down: bool = False, dilation: int = 1):
        super().__init__()
        middle = features if down else out
        pool = down and dilation == 1
        self.normalize1 = norm(features)
        self.conv1 = same_conv(features, middle, dilation=dilation)
        self.normalize2 = norm(middle)
        self.shortcut = nn.Identity()
        if pool:
            self.conv2 = ConvMeanPool(middle, out, 3)
            self.shortcut = ConvMeanPool(features, out, 1)
        else:
            self.conv2 = same_conv(middle, out, dilation=dilation)
            if down or features != out:
                self.shortcut = same_conv(features, out, dilation=dilation)

    def forward(self, h, level):
        y = self.conv1(F.elu(self.normalize1(h, level)))
        y = self.conv2(F.elu(self.normalize2(y, level)))
        return y + self.shortcut(h)


class ResidualConvUnits(nn.Module):
    def __init__(self, features: int, num_blocks: int, norm: Norm):
        super().__init__()
        self.num_blocks = num_blocks
        for block in range(1, num_blocks + 1):
            for stage in (1, 2):
                self.add_module(f"{block}_{stage}_norm", norm(features))
                conv = same_conv(features, features, bias=False)
                self.add_module(f"{block}_{stage}_conv", conv)

    def forward(self, h, level):
        for block in range(1, self.num_blocks + 1):
            residual = h
            for stage in (1, 2):
                norm = getattr(self, f"{block}_{stage}_norm")
                conv = getattr(self, f"{block}_{stage}_conv")
                h = conv(F.elu(norm(h, level)))
            h = h + residual
        return h


class MultiScaleFusion(nn.Module):
    def __init__(self, features: list[int], out: int, norm: Norm):
        super().__init__()
        self.convs = nn.ModuleList(same_conv(own, out) for own in features)
        self.norms = nn.ModuleList(norm(own) for own in features)

    def forward(self, maps, level, size):
        total = 0
        for h, conv, norm in zip(maps, self.convs, self.norms):
            h = conv(norm(h, level))
            total = total + F.interpolate(h, size=size, mode="bilinear", align_corners=True)
        return total


class ChainedResidualPooling(nn.Module):
    def __init__(self, features: int, norm: Norm, pool: Pool):
        super().__init__()
        self.pool = pool
        self.convs = nn.ModuleList(same_conv(features, features, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(norm(features) for _ in range(2))

    def forward(self, h, level):
        h = path = F.elu(h)
        for conv, norm in zip(self.convs, self.norms):
            path = conv(self.pool(norm(path, level)))
            h = h + path
        return h


class RefineBlock(nn.Module):
    def __init__(self, features: list[int], out: int, norm: Norm, pool: Pool, last: bool = False):
        super().__init__()
        self.adapt_convs = nn.ModuleList(ResidualConvUnits(own, 2, norm) for own in features)
        self.msf = MultiScaleFusion(features, out, norm) if len(features) > 1 else None
        self.crp = ChainedResidualPooling(out, norm, pool)
        self.output_convs = ResidualConvUnits(out, 3 if last else 1, norm)

    def forward(self, maps, level):
        size = maps[0].shape[2:]
        maps = [adapt(h, level) for adapt, h in zip(self.adapt_convs, maps)]
        h = self.msf(maps, level, size) if self.msf else maps[0]
        return self.output_convs(self.crp(h, level), level)


class RefineNet(nn.Module):
    """The network of both papers at its standard depth, with the official names.

    Args:
        width: Features of the first stage, n.
        channels: Channels of the images.
        norm: Constructor of the norms of the residual blocks.
        refine_norm: Constructor of the norms of the refine blocks.
        pool: 5x5 pooling of the refine blocks.
    """

    def __init__(self, width: int, channels: int, norm: Norm, refine_norm: Norm, pool: Pool):
        super().__init__()
        n, refine = width, functools.partial(RefineBlock, norm=refine_norm, pool=pool)
        self.begin_conv = same_conv(channels, n)
        self.res1 = self._stage(n, n, norm)
        self.res2 = self._stage(n, 2 * n, norm, down=True)
        self.res3 = self._stage(2 * n, 2 * n, norm, down=True, dilation=2)
        self.res4 = self._stage(2 * n, 2 * n, norm, down=True, dilation=4)
        self.refine1 = refine([2 * n], 2 * n)
        self.refine2 = refine([2 * n, 2 * n], 2 * n)
        self.refine3 = refine([2 * n, 2 * n], n)
        self.refine4 = refine([n, n], n, last=True)
        self.normalizer = norm(n)
        self.end_conv = same_conv(n, channels)

    @staticmethod
    def _stage(features: int, out: int, norm: Norm, down: bool = False, dilation: int = 1):
        first = ResidualBlock(features, out, norm, down, dilation)
        second = ResidualBlock(out, out, norm, dilation=dilation)
        return nn.ModuleList([first, second])

    def forward(self, x, level):
        h = self.begin_conv(2 * x - 1)
        maps = []
        for stage in (self.res1, self.res2, self.res3, self.res4):
            for block in stage:
                h = block(h, level)
            maps.append(h)
        h = self.refine1([maps[3]], level)
        h = self.refine2([maps[2], h], level)
        h = self.refine3([maps[1], h], level)
        h = self.refine4([maps[0], h], level)
        return self.end_conv(F.elu(self.normalizer(h, level)))


class NCSN(RefineNet):
    """The conditional RefineNet of Song & Ermon (2019)."""

    def __init__(self, width: int, channels: int, num_levels: int = 10):
        norm = functools.partial(ConditionalInstanceNormPlus, num_levels=num_levels)
        super().__init__(width, channels, norm, norm, mean_pool)


class NCSNv2(RefineNet):
    """The unconditional network of Song & Ermon (2020), divided by sigma."""

    def __init__(self, width: int, channels: int, sigmas):
        super().__init__(width, channels, InstanceNormPlus, WithoutNorm, max_pool)
        self.register_buffer("sigmas", torch.as_tensor(sigmas, dtype=torch.float32))

    def forward(self, x, level):
        return super().forward(x, level) / self.sigmas[level][:, None, None, None]


class Block(nn.Module):
    def __init__(self, features: int, out: int, condition: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, features, eps=1e-6)
        self.conv1 = same_conv(features, out)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6, affine=False)
        self.conv2 = same_conv(out, out)
        self.modulation = nn.Linear(condition, 2 * out)
        self.shortcut = nn.Identity() if features == out else nn.Conv2d(features, out, 1)

    def forward(self, h, condition):
        y = self.conv1(F.silu(self.norm1(h)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        y = F.silu(self.norm2(y) * (1 + scale) + shift)
        return self.conv2(y) + self.shortcut(h)


class SelfAttention(nn.Module):
    def __init__(self, features: int, heads: int, groups: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, features, eps=1e-6)
        self.qkv = nn.Conv2d(features, 3 * features, 1)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, h):
        batch, features, height, width = h.shape
        depth = features // self.heads
        qkv = self.qkv(self.norm(h)).reshape(batch, 3, self.heads, depth, height * width)
        q, k, v = (part.mT for part in qkv.unbind(1))
        return h + self.out(F.scaled_dot_product_attention(q, k, v).mT.reshape(h.shape))


class UNet(nn.Module):
    """The counterpart of score_jax.models.unet."""

    def __init__(
        self,
        sigmas,
        size: int,
        width: int,
        heads: int,
        groups: int,
        data_mean: float,
        data_std: float,
        num_classes: int,
    ):
        super().__init__()
        frequencies = torch.logspace(math.log10(0.25), math.log10(4.0), 8)
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32))
        self.register_buffer("frequencies", frequencies)
        self.data_mean, self.data_std = data_mean, data_std
        condition = 4 * width
        self.dense = nn.Linear(16, condition)
        self.embed = nn.Embedding(num_classes + 1, condition)
        self.begin = same_conv(1, width)
        self.position = nn.Parameter(torch.zeros(width, size, size))
        self.down_block = Block(width, width, condition, groups)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.blocks = nn.ModuleList()
        self.attentions = nn.ModuleList()
        for _ in range(2):
            self.blocks.append(Block(2 * width, 2 * width, condition, groups))
            self.attentions.append(SelfAttention(2 * width, heads, groups))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up_block = Block(2 * width, width, condition, groups)
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.end = same_conv(width, 1)

    def forward(self, x, level, label):
        sigma = self.sigmas[level][:, None, None, None]
        total = torch.sqrt(sigma**2 + self.data_std**2)
        angle = torch.log(sigma[:, :, 0, 0]) * self.frequencies
        condition = self.dense(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.embed(label)
        condition = F.silu(condition)
        h = self.begin((x - self.data_mean) / total) + self.position
        skip = h = self.down_block(h, condition)
        h = self.down(h)
        for block, attention in zip(self.blocks, self.attentions):
            h = attention(block(h, condition))
        h = self.up_block(torch.cat([self.up(h), skip], dim=1), condition)
        f = self.end(F.silu(self.norm(h)))
        return self.data_std / (total * sigma) * f - (x - self.data_mean) / total**2

    @torch.no_grad()
    def load(self, params) -> None:
        """Copies the parameters of a score_jax U-Net."""
        _load(self.dense, params["Dense_0"])
        _load(self.begin, params["Conv_0"])
        _load(self.down, params["Conv_1"])
        _load(self.end, params["Conv_2"])
        _load(self.norm, params["GroupNorm_0"])
        self.embed.weight.copy_(_tensor(params["Embed_0"]["embedding"]))
        self.position.copy_(_tensor(params["position"]).permute(2, 0, 1))
        for i, block in enumerate([self.down_block, *self.blocks, self.up_block]):
            _load_block(block, params[f"Block_{i}"])
        for i, attention in enumerate(self.attentions):
            own = params[f"SelfAttention_{i}"]
            _load(attention.norm, own["GroupNorm_0"])
            _load(attention.qkv, own["Dense_0"])
            _load(attention.out, own["Dense_1"])
        self._load_up(params["Dense_1"])

    def _load_up(self, values) -> None:
        """Copies the dense layer whose outputs are the 2x2 pixels of each pixel."""
        features, width = self.up.weight.shape[:2]
        kernel = _tensor(values["kernel"]).reshape(features, 2, 2, width)
        self.up.weight.copy_(kernel.permute(0, 3, 1, 2))
        bias = _tensor(values["bias"]).reshape(2, 2, width)
        if not torch.equal(bias, bias[:1, :1].expand_as(bias)):
            raise ValueError("a transposed convolution needs one bias for the four pixels")
        self.up.bias.copy_(bias[0, 0])


class MLP(nn.Module):
    """The counterpart of score_jax.models.mlp."""

    def __init__(self, sigmas, hidden: tuple[int, ...] = (128, 128), features: int = 2):
        super().__init__()
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32))
        widths = [features + 1, *hidden, features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x, level):
        sigma = self.sigmas[level][:, None]
        total = torch.sqrt(sigma**2 + 1)
        h = torch.cat([x / total, torch.log(sigma)], dim=1)
        for layer in self.layers[:-1]:
            h = F.softplus(layer(h))
        return self.layers[-1](h) / (total * sigma) - x / total**2

    @torch.no_grad()
    def load(self, params) -> None:
        """Copies the parameters of a score_jax MLP."""
        for i, layer in enumerate(self.layers):
            _load(layer, params[f"Dense_{i}"])


def _tensor(array) -> torch.Tensor:
    return torch.tensor(np.asarray(array))


def _load_block(block: Block, values) -> None:
    _load(block.norm1, values["GroupNorm_0"])
    _load(block.conv1, values["Conv_0"])
    _load(block.conv2, values["Conv_1"])
    _load(block.modulation, values["Dense_0"])
    if "Dense_1" in values:
        _load(block.shortcut, values["Dense_1"])


def _load(module: nn.Module, values) -> None:
    weight = _tensor(values["kernel"] if "kernel" in values else values["scale"])
    if isinstance(module, nn.Conv2d):
        # A dense layer is a 1x1 convolution.
        if weight.ndim == 2:
            weight = weight[None, None]
        weight = weight.permute(3, 2, 0, 1)
    elif isinstance(module, nn.Linear):
        weight = weight.T
    module.weight.copy_(weight)
    module.bias.copy_(_tensor(values["bias"]))
