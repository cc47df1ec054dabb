"""The head learns as the equations say: by autograd with bp, by hand formula with bdfa."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.nn import functional as F

import torchdfa
from torchdfa.track import cost
from torchdfa.track.learner import Learner, cycled
from torchdfa.track.options import preset
from track.small import FEW, network

CPU = torch.device("cpu")


def learner(**options):
    return Learner(preset("pymdnet", **(FEW | options)), network(), CPU)


def examples(n=40, m=120, seed=0):
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(n + m, 64, generator=g)
    base[:n, :20] += 0.7
    return base[:n], base[n:]


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def by_autograd(start, positive, negative, config, updates):
    """Plain torch: the same draws, mining and SGD, with gradients of the whole head from the loss."""
    head = learner().head
    head.load_state_dict(start)
    g = generator()
    groups = [
        {"params": [p], "lr": config.lr * (config.last if name.startswith("fc6") else 1)}
        for name, p in head.named_parameters()
    ]
    sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    for _ in range(updates):
        near = cycled(len(positive), config.positives * config.iterations, g).chunk(config.iterations)
        far = cycled(len(negative), config.mined * config.iterations, g).chunk(config.iterations)
        torch.manual_seed(int(torch.randint(2**62, (), generator=g)))
        for p, q in zip(near, far, strict=True):
            head.eval()
            with torch.no_grad():
                hardest = head(negative[q])[:, 1].topk(config.negatives).indices
            head.train()
            x = torch.cat([positive[p], negative[q][hardest]])
            y = torch.tensor([1] * config.positives + [0] * config.negatives)
            sgd.zero_grad()
            F.cross_entropy(head(x), y).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
            sgd.step()
    return head.state_dict()


def test_bp_equals_autograd_over_15_updates():
    ours = learner(rule="bp", iterations=5)
    start = {k: v.clone() for k, v in ours.head.state_dict().items()}
    positive, negative = examples()
    g = generator()
    for _ in range(15):
        ours.learn(positive, negative, g)
    expected = by_autograd(start, positive, negative, ours.config, 15)
    for name, value in expected.items():
        assert torch.allclose(ours.head.state_dict()[name], value, atol=1e-5), name
    assert any(not torch.equal(start[name], value) for name, value in expected.items())


def hand_gradients(head, x, labels):
    """Eqs. 6 and 9 for the two hidden layers: the signs of the product, taken from the converted layers' bits."""
    f4 = x @ head.fc4.weight.T + head.fc4.bias
    h4 = f4.relu()
    f5 = h4 @ head.fc5.weight.T + head.fc5.bias
    h5 = f5.relu()
    scores = h5 @ head.fc6.weight.T + head.fc6.bias
    error = (scores.softmax(1) - F.one_hot(labels, 2)) / len(x)
    e5 = (error @ head.fc6.feedback.dense()) * (f5 > 0)
    e4 = (error @ head.fc5.feedback.dense()) * (f4 > 0)
    return {"fc6": error.T @ h5, "fc5": e5.T @ h4, "fc4": e4.T @ x}


@pytest.mark.parametrize("feedback", ["product", "random"])
def test_bdfa_equals_the_hand_formula(feedback):
    head = learner(rule="bdfa", feedback=feedback).head.eval()
    if feedback == "product":
        w5, w6 = head.fc5.weight, head.fc6.weight
        assert torch.equal(head.fc6.feedback.dense(), torch.where(w6 >= 0, 1.0, -1.0))
        assert torch.equal(head.fc5.feedback.dense(), torch.where(w6 @ w5 >= 0, 1.0, -1.0))
    positive, negative = examples(8, 24)
    x, labels = torch.cat([positive, negative]), torch.tensor([1] * 8 + [0] * 24)
    F.cross_entropy(head(x), labels).backward()
    with torch.no_grad():
        for name, gradient in hand_gradients(head, x, labels).items():
            assert torch.allclose(head.get_submodule(name).weight.grad, gradient, atol=1e-6), name


