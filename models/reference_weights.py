"""Weights of the reference implementation (github.com/state-spaces/s4) as weights of the models here.

Names change, 1x1 convolutions stand for its linear layers, and its S4 kernels hold C~ in place of C:

    C = C~ (I - Ab^L)^-1,   Ab = (I - dt/2 A)^-1 (I + dt/2 A),   A = diag(Lambda) - P P^*,   L = l_kernel

(L = 0: the model was never run, C is still C.) It averages over the rank where the layer here sums.
Shapes: H heads, N states (N/2 kept, one of each conjugate pair), C kernels per head, R low rank, S state-space models.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4nd import S4ND

from .names import counted
from .reference_names import KERNEL, renaming, translated

__all__ = ["convert_reference"]


def convert_reference(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict of the reference implementation as one of `model`, for `model.load_state_dict`.

    At the trained size the model then computes what the reference does. At other sizes it computes the same state-space models
    at another rate, and the reference does not: it uses the C~ of rate 1 there. (A bandlimit masks C here and C~ there, which
    is the same where P = 0, as in its diag-* inits.)

    Args:
        state: of the reference's ConvNeXt (of images or videos), ViT or isotropic network, bare or as Lightning saves it
            (`model.`, `encoder.`, `decoder.`), with the default transforms of dt and A (exp, exp, none).
        model: the same network of s4nd.models (or timm's ConvNeXt), on any device, "meta" too. Its S4ND layers have
            align="edge"; img_size, which sets every base_size, and l_max are those of the reference's training; kernel="s4"
            for its default mode, whatever its init, kernel="s4d" for its diagonal one.

    Returns:
        Tensors of the names, shapes and dtypes of `model.state_dict()`; all are new, C is computed in float64.

    Raises:
        ValueError: another kind of model, or keys that are missing, unknown or of another shape (8 of each are named).
    """
    return _Conversion(state, model).weights()


def unused_keys(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Keys of `state` that `convert_reference` leaves out, because the reference itself does not use them.

    The D of a dense layer (`out_channels`), and the second kernel of the layers over a ViT's patches in raster order.
    """
    return _Conversion(state, model).unused


class _Axis(NamedTuple):
    """A kernel: the layer, its name in the model and the reference's l_kernel."""

    layer: S4ND
    name: str
    length: Tensor | None


class _Conversion:
    """The reference's tensors under our names and in our shapes, before C~ becomes C."""

    def __init__(self, state: Mapping[str, Tensor], model: nn.Module):
        rename = renaming(model)
        state_dict = model.state_dict()
        self.samplings = {name: value for name, value in state_dict.items() if name.endswith("_extra_state")}
        self.own = {name: value for name, value in state_dict.items() if name not in self.samplings}
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, S4ND)}
        for name, layer in self.layers.items():
            if layer.align != "edge":
                raise ValueError(
                    f"the reference's samples stand for their pixels' edges: build the model with align='edge', "
                    f"got align={layer.align!r} in {name}"
                )
        self.found: dict[str, Tensor] = {}
        self.unused: list[str] = []
        unknown = []
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"a state dict holds tensors, got {key} of type {type(value).__name__}")
            name = rename(key.removeprefix("model."))
            if self._is_unused(name):
                self.unused.append(key)
                continue
            name, value = translated(name, value)
            if (name in self.own or self._is_length(name)) and name not in self.found:
                self.found[name] = value
            else:
                unknown.append(key)
        self._check(unknown, type(model).__name__)

    def weights(self) -> dict[str, Tensor]:
        ours = {name: self._fitted(name) for name in self.own}
        for axis in self._axes():
            try:
                C = _readout(ours, axis)
            except ValueError as error:
                raise ValueError(f"{axis.name}: {error}") from None
            # A product over the axes: the rank's 1 / R goes to the first of them.
            C = C / axis.layer.rank if axis.name.endswith(".0") else C
            if not C.to(self.own[f"{axis.name}.C"].dtype).isfinite().all():
                raise ValueError(
                    f"{axis.name}: C is not finite: the weights are damaged, or a mode does not decay at all"
                )
            ours[f"{axis.name}.C"] = C
        ours = {name: value.to(self.own[name].dtype, copy=True).contiguous() for name, value in ours.items()}
        return ours | self.samplings  # the model's own: the reference's weights say nothing of it

    def _axes(self) -> Iterable[_Axis]:
        for name, layer in self.layers.items():
            for i in range(layer.ndim):
                kernel = f"{name}.kernels.{i}"
                yield _Axis(layer, kernel, self.found.get(f"{kernel}.l_kernel"))

    def _is_unused(self, name: str) -> bool:
        if kernel := KERNEL.fullmatch(name):
            layer = self.layers.get(kernel["layer"])
            return layer is not None and layer.ndim == 1 and kernel["axis"] == "1"
        layer = self.layers.get(name.removesuffix(".D"))
        return layer is not None and layer.D is None

    def _is_length(self, name: str) -> bool:
        return name.endswith(".l_kernel") and name.replace(".l_kernel", ".P") in self.own

    def _fitted(self, name: str) -> Tensor:
        """The tensor in the shape it has here: the reference's may have other axes of length 1."""
        value, shape = self.found[name].detach(), self.own[name].shape if name in self.own else ()
        return value.reshape(shape) if _without_ones(value.shape) == _without_ones(shape) else value

    def _check(self, unknown: list[str], model: str) -> None:
        lengths = [f"{a.name}.l_kernel" for a in self._axes() if f"{a.name}.P" in self.own]
        missing = [name for name in [*self.own, *lengths] if name not in self.found]
        shapes = {name: () for name in lengths} | {name: tuple(value.shape) for name, value in self.own.items()}
        got = {name: tuple(self._fitted(name).shape) for name in shapes if name in self.found}
        misshaped = [f"{name} {shape} for {shapes[name]}" for name, shape in got.items() if shape != shapes[name]]
        found = {"missing": missing, "unknown": unknown, "of another shape": misshaped}
        if problems := counted(found, shown=8):
            raise ValueError(f"the reference's weights are not those of this {model}: {problems}")


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [n for n in shape if n != 1]


