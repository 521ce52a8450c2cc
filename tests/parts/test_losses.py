import numpy as np
import pytest
import torch

from testtime.parts import entropy, marginal_entropy, soft_cross_entropy

Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
T = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


def softmax(z: torch.Tensor) -> np.ndarray:
    e = np.exp(z.numpy())
    return e / e.sum(1, keepdims=True)


def test_entropy() -> None:
    p = softmax(Z)
    np.testing.assert_allclose(entropy(Z).numpy(), -(p * np.log(p)).sum(1), rtol=1e-12)


def test_constants_within_the_logarithms() -> None:
    p, mean = softmax(Z), softmax(Z).mean(0)
    np.testing.assert_allclose(entropy(Z, 0.1).numpy(), -(p * np.log(p + 0.1)).sum(1), rtol=1e-12)
    np.testing.assert_allclose(
        marginal_entropy(Z, 0.1).item(), -(mean * np.log(mean + 0.1)).sum(), rtol=1e-12
    )


def test_soft_cross_entropy() -> None:
    got = soft_cross_entropy(Z, T).numpy()
    np.testing.assert_allclose(got, -(softmax(T) * np.log(softmax(Z))).sum(1), rtol=1e-12)


def test_soft_cross_entropy_of_itself_is_the_entropy() -> None:
    torch.testing.assert_close(soft_cross_entropy(Z, Z), entropy(Z))


def test_marginal_entropy() -> None:
    p = softmax(Z).mean(0)
    np.testing.assert_allclose(marginal_entropy(Z).item(), -(p * np.log(p)).sum(), rtol=1e-12)


def test_certainty_is_finite_with_its_gradient() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    for loss in (entropy(z).sum(), marginal_entropy(z), soft_cross_entropy(z, z.detach()).sum()):
        (gradient,) = torch.autograd.grad(loss, [z])
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    z, t = Z.to(dtype), T.to(dtype)
    assert entropy(z).equal(entropy(z.float()))
    assert soft_cross_entropy(z, t).equal(soft_cross_entropy(z.float(), t.float()))
    assert marginal_entropy(z).equal(marginal_entropy(z.float()))


def test_gradients() -> None:
    z, t = Z.clone().requires_grad_(True), T.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(entropy, (z,))
    assert torch.autograd.gradcheck(marginal_entropy, (z,))
    assert torch.autograd.gradcheck(soft_cross_entropy, (z, t))
