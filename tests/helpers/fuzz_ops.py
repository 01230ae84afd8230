# SPDX-License-Identifier: BSD-3-Clause
"""Calls of every registered op with arguments that are nearly right: `python tests/helpers/fuzz_ops.py SEED CALLS`.

Some arguments of a valid call are changed: another shape, dtype, layout or device, memory that is shared with another
argument, numbers out of range. The call may write only the tensors that the schema marks as written, and nothing at all
if it raises. To check this, every tensor lies between canaries and is compared with its content before the call. The
process must survive: the test looks for crashes first.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import rainbow_fast  # noqa: F401  registers the ops

ops = torch.ops.rainbow_fast
RIM, CANARY = 96, 77  # elements on either side of a tensor, and what they hold
ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError)
F32, F64 = torch.float32, torch.float64
DTYPES = (F32, F64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)


class Maker:
    """Tensors between canaries, together with their memory."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.allocated: list[tuple[Tensor, int]] = []  # memory, and how many of its elements belong to a tensor

    def tensor(self, *shape: int, dtype: torch.dtype = F32) -> Tensor:
        count = torch.Size(shape).numel()
        memory = torch.full((count + 2 * RIM,), CANARY).to(dtype)
        self.allocated.append((memory, count))
        inside = memory[RIM : RIM + count]
        if dtype.is_floating_point or dtype.is_complex:
            inside.copy_(torch.randn(count, generator=self.generator, dtype=F64))
        else:
            inside.fill_(1)
        return inside.view(shape)

    def key(self, seeds: int | None = None) -> Tensor:
        key = self.tensor(*(() if seeds is None else (seeds,)), 4, dtype=torch.int64)
        key.random_(0, 2**20, generator=self.generator)
        return key

    def size(self, least: int = 0) -> int:
        return self.random.choice([n for n in (0, 1, 2, 3, 5, 17, 49) if n >= least])

    def space(self) -> tuple[int, ...]:
        return self.random.choice([(), (), (3,), (2, 3), (2, 1, 2)])

    def dtype(self, *of: torch.dtype) -> torch.dtype:
        return self.random.choice(of or (F32, F64))

    def precision(self) -> str | None:
        return self.random.choice([None, None, "highest", "high", "medium"])

    def canaries(self) -> None:
        for memory, count in self.allocated:
            for rim in (memory[:RIM], memory[RIM + count :]):
                assert torch.equal(rim, torch.full_like(rim, CANARY)), "a canary was overwritten"


def gaussian(m: Maker) -> list:
    return [
        m.size(),
        m.size(),
        m.key(m.random.choice([None, 2])),
        m.dtype(F32, F64, torch.bfloat16),
        torch.device("cpu"),
        None,
    ]


def gaussian_out(m: Maker) -> list:
    seeds = m.random.choice([None, 2])
    return [m.key(seeds), None, m.tensor(*([] if seeds is None else [seeds]), m.size(), m.size(), dtype=m.dtype())]


def cross_covariance(m: Maker) -> list:
    N, space, dtype = m.size(), m.space(), m.dtype(F32, F64, torch.bfloat16, torch.float16)
    x, *ys = (m.tensor(N, m.size(), *space, dtype=dtype) for _ in range(m.random.choice([1, 2, 3])))
    activation = m.random.choice(["identity", "relu", "gelu"])
    return [x, ys, activation, 0.01, m.random.random() < 0.3, m.precision(), None]


def cross_covariance_out(m: Maker) -> list:
    arguments = cross_covariance(m)
    columns = sum(y.shape[1] for y in arguments[1]) if arguments[1] else arguments[0].shape[1]
    return [*arguments, m.tensor(arguments[0].shape[1], columns, dtype=F64)]


def patch_covariance(m: Maker) -> list:
    N, dtype, kernel, stride = m.size(), m.dtype(), m.random.choice([1, 2, 3]), m.random.choice([1, 2])
    x, y = (m.tensor(N, m.random.choice([1, 2, 5]), 5, 4, dtype=dtype) for _ in range(2))
    return [x, m.random.choice([None, y]), [kernel, stride, 1, 1], m.precision(), None]


def patch_covariance_out(m: Maker) -> list:
    x, y, patch, *how = patch_covariance(m)
    sides = [side.shape[1] * patch[0] ** 2 for side in (x, x if y is None else y)]
    return [x, y, patch, *how, m.tensor(*sides, dtype=F64)]


