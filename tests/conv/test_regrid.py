"""Both forms of a kernel on another grid are one, and the trained grid's is left as it is."""

import sys

import pytest
import torch

from s4nd.conv import REGRID, regrid
from tests.conv.test_held import SIZES, kernel


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("align", ["centre", "edge"])
@pytest.mark.parametrize("method", REGRID)
@pytest.mark.parametrize("b, n", SIZES)
def test_matrix_of_short_axes_is_the_form_of_long_ones(b, n, method, align, causal, monkeypatch):
    k = kernel(b, causal, 2, 3)
    found = regrid(k, n, method, align=align, causal=causal)
    monkeypatch.setattr(sys.modules["s4nd.conv.regrid"], "MATRIX", 0)
    torch.testing.assert_close(found, regrid(k, n, method, align=align, causal=causal), rtol=0, atol=1e-15 * 4 * b)
    torch.testing.assert_close(found, REGRID[method](k, n, align=align, causal=causal), rtol=0, atol=1e-15 * 4 * b)


@pytest.mark.parametrize("method", REGRID)
@pytest.mark.parametrize("align", ["centre", "edge"])
def test_trained_grid_is_left_as_it_is(method, align):
    k = kernel(9, False, dtype=torch.float32)
    assert regrid(k, 9, method, align=align, causal=False) is k


@pytest.mark.parametrize("method, factor", [("hold", 4), ("dilate", 1)])
def test_long_axes_need_no_matrix(method, factor):
    """32,767 lags of 8,191: a matrix of them would have 2 GiB."""
    k = kernel(4096, False, dtype=torch.float32)
    fine = regrid(k, 16384, method, align="centre", causal=False)
    assert fine.sum().item() == pytest.approx(k.sum().item(), abs=1e-3)
    assert fine[16383].item() == pytest.approx(k[4095].item() / factor, abs=1e-6)
