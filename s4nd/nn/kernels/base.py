"""The interface of all 1-D kernels: C, and the kernel or the recurrence they give at any length and sampling rate.

What is computed is a function of the parameters' values p alone: those of the module, or those of several modules of one
configuration side by side (see side_by_side.py).

Shapes: H heads (d_model), N states (d_state; N/2 kept, one of each conjugate pair), S independent (A, B) (n_ssm; head h uses
number h mod S), C kernels per head, R low rank, L length. Complex parameters are real pairs (..., 2).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.nn.optim_settings import Settings
from s4nd.ops.precision import without_autocast
from s4nd.ssm.stepping import Step

SSM_LR = 1e-3
Values = dict[str, Tensor]  # of a kernel's parameters, by name
# An operator per part of the state-space models, in equal parts.
COMBINATIONS = {"hippo": ("legs", "fout")}


class SSMKernel(nn.Module):
    """C, its use and its initialisation. A member adds the parameters of its state-space model, then calls `_complete`.

    Args:
        d_model: H.
        d_state: N, even (kernels of real modes take any).
        channels: C, kernels per head.
        init: name of the initial state matrix; None for the kernel's default.
        n_ssm: S, divides H; None for H.
        scale: standard deviation of the initial C, a complex number (real for kernels of real modes).
        backend: of the contraction, see ops/dispatch.py.
        device, dtype: of the parameters; half precisions are raised to float32 and stay there.
    """

    name: str
    inits: tuple[str, ...] = ()
    default_init: str
    real = False  # N real modes instead of N/2 complex ones; C is then real
    folds = False  # the kernel is a sum of modes, see ssm/fold.py
    needs_length = False  # the state-space model depends on the axis's length

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        *,
        init: str | None = None,
        n_ssm: int | None = 1,
        scale: float = 1.0,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        S = d_model if n_ssm is None else n_ssm
        self.init = self.default_init if init is None else init
        self._check_choice("init", self.init, self.inits)
        parts = len(COMBINATIONS.get(self.init, (self.init,)))
        if S < 1 or d_model % S or S % parts:
            raise ValueError(
                f"n_ssm must divide d_model={d_model} and be a multiple of {parts} for init={self.init!r}, got {n_ssm}"
            )
        if not self.real and (d_state < 2 or d_state % 2):
            raise ValueError(f"d_state must be even and at least 2 (one of each conjugate pair is kept), got {d_state}")
        self.d_model, self.d_state, self.n_ssm = d_model, d_state, S
        self.n_modes = d_state if self.real else d_state // 2
        self.scale, self.backend = scale, backend
        dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        shape = (channels, d_model, self.n_modes) if self.real else (channels, d_model, self.n_modes, 2)
        self.C = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    @classmethod
    def options(cls) -> list[str]:
        """Names of the keyword arguments that this kernel takes beside those that all kernels take."""
        inits = [inspect.signature(c.__init__).parameters for c in cls.__mro__ if issubclass(c, SSMKernel)]
        named = {p.name for parameters in inits for p in parameters.values() if p.kind == p.KEYWORD_ONLY}
        return sorted(named - set(inits[-1]))

    def _check_choice(self, argument: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise ValueError(f"{argument} of kernel={self.name!r} must be one of {sorted(known)}, got {value!r}")

    def _empty(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(self.C.new_empty(shape))

    def _complete(self) -> None:
        """All parameters are there."""
        self._names = tuple(name for name, _ in self.named_parameters())
        if not self.C.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw C, and set the state-space models to their initial operators."""
        self.C.normal_(std=self.scale / math.sqrt(1 if self.real else 2))
        names = COMBINATIONS.get(self.init, (self.init,))
        for name, rows in zip(names, torch.arange(self.n_ssm).chunk(len(names)), strict=True):
            self._set_operator(name, slice(int(rows[0]), int(rows[-1]) + 1))

    def _set_operator(self, name: str, rows: slice) -> None:
        raise NotImplementedError

    def optim_settings(self) -> dict[str, Settings]:
        """All but C train slowly and without decay; read by nn/optim_settings.py."""
        return {name: Settings(lr=SSM_LR, weight_decay=0.0) for name in self._names if name != "C"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SSMKernel":
        """Follows every change of device and of dtype but one: half precision cannot hold dt and A, float32 stays."""

        def keep_float32(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(keep_float32, recurse)

    def values(self) -> Values:
        """The parameters as they are now, parametrized ones too."""
        return {name: getattr(self, name) for name in self._names}

    def configuration(self) -> tuple | None:
        """All that the kernel follows from but the values of its parameters. None if somebody has hooked or parametrised it,
        or put tensors where parameters were: it may then follow from anything."""
        attributes = [(k, v) for k, v in vars(self).items() if k[0] != "_" and k != "training"]
        parameters = [(name, x) for name, x in self._parameters.items() if x is not None]
        attached = (
            self._modules or self._buffers or self._forward_pre_hooks or self._forward_hooks or self._backward_hooks
        )
        if attached or len(parameters) < len(self._parameters) or any(isinstance(v, Tensor) for _, v in attributes):
            return None
        return type(self), attributes, [(name, x.shape, x.dtype, x.device) for name, x in parameters]

    def per_head(self, x: Tensor) -> Tensor:
        """(..., S, N/2, 2) -> (..., H, N/2, 2); of several kernels side by side, each by itself."""
        x = x.unflatten(-3, (-1, 1, self.n_ssm))
        x = x.expand(*x.shape[:-4], self.d_model // self.n_ssm, *x.shape[-3:])
        return x.flatten(-5, -3)  # no copy if S is 1 or H

    def readout(self, p: Values) -> Tensor:
        """(C, H, N/2, 2)."""
        return p["C"]

    def phase(self, p: Values) -> Tensor:
        """(H, N/2) radians by which each mode turns in a step of the trained grid, not negative."""
        raise NotImplementedError

    def bandlimit_mask(self, bandlimit: float, rate: float, p: Values | None = None) -> Tensor:
        """(H, N/2) bool, the modes below the limit: max(1, rate) dt |Im A| / (2 pi) < bandlimit / 2.

        bandlimit 1 is the Nyquist frequency of the coarser of the trained and the present grid: a mode that either of them
        cannot hold would alias. Nguyen et al., 2022, arXiv:2210.06583, section 3.2 (whose inequality is printed reversed).
        """
        return max(1.0, rate) * self.phase(p or self.values()) / (2 * math.pi) < bandlimit / 2

    def rescale(self, rate: float) -> None:
        """Make the kernel at rate 1 what it was at `rate`."""
        raise NotImplementedError

    def forward(self, L: int, rate: float = 1.0, **settings: Any) -> Tensor:
        """The kernels on a grid whose step is `rate` times the trained one: (C, H, L) real.

        Args:
            bandlimit, align: see S4ND; None and "edge" if not given.
            fold: samples of the kernels on the trained grid, of which those on this one are to be made (ssm/fold.py); None for
                the continuous ones.
        """
        return self.compute(self.values(), L, rate, **settings)

    def compute(
        self,
        p: Values,
        L: int,
        rate: float = 1.0,
        *,
        bandlimit: float | None = None,
        align: str = "edge",
        fold: int | None = None,
    ) -> Tensor:
        """`forward` of the parameters p."""
        # Autocast would take the matrix products below to half precision, which cannot hold the kernel's phases.
        with without_autocast(p["C"].device.type):
            C = self._limited_C(p, bandlimit, rate)
            return self._kernel(p, C, L, rate, align) if fold is None else self._folded(p, C, L, rate, align, fold)

    def recurrence(
        self, n: int | None, rate: float = 1.0, *, bandlimit: float | None = None, align: str = "edge"
    ) -> Step:
        """The same kernels as a recurrence: its impulse response is `forward(n, rate, ...)`, however far it is run.

        n is None where the axis has no known length; kernels that depend on it (`needs_length`) then have no recurrence.
        """
        if n is None and self.needs_length:
            raise ValueError(f"{type(self).__name__} depends on the axis's length: its recurrence needs n, got None")
        p = self.values()
        with without_autocast(p["C"].device.type):
            return self._recurrence(p, self._limited_C(p, bandlimit, rate), n, rate, align)

    def _length(self, L: int | None) -> int:
        """L, of an axis whose length the state-space model depends on."""
        if L is None:
            raise ValueError(f"{type(self).__name__} depends on the axis's length, got None")
        return L

    def _limited_C(self, p: Values, bandlimit: float | None, rate: float) -> Tensor:
        C = self.readout(p)
        return C if bandlimit is None else C * self.bandlimit_mask(bandlimit, rate, p)[..., None]

    def _kernel(self, p: Values, C: Tensor, L: int, rate: float, align: str) -> Tensor:
        raise NotImplementedError

    def _folded(self, p: Values, C: Tensor, L: int, rate: float, align: str, trained: int) -> Tensor:
        raise ValueError(f"kernel={self.name!r} cannot be folded: it is no sum of modes")

    def _recurrence(self, p: Values, C: Tensor, n: int | None, rate: float, align: str) -> Step:
        raise NotImplementedError
