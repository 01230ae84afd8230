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
from rainbow_fast.cli.comparing import compare
from rainbow_fast.cli.grid import Job, ResultFolder, sample_grid
from rainbow_fast.cli.listing import sites
from rainbow_fast.cli.sampling import need_plots, plan, sample, show
from rainbow_fast.cli.training import load_images, new_reference, train_reference
from rainbow_fast.cli.words import numbers, set_threads
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.options import METHODS, Limits, SampleOptions
from rainbow_fast.version import __version__

Seed = Annotated[int, typer.Option(help="Of all random numbers.", min=0)]
Threads = Annotated[int | None, typer.Option(help="Threads of the CPU (default: as torch chooses).", min=1)]

app = typer.Typer(
    help="Rainbow networks: sample networks of any width from a trained one, and measure how close they come.",
    add_completion=False,
    no_args_is_help=True,
)


@app.command()
def train(
    architecture: Annotated[str, typer.Argument(help="mlp or cnn.")],
    data: Annotated[str, typer.Option(help="digits, or a folder with CIFAR-10's binary version.")] = "digits",
    widths: Annotated[str | None, typer.Option(help="Neurons of the hidden layers, e.g. 512,256.")] = None,
    colour: Annotated[bool, typer.Option("--colour", help="CIFAR-10 in colour, not grey.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images (default: 5; 20 for digits).")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of all weights.")] = 0.0,
    batch_size: Annotated[int | None, typer.Option(help="Images a step (default: 128; 32 for digits).")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option(help="The checkpoint (default: e.g. mlp-digits-0.safetensors).")] = None,
) -> None:
    """Train a reference network and write it to a checkpoint, which `sample` takes."""
    set_threads({"threads": threads})
    digits = data == "digits"
    hidden = None if widths is None else tuple(int(width) for width in numbers("--widths", widths, once=False))
    about = new_reference(architecture, "digits" if digits else "cifar10", grey=not colour, widths=hidden, seed=seed)
    path = Path(f"{architecture}-{about.data}-{seed}.safetensors") if out is None else out
    _need_folder(path.parent)
    images = load_images(about, data)
    settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "seed": seed}
    settings |= {} if epochs is None else {"epochs": epochs}
    settings |= {} if batch_size is None else {"batch_size": batch_size}
    with terminal.bar(1) as bar, bar.job(1, f"train {architecture}") as step:
        module, about = train_reference(about, images, settings, step)
    save_checkpoint(module, about, path)
    terminal.out().print(f"{path}: {about}", markup=False, soft_wrap=True)


for command in (sample, plan, sites, compare):
    app.command()(command)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("rainbow-demo"),
    seed: Seed = 0,
    threads: Threads = None,
) -> None:
    """Train a perceptron and a convolutional network on digits, and sample both at growing widths: under a minute."""
    set_threads({"threads": threads})
    need_plots()
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
            folder = out / architecture
            folder.mkdir(exist_ok=True)
            results = ResultFolder(folder, {"architecture": architecture, "data": "digits"}, str(about))
            results.clear()
            model = fit(reference, (images.x_train, images.y_train), holdout=(images.x_test, images.y_test))
            groups = [[job for job in jobs if job.options.method == method] for method in METHODS]
            sample_grid(model, groups, results, bar.job, Limits())
        show(results)


MOVED = {"reproduce": "studies.cifar10", "resnet20": "studies.resnet20", "convergence": "studies.convergence"}


def _moved(name: str, module: str) -> None:
    """A command that says where the study is that it was: for one release."""

    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def moved() -> None:
        raise ValueError(f"{name}: it is a study now; in a checkout of the sources call `python -m {module}`")


for _name, _module in MOVED.items():
    _moved(_name, _module)


@app.command()
def info() -> None:
    """What is built, what runs, and which versions."""
    levels = backend.kernels().levels() if backend.isa else []
    terminal.print_pairs(
        [
            ("rainbow_fast", __version__),
            ("backends", ", ".join(f"{device}: {', '.join(backend.available(device))}" for device in _devices())),
            ("instruction sets", ", ".join(levels) or "none: no compiled kernels"),
            ("in use", f"{backend.isa or 'reference'} ({backend.ISA_VARIABLE} chooses)"),
            ("CUDA", ", ".join(f"{name} {version}" for name, version in backend.cuda_versions().items())),
            ("threads", str(torch.get_num_threads())),
            ("devices", ", ".join(_devices())),
            ("machine", f"{platform.system()} {platform.machine()}"),
            ("Python", platform.python_version()),
            *((name, _version(name)) for name in ("torch", "numpy", "safetensors", "typer", "rich")),
            *((name, _version(name)) for name in ("matplotlib", "scikit-learn", "triton")),
        ]
    )


def _need_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"--out: no folder {folder}")


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
