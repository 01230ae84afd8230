# SPDX-License-Identifier: BSD-3-Clause
"""Counts the instructions of the hot loop of a GPU kernel, in the text that nvdisasm prints.

The hot loop is the outermost loop that has tensor-core instructions, or one inside it. Its instructions are those of
one path through it: the path with the most flops of tensor cores, among these the one with the most asynchronous
copies, and among these the shortest. So slow paths, which a usual call does not take, are not counted. Every
instruction of the path counts as one, whether its predicate is true or not, because it takes an issue slot.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

UNIT = 2 * 16 * 8 * 16  # flops of one m16n8k16 product

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
LABEL = re.compile(r"^(\.L_\w+):", re.MULTILINE)
TARGET = re.compile(r"`\((\.L_\w+)\)")
CASES = re.compile(r"\.L_\w+")  # of a jump through a table
ONE = re.compile(r"^[HDI]MMA\.(\d+(?:x\d+x\d+)?)")
SIZES = {  # rows, columns and terms of one instruction of a warp, where no x stands between them
    "16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "884": (8, 8, 4),
}  # fmt: skip
GROUP = re.compile(r"^HGMMA\.(\d+)x(\d+)x(\d+)")  # of four warps
TURNS = 1 << 10  # most passes of an analysis; more of them are a fault of this file


def flops(opcode: str) -> float:
    """The flops that one warp contributes to a tensor-core instruction; 0 for any other."""
    if sizes := GROUP.match(opcode):
        rows, columns, terms = map(int, sizes.groups())
        return 2.0 * rows * columns * terms / 4
    if sizes := ONE.match(opcode):
        rows, columns, terms = map(int, sizes[1].split("x")) if "x" in sizes[1] else SIZES[sizes[1]]
        return 2.0 * rows * columns * terms
    return 0.0


class Weight(NamedTuple):
    """What a path costs. Paths are compared in this order; fewer instructions are better, so they are negative."""

    flops: float = 0.0
    copies: int = 0
    fewer: int = 0

    def plus(self, other: "Weight", times: int = 1) -> "Weight":
        return Weight(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclass
class Block:
    """Instructions without a jump between them, and the numbers of the blocks that may follow."""

    weight: Weight = Weight()
    next: set[int] = field(default_factory=set)


def blocks(sass: str) -> list[Block]:
    """The control flow of a kernel."""
    places: list[tuple] = [(m.start(), m[1], None) for m in LABEL.finditer(sass)]
    places += [(m.start(), None, m) for m in INSTRUCTION.finditer(sass)]
    all_blocks, starts, jumps, open_block = [Block()], {}, [], True
    for _, label, instruction in sorted(places, key=lambda place: place[0]):
        if label is not None:
            if open_block:
                all_blocks[-1].next.add(len(all_blocks))
            starts[label] = len(all_blocks)
            all_blocks.append(Block())
            open_block = True
            continue
        predicate, opcode, rest = instruction[2], instruction[3], instruction[4]
        if not open_block:  # cannot be reached, such as the padding at the end
            all_blocks.append(Block())
            open_block = True
        here = all_blocks[-1]
        here.weight = here.weight.plus(Weight(flops(opcode), opcode.startswith("LDGSTS"), -1))
        name = opcode.split(".")[0]
        if name in ("BRA", "CALL") and (target := TARGET.search(rest)):  # a call of a label of this kernel is a jump
            jumps.append((len(all_blocks) - 1, target[1]))
            always = name == "BRA" and predicate is None and not re.search(r"\bU?P\w", rest.split("`")[0])
        elif name in ("EXIT", "RET", "BRX", "BRXU", "BRA"):
            jumps += [(len(all_blocks) - 1, label) for label in CASES.findall(rest)]
            always = predicate is None
        else:
            continue
        if always:
            open_block = False
        else:
            here.next.add(len(all_blocks))
            all_blocks.append(Block())
    for source, label in jumps:
        all_blocks[source].next.add(starts[label])
    for block in all_blocks:
        block.next = {target for target in block.next if target < len(all_blocks)}
    return all_blocks


def dominators(graph: list[Block]) -> list[int]:
    """For each block, as the bits of a number, the blocks that every path from the first block to it goes through."""
    before: list[set[int]] = [set() for _ in graph]
    for source, block in enumerate(graph):
        for target in block.next:
            before[target].add(source)
    everything = (1 << len(graph)) - 1
    sets = [1] + [everything] * (len(graph) - 1)
    for _ in range(TURNS):
        changed = False
        for k in range(1, len(graph)):
            joint = everything
            for source in before[k]:
                joint &= sets[source]
            joint |= 1 << k
            changed, sets[k] = changed or joint != sets[k], joint
        if not changed:
            return sets
    raise AssertionError("dominators do not settle")


def loops(graph: list[Block]) -> dict[int, frozenset[int]]:
    """The blocks of each loop, by its first block. A block that cannot be reached is in no loop."""
    sets, before = dominators(graph), [set() for _ in graph]  # type: list[int], list[set[int]]
    for source, block in enumerate(graph):
        for target in block.next:
            before[target].add(source)
    reached, new = {0}, [0]
    while new:
        fresh = graph[new.pop()].next - reached
        reached |= fresh
        new.extend(fresh)
    bodies: dict[int, set[int]] = {}
    for source in sorted(reached):
        for head in graph[source].next:
            if not sets[source] >> head & 1:
                continue
            body, new = bodies.setdefault(head, {head}), [source]
            while new:
                k = new.pop()
                if k not in body:
                    body.add(k)
                    new.extend(before[k] & reached)
    return {head: frozenset(body) for head, body in bodies.items()}


class Shape(NamedTuple):
    """The loops of a kernel.

    Attributes:
        products, copies: how often the inner loops run in one pass of the hot loop: those with products, and those with
            copies alone.
        around: number of loops around the hot loop.
    """

    products: int = 1
    copies: int = 1
    around: int = 0


PLAIN = Shape()


class Hot(NamedTuple):
    """One pass of the hot loop: instructions of a warp, units of 4,096 flops of tensor cores for each warp, and
    asynchronous copies of a thread, 16 bytes each."""

    instructions: int
    units: float
    copies: int = 0

    @property
    def per_unit(self) -> float:
        return self.instructions / self.units


def _pass(graph: list[Block], bodies: dict[int, frozenset[int]], head: int, shape: Shape) -> Weight:
    """The weight of the best path from the head of a loop back to it."""
    body = bodies[head]
    inner = [k for k, own in bodies.items() if k != head and own < body and head not in own]
    outermost = [k for k in inner if not any(bodies[k] < bodies[other] for other in inner)]
    unit = {k: k for k in body} | {k: first for first in outermost for k in bodies[first]}
    weights: dict[int, Weight] = {}
    for k in set(unit.values()):
        weights[k] = graph[k].weight
        if k in outermost:
            one = _pass(graph, bodies, k, shape)
            times = shape.products if one.flops else shape.copies if one.copies else 1
            weights[k] = Weight().plus(one, times)
    follow: dict[int, set[int]] = {k: set() for k in weights}
    last = set()
    for k in body:
        for target in graph[k].next:
            if target == head:
                last.add(unit[k])
            elif target in body and unit[target] != unit[k]:
                follow[unit[k]].add(unit[target])
    best = {head: weights[head]}
    for k in _order(follow, head):
        for target in follow[k]:
            path = best[k].plus(weights[target])
            best[target] = max(best.get(target, path), path)
    return max(best[k] for k in last if k in best)


def _order(follow: dict[int, set[int]], head: int) -> list[int]:
    """The units that can be reached from the head, each after those before it."""
    done: list[int] = []
    seen, stack = {head}, [(head, iter(sorted(follow[head])))]
    while stack:
        k, rest = stack[-1]
        target = next(rest, None)
        if target is None:
            done.append(k)
            stack.pop()
        elif target not in seen:
            seen.add(target)
            stack.append((target, iter(sorted(follow[target]))))
    return done[::-1]


def hot_loop(sass: str, shape: Shape = PLAIN) -> Hot | None:
    """The hot loop of a kernel; None if no loop has tensor-core instructions."""
    graph = blocks(sass)
    bodies, inside = loops(graph), frozenset(range(len(graph)))
    best = None
    for _ in range(1 + shape.around):
        within = {k: own for k, own in bodies.items() if own < inside or best is None}
        outermost = [k for k, own in within.items() if not any(own < other for other in within.values())]
        passes = [(_pass(graph, bodies, k, shape), k) for k in outermost]
        best, head = max(passes, default=(Weight(), 0))
        if not best.flops:
            return None
        inside = bodies[head]
    return Hot(-best.fewer, best.flops / UNIT, best.copies)
