# SPDX-License-Identifier: BSD-3-Clause
"""The activations of one data set, in the reference and in the networks that are sampled from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.chunks import Data, channels_last
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.wide_layer import WideLayer, product_of
from rainbow_fast.rainbow.pair_moments import PairMoments
from rainbow_fast.rainbow.sampling.storage import Cell, Storage, keeper
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.chain import linear_chain
from rainbow_fast.tracing.trace import State, Trace

REFERENCE = 0  # number of the reference's lane; the sampled networks have the numbers 1, 2, ...


@dataclass(frozen=True)
class Features:
    """How a lane computes and stores the features phi' of a sampled site.

    Attributes:
        activation: the sampled site.
        layer: computes the pre-activations from the stored features of the site before; None if they are computed from
            z.
    """

    activation: RainbowActivation
    layer: WideLayer | None

    def preactivations(self, source: Tensor) -> Tensor:
        """The pre-activations from the features of the site before, or from z."""
        return self.activation.preactivations(source) if self.layer is None else self.layer(source)

    def features(self, s: Tensor) -> Tensor:
        """phi' from the pre-activations s, which may be overwritten."""
        return self.activation.kind.features_over(s)


class Flight:
    """The activations of all samples of a data set between two sites.

    All networks advance through the sites together. A lane is one of these networks: lane 0 is the reference, the
    others are sampled from it. A sampled network shares the activations of the reference up to its first sampled
    site, unless its layers differ from the reference's.

    A flight keeps the state of every lane and chunk: all tensors that later layers read. The first of them is the
    input z of the present site, until `put` replaces it by the site's output. A chunk is identified by the index of
    its first sample, called `start`. A lane may keep the features phi' of a sampled site in the place of phih, which is
    computed from them if a layer reads it.

    With the storage "recompute" nothing is kept. Every call then computes the activations again from the network's
    input, with the same bits.

    Attributes:
        place: index of the present site.
        activations: for each lane, the modules of its sites so far. The present site's module is appended once it
            is known.
        features: for each lane and each of these modules, how its features are computed and stored; None if they are
            not stored.
        traces: for each lane, its network as a chain of sites; the first one is the reference's.
        apart: for each lane, whether it has its own activations. False while it shares the reference's.
        phi: moments of the reference's output at the present site.
    """

    def __init__(self, traces: Sequence[Trace], data: Data, storage: Storage, folder: Path) -> None:
        self.traces, self.data, self.storage = traces, data, storage
        self.keep = keeper(storage, folder)
        self.place = 0
        self.activations: list[list[nn.Module]] = [[] for _ in traces]
        self.features: list[list[Features | None]] = [[] for _ in traces]
        self.apart = [lane == REFERENCE or trace is not traces[REFERENCE] for lane, trace in enumerate(traces)]
        self.phi = ChannelMoments()
        self._products = {trace: [product_of(segment) for segment in trace.segments] for trace in set(traces)}
        self._linear = {
            trace: [linear_chain(segment, flatten=True) is not None for segment in trace.segments]
            for trace in self._products
        }
        self._cells: list[dict[int, tuple[Cell, ...]]] = [{} for _ in traces]
        self._at_z: list[set[int]] = [set() for _ in traces]

    def __iter__(self) -> Iterator[int]:
        return iter(self.data.starts)

    @property
    def count(self) -> int:
        return self.data.count

    def z(self, lane: int, start: int) -> Tensor:
        """The input z of the present site, for one chunk."""
        mover = lane if self.apart[lane] else REFERENCE
        if self.keep is None:
            return self._rounded(self._advance(mover, start))[0]
        if start not in self._at_z[mover]:
            self._move(mover, start)
        return self._cells[lane][start][0].load()

    def put(self, lane: int, start: int, output: Tensor) -> None:
        """Replace z by the output of the site."""
        if self.keep is not None:
            self._cells[lane][start] = (self.keep(output), *self._cells[lane][start][1:])

    def output(self, lane: int, start: int) -> Tensor:
        """The tensor that was put last; without storage, the lane's activation applied to z."""
        if self.keep is None:
            return self._applied(self.activations[lane][self.place], self.place, self.z(lane, start))
        return self._cells[lane][start][0].load()

    def apply(self, lane: int, start: int) -> Tensor:
        """Apply the lane's activation to z, put the result and return it."""
        if self.keep is not None:
            activation, z = self.activations[lane][self.place], self.z(lane, start)
            if self._overwrites(lane):
                z.relu_()  # new memory would take longer than the maximum
                self.put(lane, start, self._laid(self.place, z))
            else:
                self.put(lane, start, self._applied(activation, self.place, z))
        return self.output(lane, start)

    def enter(self, lane: int, activation: nn.Module, features: Features | None = None) -> None:
        """Use this module as the lane's present site; `features` says how phi' is computed, if the lane stores it."""
        self.activations[lane].append(activation)
        if features is not None and self.keep is not None:
            features = replace(features, layer=None)  # it has been used for all chunks
        self.features[lane].append(features)

    def follow(self, lane: int, activation: nn.Module) -> None:
        """Use this module as the lane's present site and apply it to all chunks. Nothing is measured."""
        self.enter(lane, activation)
        parts = self.apart[lane] or isinstance(activation, RainbowActivation)
        for start in self if parts and self.keep is not None else ():
            self.apply(lane, start)

    def reference(self, module: nn.Module, look: Callable[[int, Tensor], None] | None = None) -> None:
        """Apply the reference's present site, which is this module, to all chunks, and measure the moments of phi.

        `look` is called with the start and the z of every chunk before the module is applied.
        """
        self.enter(REFERENCE, module)
        site = self.traces[REFERENCE].sites[self.place]
        self.phi = PairMoments() if site.paired else ChannelMoments()
        for start in self:
            if look is not None:
                look(start, self.z(REFERENCE, start))
            self.phi.update(self.data.counted(start, self.apply(REFERENCE, start), site.axis))

    def preactivations(self, lane: int, start: int, features: Features) -> Tensor:
        """The pre-activations z' of the present site, which is sampled, for one chunk."""
        source = self.z(lane, start) if features.layer is None else self._replayed(lane, start)[0]
        return features.preactivations(source)

    def keep_features(self, lane: int, start: int, s: Tensor, features: Features) -> Tensor:
        """Compute phi' of the present site from its pre-activations, put it and return it."""
        phi = self._laid(self.place, features.features(s))
        self.put(lane, start, phi)
        return phi

    def kept(self, lane: int, start: int, features: Features) -> Tensor:
        """phi' of the present site, as `keep_features` has put it."""
        if self.keep is not None:
            return self._cells[lane][start][0].load()
        return self.keep_features(lane, start, self.preactivations(lane, start, features), features)

    def settle(self, lane: int, start: int, projection: Tensor | None = None) -> Tensor:
        """Compute phih = scale * projection + offset, put it and return it.

        `projection` is A phi'. None means that it was put before.
        """
        activation = self.activations[lane][self.place]
        assert isinstance(activation, RainbowActivation)
        if projection is None and self.keep is None:
            return self.output(lane, start)
        y = self.output(lane, start) if projection is None else self._laid(self.place, projection)
        phih = self._laid(self.place, activation.finish(y).to(self.data.dtype))
        self.put(lane, start, phih)
        return phih

    def after(self, lane: int, module: nn.Module) -> Tensor:
        """A module applied to the output of the last finished site, for all samples at once."""
        lane = lane if self.apart[lane] else REFERENCE
        first = module(self._state(lane, 0)[0])
        whole = first.new_empty(self.count, *first.shape[1:])  # at once: parts would lie between freed activations
        whole[: len(first)] = first
        for start in list(self)[1:]:
            whole[start : start + self.data.size] = module(self._state(lane, start)[0])
        return whole

    def leave(self, sampled: Iterable[int] = ()) -> None:
        """Go on to the next site. `sampled` names the lanes that were sampled at the present one."""
        self.place += 1
        for lane in sampled:
            self.apart[lane] = True
        for lane, apart in enumerate(self.apart):
            self._at_z[lane].clear()
            if not apart:
                self._cells[lane].clear()

    def outputs(self, lane: int, start: int) -> Any:
        """The outputs for one chunk of a network with the lane's sites so far and the reference's later sites."""
        lane = lane if self.apart[lane] else REFERENCE
        return self.traces[lane].finish(self.place, self._state(lane, start), self.activations[lane])

    def _overwrites(self, lane: int) -> bool:
        """Whether the lane's present site is a ReLU of the reference whose output may overwrite z.

        z is then the result of a single linear layer, which nothing else reads: no later layer, no hook and no lane.
        """
        trace = self.traces[lane]
        site = trace.sites[self.place]
        relu = site.fused and site.activation == "relu" and site.norm is None and site.expansion is None
        own = self.activations[lane][self.place] is site.reference
        return relu and own and all(self.apart) and self._linear[trace][self.place]

    def _move(self, mover: int, start: int) -> None:
        """Bring one chunk of a lane to z of the present site.

        If the lane is the reference, the lanes that still share its activations are moved too. Tensors that the layers
        pass on unchanged are not stored again.
        """
        assert self.keep is not None
        before = self._state(mover, start)
        cells = {id(value): cell for value, cell in zip(before, self._cells[mover].get(start, ()), strict=False)}
        if self._features_at(mover, self.place - 1) is not None:
            del cells[id(before[0])]  # the cell has phi', not phih
        after = self._run_layers(mover, self.place, before)
        for value in after:
            if id(value) not in cells:
                cells[id(value)] = self.keep(value)
        followers = [lane for lane, apart in enumerate(self.apart) if not apart] if mover == REFERENCE else []
        for lane in (mover, *followers):
            self._cells[lane][start] = tuple(cells[id(value)] for value in after)
        self._at_z[mover].add(start)

    def _advance(self, lane: int, start: int) -> State:
        return self._run_layers(lane, self.place, self._state(lane, start))

    def _run_layers(self, lane: int, place: int, state: State) -> State:
        """The layers of a lane between two sites."""
        product = self._products[self.traces[lane]][place]
        if product is not None:
            return (product(state[0]),)
        return self.traces[lane].advance(place, state, self.activations[lane])

    def _state(self, lane: int, start: int) -> State:
        """The state of one chunk after the previous site."""
        if self.place == 0:
            return (self.data.chunk(start),)
        how, state = self._features_at(lane, self.place - 1), self._replayed(lane, start)
        return state if how is None else (self._aligned(how.activation, self.place - 1, state[0]), *state[1:])

    def _replayed(self, lane: int, start: int) -> State:
        """As `_state`, but with phi' in the place of phih if the lane stores the features of the previous site.

        Without storage, all sites are computed again.
        """
        if self.keep is not None:
            return tuple(cell.load() for cell in self._cells[lane][start])
        state: State = (self.data.chunk(start),)
        before: Features | None = None
        for place, activation in enumerate(self.activations[lane][: self.place]):
            how, source, rest = self._features_at(lane, place), state[0], list[Any]()
            if how is None or how.layer is None:
                if before is not None:
                    state = (self._aligned(before.activation, place - 1, source), *state[1:])
                source, *rest = self._rounded(self._run_layers(lane, place, state))
            if how is None:
                state = (self._applied(activation, place, source), *rest)
            else:
                state = (self._laid(place, how.features(how.preactivations(source))), *rest)
            before = how
        return state

    def _features_at(self, lane: int, place: int) -> Features | None:
        """How the lane has computed the features of a site that it stores; None if it stores phih."""
        return self.features[lane][place] if place >= 0 and self.apart[lane] else None

    def _aligned(self, activation: RainbowActivation, place: int, phi: Tensor) -> Tensor:
        """phih from phi'."""
        return self._laid(place, activation.finish(activation.aligned_features(phi)))

    def _applied(self, activation: nn.Module, place: int, z: Tensor) -> Tensor:
        """The output of a site, rounded as storage would round it."""
        if not isinstance(activation, RainbowActivation):
            return self._laid(place, activation(z))
        raw = self._laid(place, activation.aligned(z))
        return self._laid(place, activation.finish(raw).to(z.dtype))

    def _laid(self, place: int, value: Tensor) -> Tensor:
        """The output of a site as it would be loaded after being stored, in the memory format of the run."""
        last = self.data.channels_last and self.traces[REFERENCE].sites[place].axis == 1
        return self.storage.round(channels_last(value) if last else value.contiguous())

    def _rounded(self, state: State) -> State:
        return tuple(map(self.storage.round, state))


def in_flight_bytes(
    lanes: Sequence[Sequence[SiteStatistics]], data: Sequence[Data], storage_dtype: torch.dtype | None
) -> int:
    """The largest activation memory between two sites, in bytes.

    For each lane: the maximum over the sites of the larger of z and phi plus all tensors that later layers read.
    """
    itemsize = (storage_dtype or data[0].dtype).itemsize
    largest = [max(max(math.prod(s.z_shape), math.prod(s.phi_shape)) + s.alive for s in sites) for sites in lanes]
    return sum(largest) * sum(each.count for each in data) * itemsize
