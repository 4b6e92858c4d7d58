"""Initial operators against the reference implementation's numbers and against their dense definitions."""

import numpy as np
import pytest
import torch

from s4nd.ssm.hippo import HIPPO, diagonal_init, diagonal_rows, dplr_init, random_dplr

NAMES = {"legs": "legs", "legt": "legt", "fout": "fourier"}
# The reference builds P of the Fourier operator in float32.
ATOL = {"legs": 1e-9, "legt": 1e-9, "fout": 2e-6}


@pytest.fixture(scope="module")
def arrays(pytestconfig):
    with np.load(pytestconfig.rootpath / "tests/golden/hippo.npz", allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("N", [4, 16, 64])
@pytest.mark.parametrize("name", NAMES)
def test_dplr_form_equals_golden(arrays, name, N):
    Lambda, P, B, _ = (x.numpy() for x in dplr_init(name, N))
    golden = {key: arrays[f"{NAMES[name]}_N{N}_{key}"] for key in ("Lambda", "P", "B_unclipped")}
    for got, key in ((Lambda, "Lambda"), (P, "P"), (B, "B_unclipped")):
        np.testing.assert_allclose(got, golden[key], rtol=0, atol=ATOL[name] * max(1, np.abs(golden[key]).max()))


@pytest.mark.parametrize("N", [2, 4, 16, 64, 128])
@pytest.mark.parametrize("name", NAMES)
def test_half_the_modes_rebuild_the_real_operator(name, N):
    A, b, P_real = HIPPO[name](N)
    Lambda, P, B, V = dplr_init(name, N)
    rebuilt = 2 * (V * Lambda @ V.mH).real - sum(torch.outer(p, p) for p in 2 * (V @ P.mT).real.T)
    torch.testing.assert_close(rebuilt, A, rtol=0, atol=1e-12 * A.abs().max() * N)
    torch.testing.assert_close(2 * (V @ B).real, b, rtol=0, atol=1e-12 * b.abs().max() * N)
    torch.testing.assert_close(2 * (V @ P.mT).real.T, P_real, rtol=0, atol=1e-12 * P_real.abs().max() * N)
    assert (Lambda.imag <= 0).all()


@pytest.mark.parametrize("N", [4, 16, 64])
@pytest.mark.parametrize("name", ["lin", "inv", "real"])
def test_diagonal_operators_equal_golden(arrays, name, N):
    A, B = diagonal_init(name, N)
    golden = arrays[f"diag-{name}_N{N}_Lambda"]  # complex64; Inv subtracts numbers of size N / pi
    np.testing.assert_allclose(A.numpy(), golden, rtol=1e-6, atol=N * np.finfo(np.float32).eps)
    assert (B == 1).all()


@pytest.mark.parametrize("N", [4, 16, 64])
def test_diagonal_legs_has_the_golden_poles_and_half_of_the_operators_input(arrays, N):
    """The reference clips B and does not halve it."""
    A, B = diagonal_init("legs", N)
    golden = arrays[f"diag-legs_N{N}_Lambda"]  # complex64
    np.testing.assert_allclose(A.numpy(), golden, rtol=0, atol=N * np.finfo(np.float32).eps * np.abs(golden).max())
    exact = arrays[f"legs_N{N}_B_unclipped"]
    np.testing.assert_allclose(2 * B.numpy(), exact, rtol=0, atol=1e-9 * np.abs(exact).max())


def test_random_operators_lie_in_the_band_of_lin():
    """The mean of n uniform numbers has standard deviation 1 / sqrt(12 n); five of them."""
    torch.manual_seed(0)
    A, B = diagonal_rows("random", 64, 100)
    assert A.shape == B.shape == (100, 32)
    assert (A.real == -0.5).all() and (B == 1).all()
    band = -A.imag / (32 * np.pi)
    assert 0 <= band.min() and band.max() <= 1 and (band.mean() - 0.5).abs() < 5 / np.sqrt(12 * band.numel())
    Lambda, P, _ = random_dplr(64, 100)
    assert Lambda.shape == (100, 32) and P.shape == (1, 100, 32)
    assert (P.abs().square().mean() - 1).abs() < 5 / np.sqrt(P.numel())  # |P|^2 is exponential: variance 1


@pytest.mark.parametrize("N", [0, 3])
def test_odd_or_empty_state_is_refused(N):
    with pytest.raises(ValueError, match=f"d_state must be even and at least 2.*got {N}"):
        dplr_init("legs", N)


def test_unknown_operator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"init must be one of \['inv', 'legs', 'lin', 'random', 'real'\], got 'fout'"):
        diagonal_init("fout", 4)
