"""Networks applied to overlapping tiles of space, so that memory stays bounded at any resolution (ours; used by 3.3 and 3.4).

What makes tiles differ from the whole is, first, group normalisation: its statistics are those of a frame. With the whole
frame's statistics, tiles of mini's decoder equal the whole to float32's rounding. So every tile is run twice: the first time
to gather statistics, which are averaged over the tiles, the second time under those. What is left is a blend of overlaps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


@torch.no_grad()
def tiled(
    network: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, unit: int = 1
) -> Tensor:
    """`function` of x (..., h, w), computed in tiles of at most `tile` along each side that share at least `overlap`.

    function: maps a part (..., th, tw) of x to (..., s * th, s * tw), with s the same for all; it calls `network`, whose group
    norms are shared between tiles. unit: tiles begin and end at multiples of it. What fits into one tile is computed whole.
    Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} cannot overlap by {overlap}")
    rows, columns = (_spans(side, tile, overlap, unit) for side in x.shape[-2:])
    if len(rows) == len(columns) == 1:
        return function(x)
    boxes = [(row, column) for row in range(len(rows)) for column in range(len(columns))]

    def part(row: int, column: int) -> Tensor:
        return function(x[..., slice(*rows[row]), slice(*columns[column])])

    with _shared_norms(network) as norms:
        for box in boxes:
            norms.begin_tile()
            part(*box)
        norms.share()
        total, weights = torch.zeros(()), torch.zeros(())
        for row, column in boxes:
            norms.begin_tile()
            found = part(row, column)
            scale = found.shape[-1] / (columns[column][1] - columns[column][0])
            if not total.ndim:
                size = [round(side * scale) for side in x.shape[-2:]]
                total = found.new_zeros(*found.shape[:-2], *size, dtype=torch.float32)
                weights = total.new_zeros(*size)
            weight = _ramp(rows, row, scale, total)[:, None] * _ramp(columns, column, scale, total)
            tall, wide = (slice(*(round(edge * scale) for edge in span)) for span in (rows[row], columns[column]))
            total[..., tall, wide] += found * weight
            weights[tall, wide] += weight
    return (total / weights).to(x.dtype)


def _spans(length: int, tile: int, overlap: int, unit: int) -> list[tuple[int, int]]:
    """Begin and end of as few tiles as cover `length`, evenly spread."""
    tile, overlap = max(unit, tile // unit * unit), math.ceil(overlap / unit) * unit
    if length <= tile:
        return [(0, length)]
    count = math.ceil((length - overlap) / max(tile - overlap, unit))
    begins = [round(index * (length - tile) / (count - 1) / unit) * unit for index in range(count)]
    return [(begin, begin + tile) for begin in begins[:-1]] + [(length - tile, length)]


def _ramp(spans: list[tuple[int, int]], index: int, scale: float, like: Tensor) -> Tensor:
    """The weight of a tile along one side: 1, and falling to 0 over the middle half of what it shares with a neighbour."""
    begin, end = (round(edge * scale) for edge in spans[index])
    weight = like.new_ones(end - begin)
    for neighbour, first in ((index - 1, True), (index + 1, False)):
        if 0 <= neighbour < len(spans):
            shared = round((spans[neighbour][1] - spans[index][0] if first else spans[index][1] - spans[neighbour][0]) * scale)
            rise = torch.arange(shared, device=like.device, dtype=like.dtype).add(0.5).div(max(shared, 1))
            rise = (2 * rise - 0.5).clamp(1e-6, 1)
            if first:
                weight[:shared] *= rise
            elif shared:
                weight[-shared:] *= rise.flip(0)
    return weight


class _Norms:
    """Group norms of a network that first note their statistics tile by tile, then use the average.

    Calls are told apart by their order within a tile, which is the same in all tiles.
    """

    def __init__(self) -> None:
        self.noted: list[list[tuple[Tensor, Tensor]]] = []  # by call: (mean, mean square), each (N, groups), of every tile
        self.shared: list[tuple[Tensor, Tensor]] | None = None
        self.call = 0

    def begin_tile(self) -> None:
        self.call = 0

    def share(self) -> None:
        self.shared = []
        for tiles in self.noted:
            mean, square = (torch.stack(values).mean(0) for values in zip(*tiles, strict=True))
            self.shared.append((mean, (square - mean.square()).clamp(min=0)))

    def __call__(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        index, self.call = self.call, self.call + 1
        if self.shared is None:
            groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
            variance, mean = (value.float() for value in torch.var_mean(groups, dim=2, correction=0))
            if index == len(self.noted):
                self.noted.append([])
            self.noted[index].append((mean, variance + mean.square()))
            return nn.functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        mean, variance = (value.repeat_interleave(x.shape[1] // norm.num_groups, dim=1) for value in self.shared[index])
        scale = norm.weight.float() * (variance + norm.eps).rsqrt()
        shift = norm.bias.float() - mean * scale
        shape = (*scale.shape, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


@contextlib.contextmanager
def _shared_norms(network: nn.Module) -> Iterator[_Norms]:
    norms = _Norms()
    layers = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
    for layer in layers:
        layer.forward = lambda x, layer=layer: norms(layer, x)  # type: ignore[method-assign,misc]
    try:
        yield norms
    finally:
        for layer in layers:
            del layer.forward
