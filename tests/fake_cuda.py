"""CUDA where there is no GPU: fake tensors, which have a device and a shape and no numbers, and a count of what waits for it.

An operation with tensors on different devices is an error of the fake ones, as it is of a GPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from s4nd.conv.regrid import _matrix

aten = torch.ops.aten
# What the host must know the result of, or whose size it must.
READ = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten._linalg_check_errors,
}
COPIES = {aten._to_copy, aten.copy_}


class Waits(TorchDispatchMode):
    """Collects the operations for which the host waits for the device. A number that it reads is 0, a truth is true.

    Attributes:
        found: their names: a result that the host reads, and a copy between host and device that is not asked to run beside
            them (`non_blocking`), explicit or hidden in an operation with tensors of both.
        uploads: the shapes of copies from the host that run beside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.uploads: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        kind = function.overloadpacket
        waits = kind in READ or self._selects(kind, args) or _uploads(function, given)
        if kind not in COPIES and any(x.is_cuda for x in given) and waits:
            self.found.append(str(function))  # before it fails for want of numbers
        if kind is aten._local_scalar_dense and given[0].is_cuda:
            return {torch.bool: True}.get(given[0].dtype, 0)
        out = function(*args, **(kwargs or {}))
        if kind in COPIES:
            self._copy(str(function), given[-1], out, (kwargs or {}).get("non_blocking") or args[2:3] == (True,))
        return out

    def _copy(self, name: str, source: Tensor, target: Tensor, beside: bool) -> None:
        if source.device.type == target.device.type:
            return
        if beside and target.is_cuda:
            self.uploads.append(tuple(source.shape))
        else:
            self.found.append(f"{name}, {source.device.type} to {target.device.type}")

    def _selects(self, kind, args) -> bool:
        """Whether a tensor is indexed with a mask: how many are true decides the size."""
        masks = (aten.index, aten.index_put, aten.index_put_)
        return kind in masks and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _uploads(function, given: list[Tensor]) -> bool:
    """Whether a tensor of the host has to be brought to the device. A pointwise operation reads a single number of it where it
    is, but for torch.where."""
    host = [x for x in given if not x.is_cuda]
    read = torch.Tag.pointwise in function.tags and function.overloadpacket is not aten.where
    return bool(host) and not (read and all(x.ndim == 0 for x in host))


@contextmanager
def fake_cuda() -> Iterator[Waits]:
    """Inside, all tensors that are made are fake. What the library keeps of them is dropped at the end."""
    with ExitStack() as stack:
        stack.callback(_matrix.cache_clear)
        # torch.autocast asks whether there is a GPU, and of which kind.
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda: True))
        stack.enter_context(patch.object(FakeTensor, "tolist", lambda x: [0] * len(x.cpu())))
        stack.enter_context(FakeTensorMode())
        yield stack.enter_context(Waits())


def on_cuda(module: nn.Module, device: str = "cuda") -> nn.Module:
    """A module with fake parameters and buffers in their places; inside fake_cuda."""
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            fake = torch.empty(p.shape, dtype=p.dtype, device=device)
            setattr(part, name, nn.Parameter(fake, requires_grad=p.requires_grad))
        for name, b in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(b.shape, dtype=b.dtype, device=device))
    return module