def test_units_whose_two_signs_are_equal_never_learn():
    """With two classes e = (-d, +d): feedback of equal signs sends exactly nothing."""
    ours = learner(rule="bdfa", weight_decay=0.0)
    dead = (ours.layer("fc6").feedback.dense()[0] == ours.layer("fc6").feedback.dense()[1]).nonzero().flatten()
    assert 4 <= len(dead) <= 28, "about half of 32"
    before = ours.layer("fc5").weight.detach().clone()
    positive, negative = examples()
    ours.learn_first(positive, negative, generator())
    moved = (ours.layer("fc5").weight.detach() - before).abs().amax(dim=1)
    assert moved[dead].max() < 1e-7  # rounding of p - 1 + q in float32
    assert moved.max() > 1e-4


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_feedback_never_changes(rule):
    ours = learner(rule=rule)
    before = [b.clone() for n, b in ours.head.named_buffers() if "feedback" in n]
    positive, negative = examples()
    g = generator()
    ours.learn_first(positive, negative, g)
    for _ in range(3):
        ours.learn(positive, negative, g)
    after = [b for n, b in ours.head.named_buffers() if "feedback" in n]
    assert len(before) >= 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_feedback_after_the_first_frame_is_that_of_its_weights():
    ours = learner(rule="bdfa", moment="after_first_frame")
    plain = learner(rule="bp")
    positive, negative = examples()
    ours.learn_first(positive, negative, generator())
    plain.learn_first(positive, negative, generator())
    w6 = plain.layer("fc6").weight
    assert torch.equal(ours.layer("fc6").weight, w6)
    assert torch.equal(ours.layer("fc6").feedback.dense(), torch.where(w6 >= 0, 1.0, -1.0))


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
def test_every_rule_tells_the_two_apart(rule):
    # Raw FA feedback of unit variance explodes through 32 units, so it takes the scale of the weights.
    ours = learner(rule=rule, feedback_scale="match" if rule == "fa" else "unit", lr=0.02, iterations=60)
    positive, negative = examples()
    g = generator()
    ours.learn_first(positive, negative, g)
    ours.learn(positive, negative, g)
    assert ours.score(positive).mean() > ours.score(negative).mean() + 0.5
    if rule == "frozen":
        assert torch.equal(ours.layer("fc4").weight, learner(rule=rule).layer("fc4").weight)


def test_the_paper_treats_biases_and_momentum_its_own_way():
    ours = learner(bias_factor=2.0, decay_biases=False)
    groups = ours._sgd(0.001).param_groups
    assert [round(g["lr"], 6) for g in groups] == [0.001, 0.002, 0.001, 0.002, 0.01, 0.02]
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0] * 3


def test_a_loss_that_is_not_finite_is_taken_back_and_said_once():
    ours = learner(rule="bdfa")
    positive, negative = examples()
    g = generator()
    ours.learn_first(positive, negative, g)
    before = {k: v.clone() for k, v in ours.head.state_dict().items()}
    bad = positive.clone()
    bad[:, 0] = float("nan")
    with pytest.warns(UserWarning, match="not finite"):
        ours.learn(bad, negative, g)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.learn(bad, negative, g)
    assert ours.restored == 2
    assert all(torch.equal(before[k], v) for k, v in ours.head.state_dict().items())


def test_no_iterations_learn_nothing():
    ours = learner(first_iterations=0, iterations=0)
    before = {k: v.clone() for k, v in ours.head.state_dict().items()}
    positive, negative = examples()
    ours.learn_first(positive, negative, generator())
    ours.learn(positive, negative, generator())
    assert ours.steps == 0
    assert all(torch.equal(before[k], v) for k, v in ours.head.state_dict().items())


def test_draws_pass_through_all_before_any_comes_again():
    drawn = cycled(7, 20, generator())
    assert len(drawn) == 20
    assert sorted(drawn[:7].tolist()) == sorted(drawn[7:14].tolist()) == list(range(7))


def test_the_cost_of_the_error_path():
    """fc5 is 32 x 32 and fc6 2 x 32 here."""
    assert cost.error_path(learner(rule="bp")) == {"multiplies": 1088, "sign_additions": 0, "bytes": 4352}
    assert cost.error_path(learner(rule="dfa")) == {"multiplies": 128, "sign_additions": 0, "bytes": 512}
    found = cost.error_path(learner(rule="bdfa"))
    assert (found["multiplies"], found["sign_additions"]) == (0, 128)
    assert found["bytes"] == torchdfa.report(learner(rule="bdfa").head).feedback_bytes == 2 * (2 * 32 // 8 + 4)