def polar(m: Maker) -> list:
    batch = m.random.choice([(), (), (2,)])
    M = m.tensor(*batch, m.size(1), m.size(1), dtype=m.dtype())
    accuracy = m.random.choice([None, "float32"])
    method = m.random.choice([None, None, "svd"])
    return [M, m.random.random() < 0.3, m.random.choice([None, 1e-9]), method, accuracy, None]


def polar_out(m: Maker) -> list:
    M, *rest = polar(m)
    return [M, *rest, m.tensor(*M.shape, dtype=M.dtype), m.tensor(*M.shape[:-2], 4, dtype=F64)]


def polar_sylvester(m: Maker) -> list:
    d = m.size(1)
    half = m.tensor(d, d, dtype=F64)
    H = m.tensor(d, d, dtype=F64).copy_(half @ half.T + torch.eye(d))
    return [H, m.tensor(d, d, dtype=F64), m.tensor(d, m.size(), dtype=F64), 1e-12]


def sample_project_align(m: Maker) -> list:
    dtype = m.dtype(F32, F64, torch.bfloat16)
    P = m.tensor(m.size(), m.size(), dtype=dtype)
    precision = "bf16x2" if dtype == F32 and m.random.random() < 0.2 else m.precision()
    return [m.size(), P, m.key(m.random.choice([None, 2])), 0.5, m.dtype(), precision, None]


def sample_project_align_out(m: Maker) -> list:
    n, P, key, scale, dtype, *how = sample_project_align(m)
    return [P, key, scale, *how, m.tensor(*key.shape[:-1], n, P.shape[1], dtype=dtype)]


def features(m: Maker, n: int) -> tuple[list, list, int | None]:
    """[u, shift], [key, G, activation, slope, scale, precision, backend] and the number of seeds."""
    N, r, space, dtype = m.size(), m.size(), m.space(), m.dtype()
    seeds = m.random.choice([None, None, 2])
    by_key = m.random.random() < 0.7
    u, shift = m.tensor(N, r, *space, dtype=dtype), m.tensor(N, *space, dtype=dtype)
    source = [m.key(seeds), None] if by_key else [None, m.tensor(n, r, dtype=dtype)]
    how = [m.random.choice(["relu", "tanh", "step"]), 0.01, 0.5, m.precision(), None]
    return [u, m.random.choice([None, shift])], source + how, seeds if by_key else None


def lead(seeds: int | None) -> tuple[int, ...]:
    return () if seeds is None else (seeds,)


def random_features(m: Maker) -> list:
    n = m.size()
    inputs, rest, _ = features(m, n)
    return [*inputs, n, *rest]


def random_features_out(m: Maker) -> list:
    n = m.size()
    (u, shift), rest, seeds = features(m, n)
    return [u, shift, *rest, m.tensor(*lead(seeds), u.shape[0], n, *u.shape[2:], dtype=u.dtype)]


def random_features_covariance(m: Maker) -> list:
    n = m.size()
    (u, *inputs), rest, seeds = features(m, n)
    x = m.tensor(u.shape[0], m.size(), *u.shape[2:], dtype=u.dtype)
    return [x, u, *inputs, *centers(m, x, n, seeds), n, *rest]


def centers(m: Maker, x: Tensor, n: int, seeds: int | None) -> list:
    vectors = [m.tensor(x.shape[1], dtype=x.dtype), m.tensor(*lead(seeds), n, dtype=x.dtype)]
    return [m.random.choice([None, center]) for center in vectors]


def random_features_covariance_out(m: Maker) -> list:
    n = m.size()
    (u, *inputs), rest, seeds = features(m, n)
    x = m.tensor(u.shape[0], m.size(), *u.shape[2:], dtype=u.dtype)
    sums = [m.tensor(*lead(seeds), *shape, dtype=F64) for shape in ((x.shape[1], n), (n,), (n,))]
    return [x, u, *inputs, *centers(m, x, n, seeds), *rest, *sums]


def random_features_projection(m: Maker) -> list:
    n = m.size()
    (u, shift), rest, seeds = features(m, n)
    A = [m.tensor(*lead(seeds), m.size(), n, dtype=u.dtype)]
    A += [m.tensor(m.size(), m.random.randint(0, n), dtype=u.dtype)] if m.random.random() < 0.5 else []
    return [u, A, shift, *rest]


