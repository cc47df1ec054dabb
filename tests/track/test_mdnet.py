from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from torchdfa.track.lrn import VGG_M
from torchdfa.track.mdnet import FEATURES, VGGM, MDNet, fast, initialise_
from torchdfa.track.options import preset
from torchdfa.track.tracker import Tracker
from torchdfa.train import machine
from torchdfa.train.winograd import FixedConv2d


def test_shapes_and_sizes_are_the_papers():
    network = MDNet(3)
    conv = sum(p.numel() for p in network.features.parameters())
    fc = {k: p.weight.numel() for k, p in network.shared.named_children() if isinstance(p, nn.Linear)}
    assert conv == 96 * (3 * 49 + 1) + 256 * (96 * 25 + 1) + 512 * (256 * 9 + 1) == 1_809_024
    assert fc == {"fc4": 4608 * 512, "fc5": 512 * 512}
    assert FEATURES == 4608
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 107, 107), 1).shape == (2, 2)
        assert network.features(torch.zeros(2, 3, 107, 107)).shape == (2, 4608)


def test_features_equal_those_of_torchs_layers_in_any_memory_layout():
    network = VGGM(VGG_M).eval()
    initialise_(network, torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 107, 107, generator=torch.Generator().manual_seed(1)) * 60
    lrn = nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)
    with torch.no_grad():
        y = F.max_pool2d(lrn(F.relu(F.conv2d(x, network.conv1.weight, network.conv1.bias, stride=2))), 3, 2)
        y = F.max_pool2d(lrn(F.relu(F.conv2d(y, network.conv2.weight, network.conv2.bias, stride=2))), 3, 2)
        expected = F.relu(F.conv2d(y, network.conv3.weight, network.conv3.bias)).flatten(1)
        assert torch.allclose(network(x), expected, rtol=1e-4, atol=1e-5)
        lasting = network.to(memory_format=torch.channels_last)
        found = lasting(x.contiguous(memory_format=torch.channels_last))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_fast_features_are_the_same_but_for_rounding():
    network = VGGM(VGG_M).eval()
    initialise_(network, torch.Generator().manual_seed(0))
    for size in (107, 140):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 60
        with torch.no_grad():
            expected = network(x)
            found = fast(network)(x)
        assert found.shape == expected.shape
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_tracker_takes_them_where_they_are_faster(monkeypatch):
    for flags, taken in ((["avx2"], True), (["avx2", "avx512f"], False)):
        monkeypatch.setattr(machine, "cpu_info", lambda flags=flags: {"cpu": "x", "cpu_flags": flags})
        tracker = Tracker(config=preset("pymdnet", device="cpu", precision="fp32"))
        assert isinstance(tracker._features.conv2, FixedConv2d) is taken
        assert isinstance(tracker.network.features.conv2, nn.Conv2d)


def test_untrained_features_have_about_unit_size_for_pixels():
    network = VGGM()
    initialise_(network, torch.Generator().manual_seed(0))
    x = torch.randn(4, 3, 107, 107, generator=torch.Generator().manual_seed(1)) * 64
    with torch.no_grad():
        assert 0.2 < network(x).std() < 5


def test_bf16_is_close_in_both_passes():
    network = VGGM(VGG_M)
    initialise_(network, torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 107, 107, generator=torch.Generator().manual_seed(1)) * 60

    def run(bf16):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = network(x)
        y.float().square().mean().backward()
        return y.detach().float().flatten(), network.conv1.weight.grad.flatten().clone()

    for exact, near in zip(run(False), run(True), strict=True):
        assert F.cosine_similarity(exact, near, dim=0) > 0.995
