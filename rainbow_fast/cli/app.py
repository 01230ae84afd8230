# SPDX-License-Identifier: BSD-3-Clause
"""The commands and their options."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer

from rainbow_fast import backend
from rainbow_fast.cli import terminal
from rainbow_fast.cli.checkpoints import BUILDERS, save_checkpoint
from rainbow_fast.cli.cleaning import clean
from rainbow_fast.cli.comparing import compare
from rainbow_fast.cli.grid import Job, ResultFolder, sample_grid
from rainbow_fast.cli.listing import sites
from rainbow_fast.cli.random import random
from rainbow_fast.cli.readers import numbers
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots, plan, sample, show
from rainbow_fast.cli.training import load_images, new_reference, train_reference
from rainbow_fast.cli.words import Seed, Threads, set_threads
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.options import METHODS, Limits, SampleOptions
from rainbow_fast.version import __version__

HIDDEN = (
    "Numbers of neurons of the hidden layers, separated by commas (default: 64,32 of an mlp and 16,32 of a cnn for "
    "digits, 512,256 and 32,64 for CIFAR-10)."
)

app = typer.Typer(
    help="Sample rainbow networks of any width from a trained network, and measure how close they come to it.",
    add_completion=False,
    no_args_is_help=True,
)


@app.command()
def train(
    architecture: Annotated[str, typer.Argument(help="Architecture of the network: mlp or cnn.")],
    data: Annotated[
        str, typer.Option(help="Images to train on: digits, or the folder of CIFAR-10's binary version.")
    ] = "digits",
    widths: Annotated[str | None, typer.Option(help=HIDDEN)] = None,
    colour: Annotated[
        bool, typer.Option("--colour", metavar="", help="Train on CIFAR-10 in colour, not in grey levels.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(help="Number of passes over the training images (default: 20 for digits, 5 for CIFAR-10)."),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of stochastic gradient descent.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Momentum of stochastic gradient descent.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of all parameters.")] = 0.0,
    batch_size: Annotated[
        int | None, typer.Option(help="Number of images in a step (default: 32 for digits, 128 for CIFAR-10).")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File of the checkpoint (default: ARCHITECTURE-DATA-SEED.safetensors in this folder)."),
    ] = None,
) -> None:
    """Train a network on images and write it to a checkpoint, which the other commands read."""
    set_threads({"threads": threads})
    digits = data == "digits"
    hidden = None if widths is None else tuple(int(width) for width in numbers("--widths", widths, once=False))
    about = new_reference(architecture, "digits" if digits else "cifar10", grey=not colour, widths=hidden, seed=seed)
    path = Path(f"{architecture}-{about.data}-{seed}.safetensors") if out is None else out
    _check_file(path)
    images = load_images(about, data)
    settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "seed": seed}
    settings |= {} if epochs is None else {"epochs": epochs}
    settings |= {} if batch_size is None else {"batch_size": batch_size}
    with terminal.bar(1) as bar, bar.job(1, f"train {architecture}") as step:
        module, about = train_reference(about, images, settings, step)
    save_checkpoint(module, about, path)
    terminal.out().print(f"{path}: {about}", markup=False, soft_wrap=True)


for command in (sample, plan, sites, compare, clean):
    app.command()(command)
app.add_typer(random, name="random")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-demo"),
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train an mlp and a cnn on digits and sample both at growing widths, in less than a minute."""
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    for architecture in BUILDERS:
        about = new_reference(architecture, "digits", seed=seed)
        images = load_images(about, None)
        grid = [(method, factor, network) for method in METHODS for factor in (0.5, 1, 4, 16) for network in range(3)]
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


def _check_file(path: Path) -> None:
    """Raise an error if no file can be written at `path`, before any work is done."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder, wanted a file")
    check_folder(path.parent)


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
