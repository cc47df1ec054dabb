"""The command line: reads flags, calls the program, prints sentences. `main` returns the exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from torchdfa.errors import ConversionError, RunError, UsageError
from torchdfa.paper import commands as paper
from torchdfa.track import commands as tracking
from torchdfa.train.config import TrainConfig
from torchdfa.train.stop import ALARM, Stopped

app = typer.Typer(
    name="torchdfa",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train image classifiers with direct feedback alignment.",
)
app.add_typer(paper.app, name="paper")
_DEFAULT = TrainConfig()


def main(arguments: list[str] | None = None) -> int:
    """Run a command: 0, or 2 for wrong usage, 1 for a failure, 128 + signal where a signal stopped it.

    The end of the time that --hours gave is no failure: 0.

    Where torchrun started several processes, each says what went wrong in it.
    """
    try:
        code = typer.main.get_command(app).main(
            args=sys.argv[1:] if arguments is None else arguments, prog_name="torchdfa", standalone_mode=False
        )
    except (UsageError, ConversionError) as error:
        return _say(error, 2)
    except RunError as error:
        return _say(error, 1)
    except Stopped as stop:
        return _say(stop, 0 if stop.signum == ALARM else 128 + stop.signum)
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped before training began, or for the second time", 130)
    except Exception as error:
        # Typer's own errors of usage, whichever library it has them from.
        if hasattr(error, "format_message"):
            message = error.format_message().rstrip(".")  # none where a group without a command has shown its help
            command = getattr(getattr(error, "ctx", None), "command_path", None) or "torchdfa"
            return _say(f"{message}; see '{command} --help'", 2) if message else 2
        if _is_of_memory(error):
            return _say(f"not enough memory ({str(error).strip().splitlines()[0]}); take less at once", 1)
        raise
    return int(code or 0)


def _is_of_memory(error: Exception) -> bool:
    """Whether NumPy, torch on a GPU or torch on a CPU, which has no class for it, could get no more."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in ("can't allocate memory", "out of memory"))
    )


def _say(message: object, code: int) -> int:
    print(f"torchdfa: {message}", file=sys.stderr)
    return code


Flag = typer.Option


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[str, Flag(help="digits, cifar10, cifar100, or a folder of class/photo.jpg")] = _DEFAULT.data,
    data_dir: Annotated[str | None, Flag(help="where CIFAR lies")] = None,
    download: Annotated[bool, Flag("--download", help="fetch CIFAR from its official address")] = False,
    image_size: Annotated[int | None, Flag(help="side of the square images in pixels")] = None,
    subset: Annotated[int | None, Flag(help="train on so many images, balanced over the classes")] = None,
    validate: Annotated[float, Flag(help="test on this part of the training images instead (for tuning)")] = 0.0,
    augment: Annotated[bool, Flag("--augment/--no-augment", help="random flip and crop")] = _DEFAULT.augment,
    model: Annotated[str, Flag(help="cnn, mlp or vgg16")] = _DEFAULT.model,
    fc_layers: Annotated[int, Flag(help="number of fully-connected layers")] = _DEFAULT.fc_layers,
    fc_width: Annotated[int, Flag(help="width of the hidden ones")] = _DEFAULT.fc_width,
    fc_batch_norm: Annotated[bool, Flag("--fc-batch-norm", help="batch norm after them")] = False,
    dropout: Annotated[float, Flag(help="dropout after them")] = _DEFAULT.dropout,
    fixed_output: Annotated[bool, Flag("--fixed-output", help="the output layer does not learn either")] = False,
    rule: Annotated[str, Flag(help="bp, fa, dfa, bdfa, frozen; several with commas")] = "bp,dfa,bdfa",
    init: Annotated[str, Flag(help="feedback: product (Eq. 7, 9) or random")] = _DEFAULT.init,
    distribution: Annotated[str, Flag(help="of random feedback: normal, uniform, sign")] = _DEFAULT.distribution,
    scale: Annotated[str | None, Flag(help="of feedback: match, he, unit or a number")] = None,
    boundary: Annotated[str, Flag(help="how the error enters the convolutions: direct, transpose")] = "direct",
    layers: Annotated[str, Flag(help="head, or all: feedback to every convolution too")] = _DEFAULT.layers,
    epochs: Annotated[int, Flag()] = _DEFAULT.epochs,
    batch_size: Annotated[int, Flag(help="images a step, over all processes")] = _DEFAULT.batch_size,
    lr: Annotated[float | None, Flag(help="at the start; by default 0.003 for feedback in vgg16, else 0.01")] = None,
    conv_lr_factor: Annotated[float, Flag(help="times that rate for the convolutions")] = _DEFAULT.conv_lr_factor,
    schedule: Annotated[str, Flag(help="cosine, step or constant")] = _DEFAULT.schedule,
    momentum: Annotated[float, Flag()] = _DEFAULT.momentum,
    weight_decay: Annotated[float, Flag()] = _DEFAULT.weight_decay,
    seed: Annotated[int, Flag(help="of weights, feedback, order and augmentation")] = _DEFAULT.seed,
    precision: Annotated[str, Flag(help="auto, fp32, bf16 or fp16")] = _DEFAULT.precision,
    convolutions: Annotated[str, Flag(help="auto, torch, winograd or im2col")] = _DEFAULT.convolutions,
    device: Annotated[str, Flag(help="auto, cpu or cuda")] = _DEFAULT.device,
    threads: Annotated[int | None, Flag(help="CPU threads; 1 for each of several runs side by side")] = None,
    test_every: Annotated[int, Flag(help="epochs from test to test")] = _DEFAULT.test_every,
    compile: Annotated[bool, Flag("--compile", help="use torch.compile")] = False,  # noqa: A002
    log_alignment: Annotated[int, Flag(help="measure the angles to the true gradient every N steps")] = 0,
    tensorboard: Annotated[bool, Flag("--tensorboard", help="log for TensorBoard too")] = False,
    out: Annotated[str | None, Flag(help="run folder; with several rules, the folder of the run folders")] = None,
    resume: Annotated[str | None, Flag(help="continue the run in this folder")] = None,
) -> int:
    """Train a network with one learning rule or several, and compare them."""
    flags = dict(ctx.params)
    folder = flags.pop("resume")
    flags["scale"] = _number(scale)
    if folder is None:
        return _train(flags)
    return _resume(folder, {name: flags[name] for name in flags if _is_given(ctx, name)})


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _train(flags: dict[str, Any]) -> int:
    from torchdfa.train import finish, program

    out, rules = flags.pop("out"), flags["rule"].split(",")
    configs = [TrainConfig(**flags | {"rule": rule.strip()}) for rule in rules]
    folders = program.folders(configs, out)
    program.train_all(configs, folders)
    finish.conclude(folders, out)
    return 0


