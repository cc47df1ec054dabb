"""The training loop: what it computes, when it stops, and that it goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from small_runs import STEPS_AN_EPOCH, figures, small, weights
from torchdfa.errors import RunError
from torchdfa.train import TrainConfig, load_model, loop, plots, program, runs
from torchdfa.train.arms import arms
from torchdfa.train.loop import Trainer
from torchdfa.train.stop import Stopped


@pytest.fixture(autouse=True)
def without_pictures() -> Iterator[None]:
    """Half of the time of so small a run would go into its picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda _, path: path.write_bytes(b"drawn"))
        patch.setattr(plots, "of_test_set", lambda *_: None)
        yield


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGINT) -> None:
    """Send this process a signal as soon as so many steps are done."""
    after_step = Trainer.after_step

    def interrupting(self: Trainer, *arguments: Any) -> None:
        if self.step_number == step:
            os.kill(os.getpid(), signum)
        after_step(self, *arguments)

    monkeypatch.setattr(Trainer, "after_step", interrupting)


def resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as another process would: with generators that stand elsewhere."""
    monkeypatch.undo()
    torch.manual_seed(12345)
    program.resume(folder)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
def test_every_rule_trains_by_default(tmp_path: Path, rule: str) -> None:
    """Guessing gets 10 %; 5 epochs of all 1,438 training images at the default rate get every rule above 90 %."""
    run = program.train(small(rule=rule, subset=None, fc_width=64, epochs=5, augment=False), tmp_path / "run")
    assert run.result is not None
    assert run.result["top1"] > 90
    assert run.epochs[-1]["train_loss"] < run.epochs[0]["train_loss"] / 2


def test_the_same_settings_twice_give_the_same_bits(tmp_path: Path) -> None:
    for name in "ab":
        program.train(small(epochs=1), tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert figures(tmp_path / "a") == figures(tmp_path / "b")


def test_a_step_is_sgd_with_momentum_and_decay(tmp_path: Path) -> None:
    """One step of rule bp against torch's own arithmetic, written out."""
    config = small(rule="bp", momentum=0.9, weight_decay=0.01, lr=0.1, schedule="constant", augment=False)
    trainer = make_trainer(config, tmp_path)
    x, y = next(iter(trainer.batches))
    trainer.model.train()
    loss = nn.functional.cross_entropy(trainer.net(x), y)
    expected = {}
    names, parameters = zip(*trainer.net.named_parameters(), strict=True)
    for name, p, gradient in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
        expected[name] = p.detach() - 0.1 * (gradient + 0.01 * p.detach())
    trainer.step(x, y)
    for name, p in trainer.net.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


def make_trainer(config: Any, folder: Path) -> Trainer:
    data = program.load(config)
    resolved = program.machine.resolve(config)
    fabric = program.launch(config, resolved, folder)
    return Trainer(config, data, fabric, folder, program.digest(data), convolutions=resolved.convolutions)


