# SPDX-License-Identifier: BSD-3-Clause
"""Writes the kernels of neural-tangents that tests compare with: no test needs the package.

    pip install --target FOLDER --no-deps neural-tangents==0.6.5 jax==0.4.23 jaxlib==0.4.23 'numpy<2' 'scipy<1.13' \\
        opt_einsum 'ml_dtypes<0.4' frozendict typing_extensions absl-py
    PYTHONPATH=FOLDER python tests/helpers/neural_tangents_kernels.py tests/infinite_width/neural_tangents.json

It was run with Python 3.11. tensorflow and tf2jax, which no kernel needs, are replaced by empty modules.
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock


def kernels() -> dict[str, object]:
    """The inputs, and by name the NNGP kernel of each network for them, float64."""
    for name in ("tensorflow", "tf2jax", "jax.experimental.jax2tf"):
        sys.modules[name] = MagicMock()
    import jax

    jax.config.update("jax_enable_x64", True)
    import numpy as np
    from neural_tangents import stax

    generator = np.random.default_rng(0)
    rows, images = generator.standard_normal((4, 5)), generator.standard_normal((3, 6, 6, 2))
    dense, conv = stax.Dense(1), stax.Conv(1, (3, 3), padding="VALID")
    padded = stax.Conv(1, (3, 3), padding="SAME")
    networks = {
        "relu": [dense, stax.Relu(), dense, stax.Relu(), dense, stax.Relu()],
        "abs": [dense, stax.Abs(), dense, stax.Abs()],
        "erf": [dense, stax.Erf(), dense, stax.Erf()],
        "gelu": [dense, stax.Gelu(), dense, stax.Gelu()],
        "variances": [stax.Dense(1, W_std=1.5, b_std=0.5), stax.Relu(), stax.Dense(1, W_std=0.7, b_std=0.2)],
        "flatten": [conv, stax.Relu(), conv, stax.Relu(), stax.Flatten()],
        "mean": [conv, stax.Relu(), conv, stax.Relu(), stax.GlobalAvgPool()],
        "padded": [padded, stax.Relu(), padded, stax.Relu(), stax.Flatten()],
    }
    written: dict[str, object] = {"rows": rows.tolist(), "images": np.moveaxis(images, -1, 1).tolist()}
    for name, layers in networks.items():
        x = images if name in ("flatten", "mean", "padded") else rows
        written[name] = np.asarray(stax.serial(*layers)[2](x, None, "nngp")).tolist()
    return written


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(kernels()) + "\n")
