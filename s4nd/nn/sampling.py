"""What a layer was trained on: the sampling that its kernels mean, which belongs to the weights as they do.

Samples of the present grid are `rate` steps of the trained one apart. A model whose weights are loaded without their sampling
would compute something else without a word, so the sampling travels in the state dict, as a tensor that every format carries.
"""

import operator
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from s4nd.conv import REGRID
from s4nd.ssm.align import ALIGNMENTS, check_align

VERSION = 1
# Methods for other grids than the trained one: the continuous kernel sampled there; the trained grid's, every lag
# held over its pixel (s4nd/conv/held.py); fractional powers of the trained grid's poles (s4nd/ssm/fold.py); or the trained
# grid's, dilated (s4nd/conv/dilated.py).
RESAMPLE = ("continuous", "hold", "fold", "dilate")


@dataclass(frozen=True, init=False)
class Sampling:
    """The trained grid and what of the kernels counts on it; an immutable value. Arguments marked * are one value or one per
    axis, and are kept as one per axis.

    Args:
        ndim: D, number of axes.
        base_size*: samples of the trained grid; None where the axis extends instead of being re-sampled.
        l_max*: support of the 1-D kernels in samples of the trained grid; None for the whole axis.
        bandlimit: modes above this fraction of the Nyquist frequency, of the coarser of the trained and the present grid, are
            left out; None keeps all.
        align: "centre" or "edge", see ssm/align.py.
        resample*: method for other grids, of RESAMPLE; of no account where base_size is None.
    """

    ndim: int
    base_size: tuple[int | None, ...]
    l_max: tuple[int | None, ...]
    bandlimit: float | None
    align: str
    resample: tuple[str, ...]

    def __init__(
        self,
        ndim: int,
        base_size: int | Sequence[int | None] | None = None,
        l_max: int | Sequence[int | None] | None = None,
        bandlimit: float | None = None,
        align: str = "centre",
        resample: str | Sequence[str] = "continuous",
    ) -> None:
        sizes = {
            name: tuple(n if n is None else positive(name, n) for n in per_axis(name, value, ndim))
            for name, value in (("base_size", base_size), ("l_max", l_max))
        }
        if bandlimit is not None and not bandlimit > 0:
            raise ValueError(f"bandlimit must be positive or None, got {bandlimit}")
        check_align(align)
        methods = per_axis("resample", resample, ndim)
        if not {*methods} <= {*RESAMPLE}:
            raise ValueError(f"resample must be one of {RESAMPLE}, or one per axis, got {resample!r}")
        vars(self).update(ndim=ndim, **sizes, bandlimit=bandlimit, align=align, resample=methods)

    def method(self, axis: int) -> str:
        """Of `resample`; an axis without a trained grid has nothing but the continuous kernel."""
        return "continuous" if self.base_size[axis] is None else self.resample[axis]

    def regrids(self, axis: int) -> bool:
        """Whether other grids get the trained grid's own kernel, held or dilated."""
        return self.method(axis) in REGRID

    def kernel_grid(self, axis: int, n: int) -> int:
        """Samples of the grid whose kernel is computed for an axis of n."""
        base = self.base_size[axis]
        return n if base is None or not self.regrids(axis) else base

    def rate(self, axis: int, n: int) -> float:
        """Step of a grid of n samples along the axis, in steps of the trained grid."""
        base = self.base_size[axis]
        return 1.0 if base is None else base / n

    def taps(self, axis: int, n: int) -> int:
        """Samples that a one-sided kernel spans on an axis of n: all n, unless l_max ends it before."""
        window, base = self.l_max[axis], self.base_size[axis]
        if window is None:
            return n
        if base is None or not self.regrids(axis):
            return min(n, max(1, round(window / self.rate(axis, n))))
        window = min(window, base)
        if self.method(axis) == "dilate":  # the last trained lag lies between two of this grid
            last = 2 * (window - 1) * n if self.align == "centre" else (2 * window - 1) * n - base
            return min(n, max(1, -(-last // (2 * base)) + 1))
        # Up to the end of the cell of the last trained lag, in cells of this grid.
        reach = ((2 * window - 1) * n + base) if self.align == "centre" else 2 * window * n
        return min(n, -(-reach // (2 * base)))

    def to_tensor(self) -> Tensor:
        """Bytes, (22 + 8 D,) uint8: checksum, version, alignment and methods, bandlimit, sizes, little-endian; 0 stands
        for None.

        Bytes are whole numbers below 256, which survive being averaged with equal ones or cast to any floating-point type,
        as tools do to all that a state dict holds.
        """
        sizes = [n or 0 for n in (*self.base_size, *self.l_max)]
        # Two bits each, above the alignment: older versions, which know no other method than the first, refuse others.
        numbers = sum(RESAMPLE.index(method) << 2 * axis for axis, method in enumerate(self.resample))
        alignment = ALIGNMENTS.index(self.align) | numbers << 8
        content = struct.pack(f"<HIId{len(sizes)}I", VERSION, self.ndim, alignment, self.bandlimit or 0.0, *sizes)
        return torch.tensor(list(struct.pack("<I", zlib.crc32(content)) + content), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, state: Tensor) -> "Sampling":
        """The inverse of `to_tensor`, of a tensor of any dtype.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        if not isinstance(state, Tensor) or state.ndim != 1 or state.is_complex():
            raise ValueError(
                f"a sampling must be a tensor of bytes, got {getattr(state, 'shape', type(state).__name__)}"
            )
        numbers = state.detach().double().tolist()
        if not all(x in range(256) for x in numbers):
            raise ValueError(
                f"a sampling must be bytes, got {numbers}: an average of layers trained on different grids?"
            )
        raw = bytes(map(int, numbers))
        checksum, content = raw[:4], raw[4:]
        count = (len(content) - struct.calcsize("<HIId")) // struct.calcsize("<I")
        if count < 0 or struct.calcsize(layout := f"<HIId{count}I") != len(content):
            raise ValueError(f"a sampling of {len(raw)} bytes is cut short")
        version, ndim, alignment, bandlimit, *sizes = struct.unpack(layout, content)
        if checksum != struct.pack("<I", zlib.crc32(content)):
            raise ValueError("a sampling's checksum is wrong: it is damaged, or an average of different ones")
        methods = [alignment >> 8 + 2 * axis & 3 for axis in range(ndim)]
        alignment &= 255
        known = alignment < len(ALIGNMENTS) and max(methods, default=0) < len(RESAMPLE)
        if version != VERSION or len(sizes) != 2 * ndim or not known:
            raise ValueError(f"a sampling of version {version}, this version of s4nd reads {VERSION}")
        base, window = ([n or None for n in part] for part in (sizes[:ndim], sizes[ndim:]))
        resample = tuple(RESAMPLE[method] for method in methods)
        return cls(ndim, base, window, bandlimit or None, ALIGNMENTS[alignment], resample)


_last_load: list | None = None  # the list of missing keys of the last load that was warned about


def _of_sampling(name: str) -> property:
    """An attribute of the sampling as one of the module's own; setting it makes another sampling."""

    def set_it(module: "SampledModule", value: Any) -> None:
        module.sampling = replace(module.sampling, **{name: value})

    return property(lambda module: getattr(module.sampling, name), set_it)


class SampledModule(nn.Module):
    """A module with a `sampling`, which is part of its state dict under `_extra_state`: loading sets it."""

    sampling: Sampling
    base_size, l_max, bandlimit, align, resample = map(
        _of_sampling, ("base_size", "l_max", "bandlimit", "align", "resample")
    )

    def rate(self, axis: int, n: int) -> float:
        """Step of a grid of n samples along the axis, in steps of the trained grid."""
        return self.sampling.rate(axis, n)

    def taps(self, axis: int, n: int) -> int:
        """Samples that a one-sided kernel spans on an axis of n: all n, unless l_max ends it before."""
        return self.sampling.taps(axis, n)

    def get_extra_state(self) -> Tensor:
        """The sampling as a tensor."""
        return self.sampling.to_tensor()

    def set_extra_state(self, state: Tensor) -> None:
        """Take the sampling of a state dict; ValueError if it is damaged or of another number of axes."""
        sampling = Sampling.from_tensor(state)
        if sampling.ndim != self.sampling.ndim:
            needed = self.sampling.ndim
            raise ValueError(f"the sampling of a layer with {needed} axes is needed, got one of {sampling.ndim}")
        self.sampling = sampling

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict, strict: bool, missing_keys: list[str], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *args)
        name = f"{prefix}_extra_state"
        if name in state_dict or not any(key.startswith(prefix) for key in state_dict):
            return
        global _last_load
        missing_keys[:] = [key for key in missing_keys if key != name]
        if _last_load is not missing_keys:  # one list a load, one warning
            warnings.warn(
                f"the state dict has weights of S4ND layers without their sampling ({name}, and so on), as older versions "
                f"wrote them: they are taken to be trained as this model was built, here {self.sampling}",
                stacklevel=2,
            )
            _last_load = missing_keys


def per_axis(name: str, value: Any, ndim: int) -> tuple:
    """One value for all axes, or a sequence with one entry per axis, as a tuple of length ndim."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * ndim
    if len(value) != ndim:
        raise ValueError(f"{name} must be one value or one per axis (ndim={ndim}), got {value!r}")
    return tuple(value)


def positive(name: str, value: Any) -> int:
    """A positive integer of any integer type, numpy's among them."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number