def random_features_projection_out(m: Maker) -> list:
    u, A, *rest = random_features_projection(m)
    seeds = () if rest[1] is None else rest[1].shape[:-1]
    return [u, A, *rest, [m.tensor(*seeds, u.shape[0], a.shape[-2], *u.shape[2:], dtype=u.dtype) for a in A]]


def random_features_gradient(m: Maker) -> list:
    n = m.size()
    (u, shift), rest, seeds = features(m, n)
    d, space = m.size(), u.shape[2:]
    grad_phi = m.tensor(u.shape[0], n, *space, dtype=u.dtype)
    x, A = m.tensor(u.shape[0], d, *space, dtype=u.dtype), m.tensor(d, n, dtype=u.dtype)
    total = m.random.choice([None, m.tensor(n, dtype=u.dtype)])
    return [u, shift, n, *rest, grad_phi, total, None, [x], [A], rest[1] is not None and m.random.random() < 0.5]


def wavelet_modulus(m: Maker) -> list:
    pair = m.random.choice([(), (2,)])
    z = m.tensor(m.size(), m.random.choice([1, 5]), m.random.choice([2, 5, 8]), 4, *pair, dtype=m.dtype())
    return [z, [0.8, m.random.choice([0.8, 0.9]), 2.3], m.random.choice([1, 2]), 9, m.random.random() < 0.5, None]


def wavelet_modulus_gradient(m: Maker) -> list:
    z, *how = wavelet_modulus(m)
    out = ops.wavelet_modulus(z, *how)
    return [z, m.tensor(*out.shape, dtype=out.dtype), *how]


VALID: dict[str, Callable[[Maker], list]] = {
    function.__name__: function
    for function in (
        *(gaussian, gaussian_out, cross_covariance, cross_covariance_out, patch_covariance, patch_covariance_out),
        *(polar, polar_out, polar_sylvester, sample_project_align, sample_project_align_out),
        *(random_features, random_features_out, random_features_covariance, random_features_covariance_out),
        *(random_features_projection, random_features_projection_out, random_features_gradient),
        *(wavelet_modulus, wavelet_modulus_gradient),
    )
}
VALID["polar_"] = polar
VALID["uniform"], VALID["uniform_out"] = gaussian, gaussian_out


# --- changes ---


def reshaped(m: Maker, t: Tensor) -> Tensor:
    shape = list(t.shape)
    kind = m.random.randrange(5)
    if kind == 0 and shape:
        shape[m.random.randrange(len(shape))] += m.random.choice([-1, 1, 1, 7])
    elif kind == 1:
        shape.insert(m.random.randint(0, len(shape)), m.random.choice([0, 1, 2]))
    elif kind == 2 and shape:
        del shape[m.random.randrange(len(shape))]
    elif kind == 3 and shape:
        shape[m.random.randrange(len(shape))] = m.random.choice([0, 1])
    else:
        m.random.shuffle(shape)
    resized = m.tensor(*(max(n, 0) for n in shape), dtype=t.dtype)
    return resized.random_(0, 2**20, generator=m.generator) if t.dtype == torch.int64 else resized


def retyped(m: Maker, t: Tensor) -> Tensor:
    return m.tensor(*t.shape, dtype=m.random.choice(DTYPES))


def laid_out(m: Maker, t: Tensor) -> Tensor:
    """The same shape with other strides: transposed, with steps, expanded, overlapping, or lazily negative."""
    kind = m.random.randrange(5)
    if t.device.type == "meta":
        return t
    if kind == 0 and t.dim() > 1:
        return m.tensor(*reversed(t.shape), dtype=t.dtype).permute(*reversed(range(t.dim()))).copy_(t)
    if kind == 1 and t.dim():
        return m.tensor(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)[..., ::2].copy_(t)
    if kind == 2 and t.dim() and t.shape[0]:
        return t[:1].expand(t.shape)
    if kind == 3 and t.dim() > 1 and t.numel():
        return t.as_strided(t.shape, [1] * t.dim())
    if kind == 4 and t.is_floating_point() and t.dtype in (F32, F64):
        return torch.complex(torch.zeros_like(t), -t).conj().imag
    return t


