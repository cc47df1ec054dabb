"""`torchdfa track`, `torchdfa pretrain` and `torchdfa otb`: reads flags, calls the programs, prints sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchdfa.errors import RunError, UsageError

if TYPE_CHECKING:
    from torchdfa.track.scoring import Scores

Flag = typer.Option
otb = typer.Typer(help="Evaluate trackers on the Online Tracking Benchmark (OTB).", no_args_is_help=True)

Rule = Annotated[str, Flag(help="bp, fa, dfa, bdfa, frozen; several with commas")]
Weights = Annotated[Path | None, Flag(help="MDNet's weights: .safetensors, PyMDNet's .pth or VGG-M's .mat")]
Preset = Annotated[str, Flag(help="pymdnet or paper")]
Feedback = Annotated[str, Flag(help="product (Eqs. 7, 9) or random")]
FeedbackScale = Annotated[str, Flag(help="unit, match, he or a number")]
Moment = Annotated[str, Flag(help="when feedback is taken: start or after_first_frame")]
Option = Annotated[list[str] | None, Flag("--option", help="name=value of any other setting, such as candidates=128")]
Device = Annotated[str, Flag(help="auto, cpu or cuda")]
Precision = Annotated[str, Flag(help="auto, fp32 or bf16")]
Out = Annotated[Path, Flag(help="folder of what is written")]
Protocol = Annotated[str, Flag(help="otb, got10k, pysot or pytracking")]
Set = Annotated[str, Flag("--set", help="OTB-2013, OTB-50 or OTB-100")]
Missing = Annotated[str, Flag(help="error, or skip sequences that are missing")]
Truncate = Annotated[bool, Flag("--truncate", help="where lengths differ, use as much as both have")]
Data = Annotated[Path, Flag(help="folder of OTB's sequences, or a .json file of ground truth")]
Sequences = Annotated[str | None, Flag(help="names with commas; by default all of the set")]
Results = Annotated[list[Path], typer.Argument(help="folders of results: a tracker's, or of several trackers")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the program's own."""
    app.command()(track)
    app.command()(pretrain)
    app.add_typer(otb, name="otb")


def track(
    source: Annotated[str, typer.Argument(help="folder of frames, video file, webcam, or a webcam's number")],
    box: Annotated[str | None, Flag(help="x,y,w,h of the target in the first frame, in pixels")] = None,
    select: Annotated[bool, Flag("--select", help="draw the box in a window instead")] = False,
    rule: Rule = "bdfa",
    weights: Weights = None,
    preset: Preset = "pymdnet",
    batch: Annotated[int, Flag(help="examples a step, a quarter of them positive")] = 128,
    feedback: Feedback = "product",
    feedback_scale: FeedbackScale = "unit",
    moment: Moment = "start",
    seed: Annotated[int, Flag(help="of samples, fc6, feedback and dropout")] = 0,
    frames: Annotated[int | None, Flag(help="stop after so many")] = None,
    share_features: Annotated[
        bool, Flag("--share-features", help="one feature map a frame: faster, other boxes")
    ] = False,
    option: Option = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[int | None, Flag(help="CPU threads")] = None,
    out: Annotated[
        str, Flag(help="folder of boxes and summary; or a video file, with the folder beside it")
    ] = "tracked",
    video: Annotated[Path | None, Flag(help="annotated copy: .mp4, .avi, or a folder of frames")] = None,
) -> None:
    """Track a target through a video with MDNet, its head learning online by one rule, or several side by side."""
    from torchdfa.track import live
    from torchdfa.track.options import preset as settings
    from torchdfa.track.tracker import Tracker

    folder, video = _outputs(out, video)
    options: dict[str, Any] = {
        "feedback": feedback, "feedback_scale": _number(feedback_scale), "moment": moment, "seed": seed,
        "share_features": share_features, "device": device, "precision": precision, "threads": threads,
        **_options(option),
    }  # fmt: skip
    first = live.parse_box(box) if box is not None else None
    if first is not None and select:
        raise UsageError("--box and --select both say where the target is; pass one")
    if frames is not None and frames < 1:
        raise UsageError(f"--frames must be at least 1; got {frames}")
    configs = {r: settings(preset, batch=batch, rule=r, **options) for r in _list(rule)}
    if weights is None:
        _note("no --weights: untrained features, with which targets are lost early; see 'torchdfa pretrain --help'")
    trackers = [Tracker(weights, config, name=r) for r, config in configs.items()]
    summary = live.track(source, trackers, folder, box=first, video_out=video, select=select, frames=frames)
    for name, figures in summary["trackers"].items():
        overlap = f", mean overlap {figures['mean_overlap']:.3f}" if "mean_overlap" in figures else ""
        print(
            f"{name}: {summary['frames']} frames, {figures['frames_per_second']:.2f} a second, "
            f"lost in {figures['lost_frames']}{overlap}; boxes: {folder / name}.txt"
        )
    if video is not None:
        print(f"annotated: {video}")


