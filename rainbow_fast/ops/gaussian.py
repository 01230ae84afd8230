# SPDX-License-Identifier: BSD-3-Clause
"""gaussian: any tile of a white Gaussian matrix G, whose entries are a pure function of (seed, stream, i, j)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import integer, tensor
from rainbow_fast.ops.memory import check_written
from rainbow_fast.ops.registration import functional, writing

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VERSION = 1
# The purpose of a random number, a part of the last word of its counter. Kinds 2 and 3 are those of uniform.py.
GAUSSIAN_KIND, CHOICE_KIND = 0, 1


Seed = int | Sequence[int] | Tensor  # the type of the argument ``seed=`` of the ops
MOST = {"seed": 2**63 - 1, "stream": 2**32 - 1, "row_offset": 2**56 - 1, "col_offset": 2**34 - 1}  # in order of a key
SITE_BITS, NETWORK_BITS = 12, 20  # of a stream: network_index << 12 | site


def key(seed: int | Sequence[int], stream: int = 0, row_offset: int = 0, col_offset: int = 0) -> Tensor:
    """Pack the address of a tile of G into one int64 tensor of shape (4,), called a key.

    Every op that takes ``seed=`` also takes a key. A function compiled by `torch.compile` that takes a key does not
    recompile when the seed changes. For S seeds the key is (S, 4), and the results of an op get a leading axis S.

    A key lies on the CPU, on whatever device the other tensors are, because the address is passed to a kernel when the
    kernel is launched. A launch therefore does not wait for the GPU, and a captured CUDA graph keeps the address with
    which it was captured.

    Args:
        seed: 0 <= seed < 2^63; or a list, tuple or range of these integers.
        stream: 0 <= stream < 2^32; sampled networks use ``network_index << 12 | site index``. 0 by default.
        row_offset: first row of the tile, 0 <= row_offset < 2^56; 0 by default.
        col_offset: first column of the tile, 0 <= col_offset < 2^34; 0 by default.

    Returns:
        int64 tensor (4,), or (S, 4) for S seeds.

    Raises:
        TypeError: a number is not an integer of Python or NumPy.
        ValueError: a number is outside its range.
    """
    several = isinstance(seed, list | tuple | range)
    seeds = [integer("seed", one, 0, MOST["seed"]) for one in (seed if several else [seed])]  # type: ignore[union-attr]
    rest = [
        integer(name, value, 0, MOST[name])
        for name, value in (("stream", stream), ("row_offset", row_offset), ("col_offset", col_offset))
    ]
    if not several:
        return torch.tensor([seeds[0], *rest], dtype=torch.int64, device="cpu")
    return torch.tensor([[one, *rest] for one in seeds], dtype=torch.int64, device="cpu").view(len(seeds), 4)


def site_key(seed: int, network_index: int, site: int) -> Tensor:
    """The key of the neurons of one site of a sampled network."""
    return key(seed, network_index << SITE_BITS | site)


def as_key(seed: Seed, stream: int = 0, row_offset: int = 0, col_offset: int = 0) -> Tensor:
    """The key of the four numbers; `seed` itself if it is a key already."""
    if not isinstance(seed, Tensor):
        return key(seed, stream, row_offset, col_offset)
    check_key(seed)
    if stream or row_offset or col_offset:
        raise ValueError("seed is a packed key, which holds stream and offsets already: give them to rainbow_fast.key")
    return seed


def check_key(packed: Tensor) -> None:
    """Raise ValueError unless a tensor has the dtype, shape and device of a key. `address` checks its numbers."""
    if packed.dtype != torch.int64 or packed.dim() not in (1, 2) or packed.shape[-1] != 4:
        raise ValueError(
            f"seed is a {packed.dtype} tensor of shape {tuple(packed.shape)}: wanted integers, or a key (an int64 "
            "tensor of shape (4,) or (S, 4)) made by rainbow_fast.key"
        )
    if packed.device.type not in ("cpu", "meta"):
        raise ValueError(f"seed is a key on {packed.device}: wanted it on the CPU, where kernels are launched")


def further(packed: Tensor, rows: int) -> Tensor:
    """The key of the tile that begins `rows` rows further down."""
    return packed + packed.new_tensor([0, 0, rows, 0])


def address(key: Tensor, rows: int, cols: int) -> list[int]:
    """The four numbers of a key of shape (4,), after a check that the tile (rows, cols) at its offsets lies inside G.

    Raises:
        ValueError: a number is outside its range, or the tile reaches beyond G.
    """
    numbers = key.tolist()
    for (name, most), value in zip(MOST.items(), numbers, strict=True):
        if not 0 <= value <= most:
            integer(f"{name} of the key", value, 0, most)
    if numbers[2] + rows > 2**56:
        raise ValueError(f"rows={rows} at row_offset={numbers[2]}: wanted row_offset + rows <= 2^56")
    if numbers[3] + cols > 2**34:
        raise ValueError(f"cols={cols} at col_offset={numbers[3]}: wanted col_offset + cols <= 2^34")
    return numbers


def seed_count(key: Sequence[int] | None) -> int:
    """The number of seeds of a key with this shape, (4,) or (S, 4); 1 if there is no key (None)."""
    return 1 if key is None else math.prod(key[:-1])


def addresses(key: Tensor, rows: int, cols: int, *tensors: Tensor) -> list[tuple]:
    """For each seed of a key, its `address` and its slices of the given tensors (S, ...)."""
    check_key(key)
    if key.dim() == 1:
        return [(address(key, rows, cols), *tensors)]
    return [(address(one, rows, cols), *parts) for one, *parts in zip(key, *tensors, strict=True)]


def gaussian(
    rows: int,
    cols: int,
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The tile ``G[row_offset : row_offset + rows, col_offset : col_offset + cols]`` of a white Gaussian matrix.

    The entries of G are independent standard normal numbers, and ``G[i, j]`` is a pure function of (seed, stream, i,
    j). It is computed by Philox4x32-10 at counter ``(j >> 2, i mod 2^32, stream, version << 28 | kind << 24 | i >>
    32)`` and key ``seed``, followed by the Box-Muller transform of `gaussian_reference`. All operations are separately
    rounded ``+ - * sqrt`` and integer operations. The bits of G are therefore the same for every tiling, thread count,
    instruction set and backend, and a smaller tile is a part of every larger one. The global random state is neither
    read nor written.

    Args:
        rows, cols: shape of the tile, each at least 0.
        seed, stream, row_offset, col_offset: the address, as in `key`; or a key as ``seed``. S seeds give S tiles.
        dtype: float32 (default); float64 (the float32 values, exactly); bfloat16 or float16 (the rounded values).
        device: device of the result; the CPU by default.
        out: a tensor to write into, of the shape of the result. It determines dtype and device. Its rows must be
            contiguous, and no two entries may share memory.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; None (default) takes the best one available.

    Returns:
        (rows, cols) tensor, or (S, rows, cols) for S seeds; |G| <= 6.76.

    Raises:
        ValueError: an address is outside its range, a size is negative, `out` has another shape or layout, or the
            backend is not available.
        TypeError: the dtype is not one of the four, or a number is not an integer of Python or NumPy.
        RuntimeError: `out` requires grad while grad mode is on.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for Philox4x32-10.
    """
    key = as_key(seed, stream, row_offset, col_offset)
    rows, cols = integer("rows", rows), integer("cols", cols)
    if out is None:
        return torch.ops.rainbow_fast.gaussian(rows, cols, key, dtype, torch.device(device or "cpu"), backend)
    check_shape(out, key, rows, cols)
    torch.ops.rainbow_fast.gaussian_out(key, backend, out)
    return out


