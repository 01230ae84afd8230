# SPDX-License-Identifier: BSD-3-Clause
"""An image, and what the filters of kymatio 0.3.0 with J = 1 and L = 4 make of it.

The image was padded by `Pad` of `kymatio.scattering2d.backend.torch_backend` and multiplied, in Fourier space and in
float32, by each filter of `filter_bank(12, 10, 1, 4)`; the product was sub-sampled by 2 with `subsample_fourier`,
transformed back, and cropped by one pixel. The script, for torch and any scipy that kymatio imports with:

    import torch
    from kymatio.scattering2d.backend.torch_backend import TorchBackend2D as B
    from kymatio.scattering2d.filter_bank import filter_bank
    pad, bank = B.Pad([2, 2, 2, 2], [8, 6]), filter_bank(12, 10, 1, 4)
    for level in [bank["phi"]["levels"], *(psi["levels"] for psi in bank["psi"])]:
        product = B.cdgmm(B.rfft(pad(image()[None])), torch.from_numpy(level[0]).float()[..., None])
        print(torch.view_as_complex(B.ifft(B.subsample_fourier(product, k=2)))[0, 1:-1, 1:-1])
"""

import torch
from torch import Tensor


def image() -> Tensor:
    """Integers from -5 to 5, (8, 6)."""
    i, j = torch.arange(8)[:, None], torch.arange(6)
    return ((5 * i * i + 3 * i * j + 7 * j) % 11 - 5).float()


LOW = """
-1.098915  -0.7802355  -1.298345  -0.842014  -2.328732  0.07813914
-2.195194  -0.6297588  0.1316181  0.210288  1.289746  -0.1828642
"""
WAVES = """
-1.162874-0.0005964711j  -0.2988343-0.3089696j  0.5113147+0.933814j  1.420533+0.4499423j
-0.3167902-0.03373715j  0.2133024-1.438576j  -0.06466788-0.3341645j  0.9337783-1.043226j
-0.9369057+0.1290599j  -0.3654782+0.1634144j  0.9172347+0.6323549j  0.5416448-0.7800289j
-0.459905+0.0002359748j  1.038401+0.0003874451j  1.973298-0.001017705j  0.3102263+0.1629783j
-0.2799385+0.03293316j  0.7105691-1.033434j  -0.7379149-0.09961231j  0.756679-0.09218482j
-0.4066406+0.5084514j  0.3106822-0.2063545j  0.8085868-0.3620846j  0.2514119-0.1473247j
-1.162874-0.0005964115j  -0.2986079+0.3071744j  0.5115416-0.931336j  1.420533+0.4499423j
-0.2427177+0.8350878j  0.2685793-0.4902457j  -0.06466782-0.3341646j  1.070213+0.1110896j
-0.8174818+1.198188j  -0.3654784+0.1634143j  1.037183-0.5151541j  -0.4956633+0.5922089j
-1.066431+0j  -1.109223+0.09833314j  0.004852772-0.7797521j  1.43709+0j
-0.5357203+0.2458686j  0.4713483+0.1189018j  0.1786327+0j  0.6589008+0.3304315j
-0.6031676+0.4169276j  -1.183597+0j  0.7186608-0.3871833j  -0.05695078+0.2074072j
"""  # at 45, 0, -45 and -90 degrees


def maps() -> Tensor:
    """The low-pass and the four wavelets, (5, 4, 3), complex64."""
    return torch.tensor([complex(number) for number in (LOW + WAVES).split()]).reshape(5, 4, 3)
