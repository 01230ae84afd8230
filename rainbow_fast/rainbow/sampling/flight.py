# SPDX-License-Identifier: BSD-3-Clause
"""A data set on its way through the reference and the networks that are sampled from it, all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.chunks import Data
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.positions import channels_first
from rainbow_fast.rainbow.sampling.storage import Cell, Storage, keeper
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.trace import State, Trace

REFERENCE = 0  # the lane of the reference; the others follow


class Flight:
    """A data set in flight, site by site: for each lane and chunk, what is alive between two sites.

    A lane is the reference or a network that is sampled from it; up to its first sampled site it is the reference,
    unless it has other layers. At a site a chunk of a lane is at z, until `put` replaces z by what the site gives.
    Where nothing is stored, everything is computed from the input on, with the same bits. Chunks are named by their
    first sample.

    Attributes:
        place: of the site at which all is.
        activations: of each lane, the modules that stand for the sites so far, the present one among them once it is
            known.
        traces: of each lane, the chain that it goes along; the first is the reference's.
        apart: of each lane, whether it is not the reference any more.
        phi: moments of what the present site gives in the reference.
    """

    def __init__(self, traces: Sequence[Trace], data: Data, storage: Storage, folder: Path) -> None:
        self.traces, self.data, self.storage = traces, data, storage
        self.keep = keeper(storage, folder)
        self.place = 0
        self.activations: list[list[nn.Module]] = [[] for _ in traces]
        self.apart = [lane == REFERENCE or trace is not traces[REFERENCE] for lane, trace in enumerate(traces)]
        self.phi = ChannelMoments()
        self._cells: list[dict[int, tuple[Cell, ...]]] = [{} for _ in traces]
        self._at_z: list[set[int]] = [set() for _ in traces]

    def __iter__(self) -> Iterator[int]:
        return iter(self.data.starts)

    @property
    def count(self) -> int:
        return self.data.count

    def z(self, lane: int, start: int) -> Tensor:
        """Of the site at which all is."""
        mover = lane if self.apart[lane] else REFERENCE
        if self.keep is None:
            return self._rounded(self._advance(mover, start))[0]
        if start not in self._at_z[mover]:
            self._move(mover, start)
        return self._cells[lane][start][0].load()

    def put(self, lane: int, start: int, output: Tensor) -> None:
        """Replace z by what the site gives."""
        if self.keep is not None:
            self._cells[lane][start] = (self.keep(output), *self._cells[lane][start][1:])

    def output(self, lane: int, start: int) -> Tensor:
        """What was put last; where nothing is stored, what the activation of the lane gives."""
        if self.keep is None:
            return self._applied(self.activations[lane][self.place], self.z(lane, start))
        return self._cells[lane][start][0].load()

    def apply(self, lane: int, start: int) -> Tensor:
        """Put what the activation of the lane makes of z; it is returned."""
        if self.keep is not None:
            self.put(lane, start, self._applied(self.activations[lane][self.place], self.z(lane, start)))
        return self.output(lane, start)

    def follow(self, lane: int, activation: nn.Module) -> None:
        """Let a module stand for the site in a lane, of which nothing is to be measured."""
        self.activations[lane].append(activation)
        parts = self.apart[lane] or isinstance(activation, RainbowActivation)
        for start in self if parts and self.keep is not None else ():
            self.apply(lane, start)

    def reference(self, module: nn.Module, look: Callable[[int, Tensor], None] | None = None) -> None:
        """Bring the reference past the site, which is this module, and measure phi; `look` sees each z before."""
        self.activations[REFERENCE].append(module)
        self.phi = ChannelMoments()
        site = self.traces[REFERENCE].sites[self.place]
        for start in self:
            if look is not None:
                look(start, self.z(REFERENCE, start))
            self.phi.update(channels_first(self.apply(REFERENCE, start), site.axis))

    def settle(self, lane: int, start: int, projection: Tensor | None = None) -> Tensor:
        """Put phih, which is returned: scale and offset on the projection, given or as it was put before."""
        activation = self.activations[lane][self.place]
        assert isinstance(activation, RainbowActivation)
        if projection is None and self.keep is None:
            return self.output(lane, start)
        y = self.output(lane, start) if projection is None else self.storage.round(projection)
        phih = self.storage.round(activation.finish(y).to(self.data.dtype))
        self.put(lane, start, phih)
        return phih

    def features(self, lane: int, module: nn.Module) -> Tensor:
        """What a module makes of what the site before gave, all samples together."""
        lane = lane if self.apart[lane] else REFERENCE
        return torch.cat([module(self._state(lane, start)[0]) for start in self])

    def leave(self, sampled: Iterable[int] = ()) -> None:
        """Go on to the next site; these lanes were sampled at this one."""
        self.place += 1
        for lane in sampled:
            self.apart[lane] = True
        for lane, apart in enumerate(self.apart):
            self._at_z[lane].clear()
            if not apart:
                self._cells[lane].clear()

    def finish(self, lane: int) -> Tensor:
        """The outputs of a network with the lane's sites so far, and with the reference's from here on."""
        return torch.cat([self.outputs(lane, start) for start in self])

    def outputs(self, lane: int, start: int) -> Any:
        """Those of one chunk."""
        lane = lane if self.apart[lane] else REFERENCE
        return self.traces[lane].finish(self.place, self._state(lane, start), self.activations[lane])

    def _move(self, mover: int, start: int) -> None:
        """Bring a lane to z, and with the reference the lanes that still are the reference. What only passes by is not
        stored again."""
        assert self.keep is not None
        before = self._state(mover, start)
        cells = {id(value): cell for value, cell in zip(before, self._cells[mover].get(start, ()), strict=False)}
        after = self.traces[mover].advance(self.place, before, self.activations[mover])
        for value in after:
            if id(value) not in cells:
                cells[id(value)] = self.keep(value)
        followers = [lane for lane, apart in enumerate(self.apart) if not apart] if mover == REFERENCE else []
        for lane in (mover, *followers):
            self._cells[lane][start] = tuple(cells[id(value)] for value in after)
        self._at_z[mover].add(start)

    def _advance(self, lane: int, start: int) -> State:
        return self.traces[lane].advance(self.place, self._state(lane, start), self.activations[lane])

    def _state(self, lane: int, start: int) -> State:
        """After the site before."""
        state: State = (self.data.chunk(start),)
        if self.place == 0:
            return state
        if self.keep is not None:
            return tuple(cell.load() for cell in self._cells[lane][start])
        for place, activation in enumerate(self.activations[lane][: self.place]):
            z, *rest = self._rounded(self.traces[lane].advance(place, state, self.activations[lane]))
            state = (self._applied(activation, z), *rest)
        return state

    def _applied(self, activation: nn.Module, z: Tensor) -> Tensor:
        """What a site gives, rounded where it would be if it were stored."""
        if not isinstance(activation, RainbowActivation):
            return self.storage.round(activation(z))
        raw = self.storage.round(activation.aligned(z))
        return self.storage.round(activation.finish(raw).to(z.dtype))

    def _rounded(self, state: State) -> State:
        return tuple(map(self.storage.round, state))


def in_flight_bytes(
    lanes: Sequence[Sequence[SiteStatistics]], data: Sequence[Data], storage_dtype: torch.dtype | None
) -> int:
    """What waits between two sites at most: of each lane the larger of z and phi, and what is read later."""
    itemsize = (storage_dtype or data[0].dtype).itemsize
    largest = [max(max(math.prod(s.z_shape), math.prod(s.phi_shape)) + s.alive for s in sites) for sites in lanes]
    return sum(largest) * sum(each.count for each in data) * itemsize