# Polynomials of Box-Muller, lowest degree first: -ln on [sqrt(1/2), sqrt 2); sin and cos of z pi / 2 on [-1/2, 1/2).
_LOG = ["-0x1.fffffep-1", "0x1.00007ap-1", "-0x1.5559dcp-2", "0x1.ff623cp-3"]
_LOG += ["-0x1.978e2ep-3", "0x1.614c0cp-3", "-0x1.4c3d10p-3", "0x1.9dfa6ap-4"]
_SIN = ["0x1.921fb6p+0", "-0x1.4abbbap-1", "0x1.465e92p-4", "-0x1.2d9302p-8"]
_COS = ["0x1.fffffep-1", "-0x1.3bd38cp+0", "0x1.03ae64p-2", "-0x1.4e35dap-6"]


def _polynomial(coefficients: list[str], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, np.float32(float.fromhex(coefficients[-1])))
    for c in reversed(coefficients[:-1]):
        value = value * x
        value = value + np.float32(float.fromhex(c))
    return value


def philox_reference(counter: Sequence, key: list[int]) -> list[np.ndarray]:
    """Philox4x32-10: four uint32 output words from four counter words (arrays that broadcast) and two key words."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1 = p1 & low
        c3 = p0 & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c.astype(np.uint32) for c in np.broadcast_arrays(c0, c1, c2, c3)]


def words_reference(address: list[int], rows: int, groups: int, kind: int, version: int) -> list[np.ndarray]:
    """The four Philox words for each row ``i`` and each group ``q`` of four columns; each array is (rows, groups)."""
    seed, stream, row_offset, col_offset = address
    i = np.uint64(row_offset) + np.arange(rows, dtype=np.uint64)[:, None]
    q = np.uint64(col_offset >> 2) + np.arange(groups, dtype=np.uint64)[None, :]
    tag = np.uint64(version << 28 | kind << 24) | (i >> np.uint64(32))
    counter = [q, i & np.uint64(0xFFFFFFFF), np.uint64(stream), tag]
    return philox_reference(counter, [seed & 0xFFFFFFFF, seed >> 32])


def _box_muller(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    v = a.astype(np.float32)
    v = v * np.float32(2**-32)
    v = v + np.float32(2**-33)
    bits = v.view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    m = (bits - (e << np.int32(23))).view(np.float32)
    f = m - np.float32(1)
    q = _polynomial(_LOG, f)
    fq = f * q
    el = e.astype(np.float32) * np.float32(float.fromhex("-0x1.62e430p-1"))
    t = fq + el  # -ln v
    rho = np.sqrt(t)
    z = (b << np.uint32(2)).view(np.int32).astype(np.float32)
    z = z * np.float32(2**-32)
    z2 = z * z
    s = _polynomial(_SIN, z2)
    s = s * z
    c = _polynomial(_COS, z2)
    g0 = rho * (c - s)
    g1 = rho * (c + s)
    g0 = (g0.view(np.uint32) ^ (b & np.uint32(0x80000000))).view(np.float32)
    g1 = (g1.view(np.uint32) ^ ((b << np.uint32(1)) & np.uint32(0x80000000))).view(np.float32)
    return g0, g1


def gaussian_reference(address: list[int], rows: int, cols: int, version: int = VERSION) -> np.ndarray:
    """The (rows, cols) float32 tile at `address` = [seed, stream, row_offset, col_offset], in NumPy."""
    first = address[3] & 3
    groups = (first + cols + 3) >> 2
    x0, x1, x2, x3 = words_reference(address, rows, groups, GAUSSIAN_KIND, version)
    g = np.stack([*_box_muller(x0, x1), *_box_muller(x2, x3)], axis=-1)
    return np.ascontiguousarray(g.reshape(rows, 4 * groups)[:, first : first + cols])


def choices(rows: int, count: int, *, seed: int | Tensor, stream: int = 0, row_offset: int = 0) -> Tensor:
    """A random index in [0, count) for each row i: ``(x0 * count) >> 32``, x0 the first Philox word of (i, q = 0).

    The counter has kind 1 where `gaussian` has kind 0, so that the indices are independent of G.

    Args:
        rows: number of rows, at least 0.
        count: number of values, 1 <= count < 2^32.
        seed, stream, row_offset: the address, as in `key`; or a key as ``seed``.

    Returns:
        int64 tensor (rows,), on the CPU.

    Raises:
        TypeError: a number is not an integer of Python or NumPy.
        ValueError: a number is outside its range, or `seed` holds several seeds.
    """
    rows, count = integer("rows", rows), integer("count", count, 1, 2**32 - 1)
    packed = as_key(seed, stream, row_offset)
    if packed.dim() != 1:
        raise ValueError(f"seed holds {len(packed)} seeds: wanted one")
    where = address(packed, rows, 1)
    x0 = words_reference([*where[:3], 0], rows, 1, CHOICE_KIND, VERSION)[0][:, 0]
    return torch.from_numpy(((x0.astype(np.uint64) * np.uint64(count)) >> np.uint64(32)).astype(np.int64))


# --- what the ops share that write tiles of random numbers, `gaussian` and `uniform` ---


def check_shape(out: Tensor, key: Tensor, rows: int, cols: int) -> None:
    """Check that `out` has the shape of a tile for this key."""
    wanted = (*key.shape[:-1], rows, cols)
    if tuple(tensor("out", out).shape) != wanted:
        names = "(S, rows, cols)" if key.dim() == 2 else "(rows, cols)"
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted {names} = {wanted}")


def _check_out(key: Tensor, backend: str | None, out: Tensor) -> None:
    check_key(key)
    if out.dim() != key.dim() + 1:
        names = "(rows, cols)" if key.dim() == 1 else f"(S, rows, cols) with S = {len(key)}"
        raise ValueError(f"out has shape {tuple(out.shape)}: wanted {names}")
    check_written("out", out, (*key.shape[:-1], *out.shape[-2:]), rows=backend != "reference")


def _fake(rows: int, cols: int, key: Tensor, dtype: torch.dtype, device: torch.device, backend: str | None) -> Tensor:
    return torch.empty(*key.shape[:-1], rows, cols, dtype=dtype, device=device)


def no_flops() -> int:
    """0: random numbers are computed elementwise, and torch counts only the multiply-adds of products."""
    return 0


def register(op: str, reference: Callable[[list[int], int, int, torch.dtype], np.ndarray]) -> None:
    """Register ``torch.ops.rainbow_fast.OP`` and ``OP_out``, with the kernels of this name.

    Args:
        op: the name.
        reference: ``reference(address, rows, cols, dtype)`` is the tile at `address`, in numbers that `dtype` is
            rounded from.
    """

    def write(key: Tensor, backend: str | None, out: Tensor) -> None:
        if out.dtype not in DTYPES:
            raise TypeError(f"out is {out.dtype}: wanted one of {', '.join(map(str, DTYPES))}")
        rows, cols = out.shape[-2:]
        tiles = addresses(key, rows, cols, out)
        chosen = _backend.choose(backend, out.device, out.dtype, DTYPES, op)
        for where, part in tiles:
            if chosen == "reference":
                part.copy_(torch.from_numpy(reference(where, rows, cols, out.dtype)))
            elif chosen == "triton":
                _backend.run_triton(op, out.device, part, where)
            else:
                target = (part.data_ptr(), _backend.CODE[out.dtype], rows, cols, part.stride(0))
                with _backend.running(chosen, out.device) as run:
                    getattr(_backend.kernels(chosen), op)(*target, where, run)

    def run(rows: int, cols: int, key: Tensor, dtype: torch.dtype, device: torch.device, backend: str | None) -> Tensor:
        rows, cols = integer("rows", rows), integer("cols", cols)
        check_key(key)
        if dtype not in DTYPES:
            raise TypeError(f"dtype={dtype}: wanted one of {', '.join(map(str, DTYPES))}")
        out = _backend.empty((*key.shape[:-1], rows, cols), dtype, device)
        write(key, backend, out)
        return out

    def vmap(info: Any, in_dims: Any, rows: int, cols: int, key: Tensor, *rest: Any) -> tuple[Tensor, int]:
        """A batch of keys is one key of several seeds."""
        keys = key.movedim(in_dims[2], 0)
        out = getattr(torch.ops.rainbow_fast, op)(rows, cols, keys.reshape(-1, 4), *rest)
        return out.view(*keys.shape[:-1], rows, cols), 0

    functional(
        f"{op}(SymInt rows, SymInt cols, Tensor key, ScalarType dtype, Device device, str? backend) -> Tensor",
        run,
        _fake,
        flops=no_flops,
        vmap=vmap,
    )
    writing(
        f"{op}_out(Tensor key, str? backend, Tensor(a!) out) -> ()",
        write,
        check=_check_out,
        flops=no_flops,
        called=f"{op}(out=)",
    )


register("gaussian", lambda address, rows, cols, dtype: gaussian_reference(address, rows, cols))