def _readout(ours: Mapping[str, Tensor], axis: _Axis) -> Tensor:
    """(C, H, N/2, 2) float64: C of a kernel, given what the reference holds."""
    stored = ours[f"{axis.name}.C"].double()
    if axis.length is None:  # a diagonal kernel has no C~
        return stored
    L, log_dt = int(axis.length), ours[f"{axis.name}.log_dt"].double()
    if L < 0 or log_dt.ndim != 1:
        raise ValueError(f"need l_kernel >= 0 and one dt per head, got l_kernel={L} and dt {tuple(log_dt.shape)}")
    if L == 0:
        return stored
    real, imag, P = (ours[f"{axis.name}.{name}"].double() for name in ("log_A_real", "A_imag", "P"))
    A, P, C = torch.complex(-real.exp(), imag), torch.view_as_complex(P), torch.view_as_complex(stored.contiguous())
    repeats = len(log_dt) // len(A)  # head h uses number h mod S
    try:
        C = true_readout(log_dt.exp(), A.repeat(repeats, 1), P.repeat(1, repeats, 1), C, L)
    except torch.linalg.LinAlgError:
        raise ValueError(f"I - Ab^{L} is singular: a mode does not decay at all") from None
    return torch.view_as_real(C)


def true_readout(dt: Tensor, A: Tensor, P: Tensor, C: Tensor, L: int) -> Tensor:
    """C = C~ (I - Ab^L)^-1 with Ab the bilinear discretisation of A = diag(Lambda) - P P^*.

    Over (Re z, Im z) instead of (z, conj z) everything is real: a quarter of the work.

    Args:
        dt: (H,).
        A: (H, N/2) complex, Lambda.
        P: (R, H, N/2) complex.
        C: (C, H, N/2) complex, C~.
        L: the length that C~ is made for, positive.

    Returns:
        (C, H, N/2) complex.
    """
    # z' = F z + G conj z
    F = torch.diag_embed(A) - torch.einsum("rhn,rhm->hnm", P, P.conj())
    G = -torch.einsum("rhn,rhm->hnm", P, P)
    of_real, of_imag = F + G, 1j * (F - G)
    dense = torch.cat([torch.cat([x.real, x.imag], dim=-2) for x in (of_real, of_imag)], dim=-1)  # (H, N, N)
    eye, half = torch.eye(dense.shape[-1], dtype=dense.dtype, device=dense.device), dt[:, None, None] / 2 * dense
    Ab = torch.linalg.solve(eye - half, eye + half)
    rows = torch.cat([C.real, -C.imag], dim=-1).transpose(0, 1)  # (H, C, N): Re C z of (Re z, Im z)
    rows = torch.linalg.solve(eye - torch.linalg.matrix_power(Ab, L), rows, left=False).transpose(0, 1)
    return torch.complex(*rows.chunk(2, dim=-1)).conj().resolve_conj()
