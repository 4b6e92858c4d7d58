"""The reference implementation's parameters in this library's terms, for tests that compare with its numbers."""

import torch
from torch import Tensor, nn

from s4nd.ssm.recurrence import dense_ssm, discretize_dense

AXIS_TENSORS = {"inv_dt": "log_dt", "A_real": "log_A_real", "A_imag": "A_imag", "B": "B", "P": "P", "C": "C"}


def axis_parameters(ref: dict[str, Tensor], *, rate: float = 1.0, bandlimit: float | None = None) -> dict[str, Tensor]:
    """One axis: tensors named as in the reference (inv_dt, C, B, A_real, A_imag, and for DPLR P, l_kernel) -> as here.

    Differentiable. A DPLR kernel of the reference stores C~ = C (I - Ab^L) with Ab at rate 1 and uses it at every rate and
    with the bandlimit on C~, which is this library's kernel with C = mask C~ (I - Ab_r^(L/r))^-1.
    """
    ours = {AXIS_TENSORS[name]: t for name, t in ref.items() if name in AXIS_TENSORS}
    ours["log_dt"], ours["A_imag"], ours["B"] = ref["inv_dt"][:, 0], -ref["A_imag"], ref["B"][0]
    if "P" in ref:
        ours["C"] = true_readout(ref, rate, bandlimit)
    return ours


def true_readout(ref: dict[str, Tensor], rate: float, bandlimit: float | None) -> Tensor:
    """(C, H, N/2, 2): C of the kernel that the reference evaluates at this rate from its C~."""
    C = torch.view_as_complex(ref["C"].contiguous())
    if bandlimit is not None:
        C = C * (_heads(ref, _A(ref)).imag.abs() * ref["inv_dt"].exp() / (2 * torch.pi) < bandlimit / 2)
    double_C = torch.cat([C, C.conj()], dim=-1)
    C = torch.linalg.solve(_truncation(ref, rate), double_C[..., None, :], left=False)[..., 0, :]
    return torch.view_as_real(C[..., : C.shape[-1] // 2].resolve_conj())


def conditioning(ref: dict[str, Tensor], rate: float) -> float:
    """Condition number of I - Ab^L, by which C = C~ (I - Ab^L)^-1 amplifies rounding; its derivative does by the square."""
    return float(torch.linalg.cond(_truncation(ref, rate).detach()).max()) if "P" in ref else 1.0


def pole_conditioning(ref: dict[str, Tensor]) -> float:
    """1 / min |Lambda|, by which the reference's DPLR kernel amplifies rounding, and by whose square its derivative in Lambda.

    It has a node at z = 0, where the Cauchy terms are 1 / (dt Lambda) and cancel in the Woodbury identity: the zero mode of
    the Fourier operator, Lambda = -1e-4 - 1e-4 i, is ill off. In 40 digits the golden gradients of s4nd_2d_stem in that
    entry of A_imag are off by 1e-4, this library's by 7e-6 and 2e-7.
    """
    return float(1 / _A(ref).detach().abs().min()) if "P" in ref else 1.0


def _A(ref: dict[str, Tensor]) -> Tensor:
    return torch.complex(-ref["A_real"].exp(), -ref["A_imag"])


def _heads(ref: dict[str, Tensor], x: Tensor) -> Tensor:
    return x.repeat(*([1] * (x.ndim - 2)), len(ref["inv_dt"]) // x.shape[-2], 1)


def _truncation(ref: dict[str, Tensor], rate: float) -> Tensor:
    """I - Ab_r^(L/r), (H, N, N) complex."""
    A, B, P = (_heads(ref, x) for x in (_A(ref), torch.view_as_complex(ref["B"])[0], torch.view_as_complex(ref["P"])))
    A, B, _ = dense_ssm(A, B, B[None], P)
    Ab, _ = discretize_dense(rate * ref["inv_dt"][:, 0].exp(), A, B, "bilinear")
    return torch.eye(A.shape[-1], dtype=A.dtype) - torch.linalg.matrix_power(Ab, round(int(ref["l_kernel"]) / rate))


# Names here -> those of the reference, whose layers over (time, height, width) hold kernel.0, kernel.1 and kernel.2.
VIDEO_NAMES = {
    "stem.0.": "stem.stem.0.",
    "stem.1.": "stem.stem.2.",
    "stem.3.": "stem.stem.4.",
    ".downsample.0.": ".norm_layer.",
    ".downsample.1.weight": ".downsample.conv.weight",
    ".downsample.1.bias": ".downsample.conv.bias",
    ".downsample.1.": ".downsample.s4conv.",
    ".downsample.2.": ".downsample.fc.",
    ".kernels.": ".kernel.",
    ".log_dt": ".inv_dt",
    ".log_A_real": ".A_real",
}


def video_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the reference's S4ND-ConvNeXt-3D with the weights of one here, as if never run: its C is no C~ then."""
    state = {}
    for name, value in model.state_dict().items():
        key = name
        for ours, theirs in VIDEO_NAMES.items():
            key = key.replace(ours, theirs)
        if key.endswith("_extra_state"):
            continue
        if key.endswith((".downsample.fc.weight", "stem.stem.2.weight")):
            value = value.flatten(1)
        state[key] = -value if key.endswith(".A_imag") else value[:, None] if key.endswith(".inv_dt") else value
        if key.endswith(".C"):
            state[key.replace(".C", ".l_kernel")] = torch.tensor(0)
    return state
