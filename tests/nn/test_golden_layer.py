"""The S4ND layer against the reference implementation's numbers: outputs on the side of the mathematics, and gradients."""

import json

import numpy as np
import pytest
import torch
from torch.func import functional_call

from s4nd import S4ND
from tests.reference import axis_parameters, conditioning, pole_conditioning

CASES = {
    "s4nd_1d": "bi uni ch2_long_input short_input lmax_none_odd rate0.5 rate2 rate2_odd vit_like trank2_cv1 trank2_ch2_cv1 "
    "kernel_diag_zoh kernel_diag_bilinear_bl cv0_1d uni_fourier_ns1",
    "s4nd_2d_a": "bi uni trank2 ch2 trank2_ch2 uni_trank2_ch2 input_larger input_smaller lmax_none rate0.5 rate2 rate1.25 "
    "rate2_bandlimit0.2",
    "s4nd_2d_stem": "stem_32x32_l16",
    "s4nd_3d": "bi uni_ch2 mixed_lmax lmax_none rate2 out_channels cv0_error cv0_silent trank2 temporal_hippo_untied",
}
INITS = {"fourier": "fout", "diag-lin": "lin", "diag-inv": "inv"}


def load(case: dict[str, np.ndarray]):
    """The layer, the reference's parameters as leaves (`param` and `grad` of a case are named alike), and the input."""
    config = json.loads(str(case["config"]))
    diagonal = config.get("kernel") == "diag"
    sizes = case["u"].shape[1:-1] if "transposed" in config else case["u"].shape[2:]
    layer = S4ND(
        config["d_model"],
        config["dim"],
        d_state=config["d_state"],
        kernel="s4d" if diagonal else "s4",
        init=INITS.get(config["init"], config["init"]),
        rank=config.get("trank", 1),
        channels=config.get("channels", 1),
        out_channels=config.get("out_channels"),
        bidirectional=config.get("bidirectional", True),
        base_size=[round(n * config["rate"]) for n in sizes],
        l_max=config["l_max"],
        n_ssm=config.get("n_ssm"),
        disc=config.get("disc", "zoh") if diagonal else None,
        bandlimit=config.get("bandlimit") if diagonal else None,
        align="edge",
        dtype=torch.float64,
    )
    leaves = {k[6:]: torch.from_numpy(v) for k, v in case.items() if k.startswith("param/")}
    leaves = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in leaves.items()}
    return config, layer, leaves, torch.from_numpy(case["u"]).requires_grad_()


def axis_of(leaves: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    return {k.split(".", 2)[2]: v for k, v in leaves.items() if k.startswith(f"kernel.{i}.")}


def run(config: dict, layer: S4ND, leaves: dict[str, torch.Tensor], u: torch.Tensor) -> torch.Tensor:
    """Output as a differentiable function of the reference's parameters."""
    dplr = config.get("kernel") != "diag"
    params = {} if layer.D is None else {"D": leaves["D"]}
    for i in range(layer.ndim):
        axis = axis_parameters(
            axis_of(leaves, i), rate=config["rate"], bandlimit=config.get("bandlimit") if dplr else None
        )
        params |= {f"kernels.{i}.{name}": t for name, t in axis.items()}
    if "transposed" not in config:
        return functional_call(layer, params, (u,))
    y = functional_call(layer, params, (u.movedim(-1, 1),)).movedim(1, -1)  # channels last, with the output layer
    y = torch.nn.functional.gelu(y) @ leaves["output_linear.0.weight"].T + leaves["output_linear.0.bias"]
    return torch.nn.functional.glu(y)


def test_every_case_of_the_files_is_compared(pytestconfig):
    for file, names in CASES.items():
        with np.load(pytestconfig.rootpath / f"tests/golden/{file}.npz", allow_pickle=False) as arrays:
            assert {key.split("/")[0] for key in arrays.files} == set(names.split())


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in CASES.items() for name in names.split()])
def test_layer_equals_golden(golden, file, name):
    case = golden(file, name)
    config, layer, leaves, u = load(case)
    y = run(config, layer, leaves, u)
    expected = torch.from_numpy(case["y_math"])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-9 * expected.abs().max())
    if "y_ref" not in case:
        return  # the reference raised
    R = config.get("trank", 1)
    if R > 1:
        if case["y_ref"].shape != y.shape:
            return  # the reference did not sum over the rank: its loss is another function
        skip = (leaves["D"].reshape(-1, layer.d_model, *[1] * layer.ndim) * u[:, None]).flatten(1, 2)
        y = (y - skip) / R + skip  # the reference averages where the paper sums
    elif not config["ref_equals_math"]:
        return
    y.square().sum().backward()
    kappa = max(conditioning(axis_of(leaves, i), config["rate"]) for i in range(layer.ndim))
    kappa_A = max(kappa, *(2**0.5 * pole_conditioning(axis_of(leaves, i)) for i in range(layer.ndim)))  # two products
    for key, value in case.items():
        if key.startswith("grad/") and not np.isnan(value).any():
            leaf = u if key == "grad/u" else leaves[key[5:]]
            got = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            expected = torch.from_numpy(value)
            scale = max(1.0, expected.abs().max())
            rtol = max(1e-9, (kappa_A if ".A_" in key else kappa) ** 2 * torch.finfo(torch.float64).eps)
            torch.testing.assert_close(got, expected, rtol=0, atol=rtol * scale, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CASES["s4nd_2d_a"].split())
def test_layer_in_float32_loses_no_more_than_single_precision_does(golden, name):
    """The reference's own float32 kernels are off by up to 1.4e-4 of their size; this bound is 20 eps per product of axes."""
    case = golden("s4nd_2d_a", name)
    config, layer, leaves, u = load(case)
    with torch.no_grad():
        exact = run(config, layer, leaves, u)
        # C is converted in float64: C~ is the reference's own detour, not part of this layer.
        axis = [
            axis_parameters(axis_of(leaves, i), rate=config["rate"], bandlimit=config.get("bandlimit"))
            for i in range(2)
        ]
        state = {f"kernels.{i}.{k}": v for i, a in enumerate(axis) for k, v in a.items()} | {"D": leaves["D"]}
        state["_extra_state"] = layer.get_extra_state()
        layer.load_state_dict(state)
        single = layer.float()(u.float())
    assert single.dtype == torch.float32
    assert (single - exact).abs().max() <= 2 * 20 * torch.finfo(torch.float32).eps * exact.abs().max()