def _outputs(out: str, video: Path | None) -> tuple[Path, Path | None]:
    """`--out tracked.mp4` asks for the video, and puts the rest into tracked/ beside it."""
    path = Path(out)
    if not path.suffix:
        return path, video
    if video is not None:
        raise UsageError(f"--out {out} and --video {video} both name the annotated video; pass one")
    return path.with_suffix(""), path


def pretrain(
    clips: Annotated[list[Path], typer.Argument(help="folders of clips in the layout of OTB, VOT, TLP or GOT-10k")],
    out: Out = Path("pretrained"),
    cycles: Annotated[int, Flag(help="steps on each clip")] = 100,
    start: Annotated[Path | None, Flag(help="weights to begin with, such as imagenet-vgg-m.mat")] = None,
    norm: Annotated[
        str, Flag(help="response norm: pymdnet-2019, or vgg-m as VGG-M's weights need it")
    ] = "pymdnet-2019",
    lr: Annotated[float, Flag(help="learning rate of the convolutions; the other layers take ten times that")] = 1e-4,
    augment: Annotated[bool, Flag("--augment/--no-augment", help="mirror, turn and blur")] = True,
    seed: Annotated[int, Flag()] = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Annotated[int | None, Flag(help="CPU threads")] = None,
    hours: Annotated[float | None, Flag(help="stop cleanly after so long; the same command goes on")] = None,
) -> None:
    """Train MDNet's convolutions and fc4, fc5 on clips; the same command goes on where it was stopped."""
    import time

    from torchdfa.track.clips import find_clips
    from torchdfa.track.pretraining import PretrainConfig
    from torchdfa.track.pretraining import pretrain as run
    from torchdfa.track.watching import Watch

    config = PretrainConfig(
        cycles=cycles, start=None if start is None else str(start), norm=norm, lr=lr, augment=augment, seed=seed,
        device=device, precision=precision, threads=threads,
    )  # fmt: skip
    deadline = None if hours is None else time.time() + 3600 * hours
    with Watch("pretraining", cycles * len(find_clips(clips))) as watch:

        def show(step: int, steps: int, loss: float, precision: float) -> None:
            watch.step(step, f"loss {loss:.3f}  positives first {100 * precision:.0f} %")

        print(f"weights: {run(clips, out, config, show=show, deadline=deadline)}")


@otb.command("run")
def otb_run(
    data: Annotated[Path, typer.Argument(help="folder of OTB's sequences")],
    out: Out = Path("results"),
    rule: Rule = "bp,bdfa",
    batch: Annotated[str, Flag(help="examples a step; several with commas")] = "128",
    seeds: Annotated[str, Flag(help="numbers with commas")] = "0",
    weights: Weights = None,
    set_: Set = "OTB-100",
    sequences: Sequences = None,
    frames: Annotated[int | None, Flag(help="only so many first frames of each sequence")] = None,
    missing: Missing = "error",
    preset: Preset = "pymdnet",
    feedback: Feedback = "product",
    feedback_scale: FeedbackScale = "unit",
    moment: Moment = "start",
    option: Option = None,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Annotated[int, Flag(help="processes side by side")] = 1,
    threads: Annotated[int | None, Flag(help="CPU threads of each; by default the cores divided among them")] = None,
    scheduler: Annotated[str | None, Flag(help="address of a Dask scheduler instead of processes here")] = None,
    hours: Annotated[float | None, Flag(help="stop cleanly after so long; the same command goes on")] = None,
) -> int:
    """Run trackers over a set; what is finished is not run again."""
    from torchdfa.track.experiments import Experiment, run

    if threads is not None and workers == 1:
        import torch

        torch.set_num_threads(threads)
    options = {"feedback": feedback, "feedback_scale": _number(feedback_scale), "moment": moment, "device": device,
               "precision": precision, **_options(option)}  # fmt: skip
    experiment = Experiment(
        data, out, weights, set_, None if sequences is None else tuple(_list(sequences)), tuple(_list(rule)),
        _numbers("--batch", batch), _numbers("--seeds", seeds), preset, tuple(options.items()), frames, missing,
    )  # fmt: skip
    if weights is None:
        _note("no --weights: untrained features")
    status = {"done": 0, "stopped": 0, "failed": 0}
    for outcome in run(experiment, workers=workers, threads=threads, scheduler=scheduler, hours=hours):
        status[outcome.status] += 1
        what = f"{outcome.value['frames_per_second']:.2f} frames/s" if outcome.status == "done" else outcome.message
        print(f"{outcome.name}: {outcome.status}, {what}", flush=True)
    print(
        f"{status['done']} done, {status['stopped']} stopped, {status['failed']} failed; results: {experiment.folder}"
    )
    if status["failed"]:
        raise RunError(f"{status['failed']} sequences failed; the same command tries them again")
    if status["stopped"]:
        print("the same command goes on", file=sys.stderr)
    return 0


