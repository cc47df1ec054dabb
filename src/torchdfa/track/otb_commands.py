"""`torchdfa otb`: reads flags, calls the programs, prints sentences."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchdfa.errors import RunError
from torchdfa.track.flags import (
    Data,
    Device,
    Feedback,
    FeedbackScale,
    FirstFrames,
    Flag,
    Missing,
    Moment,
    Option,
    Out,
    Precision,
    Preset,
    Protocol,
    Results,
    Rule,
    Sequences,
    Set,
    Truncate,
    Weights,
    names,
    note,
    number_or_text,
    numbers,
    settings,
)

if TYPE_CHECKING:
    from torchdfa.track.scoring import Scores

otb = typer.Typer(help="Evaluate trackers on the Online Tracking Benchmark (OTB).", no_args_is_help=True)


@otb.command("run")
def otb_run(
    data: Annotated[Path, typer.Argument(help="folder of OTB's sequences")],
    out: Out = Path("results"),
    rule: Rule = "bp,bdfa",
    batch: Annotated[str, Flag(help="examples a step; several with commas")] = "128",
    seeds: Annotated[int, Flag(help="how many of each tracker")] = 1,
    first_seed: Annotated[int, Flag("--first-seed", help="seeds are this one and those after it")] = 0,
    weights: Weights = None,
    set_: Set = "OTB-100",
    sequences: Sequences = None,
    frames: Annotated[int | None, Flag(help="only so many first frames of each sequence")] = None,
    missing: Missing = "error",
    truncate: Truncate = False,
    forced: Annotated[
        bool, Flag("--forced", help="same crops around the truth for all: compares learning alone")
    ] = False,
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
    import time

    from torchdfa.runner import over, tally
    from torchdfa.track.experiments import Experiment, run

    options = {
        "feedback": feedback, "feedback_scale": number_or_text(feedback_scale), "moment": moment, "device": device,
        "precision": precision,
    }  # fmt: skip
    options |= settings(option, {*options, "rule", "batch", "seed", "preset", "threads"})
    experiment = Experiment(
        data, out, weights, set_, None if sequences is None else tuple(names(sequences)), tuple(names(rule)),
        numbers("--batch", batch), seeds, preset, tuple(options.items()), frames, missing, forced,
        truncate, first_seed,
    )  # fmt: skip
    if weights is None:
        note("no --weights: untrained features")
    deadline = None if hours is None else time.time() + 3600 * hours
    counts: Counter[str] = Counter()
    outcomes = run(experiment, workers=workers, threads=threads, scheduler=scheduler, hours=hours)
    if threads is not None and workers == 1:
        import torch

        torch.set_num_threads(threads)
    for outcome in outcomes:
        counts[outcome.status] += 1
        if outcome.status == "left":
            continue
        what = f"{outcome.value['frames_per_second']:.2f} frames/s" if outcome.status == "done" else outcome.message
        print(f"{outcome.name}: {outcome.status}, {what}", flush=True)
    print(f"{tally(counts)}; results: {experiment.folder}")
    if counts["failed"]:
        raise RunError(f"{counts['failed']} sequences failed; the same command tries them again")
    if counts["stopped"] + counts["left"]:
        print("the same command goes on", file=sys.stderr)
        return 0 if over(deadline) else 130  # only a signal stops it before its time
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
    frames: FirstFrames = None,
) -> None:
    """Score results of any toolkit: success, precision, attributes, speed; rules compared in pairs."""
    from torchdfa.track import reporting

    scores = _scores(found, data, set_, sequences, protocol, missing, truncate, frames)
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
    frames: FirstFrames = None,
    figure6: Annotated[
        bool, Flag("--figure6", help="rules by batch size with bands over seeds, instead of the other plots")
    ] = False,
) -> None:
    """Draw success and precision plots and those of each attribute; or, with --figure6, Figure 6 alone."""
    from torchdfa.track import figures

    scores = _scores(found, data, set_, sequences, protocol, missing, truncate, frames)
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
    truncate: Truncate = False,
) -> None:
    """Draw stored results of several trackers, and the truth in white, into the frames of a sequence."""
    from torchdfa.track.playback import play

    print(f"{play(sequence, found, data, out, frames, truncate=truncate)} frames: {out}")


@otb.command("convert")
def otb_convert(
    found: Results,
    to: Annotated[str, Flag(help="got10k, pysot, pytracking or otb")],
    out: Out = Path("converted"),
) -> None:
    """Write results in the layout of another toolkit."""
    from torchdfa.track import reporting, results

    for folder in reporting.tracker_folders(found):
        print(results.convert(folder, out, to))


@otb.command("demo")
def otb_demo(out: Out = Path("runs/otb-demo")) -> None:
    """Track a target made on the spot by BP and BDFA, with both plots; no download, some seconds."""
    from torchdfa.track.demo import demo

    print(demo(out))


def _scores(
    found: list[Path], data: Path, set_: str, sequences: str | None, protocol: str, missing: str, truncate: bool,
    frames: int | None,
) -> list[Scores]:  # fmt: skip
    from torchdfa.track import protocols, reporting
    from torchdfa.track.sequences import OTB

    protocols.protocol(protocol)
    chosen = None if sequences is None else names(sequences)
    benchmark = OTB(data, set_, sequences=chosen, missing=missing, truncate=truncate)
    return reporting.score_all(found, benchmark, rules=protocol, missing=missing, truncate=truncate, frames=frames)
