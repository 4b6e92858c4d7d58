"""Options of the kernels: initial values against the constraints' inverses, the temporal initialisation against the
reference implementation's numbers, checkpoints and copies of every kernel."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s4nd import S4ND
from s4nd.nn.kernels import KERNELS, S4DKernel, S4Kernel
from s4nd.ssm.hippo import HIPPO, diagonal_init, dplr_init

F64 = torch.float64
EPS32 = torch.finfo(torch.float32).eps
INITS = {"hippo": "hippo", "legs": "legs", "fourier": "fout"}
TEMPORAL = [(name, length) for name in INITS for length in (1, 2, 4, 20)]


def temporal_kernel(name: str, length: int) -> S4Kernel:
    """The reference means dt = 2 / length, but stores that where it reads log dt: its step is exp(2 / length)."""
    dt = math.exp(2 / length)
    options = dict(n_ssm=None, dt_min=dt, dt_max=dt, clip_B=True, deterministic=True, dtype=F64)
    return S4Kernel(4, 16, 2, init=INITS[name], **options)


@pytest.mark.parametrize(("name", "length"), TEMPORAL)
def test_temporal_kernel_equals_golden(golden, name, length):
    case = {key: torch.from_numpy(value) for key, value in golden("kernel_temporal", f"{name}_len{length}").items()}
    kernel = temporal_kernel(name, length)
    state = {"log_dt": case["inv_dt"][:, 0], "log_A_real": case["A_real"], "A_imag": -case["A_imag"]}
    kernel.load_state_dict(state | {"B": case["B"][0], "P": case["P"], "C": case["C"]})
    got = kernel(case["K"].shape[-1]).detach()
    torch.testing.assert_close(got, case["K"], rtol=0, atol=1e-9 * case["K"].abs().max())


@pytest.mark.parametrize(("name", "length"), TEMPORAL)
def test_temporal_initialisation_equals_golden(golden, name, length):
    """The reference draws in float32, with signs of the modes that differ from float64's: what the signs do not touch, to N
    roundings. It stores 1e-4 where Im Lambda = 0."""
    case = {key: torch.from_numpy(value) for key, value in golden("kernel_temporal", f"{name}_len{length}").items()}
    kernel = temporal_kernel(name, length)
    A_imag = kernel.A_imag.detach().clamp(max=-1e-4)
    k = kernel(case["K"].shape[-1]).detach()
    pairs = [(kernel.log_dt.detach(), case["inv_dt"][:, 0]), (kernel.log_A_real.detach(), case["A_real"])]
    for got, expected in [*pairs, (A_imag, -case["A_imag"]), (k, case["K"])]:
        torch.testing.assert_close(got, expected.to(F64), rtol=0, atol=float(16 * EPS32 * expected.abs().max()))


def test_deterministic_dt_equals_golden(pytestconfig):
    """What the reference means; it then takes the exponential once more."""
    with np.load(pytestconfig.rootpath / "tests/golden/kernel_temporal.npz", allow_pickle=False) as arrays:
        expected = torch.from_numpy(arrays["dt_deterministic_H4_0.01_1.0"])[:, 0]
    for tie_dt in (True, False):
        kernel = S4Kernel(4, 8, deterministic=True, tie_dt=tie_dt, dt_min=0.01, dt_max=1.0, dtype=F64)
        dt = kernel.log_dt.detach().exp().reshape(4, -1)
        torch.testing.assert_close(dt, expected[:, None].expand_as(dt).to(F64), rtol=0, atol=8 * EPS32)


def test_deterministic_kernel_is_the_response_of_the_first_coordinate():
    kernel = S4Kernel(4, 8, 3, init="hippo", n_ssm=2, deterministic=True, scale=0.5, dtype=F64)
    for head, name in enumerate(["legs", "fout", "legs", "fout"]):
        V = dplr_init(name, 8)[3]
        for C in torch.view_as_complex(kernel.C.detach())[:, head]:
            torch.testing.assert_close(
                2 * (V * C.conj()).sum(-1).real, 0.5 * torch.eye(8, dtype=F64)[0], rtol=0, atol=1e-12
            )


def test_deterministic_random_operator_is_refused():
    with pytest.raises(ValueError, match=r"deterministic=True needs an init with a basis V.*got init='random'"):
        S4Kernel(2, 8, init="random", deterministic=True)


def test_exact_B_is_the_default_and_clip_B_cuts_its_imaginary_part():
    _, _, B, _ = dplr_init("legs", 16)
    exact, cut = (
        torch.view_as_complex(S4Kernel(2, 16, init="legs", clip_B=c, dtype=F64).B.detach())[0] for c in (0, 1)
    )
    assert torch.equal(exact, B) and B.imag.abs().max() > 2
    assert torch.equal(cut, torch.complex(B.real, B.imag.clamp(-2, 2)))


CONSTRAINTS = {"exp": torch.exp, "softplus": F.softplus, "relu": torch.relu, "none": torch.neg}


@pytest.mark.parametrize(
    ("name", "constraint", "init"),
    [(n, c, i) for n, k in KERNELS.items() if n != "lru" for c in k.constraints for i in k.inits if i != "random"],
)
def test_initial_real_part_is_the_operators_under_every_constraint(name, constraint, init):
    kernel = KERNELS[name](2, 16, init=init, n_ssm=2, A_constraint=constraint, dtype=F64)
    names = ["legs", "fout"] if init == "hippo" else [init, init]
    if name == "ema":
        A = -torch.arange(1, 17).to(torch.complex128).expand(2, -1)
    else:
        A = torch.stack([(dplr_init if n in HIPPO and name == "s4" else diagonal_init)(n, 16)[0] for n in names])
    damping = (-A.real).clamp(min=1e-4)  # FouT and LegT have none
    stored = kernel.get_parameter("log_A_real" if constraint == "exp" else "A_real").detach()
    torch.testing.assert_close(CONSTRAINTS[constraint](stored), damping, rtol=1e-11, atol=0)
    torch.testing.assert_close(kernel.A().detach()[..., 0], -damping, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", ["s4", "s4d", "dss"])
def test_random_operators_differ_between_models_and_follow_the_seed(name):
    first, second = (
        (torch.manual_seed(0), KERNELS[name](4, 16, init="random", n_ssm=2).state_dict())[1] for _ in range(2)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.isclose(*first["A_imag"]).any()
    if name == "s4":
        assert not torch.isclose(*first["P"][0]).any()
    assert -math.pi * 8 <= first["A_imag"].min() and first["A_imag"].max() <= 0


def test_tied_and_free_steps_agree_while_the_free_ones_are_equal():
    for name in ("s4", "s4d", "dss", "ema"):
        torch.manual_seed(0)
        tied, free = (KERNELS[name](4, 8, n_ssm=2, tie_dt=t, dtype=F64) for t in (True, False))
        assert free.dt().shape == (4, free.n_modes) and tied.dt().shape == (4, 1)
        state = tied.state_dict()
        free.load_state_dict(state | {"log_dt": state["log_dt"][:, None].expand(-1, free.n_modes)})
        expected = tied(9, 0.5).detach()
        torch.testing.assert_close(free(9, 0.5).detach(), expected, rtol=0, atol=1e-11 * expected.abs().max())


def test_kernel_has_only_the_parameters_it_uses():
    names = {name: {n for n, _ in kind(2, 4).named_parameters()} for name, kind in KERNELS.items()}
    assert names == {
        "s4": {"C", "log_dt", "log_A_real", "A_imag", "B", "P"},
        "s4d": {"C", "log_dt", "log_A_real", "A_imag", "B"},
        "dss": {"C", "log_dt", "A_real", "A_imag"},
        "lru": {"C", "nu", "theta", "log_gamma", "B"},
        "ema": {"C", "log_dt", "log_A_real"},
    }


@pytest.mark.parametrize("name", KERNELS)
def test_state_dict_and_meta_construction_give_back_every_kernel(name):
    u = torch.randn(1, 4, 6, 5)
    torch.manual_seed(0)
    layer = S4ND(4, d_state=8, kernel=name, base_size=5)
    other = S4ND(4, d_state=8, kernel=name, base_size=5, device="meta")
    assert all(p.is_meta for p in other.parameters())
    other.to_empty(device="cpu")
    torch.manual_seed(0)
    other.reset_parameters()
    for key, value in layer.state_dict().items():
        if not key.endswith(("log_dt", "C", "D", "nu", "theta", "log_gamma")):  # drawn in another order
            assert torch.equal(other.state_dict()[key], value), key
    assert other(u).isfinite().all()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(u), layer(u))
    assert torch.equal(copy.deepcopy(layer)(u), layer(u))


@pytest.mark.parametrize("name", KERNELS)
def test_bandlimit_leaves_out_the_modes_above_it(name):
    torch.manual_seed(0)
    kernel = KERNELS[name](4, 8, dtype=F64)
    limited = kernel(9, bandlimit=0.2)
    with torch.no_grad():
        kernel.C.mul_(kernel.bandlimit_mask(0.2, 1.0).reshape(4, -1, *[1] * (kernel.C.ndim - 3)))
    torch.testing.assert_close(limited, kernel(9), rtol=0, atol=1e-12 * limited.abs().max().item())
    assert kernel.bandlimit_mask(0.2, 1.0).all() == (name == "ema")


def test_layer_passes_options_on_one_for_all_axes_or_one_for_each():
    layer = S4ND(2, 2, d_state=4, kernel="s4d", A_constraint=("exp", "relu"), tie_dt=False, disc=("dirac", None))
    assert [k.A_constraint for k in layer.kernels] == ["exp", "relu"]
    assert [k.disc for k in layer.kernels] == ["dirac", "zoh"]
    assert not any(k.tie_dt for k in layer.kernels)
    assert S4ND(2, 1, d_state=4, kernel="lru", r_min=0.9, max_phase=0.1).kernels[0].r_min == 0.9


REFUSED = {
    "lru-dt": (dict(kernel="lru", dt_min=0.1), r"kernel='lru' takes no dt_min; its options are \['max_phase', 'r_m"),
    "lru-disc": (dict(kernel="lru", disc="zoh"), "kernel='lru' takes no disc"),
    "s4d-clip": (
        dict(kernel="s4d", clip_B=True),
        r"kernel='s4d' takes no clip_B; its options are \['A_constraint', 'disc',",
    ),
    "ema-deterministic": (dict(kernel="ema", deterministic=True), "kernel='ema' takes no deterministic"),
    "misspelt": (dict(d_stat=8), r"kernel='s4' takes no d_stat; its options are .*'clip_B', 'deterministic'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_option_that_the_kernel_does_not_take_is_refused_with_those_it_takes(name):
    options, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        S4ND(4, **options)


WRONG = {
    "s4": (
        dict(A_constraint="none"),
        r"A_constraint of kernel='s4' must be one of \['exp', 'relu', 'softplus'\], got 'none'",
    ),
    "dss": (dict(kernel="dss", disc="bilinear"), r"disc of kernel='dss' must be one of \['zoh'\], got 'bilinear'"),
    "lru": (dict(kernel="lru", init="lin"), r"init of kernel='lru' must be one of \['ring'\], got 'lin'"),
    "axes": (dict(tie_dt=(True, False, True)), r"tie_dt must be one value or one per axis \(ndim=2\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_of_an_option_is_refused_with_the_right_ones(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        S4ND(4, **options)


def test_growing_modes_need_the_length_of_a_stream():
    kernel = S4DKernel(2, 4, A_constraint="none")
    with pytest.raises(ValueError, match="depends on the axis's length"):
        kernel.recurrence(None)
    kernel.recurrence(8)
