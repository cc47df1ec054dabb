"""`torchdfa track` and `torchdfa pretrain`: reads flags, calls the programs, prints sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from torchdfa.errors import UsageError
from torchdfa.track.flags import (
    Device,
    Feedback,
    FeedbackScale,
    Flag,
    Moment,
    Option,
    Out,
    Precision,
    Preset,
    Rule,
    Weights,
    names,
    note,
    number_or_text,
    settings,
)
from torchdfa.track.otb_commands import otb


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
    video: Annotated[Path | None, Flag(help="annotated copy: a new .mp4 or .avi, or a new folder of frames")] = None,
) -> None:
    """Track a target through a video with MDNet, its head learning online by one rule, or several side by side."""
    from torchdfa.track import live
    from torchdfa.track.options import preset as preset_of
    from torchdfa.track.ranges import each_once
    from torchdfa.track.tracker import Tracker

    folder, video = _outputs(out, video)
    options: dict[str, Any] = {
        "feedback": feedback, "feedback_scale": number_or_text(feedback_scale), "moment": moment, "seed": seed,
        "share_features": share_features, "device": device, "precision": precision, "threads": threads,
    }  # fmt: skip
    options |= settings(option, {*options, "rule", "batch", "preset"})
    first = live.parse_box(box) if box is not None else None
    if first is not None and select:
        raise UsageError("--box and --select both say where the target is; pass one")
    if frames is not None and frames < 1:
        raise UsageError(f"--frames must be at least 1; got {frames}")
    each_once("rule", tuple(names(rule)))
    configs = {r: preset_of(preset, batch=batch, rule=r, **options) for r in names(rule)}
    live.check_outputs(folder, list(configs), video)
    if weights is None:
        note("no --weights: untrained features, with which targets are lost early; see 'torchdfa pretrain --help'")
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

    from torchdfa import runner
    from torchdfa.track.clips import find_clips
    from torchdfa.track.pretrain_options import PretrainConfig
    from torchdfa.track.pretraining import pretrain as run
    from torchdfa.track.watching import Watch

    runner.check(1, hours)
    config = PretrainConfig(
        cycles=cycles, start=None if start is None else str(start), norm=norm, lr=lr, augment=augment, seed=seed,
        device=device, precision=precision, threads=threads,
    )  # fmt: skip
    deadline = None if hours is None else time.time() + 3600 * hours
    with Watch("pretraining", cycles * len(find_clips(clips))) as watch:

        def show(step: int, steps: int, loss: float, precision: float) -> None:
            watch.step(step, f"loss {loss:.3f}  positives first {100 * precision:.0f} %")

        print(f"weights: {run(clips, out, config, show=show, deadline=deadline)}")
