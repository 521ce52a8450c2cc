"""UnMix-TNS under TENT against a plain loop over instances and components, with and without the gradient through p."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.methods import Tent
from testtime.norm import UnMixStatistics, unmix_tns
from testtime.parts import adam

SETTINGS = {"components": 3, "temperature": 0.3, "momentum": 0.2, "full_batch": 8}


class Plain(nn.Module):
    """The layer written anew: one instance and one component at a time."""

    def __init__(self, layer: nn.BatchNorm2d, mean: Tensor, var: Tensor, detach: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.detach = layer.weight, layer.bias, layer.eps, detach
        self.components = [(m.clone(), v.clone()) for m, v in zip(mean, var, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        rows, moves = [], [(torch.zeros_like(m), torch.zeros_like(v)) for m, v in self.components]
        for image in x:
            own_mean = image.mean((1, 2))
            own_var = image.var((1, 2), unbiased=False)
            cosines = torch.stack([F.cosine_similarity(own_mean, m, dim=0) for m, _ in self.components])
            p = (cosines / 0.3).exp() / (cosines / 0.3).exp().sum()
            if self.detach:
                p = p.detach()
            means = [(1 - q) * m + q * own_mean for q, (m, _) in zip(p, self.components, strict=True)]
            variances = [(1 - q) * v + q * own_var for q, (_, v) in zip(p, self.components, strict=True)]
            mean = sum(means) / 3
            var = sum(variances) / 3 + sum(m**2 for m in means) / 3 - mean**2
            z = (image - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()
            rows.append(z * self.weight[:, None, None] + self.bias[:, None, None])
            with torch.no_grad():
                for q, (m, v), (dm, dv) in zip(p, self.components, moves, strict=True):
                    dm += q * (own_mean - m) / len(x)
                    dv += q * (own_var - v) / len(x)
        rate = 1 - 0.8 ** (len(x) / 8)
        self.components = [
            (m + rate * dm, v + rate * dv) for (m, v), (dm, dv) in zip(self.components, moves, strict=True)
        ]
        return torch.stack(rows)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Flatten(), nn.Linear(20, 3),
        ).double()  # fmt: skip
        for m in net:
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 1.5)
                m.weight.data.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("detach", [False, True])
def test_tent_on_un_mixed_statistics(detach: bool) -> None:
    policy = unmix_tns(network(), detach_assignment=detach, **SETTINGS)
    born = [m for m in policy.modules() if isinstance(m, UnMixStatistics)]
    plain = copy.deepcopy(network()).requires_grad_(False)
    for i, drawn in zip((1, 4), born, strict=True):
        plain[i] = Plain(plain[i], drawn.mean, drawn.var, detach)
    affine = [p.requires_grad_(True) for i in (1, 4) for p in (plain[i].weight, plain[i].bias)]
    optimizer = torch.optim.Adam(affine, 0.02)
    tent = Tent(policy, adam(0.02))
    other = Tent(unmix_tns(network(), detach_assignment=not detach, **SETTINGS), adam(0.02))
    rng = torch.Generator().manual_seed(1)
    for size in (4, 8, 1, 6, 5, 8, 3, 8, 7, 2, 4):
        x = torch.randn(size, 3, 6, 6, generator=rng, dtype=torch.float64)
        z = plain(x)
        y, different = tent(x).logits, other(x).logits
        torch.testing.assert_close(y, z.detach(), rtol=0, atol=1e-9)
        optimizer.zero_grad()
        (-(z.softmax(1) * z.log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
    assert (y - different).abs().max() > 1e-3
