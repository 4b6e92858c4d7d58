"""phi_1 against its quotient in higher precision, and its derivatives against finite differences."""

import pytest
import torch

from s4nd.ops import phi1
from s4nd.ops.phi import value_and_slope

SIZES = [0.0, 1e-12, 1e-6, 3e-4, 5e-4, 0.03, 0.1, 1.0, 30.0]


def circle(size: float, dtype: torch.dtype) -> torch.Tensor:
    """Eight numbers of the left half-plane with this absolute value: (8, 2)."""
    angle = torch.linspace(torch.pi / 2, 3 * torch.pi / 2, 8, dtype=torch.float64)
    return (size * torch.stack([angle.cos(), angle.sin()], dim=-1)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_float32_phi1_and_its_slope_keep_their_digits(size):
    """A few roundings of the value; of the slope a few divided by |x| = 0.06, where the series takes over."""
    x = circle(size, torch.float32).requires_grad_()
    exact = x.detach().double().requires_grad_()
    values, slopes = [], []
    for leaf in (x, exact):
        y = phi1(leaf)
        values.append(y.detach().double())
        slopes.append(torch.autograd.grad(y[..., 0].sum(), leaf)[0].double())
    value, slope = (torch.view_as_real(t).double() for t in value_and_slope(torch.view_as_complex(x.detach())))
    eps = torch.finfo(torch.float32).eps
    for got in (values[0], value):
        torch.testing.assert_close(got, values[1], rtol=0, atol=4 * eps)
    for got in (slopes[0], slope * torch.tensor([1, -1])):  # the gradient of the real part is the slope's conjugate
        torch.testing.assert_close(got, slopes[1], rtol=0, atol=4 * eps / 0.06)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
def test_gradients_of_first_and_second_order(size):
    x = circle(size, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(phi1, (x,))
    assert torch.autograd.gradgradcheck(phi1, (x,))


def test_float64_phi1_equals_the_quotient():
    for size in (1e-3, 0.1, 1.0, 30.0):
        x = circle(size, torch.float64)
        z = torch.view_as_complex(x)
        exact = torch.view_as_real((torch.exp(z) - 1) / z)  # loses the digits that 1 has before |x|
        torch.testing.assert_close(phi1(x), exact, rtol=0, atol=8 * torch.finfo(torch.float64).eps / size)