def test_feedback_is_not_decayed(tmp_path: Path) -> None:
    trainer = make_trainer(small(weight_decay=0.5, rule="dfa"), tmp_path)
    before = {name: b.clone() for name, b in trainer.net.named_buffers() if "feedback" in name}
    trainer.model.train()
    for x, y in trainer.batches:
        trainer.step(x, y)
    after = dict(trainer.net.named_buffers())
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("step", [1, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH - 1, 2 * STEPS_AN_EPOCH])
@pytest.mark.parametrize("rule", ["bp", "dfa", "bdfa"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, step: int
) -> None:
    """In the middle of an epoch, at its end before the test, with shuffling and augmentation."""
    config = small(rule=rule, epochs=3)
    program.train(config, tmp_path / "whole")
    interrupt_at(monkeypatch, step)
    with pytest.raises(Stopped, match=rf"stopped at step {step} of 21; continue with 'torchdfa train --resume"):
        program.train(config, tmp_path / "parts")
    resumed(tmp_path / "parts", monkeypatch)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_dropout_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(epochs=2, dropout=0.2)
    program.train(config, tmp_path / "whole")
    interrupt_at(monkeypatch, 5, signal.SIGTERM)
    with pytest.raises(Stopped):
        program.train(config, tmp_path / "parts")
    monkeypatch.undo()
    torch.manual_seed(777)
    program.resume(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_two_and_two_epochs_are_four(tmp_path: Path) -> None:
    """A finished run made longer, which a constant schedule allows."""
    config = small(schedule="constant", epochs=2)
    program.train(small(schedule="constant", epochs=4), tmp_path / "four")
    program.train(config, tmp_path / "two")
    program.resume(tmp_path / "two", {"epochs": 4})
    assert weights(tmp_path / "two") == weights(tmp_path / "four")
    assert figures(tmp_path / "two") == figures(tmp_path / "four")
    assert runs.verify(tmp_path / "two") == runs.verify(tmp_path / "four")


def test_bf16_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(precision="bf16", epochs=2)
    program.train(config, tmp_path / "whole")
    interrupt_at(monkeypatch, 9)
    with pytest.raises(Stopped):
        program.train(config, tmp_path / "parts")
    resumed(tmp_path / "parts", monkeypatch)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_stop_during_the_test_repeats_only_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(epochs=2)
    program.train(config, tmp_path / "whole")
    evaluate = Trainer.evaluate

    def interrupting(self: Trainer, signals: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, signals)

    monkeypatch.setattr(Trainer, "evaluate", interrupting)
    with pytest.raises(Stopped, match=f"step {STEPS_AN_EPOCH} of {2 * STEPS_AN_EPOCH}"):
        program.train(config, tmp_path / "parts")
    resumed(tmp_path / "parts", monkeypatch)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def test_the_checkpoint_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time between checkpoints, each step and each test batch writes one, besides that of each epoch."""
    saved = []
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr(loop.checkpoint, "save", lambda path, state: saved.append((state["epoch"], state["done"])))
    program.train(small(epochs=1), tmp_path / "run")
    steps, test_batches = STEPS_AN_EPOCH, -(-359 // 32)
    during = [(0, done) for done in range(1, steps + 1)]
    assert saved == [(0, 0), *during, *[(0, steps)] * test_batches, (1, 0)]


@pytest.mark.parametrize("seconds, epochs", [(0.0, [0, 1, 2, 3]), (3600.0, [0, 3])])
def test_an_epoch_is_saved_where_the_last_checkpoint_is_old_and_the_last_one_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, epochs: list[int]
) -> None:
    saved = []
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_EPOCHS_SAVED", seconds)
    monkeypatch.setattr(loop.checkpoint, "save", lambda path, state: saved.append(state["epoch"]))
    program.train(small(epochs=3), tmp_path / "run")
    assert saved == epochs


def test_measuring_the_alignment_changes_nothing(tmp_path: Path) -> None:
    program.train(small(epochs=2), tmp_path / "plain")
    run = program.train(small(epochs=2, log_alignment=5), tmp_path / "measured")
    assert weights(tmp_path / "plain") == weights(tmp_path / "measured")
    assert [line["step"] for line in run.alignment] == [5, 10]
    assert run.alignment[0]["updates"]["classifier.4"]["degrees"] == pytest.approx(0, abs=1e-3)
    assert 1 < run.alignment[0]["updates"]["classifier.0"]["degrees"] < 90


def test_an_explosion_is_found_while_the_loss_is_finite(tmp_path: Path) -> None:
    """Raw +-1 feedback at a large rate: the loss grows without becoming NaN for a long time."""
    config = small(rule="bdfa", scale="unit", model="mlp", fc_width=256, lr=0.3, subset=None, schedule="constant")
    with pytest.raises(RunError, match=r"training diverged by step \d+: .*guessing costs 2\.30; take --lr below 0\.3, "
                                       r"or --scale match; the last good checkpoint is kept in") as caught:  # fmt: skip
        program.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert runs.read(tmp_path / "run").result is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_divergence_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The loss goes wrong in the second epoch: the checkpoint of the first epoch's end stays."""
    count = Trainer._count

    def wrong(self: Trainer, loss: torch.Tensor, *rest: Any) -> None:
        count(self, loss + value if self.step_number == STEPS_AN_EPOCH + 2 else loss, *rest)

    monkeypatch.setattr(Trainer, "_count", wrong)
    with pytest.raises(RunError, match="training diverged by step 14: mean loss"):
        program.train(small(epochs=3), tmp_path / "run")
    monkeypatch.undo()
    program.train(small(epochs=3), tmp_path / "whole")
    program.resume(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(small(), tmp_path)
    trainer.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(trainer.net.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(RunError, match="weights that are not finite"):
        trainer.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_the_metrics_name_what_they_should(tmp_path: Path) -> None:
    run = program.train(small(epochs=2), tmp_path / "run")
    first, last = (json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines())
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 7, 2, 14)
    assert 0 < first["seconds"] < last["seconds"]
    rounding = 0.0006 * first["images_per_second"]  # seconds are rounded to thousandths
    assert first["images_per_second"] * first["seconds"] == pytest.approx(200, abs=rounding)
    assert 0 < last["learning_rate"] < first["learning_rate"] < 0.1
    assert {"train_loss", "train_top1", "test_loss", "test_top1", "test_top5"} <= set(first)


def test_the_convolutions_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    """One step from the same weights: the convolutions move three times as far, the head as far as before."""
    config = small(rule="bp", epochs=1, subset=32, batch_size=32, augment=False, momentum=0.0, weight_decay=0.0)
    data = program.load(config)
    start, one, three = (
        dict(trained.named_parameters())
        for trained in (
            loop.build(config, data),
            one_step(config, tmp_path / "one"),
            one_step(replace(config, conv_lr_factor=3.0), tmp_path / "three"),
        )
    )
    for name, before in start.items():
        factor = 3.0 if name.startswith("features.") else 1.0
        torch.testing.assert_close(
            three[name] - before, factor * (one[name] - before), rtol=1e-3, atol=5e-7
        )  # weights near 1 in float32
        assert not torch.equal(one[name], before)


def one_step(config: TrainConfig, folder: Path) -> nn.Module:
    program.train(config, folder, quiet=True)
    return load_model(folder).network


def test_a_rate_of_their_own_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(epochs=2, conv_lr_factor=2.0)
    program.train(config, tmp_path / "whole")
    interrupt_at(monkeypatch, 5)
    with pytest.raises(Stopped):
        program.train(config, tmp_path / "parts")
    resumed(tmp_path / "parts", monkeypatch)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_testing_less_often_changes_nothing_but_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.train(small(epochs=5), tmp_path / "each")
    program.train(small(epochs=5, test_every=2), tmp_path / "second")
    assert weights(tmp_path / "each") == weights(tmp_path / "second")
    lines = {line["epoch"]: line for line in figures(tmp_path / "each")}
    assert figures(tmp_path / "second") == [lines[2], lines[4], lines[5]]
    assert arms([runs.read(tmp_path / "second")])[0].epochs == (5, 5)
    interrupt_at(monkeypatch, 3 * STEPS_AN_EPOCH)  # at the end of an epoch that is not tested
    with pytest.raises(Stopped):
        program.train(small(epochs=5, test_every=2), tmp_path / "parts")
    resumed(tmp_path / "parts", monkeypatch)
    assert weights(tmp_path / "parts") == weights(tmp_path / "each")
    assert figures(tmp_path / "parts") == figures(tmp_path / "second")


def test_conventional_dfa_sends_the_error_to_every_layer(tmp_path: Path) -> None:
    config = small(rule="dfa", init="random", layers="all", epochs=1)
    report = str(program.train(config, tmp_path / "run").config["report"])
    for layer in ("features.4", "features.8", "classifier.0", "classifier.2", "classifier.4"):
        assert f"feedback at the input of {layer}" in report


def test_the_result_says_which_test_images_were_right(tmp_path: Path) -> None:
    run = program.train(small(epochs=2, subset=600), tmp_path / "run")
    assert run.result is not None
    data = program.load(small(subset=600))
    found = load_model(tmp_path / "run")(data.test_x).argmax(1) == data.test_y
    bits = int.from_bytes(bytes.fromhex(run.result["right"]), "little")
    assert [bool(bits >> i & 1) for i in range(len(found))] == found.tolist()


def test_the_deadline_stops_a_run_as_a_signal_does(tmp_path: Path) -> None:
    config = small(epochs=3)
    program.train(config, tmp_path / "whole")
    with pytest.raises(Stopped) as stop:
        program.train(config, tmp_path / "parts", deadline=time.time() - 1)
    assert stop.value.step == 1
    program.resume(tmp_path / "parts", deadline=time.time() + 600)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