def _resume(folder: str, given: dict[str, Any]) -> int:
    from torchdfa.train import finish, program

    if "out" in given:
        raise UsageError("--out conflicts with --resume, which continues in the run's own folder; leave it out")
    program.resume(folder, given)
    finish.conclude([Path(folder)], None)
    return 0


def _number(text: str | None) -> Any:
    """The number that `text` is, or else the text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, such as runs/*")],
    out: Annotated[Path, Flag(help="picture of the curves; the table goes beside it")] = Path("compare.png"),
) -> None:
    """Print one table over runs, what it means, and draw their curves together."""
    from torchdfa.train.compare import compare as show

    show(runs, out)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="folder of a finished run, or its model.safetensors")],
    photos: Annotated[Path, typer.Argument(help="a photo, or a folder of photos")],
    out: Annotated[Path | None, Flag(help="CSV file with a line for each photo")] = None,
) -> None:
    """Classify photos with a trained model."""
    from torchdfa.train.predict import predict as classify

    print(classify(run, photos, out))
    if out is not None:
        print(f"predictions: {out}")


@app.command()
def verify(runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")]) -> None:
    """Compare the files of runs with the checksums they were finished with."""
    from torchdfa.train.runs import verify as check

    for folder in runs:
        print(f"{folder}: {check(folder)} files are as the run left them")


@app.command()
def online(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="features.npz with X and y, a CSV of label,number,... or - for stdin")],
    rule: Annotated[str, Flag(help="bp, fa, dfa, bdfa, frozen; several with commas")] = "bdfa",
    hidden: Annotated[str, Flag(help="widths of the hidden layers with commas, or none")] = "512",
    lr: Annotated[float, Flag(help="learning rate")] = 0.01,
    momentum: Annotated[float, Flag()] = 0.0,
    replay: Annotated[int, Flag(help="samples of each class that are kept and learned again")] = 0,
    classes: Annotated[str | None, Flag(help="all labels of a CSV stream with commas; else they are added")] = None,
    order: Annotated[str, Flag(help="of an .npz: random, class, bursts, given")] = "random,class,bursts",
    repeats: Annotated[int, Flag(help="streams of each order")] = 3,
    delay: Annotated[int, Flag(help="samples after which a label is known")] = 0,
    window: Annotated[int | None, Flag(help="samples of the windowed accuracy")] = None,
    seed: Annotated[int, Flag(help="of weights, feedback, replay and orders; with --load, of orders alone")] = 0,
    load: Annotated[str | None, Flag(help="go on with the head in this file")] = None,
    out: Annotated[str | None, Flag(help="folder of the results; runs/online by default")] = None,
) -> None:
    """Learn from a stream of feature vectors, classifying each before it is learned."""
    from torchdfa.online.program import OF_A_HEAD, OnlineConfig
    from torchdfa.online.program import online as learn

    for name in OF_A_HEAD if load is not None else ():
        if _is_given(ctx, name):
            raise UsageError(f"--{name} conflicts with --load, whose head has its own; leave it out")
    learn(
        source,
        OnlineConfig(rule, hidden, lr, momentum, replay, classes, order, repeats, delay, window, seed, load),
        out,
    )


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="sign_mm, backward, step, update, memory; all, if none")
    ] = None,
    size: Annotated[str, Flag(help="small (seconds) or full (many minutes, 16 GB of memory)")] = "small",
    only: Annotated[str, Flag(help="measure the cases alone whose name this regular expression finds")] = "",
    rounds: Annotated[int, Flag(help="samples of each variant")] = 9,
    threads: Annotated[int, Flag(help="CPU threads; ratios of several are of wall times")] = 1,
    keep_memory: Annotated[bool, Flag("--keep-memory", help="malloc keeps what is freed (glibc)")] = False,
    out: Annotated[Path | None, Flag(help="append each result as a JSON line to this file")] = None,
    show: Annotated[Path | None, Flag(help="measure nothing: print and draw the results in this file")] = None,
) -> None:
    """Measure what feedback costs on this machine, beside back-propagation and peers."""
    from torchdfa.bench.program import bench as measure

    measure(
        names or [], size=size, only=only, rounds=rounds, threads=threads, keep_memory=keep_memory, out=out, show=show
    )


tracking.add_to(app)
