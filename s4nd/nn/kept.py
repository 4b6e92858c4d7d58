"""What a layer computes from its parameters alone, kept only as long as they are the same numbers.

Addresses and version counters prove nothing: weights change through `.data`, through memory that they share with others, and
back. So what is kept stands beside a copy of the numbers that it was made from, and is used only while the present ones are
equal. On a CPU that is a comparison of some kilobytes. Where it would wait for a device, nothing is kept, unless somebody
promises that the weights stay: `frozen`.
"""

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s4nd.nn.kernels import SSMKernel
from s4nd.nn.sampling import SampledModule
from s4nd.ops import autodiff

# Kept values of a layer: a grid or two, each in a few precisions, or those of recurrent mode.
ENTRIES = 8

_numbers = itertools.count()
_layers: "weakref.WeakValueDictionary[int, KeepingModule]" = weakref.WeakValueDictionary()


def layer_of_number(number: int) -> "KeepingModule":
    """The layer that a `Kept` of this number belongs to."""
    return _layers[number]


class Numbers(NamedTuple):
    """All that a layer's kernels follow from: plain settings, and the values of tensors."""

    settings: tuple
    tensors: tuple[Tensor, ...]

    def copy(self) -> "Numbers":
        return Numbers(self.settings, tuple(t.detach().clone() for t in self.tensors))

    def equal(self, other: "Numbers") -> bool:
        return (
            self.settings == other.settings
            and len(self.tensors) == len(other.tensors)
            and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(self.tensors, other.tensors, strict=True))
        )


class Kept:
    """{key: value} of one layer, with the numbers that the values were made from. They stay out of copies and pickles.

    Attributes:
        latest: the grid of the last evaluation, for want of a better one where a layer is fused without being told a size.
        number: names the layer for compiled code, see compiled.py.
    """

    def __init__(self, latest: tuple[int, ...] | None = None):
        self.latest = latest
        self.number = torch.tensor(next(_numbers), device="cpu")
        self._made: tuple[Numbers | None, dict[Hashable, Any]] = None, {}  # replaced as a whole: readers need no lock
        self._frozen, self._lock = 0, threading.Lock()

    def belong_to(self, layer: "KeepingModule") -> None:
        """Of a new layer, or of a copy of one."""
        _layers[int(self.number)] = layer

    def get_or_compute(self, key: Hashable, numbers: Callable[[], Numbers | None], compute: Callable[[], Any]) -> Any:
        """The value of `key` if it was made from the present numbers, else what `compute` returns now.

        Args:
            numbers: reads the present numbers; None where they cannot be compared.
        """
        if self._frozen:
            values = self._made[1]
            if key not in values:
                values[key] = _plainly(compute)
            return values[key]
        present = numbers()
        if present is None:
            return _plainly(compute)
        made_from, values = self._made
        known = made_from is not None and made_from.equal(present)
        if known and key in values:
            return values[key]
        made_from = present.copy() if made_from is None or not known else made_from
        value, now = _plainly(compute), numbers()
        if now is not None and made_from.equal(now):  # else another thread has changed them meanwhile
            before = list(values.items())[1 - ENTRIES :] if known else []
            self._made = made_from, dict([*before, (key, value)])
        return value

    @property
    def entries(self) -> int:
        """How many values are kept."""
        return len(self._made[1])

    def clear(self) -> None:
        """Let go of all values."""
        self._made = None, {}

    def freeze(self, by: int) -> None:
        """Begin (1) or end (-1) a promise that the numbers stay; several may overlap."""
        with self._lock:
            if 0 in (self._frozen, self._frozen + by):
                self.clear()
            self._frozen += by

    def __reduce__(self) -> tuple:
        return Kept, (self.latest,)


class KeepingModule(SampledModule):
    """A module that keeps, in evaluation, what follows from its parameters and settings. Its `kept` is made, and told to belong
    to it, when the parameters are there."""

    kept: Kept

    def _numbers(self) -> Numbers | None:
        """All that what is kept follows from."""
        raise NotImplementedError

    def evaluate(self, u: Tensor) -> Tensor:
        """What `forward` gives without gradients, by what is kept."""
        raise NotImplementedError

    def kept_or_computed(self, key: tuple, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, a function of the parameters and settings; in evaluation it is kept."""
        # A promise that the weights stay says nothing of the sampling, which is a setting: it belongs to the key.
        key = self.sampling, *key
        return self.kept.get_or_compute(key, self._numbers, compute) if self._is_still() else compute()

    def _is_still(self) -> bool:
        """Whether what follows from the parameters alone may be kept: nothing asks for their gradients or traces them."""
        if self.training or torch.compiler.is_compiling() or autodiff.is_transformed():
            return False
        # A replica of DataParallel has its parameters as plain attributes.
        replica = getattr(self, "_is_replica", False)
        return not torch.is_grad_enabled() or not (replica or any(p.requires_grad for p in self.parameters()))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.kept.belong_to(self)

    def train(self, mode: bool = True) -> "KeepingModule":
        self.kept.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeepingModule":
        self.kept.clear()
        return super()._apply(fn, recurse)


def _plainly(compute: Callable[[], Any]) -> Any:
    # Tensors made in inference mode could not take part in a backward pass later, to the input of a frozen layer.
    with torch.inference_mode(False), torch.no_grad():
        return compute()


def numbers_of(settings: tuple, kernels: Iterable[SSMKernel], tensors: Sequence[Tensor]) -> Numbers | None:
    """The numbers that settings, kernels and tensors stand for, None where they cannot be asked: on devices, where comparing
    waits; of tensors that are somebody else's (of torch.func, fake, distributed); of kernels that follow from anything."""
    found = list(tensors)
    for kernel in kernels:
        configuration = kernel.configuration()
        if configuration is None:
            return None
        settings += configuration
        found += [p for p in kernel._parameters.values() if p is not None]
    if all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in found):
        return Numbers(settings, tuple(found))
    return None


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """A promise that no weight of the model changes inside: in evaluation, kernels are computed once per grid.

    Without it a layer compares its weights with those that it computed from, which on a GPU would wait for the device, so
    that kernels are computed anew there in each call.

        with s4nd.frozen(model), torch.inference_mode():
            for images in loader:
                model(images)
    """
    found = (getattr(module, "kept", None) for module in model.modules())
    kept = [one for one in found if isinstance(one, Kept)]
    for one in kept:
        one.freeze(1)
    try:
        yield model
    finally:
        for one in kept:
            one.freeze(-1)
