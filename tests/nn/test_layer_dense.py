"""The layer, with its options drawn at random, against the dense convolution with kernels placed tap by tap, in float64."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s4nd import S4ND
from s4nd.conv import EVERYWHERE
from s4nd.conv.dense import dense_conv

F64 = torch.float64
LAGS = 1500  # of the dense kernel, which is summed lag by lag


def taps(layer: S4ND, axis: int, n: int) -> torch.Tensor:
    """The axis's kernels by lag, (R, C, H, 2n - 1), each tap put where the definition of the alignment says."""
    rate = 1.0 if layer.base_size[axis] is None else layer.base_size[axis] / n
    window = layer.l_max[axis]
    L = n if window is None else min(n, max(1, round(window / rate)))
    two_sided = layer.bidirectional[axis]
    k = layer.kernels[axis](L, rate, bandlimit=layer.bandlimit, align=layer.align)
    k = k.unflatten(0, (2 if two_sided else 1, layer.rank, -1))
    by_lag = torch.zeros(*k.shape[1:-1], 2 * n - 1, dtype=k.dtype)
    for j in range(L):
        by_lag[..., n - 1 + j] += k[0, ..., j]
        back = j if layer.align == "centre" else j + 1
        if two_sided and back < n:
            by_lag[..., n - 1 - back] += k[1, ..., j]
    return by_lag


@torch.no_grad()
def expected_output(layer: S4ND, u: torch.Tensor) -> torch.Tensor:
    y = dense_conv(u, [taps(layer, axis, n) for axis, n in enumerate(u.shape[2:])])  # (B, O C or C, H, *axes)
    if layer.out_channels is not None:
        O, C = layer.out_channels, layer.channels  # noqa: E741
        return torch.stack([y[:, o * C + c].sum(1) for c in range(C) for o in range(O)], dim=1)
    return (y + layer.D.reshape(*layer.D.shape, *[1] * layer.ndim) * u[:, None]).flatten(1, 2)


def per_axis(draw, ndim: int, values: st.SearchStrategy) -> list:
    return draw(st.lists(values, min_size=ndim, max_size=ndim))


@st.composite
def layers(draw) -> tuple[S4ND, torch.Tensor]:
    """A layer and its input."""
    sizes = draw(
        st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda s: math.prod(2 * n - 1 for n in s) <= LAGS)
    )
    ndim, kernel = len(sizes), draw(st.sampled_from(["s4", "s4d"]))
    maybe = lambda values: st.none() | values  # noqa: E731
    torch.manual_seed(draw(st.integers(0, 3)))
    layer = S4ND(
        draw(st.integers(1, 3)),
        ndim,
        d_state=draw(st.sampled_from([2, 4, 6])),
        kernel=kernel,
        rank=draw(st.integers(1, 3)),
        channels=draw(st.integers(1, 2)),
        out_channels=draw(maybe(st.integers(1, 3))),
        bidirectional=per_axis(draw, ndim, st.booleans()),
        base_size=per_axis(draw, ndim, maybe(st.integers(1, 9))),
        l_max=per_axis(draw, ndim, maybe(st.integers(1, 9))),
        bandlimit=draw(maybe(st.sampled_from([0.2, 0.5]))),
        n_ssm=draw(st.sampled_from([1, None])),
        align=draw(st.sampled_from(["edge", "centre"])),
        algorithm=draw(st.sampled_from(["auto", *EVERYWHERE])),
        dtype=F64,
    )
    return layer, torch.randn(draw(st.integers(1, 2)), layer.d_model, *sizes, dtype=F64)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(layers())
def test_layer_with_any_options_equals_the_dense_convolution(drawn):
    layer, u = drawn
    expected = expected_output(layer, u)
    torch.testing.assert_close(layer(u).detach(), expected, rtol=0, atol=1e-12 * expected.abs().max())