def out_of_range(m: Maker, t: Tensor) -> Tensor:
    """A key, or another object, with numbers that no address has."""
    if t.dtype != torch.int64 or not t.numel() or t.device.type == "meta":
        return t
    changed = t.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[m.random.randrange(t.numel())] = m.random.choice([-1, 2**32, 2**40, 2**56, 2**63 - 1, -(2**63)])
    return changed


def elsewhere(m: Maker, t: Tensor) -> Tensor:
    return t.to("meta")


def number(m: Maker, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return m.random.choice([True, False, None])
    if isinstance(value, int):
        return m.random.choice([-1, 0, 1, value + 1, 60, 2**40])
    if isinstance(value, float):
        return m.random.choice([0.0, -1.0, float("nan"), float("inf"), 1e300])
    if isinstance(value, str):
        return m.random.choice(["", "relu", "abacus", "svd"])
    return value


TENSOR_CHANGES = (reshaped, reshaped, retyped, laid_out, laid_out, out_of_range, elsewhere)


def changed(m: Maker, args: list) -> list:
    args = list(args)
    for _ in range(m.random.choice([0, 1, 1, 1, 2])):
        place = m.random.randrange(len(args))
        value = args[place]
        if isinstance(value, Tensor):
            args[place] = m.random.choice(TENSOR_CHANGES)(m, value)
        elif isinstance(value, list) and value and isinstance(value[0], Tensor):
            args[place] = [m.random.choice(TENSOR_CHANGES)(m, t) if m.random.random() < 0.5 else t for t in value]
            if m.random.random() < 0.2:
                args[place] = args[place][1:] if m.random.random() < 0.5 else args[place] * 2
        elif isinstance(value, list):
            args[place] = [number(m, n) if m.random.random() < 0.5 else n for n in value]
        elif not isinstance(value, torch.dtype | torch.device):
            args[place] = number(m, value)
    return shared(m, args) if m.random.random() < 0.15 else args


def shared(m: Maker, args: list) -> list:
    """Two tensors of the call in the same memory, one of them a few elements after the other."""
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.device.type == "cpu" and a.numel()]
    if len(places) < 2:
        return args
    a, b = m.random.sample(places, 2)
    if args[a].dtype != args[b].dtype:
        return args
    step = m.random.choice([0, 1, 4])
    memory = m.tensor(args[a].numel() + args[b].numel() + step, dtype=args[a].dtype)
    args[a] = memory[: args[a].numel()].view(args[a].shape)
    args[b] = memory[step : step + args[b].numel()].view(args[b].shape)
    return args


def tensors(args: list) -> list[tuple[int, Tensor]]:
    return [
        (place, t)
        for place, a in enumerate(args)
        for t in (a if isinstance(a, list) else [a])
        if isinstance(t, Tensor) and t.device.type == "cpu"
    ]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if a.is_floating_point() else torch.equal(a, b)


def large(args: list) -> bool:
    """Whether a result would fill the memory of the machine. These calls are left out."""
    return any(isinstance(a, int) and not isinstance(a, bool) and a > 10**6 for a in args)


def one_call(name: str, seed: int) -> str:
    """The outcome of a call: "returned", or the kind of error."""
    m = Maker(seed)
    args = changed(m, VALID[name](m))
    if large(args):
        return "left out"
    op = getattr(ops, name).default
    written = {i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write}
    before = [(place, t, t.clone()) for place, t in tensors(args)]
    outcome = "returned"
    try:
        with torch.no_grad():
            op(*args)
    except ERRORS as error:
        outcome = type(error).__name__
    m.canaries()
    for place, t, value in before:
        if outcome != "returned" or place not in written:
            alone = not any(
                place != other and other in written and t.data_ptr() == u.data_ptr() for other, u, _ in before
            )
            if outcome != "returned" or alone:
                assert same(t, value), f"argument {place} of {name} was written ({outcome})"
    return outcome


def main(seed: int, calls: int) -> None:
    torch.set_num_threads(1)
    outcomes: dict[str, Counter] = {name: Counter() for name in VALID}
    for number in range(calls):
        name = list(VALID)[number % len(VALID)]
        where = seed * 10**9 + number
        sys.stderr.write(f"\r{name} {where}          ")  # the last line of the output tells what crashed
        outcomes[name][one_call(name, where)] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