@otb.command("report")
def otb_report(
    found: Results,
    data: Data,
    out: Annotated[Path | None, Flag(help="folder for report.md, performance.json, comparisons.json")] = None,
    set_: Set = "OTB-100",
    sequences: Sequences = None,
    protocol: Protocol = "otb",
    missing: Missing = "error",
    truncate: Truncate = False,
) -> None:
    """Score results of any toolkit: success, precision, attributes, speed; rules compared in pairs."""
    from torchdfa.track import reporting

    scores = _scores(found, data, set_, sequences, protocol, missing, truncate)
    print(reporting.text(scores))
    if out is not None:
        reporting.write(out, scores)
        print(f"report: {out / 'report.md'}")


@otb.command("plot")
def otb_plot(
    found: Results,
    data: Data,
    out: Out = Path("plots"),
    set_: Set = "OTB-100",
    sequences: Sequences = None,
    protocol: Protocol = "otb",
    missing: Missing = "error",
    truncate: Truncate = False,
    figure6: Annotated[
        bool, Flag("--figure6", help="only Figure 6: rules by batch size with bands over seeds")
    ] = False,
) -> None:
    """Draw success and precision plots, attributes, and Figure 6 where the results are of several rules."""
    from torchdfa.track import figures

    scores = _scores(found, data, set_, sequences, protocol, missing, truncate)
    written = (
        figures.figure6(scores, out) if figure6 else figures.one_pass(scores, out) + figures.attributes(scores, out)
    )
    for path in written:
        print(path)


@otb.command("play")
def otb_play(
    sequence: Annotated[str, typer.Argument(help="name of a sequence")],
    found: Results,
    data: Data,
    out: Annotated[Path, Flag(help="folder for frames, or .mp4, .avi")] = Path("played"),
    frames: Annotated[int | None, Flag(help="stop after so many")] = None,
) -> None:
    """Draw stored results of several trackers, and the truth in white, into the frames of a sequence."""
    from torchdfa.track.playback import play

    print(f"{play(sequence, found, data, out, frames)} frames: {out}")


@otb.command("convert")
def otb_convert(
    found: Results,
    to: Annotated[str, Flag(help="got10k, pysot, pytracking or otb")],
    out: Out = Path("converted"),
) -> None:
    """Write results in the layout of another toolkit."""
    from torchdfa.track import reporting, results

    for folder in reporting.tracker_folders(found):
        print(results.write(out, results.read(folder), to))


@otb.command("demo")
def otb_demo(out: Out = Path("runs/otb-demo")) -> None:
    """Track a target made on the spot by BP and BDFA, with both plots; no download, some seconds."""
    from torchdfa.track.demo import demo

    print(demo(out))


def _scores(
    found: list[Path], data: Path, set_: str, sequences: str | None, protocol: str, missing: str, truncate: bool
) -> list[Scores]:
    from torchdfa.track import protocols, reporting
    from torchdfa.track.sequences import OTB

    protocols.protocol(protocol)
    chosen = None if sequences is None else _list(sequences)
    benchmark = OTB(data, set_, sequences=chosen, missing=missing, truncate=truncate)
    return reporting.score_all(found, benchmark, rules=protocol, missing=missing, truncate=truncate)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _list(text))
    except ValueError:
        raise UsageError(f"{flag} must be whole numbers with commas; got {text!r}") from None


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _options(given: list[str] | None) -> dict[str, Any]:
    """Settings from "name=value"; numbers, true, false and null as JSON writes them."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"--option must be name=value; got {text!r}")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def _note(sentence: str) -> None:
    print(f"torchdfa: {sentence}", file=sys.stderr)
