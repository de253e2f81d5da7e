"""A second device that every machine has: what is put on it lies in ordinary memory, but as on a GPU it does
not mix with what is not on it. It is called `meta`, a name that PyTorch takes without asking for a driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
BETWEEN = {"aten::_to_copy", "aten::copy_"}
"""What goes from one device to another."""
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
"""What takes an index from the computer's own memory."""


class There(Tensor):
    """A tensor of the second device."""

    here: Tensor
    is_meta = False  # what is loaded into it is to be copied  # type: ignore[assignment]

    @staticmethod
    def __new__(cls: type[There], here: Tensor) -> There:
        how = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        there = Tensor._make_wrapper_subclass(cls, here.size(), device=torch.device(NAME), **how)  # type: ignore[attr-defined]
        there.here = here
        return there  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there, name, target = any(isinstance(t, There) for t in tensors), func._schema.name, kwargs.get("device")
    if there and name not in BETWEEN:
        asked = args[:1] if name in INDEXED else tensors
        mixed = [tuple(t.shape) for t in asked if not isinstance(t, There) and t.dim()]
        assert not mixed, f"{func} mixes devices: {mixed} is not where the rest is"

    def home(x: Any) -> Any:
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x.here if isinstance(x, There) else x

    out = func(*tree_map(home, args), **tree_map(home, kwargs))
    if name == "aten::_local_scalar_dense":
        return out
    goes = there if target is None else torch.device(target).type == NAME
    same = {id(t.here): t for t in tensors if isinstance(t, There)}

    def away(x: Any) -> Any:
        if not isinstance(x, Tensor) or not goes:
            return x
        return same[id(x)] if id(x) in same else There(x)

    return tree_map(away, out)


@contextmanager
def other_device(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """While inside, there is a second device of this name."""
    autocast = torch.autocast

    def lenient(device: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device == NAME else autocast(device, *args, **kwargs)

    def making(make: Callable[..., Tensor], of_tensor: bool = False) -> Callable[..., Tensor]:
        # These make their numbers out of sight of modes.
        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            first = args[0]
            wanted = device if device is not None or not of_tensor else first.device
            if of_tensor:
                kwargs.setdefault("dtype", first.dtype)
                args = args[1:]
            if isinstance(args[0], Tensor):
                return make(*args, device=device, **kwargs)
            told = make(*args, **kwargs)
            return There(told) if wanted is not None and torch.device(wanted).type == NAME else told

        return made

    patch.setattr(torch, "autocast", lenient)
    patch.setattr(Tensor, "new_tensor", making(torch.tensor, of_tensor=True))
    patch.setattr(torch, "tensor", making(torch.tensor))
    patch.setattr(torch, "as_tensor", making(torch.as_tensor))
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Mode():
            yield NAME
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
