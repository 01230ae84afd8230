# SPDX-License-Identifier: BSD-3-Clause
"""The commands and their options."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer

from rainbow_fast import backend
from rainbow_fast.cli import terminal
from rainbow_fast.cli.checkpoints import TUTORIAL, save_checkpoint
from rainbow_fast.cli.cleaning import clean
from rainbow_fast.cli.comparing import compare
from rainbow_fast.cli.grid import Job, ResultFolder, sample_grid
from rainbow_fast.cli.listing import sites
from rainbow_fast.cli.random import random
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots, plan, sample, show
from rainbow_fast.cli.train_command import train
from rainbow_fast.cli.training import load_images, new_reference, train_reference
from rainbow_fast.cli.words import Seed, Threads, set_threads
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.options import METHODS, Limits, SampleOptions
from rainbow_fast.version import __version__

app = typer.Typer(
    help="Sample rainbow networks of any width from a trained network, and measure how close they come to it.",
    add_completion=False,
    no_args_is_help=True,
)


for command in (train, sample, plan, sites, compare, clean):
    app.command()(command)
app.add_typer(random, name="random")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-demo"),
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train an mlp and a cnn on digits and sample both at growing widths, in less than a minute.

    The method paper also samples the mlp at infinite width, in closed form.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    for architecture in TUTORIAL:
        about = new_reference(architecture, "digits", seed=seed)
        images = load_images(about, None)
        grid = [(method, factor, network) for method in METHODS for factor in (0.5, 1, 4, 16) for network in range(3)]
        if architecture == "mlp":  # maps have so many positions that their limit takes too long for a demo
            grid.append(("paper", math.inf, 0))
        jobs = [Job(SampleOptions(method=m, factor=f, network_index=n, seed=seed)) for m, f, n in grid]
        with terminal.bar(sum(job.cost for job in jobs)) as bar:
            with bar.job(0, f"train {architecture}") as step:
                reference, about = train_reference(about, images, {"seed": seed}, step)
            save_checkpoint(reference, about, out / f"{architecture}.safetensors")
            results = ResultFolder(out / architecture, {"architecture": architecture, "data": "digits"}, str(about))
            results.check_free()
            model = fit(reference, (images.x_train, images.y_train), holdout=(images.x_test, images.y_test))
            groups = [[job for job in jobs if job.options.method == method] for method in METHODS]
            with results.begun():
                sample_grid(model, groups, results, bar.job, Limits())
        show(results)


MOVED = {"reproduce": "studies.cifar10", "resnet20": "studies.resnet20", "convergence": "studies.convergence"}


def _moved(name: str, module: str) -> None:
    """Add a hidden command that says which study has replaced it; for one release."""

    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def moved() -> None:
        raise ValueError(f"{name}: it is a study now; in a checkout of the sources call `python -m {module}`")


for _name, _module in MOVED.items():
    _moved(_name, _module)


@app.command()
def info() -> None:
    """Show the backends, devices and instruction sets that can be used, and the versions of packages."""
    levels = backend.kernels().levels() if backend.isa else []
    terminal.print_pairs(
        [
            ("rainbow_fast", __version__),
            ("backends", ", ".join(f"{device}: {', '.join(backend.available(device))}" for device in _devices())),
            ("instruction sets", (", ".join(levels) or f"none: {backend.WITHOUT_KERNELS}") + _refused()),
            ("in use", f"{backend.isa or 'reference'} ({backend.ISA_VARIABLE} chooses)"),
            ("CUDA", ", ".join(f"{name} {version}" for name, version in backend.cuda_versions().items())),
            ("threads", str(torch.get_num_threads())),
            ("devices", ", ".join(_devices())),
            ("machine", f"{platform.system()} {platform.machine()}"),
            ("Python", platform.python_version()),
            *((name, _version(name)) for name in ("torch", "numpy", "safetensors", "typer", "rich")),
            *((name, _version(name)) for name in ("matplotlib", "scikit-learn", "triton", "timm", "torchvision")),
        ]
    )


def _refused() -> str:
    """Say so if the CPU has a matrix unit that the system keeps from this process, as some containers do."""
    refused = bool(backend.isa) and backend.kernels().amx_is_refused()
    return "; amx is refused by the system" if refused else ""


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
