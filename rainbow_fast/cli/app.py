# SPDX-License-Identifier: BSD-3-Clause
"""The commands and their options."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from typer.main import get_command

from rainbow_fast import backend
from rainbow_fast.cli import markdown, resnet20, resnet20_page, terminal
from rainbow_fast.cli.comparing import compare
from rainbow_fast.cli.convergence import convergence
from rainbow_fast.cli.experiment import Grid, Job, load_images, new_reference, sample_grid, train_reference
from rainbow_fast.cli.files import BUILDERS, read_records, save_checkpoint, write, write_records
from rainbow_fast.cli.options import Aligned, Networks, Seed, Threads, numbers, set_threads
from rainbow_fast.cli.reproduce import Trainings, tasks
from rainbow_fast.cli.sampling import need_plots, plan, sample, show
from rainbow_fast.cli.sites import sites
from rainbow_fast.data import cifar10
from rainbow_fast.rainbow.entry import fit
from rainbow_fast.rainbow.parts import METHODS

USER_ERROR, INTERRUPTED = 2, 130  # exit codes

app = typer.Typer(
    help="Rainbow networks: sample networks of any width from a trained one, and measure how close they come.",
    add_completion=False,
    no_args_is_help=True,
)


def run() -> int:
    """The exit code of the command line. What the user got wrong is one line; an interruption too."""
    try:
        code = get_command(app).main(prog_name="rainbow-fast", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        return _refuse(str(error))
    except Exception as error:  # typer's own, of usage: it has no public base class in all versions
        if not hasattr(error, "format_message"):
            raise
        return _refuse(error.format_message())
    if code == INTERRUPTED:
        terminal.err().print("Interrupted. What stands in the output folder is whole.")
    return code or 0


def _refuse(message: str) -> int:
    if message:  # none where typer has printed the help
        terminal.err().print(f"[red]Error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    return USER_ERROR


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
    set_threads(threads)
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
    set_threads(threads)
    need_plots()
    out.mkdir(parents=True, exist_ok=True)
    for architecture in BUILDERS:
        about = new_reference(architecture, "digits", seed=seed)
        images = load_images(about, None)
        jobs = [Job(m, {"factor": f}, n, seed) for m in METHODS for f in (0.5, 1, 4, 16) for n in range(3)]
        with terminal.bar(sum(job.cost for job in jobs)) as bar:
            with bar.job(0, f"train {architecture}") as step:
                reference, about = train_reference(about, images, {"seed": seed}, step)
            save_checkpoint(reference, about, out / f"{architecture}.safetensors")
            folder = out / architecture
            folder.mkdir(exist_ok=True)
            grid = Grid(folder, {"architecture": architecture, "data": "digits"}, str(about))
            grid.clear()
            model = fit(reference, (images.x_train, images.y_train), holdout=(images.x_test, images.y_test))
            sample_grid(model, [[job for job in jobs if job.method == method] for method in METHODS], grid, bar.job)
        show(grid)


@app.command()
def reproduce(
    data: Annotated[Path, typer.Argument(help="The folder with CIFAR-10's binary version.")],
    architectures: Annotated[str, typer.Option(help="mlp, cnn, or both.")] = ",".join(BUILDERS),
    trainings: Annotated[int, typer.Option(help="Trained references of each.", min=1)] = 3,
    networks: Annotated[int, typer.Option(help="Sampled from each, at most.", min=1)] = 5,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("rainbow-cifar10"),
) -> None:
    """The published experiments on CIFAR-10 with their controls: results.jsonl, cifar10.md, cifar10.png.

    About an hour. Interrupted, it goes on where it was when it is called again.
    """
    set_threads(threads)
    need_plots()
    chosen = tuple(name.strip() for name in architectures.split(","))
    for name in chosen:
        if name not in BUILDERS:
            raise ValueError(f"--architectures: wanted mlp, cnn or mlp,cnn; got {architectures!r}")
    images = cifar10(data, grey=True)
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "results.jsonl")
    here = Trainings(images, out, trainings)
    todo = [task for task in tasks(chosen, trainings, networks) if not task.done(records)]
    with terminal.bar(sum(task.cost for task in todo)) as bar:
        for task in todo:
            with bar.job(task.cost, str(task)) as step:
                records += here.run(task, step)
            write_records(out / "results.jsonl", records)
    write(out / "cifar10.md", markdown.table(records))
    write(out / "cifar10.png", markdown.figure(records))
    terminal.out().print(f"{out}: results.jsonl, cifar10.md, cifar10.png", markup=False, soft_wrap=True)


@app.command("resnet20")
def study_resnet20(
    data: Annotated[Path, typer.Argument(help="The folder with CIFAR-10's binary version.")],
    weights: Annotated[Path, typer.Argument(help="Of a trained `resnet_cifar`: safetensors, or saved by torch.")],
    compare: Annotated[
        list[Path] | None, typer.Option(help="Weights of another one, of any width; repeatable.")
    ] = None,
    factors: Annotated[str, typer.Option(help="Widths over the reference's.")] = "1,4,8,16",
    networks: Networks = 3,
    images: Aligned = 5000,
    test: Annotated[int, typer.Option(help="Test images to measure on, at most.", min=1)] = 2500,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("rainbow-resnet20"),
) -> None:
    """Residual networks: all methods with their controls, and how new the neurons may be. results.jsonl, resnet20.md,
    resnet20.png.

    Hours on one core, and 12 GB at x16, where the naive way keeps all features of a block. Interrupted, it goes on
    where it was when it is called again.
    """
    set_threads(threads)
    need_plots()
    widths = numbers("--factors", factors)
    others = [path.stem for path in compare or []]
    if len({*others, resnet20.TRAINED, resnet20.UNTRAINED}) < len(others) + 2:
        raise ValueError(f"--compare: wanted files of different names, not trained or untrained; got {others}")
    paths = zip([*others, resnet20.TRAINED], [*(compare or []), weights], strict=True)
    references = {name: resnet20.load(path) for name, path in paths}
    found = cifar10(data)
    study = resnet20.Study(
        references, (found.x_train[:images], found.y_train[:images]), (found.x_test[:test], found.y_test[:test])
    )
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "results.jsonl")
    study.check(records)
    todo = [task for task in resnet20.tasks(widths, networks, others) if not task.done(records)]
    with terminal.bar(sum(task.cost for task in todo)) as bar:
        for group in resnet20.passes(todo):
            with bar.job(sum(task.cost for task in group), str(group[0])) as step:
                records += study.run(group, step)
            write_records(out / "results.jsonl", records)
    write(out / "resnet20.md", resnet20_page.table(records))
    write(out / "resnet20.png", resnet20_page.figure(records))
    terminal.out().print(f"{out}: results.jsonl, resnet20.md, resnet20.png", markup=False, soft_wrap=True)


app.command()(convergence)


@app.command()
def info() -> None:
    """What is built, what runs, and which versions."""
    levels = backend.kernels().levels() if backend.isa else []
    terminal.print_pairs(
        [
            ("rainbow_fast", _version("rainbow_fast")),
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
