# SPDX-License-Identifier: BSD-3-Clause
"""The wavelet step by its definition: 2-D filters with their whole tails, and FFTs of the padded map, in NumPy."""

import numpy as np

# phi sigma, psi sigma, xi, stride
CONSTANTS = {
    "standard": (0.8, 0.8, 3 * np.pi / 4, 2),
    "a": (0.8 / 2**0.5, 0.8, 3 * np.pi / 4, 1),
    "b": (0.8 / 2**0.5, 0.8 * 1.5**0.5, np.pi / 2**0.5, 2),
}
REACH = 20  # exp(-20^2 / 2) is below 1e-80
DEGREES = (45, 0, -45, -90)


def filters(name: str) -> np.ndarray:
    """phi and the four wavelets on the integers from -REACH to REACH, (5, 2 REACH + 1, 2 REACH + 1), complex."""
    phi_sigma, sigma, xi, _ = CONSTANTS[name]
    u = np.arange(-REACH, REACH + 1.0)
    rows, columns = u[:, None], u[None]

    def gaussian(s: float) -> np.ndarray:
        return np.exp(-(rows**2 + columns**2) / (2 * s**2)) / (2 * 3.1415 * s**2)

    result = [gaussian(phi_sigma).astype(complex)]
    for degrees in DEGREES:
        angle = np.deg2rad(degrees)
        wave = gaussian(sigma) * np.exp(1j * xi * (np.cos(angle) * rows + np.sin(angle) * columns))
        result.append(wave - gaussian(sigma) * (wave.sum() / gaussian(sigma).sum()))
    return np.stack(result)


def convolved(z: np.ndarray, name: str) -> np.ndarray:
    """Maps z (N, c, H, W) by each filter: (5, N, c, H', W'), complex."""
    sides = np.array(z.shape[2:])
    whole = 2 * ((sides + 2) // 2 + 1)
    before = (whole - sides) // 2
    edges = [(0, 0), (0, 0), *((int(b), int(w - s - b)) for b, w, s in zip(before, whole, sides, strict=True))]
    maps = np.fft.fft2(np.pad(z, edges, mode="reflect"))
    u = np.arange(-REACH, REACH + 1)
    stride = CONSTANTS[name][3]
    results = []
    for taps in filters(name):
        periodic = np.zeros(whole, complex)
        np.add.at(periodic, (u[:, None] % whole[0], u[None] % whole[1]), taps)
        results.append(np.fft.ifft2(maps * np.fft.fft2(periodic))[..., 2:-2:stride, 2:-2:stride])
    return np.stack(results)


def wavelet_modulus(z: np.ndarray, name: str, skip: bool) -> np.ndarray:
    """The channels of the op, one after the other."""
    low, *waves = convolved(z, name)
    channels = range(z.shape[1])
    linear = [low[:, c] for c in channels] + [wave[:, c] for c in channels for wave in waves]
    if skip:
        return np.stack(linear + [np.abs(each) for each in linear], 1)
    count = z.shape[1]
    return np.stack(linear[:count] + [np.abs(each) for each in linear[count:]], 1)
