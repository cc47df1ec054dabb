"""The command line: reads flags, calls the program, prints sentences. `main` returns the exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from torchdfa.errors import ConversionError, RunError, UsageError
from torchdfa.train.config import TrainConfig

app = typer.Typer(
    name="torchdfa",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train image classifiers with direct feedback alignment.",
)
_DEFAULT = TrainConfig()


def main(arguments: list[str] | None = None) -> int:
    """Run a command: 0, or 2 for wrong usage, 1 for a failure, 128 + signal where a signal stopped it."""
    try:
        code = typer.main.get_command(app).main(
            args=sys.argv[1:] if arguments is None else arguments, prog_name="torchdfa", standalone_mode=False
        )
    except (UsageError, ConversionError) as error:
        return _say(error, 2)
    except RunError as error:
        return _say(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped", 130)
    except Exception as error:
        # Typer's own errors of usage, whichever library it has them from.
        if hasattr(error, "format_message"):
            return _say(f"{error.format_message().rstrip('.')}; see 'torchdfa --help'", 2)
        raise
    return int(code or 0)


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
    fc_width: Annotated[int, Flag(help="width of the fully-connected layers")] = _DEFAULT.fc_width,
    fc_batch_norm: Annotated[bool, Flag("--fc-batch-norm", help="batch norm after them")] = False,
    rule: Annotated[str, Flag(help="bp, fa, dfa, bdfa, frozen; several with commas")] = "bp,dfa,bdfa",
    init: Annotated[str, Flag(help="feedback: product (Eq. 7, 9) or random")] = _DEFAULT.init,
    distribution: Annotated[str, Flag(help="of random feedback: normal, uniform, sign")] = _DEFAULT.distribution,
    scale: Annotated[str | None, Flag(help="of feedback: match, he, unit or a number")] = None,
    boundary: Annotated[str, Flag(help="how the error enters the convolutions: direct, transpose")] = "direct",
    epochs: Annotated[int, Flag()] = _DEFAULT.epochs,
    batch_size: Annotated[int, Flag(help="images a step, over all processes")] = _DEFAULT.batch_size,
    lr: Annotated[float | None, Flag(help="learning rate at the start; default by model and rule")] = None,
    schedule: Annotated[str, Flag(help="cosine, step or constant")] = _DEFAULT.schedule,
    momentum: Annotated[float, Flag()] = _DEFAULT.momentum,
    weight_decay: Annotated[float, Flag()] = _DEFAULT.weight_decay,
    seed: Annotated[int, Flag(help="of weights, feedback, order and augmentation")] = _DEFAULT.seed,
    precision: Annotated[str, Flag(help="auto, fp32, bf16 or fp16")] = _DEFAULT.precision,
    device: Annotated[str, Flag(help="auto, cpu or cuda")] = _DEFAULT.device,
    threads: Annotated[int | None, Flag(help="CPU threads; 1 for each of several runs side by side")] = None,
    compile: Annotated[bool, Flag("--compile", help="use torch.compile")] = False,  # noqa: A002
    log_alignment: Annotated[int, Flag(help="measure the angles to the true gradient every N steps")] = 0,
    tensorboard: Annotated[bool, Flag("--tensorboard", help="log for TensorBoard too")] = False,
    out: Annotated[str | None, Flag(help="run folder; with several rules, the folder of the run folders")] = None,
    resume: Annotated[str | None, Flag(help="continue the run in this folder")] = None,
) -> int:
    """Train a network with one learning rule or several, and compare them."""
    given = {name: ctx.params[name] for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    return _train(dict(ctx.params), given)


def _train(flags: dict[str, Any], given: dict[str, Any]) -> int:
    from torchdfa.train import program

    folder, out = flags.pop("resume"), flags.pop("out")
    rules = [name.strip() for name in flags.pop("rule").split(",")]
    flags["scale"] = _number(flags["scale"])
    if folder is not None:
        return _resume(folder, {name: flags.get(name, value) for name, value in given.items() if name != "resume"})
    configs = [TrainConfig(**flags, rule=rule) for rule in rules]  # type: ignore[arg-type]
    if len(set(rules)) < len(rules):
        raise UsageError(f"--rule must name each rule once; got {','.join(rules)}")
    parent = Path(out or "runs")
    alone = out is not None and len(configs) == 1
    folders = [parent if alone else parent / config.run_name for config in configs]
    program.train_all(configs, folders)
    return 0


def _resume(folder: str, given: dict[str, Any]) -> int:
    from torchdfa.train import program

    if "out" in given:
        raise UsageError("--out conflicts with --resume, which continues in the run's own folder; leave it out")
    program.resume(folder, given)
    return 0


def _number(text: str | None) -> Any:
    """The number that `text` is, or else the text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


@app.command()
def verify(runs: Annotated[list[Path], typer.Argument(help="folders of finished runs")]) -> None:
    """Compare the files of runs with the checksums they were finished with."""
    from torchdfa.train.runs import verify as check

    for folder in runs:
        print(f"{folder}: {check(folder)} files are as the run left them")
