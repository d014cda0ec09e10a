"""Simulate a GPU on the CPU: tensors have real values and a device label, and raise errors where CUDA would.

`simulated_gpu` makes torch see one CUDA device. A tensor moved to it is an `OnGpu`, whose operations run on the CPU. An
operation on tensors of both devices raises an error, as on a GPU, except copies and indices from the host. Operations
for which the host would wait for a real GPU are counted. Triton's kernels run in its interpreter, after a check that
their arguments are on the GPU. This tests what a GPU path computes and where its tensors are, not speed and rounding.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from evalkit.models import attention

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MAY_MIX = {"copy_", "_to_copy", "to", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations for which CUDA accepts tensors of both devices."""
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}
"""Operations for whose result the host waits."""
HOPPER = SimpleNamespace(name="simulated", shared_memory_per_block_optin=232_448)

waits: Counter[str] = Counter()
"""The number of times that the host waited, by operation."""


class OnGpu(torch.Tensor):
    """A tensor labelled as on the GPU; torch's own code sees a tensor without memory."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        with torch.inference_mode(
            mode=False
        ):  # in inference mode it would have no version counter, which its views need
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=torch.device("meta"))

    def __init__(self, inner):
        self.inner = inner

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    def __repr__(self, **_):
        return f"OnGpu({self.inner!r})"

    def tolist(self):
        waits["tolist"] += 1
        return self.inner.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")

    def __getitem__(self, places):
        return OnGpu(self.inner[host_places(places)])

    def __setitem__(self, places, values):
        if isinstance(values, torch.Tensor) and values.dim():
            assert isinstance(values, OnGpu), "values of the host into a tensor of the GPU"
        self.inner[host_places(places)] = inner(values)


def inner(value):
    """Return a tensor without its label."""
    return value.inner if isinstance(value, OnGpu) else value


def host_places(places):
    """Return indices without their labels; a mask makes the host wait, because it determines a shape."""
    each = places if isinstance(places, tuple) else (places,)
    waits["mask"] += sum(isinstance(place, OnGpu) and place.dtype == torch.bool for place in each)
    found = tuple(inner(place) for place in each)
    return found if isinstance(places, tuple) else found[0]


def run(operation, args, kwargs):
    """Run an operation on the values, and label its result with the device on which CUDA would create it."""
    name = operation.overloadpacket.__name__
    if name == "_has_compatible_shallow_copy_type":  # asked when a module converts its parameters
        return False
    flat, _ = tree_flatten((args, kwargs))
    there = [part for part in flat if isinstance(part, OnGpu)]
    here = [part for part in flat if isinstance(part, torch.Tensor) and not isinstance(part, OnGpu) and part.dim()]
    if there and here and name not in MAY_MIX:
        shapes = [[tuple(part.shape) for part in side] for side in (there, here)]
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, got {shapes[0]} on cuda:0, {shapes[1]} on cpu"
        )
    if there and here and name.startswith(("index", "_index")):
        assert isinstance(args[0], OnGpu), f"{name}: a tensor of the host, indices of the GPU"
    waits[name] += bool(there) and name in WAITS
    asked = [part for part in flat if isinstance(part, torch.device)]
    on_gpu = bool(there)
    if asked:
        on_gpu = asked[0].type != "cpu"  # `meta` if torch's own code creates a tensor on the device of another
    elif name in MAY_MIX - {"_to_copy", "to", "index", "index_put"}:
        on_gpu = isinstance(args[0], OnGpu)
    plain_args, plain_kwargs = tree_map(
        lambda part: CPU if isinstance(part, torch.device) else inner(part), (args, kwargs)
    )
    plain_kwargs.pop("pin_memory", None)
    labelled = {id(part.inner): part for part in there}

    def label(part):
        if not isinstance(part, torch.Tensor):
            return part
        if asked and not on_gpu:
            return part.clone() if id(part) in labelled else part
        if id(part) in labelled:
            return labelled[id(part)]
        return OnGpu(part) if on_gpu else part

    return tree_map(label, operation(*plain_args, **plain_kwargs))


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Launches:
    """A Triton kernel that requires tensors on the GPU; `instead` computes its result, or else the interpreter."""

    def __init__(self, kernel, *, instead=None):
        self.kernel, self.instead, self.count = kernel, instead, 0

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            self.count += 1
            tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
            assert all(isinstance(part, OnGpu) for part in tensors), "a kernel's argument is on the host"
            plain_args, plain_kwargs = tree_map(inner, (args, kwargs))
            with torch._C._DisableTorchDispatch():
                (self.instead or self.kernel[grid])(*plain_args, **plain_kwargs)

        return launch


class _Event:
    def record(self, _stream):
        pass

    def synchronize(self):
        waits["event"] += 1


class _Stream:
    def __init__(self, *_):
        pass


@contextlib.contextmanager
def simulated_gpu(monkeypatch):
    """Make torch see one CUDA device within the context."""
    waits.clear()
    real_to, real_item, real_tensor = torch.Tensor.to, torch.Tensor.__getitem__, torch.tensor

    def to(self, *args, **kwargs):
        """Give the device an index: torch would ask a driver for the current one."""
        full = tree_map(lambda part: GPU if str(part) == "cuda" else part, (args, kwargs))
        waits["upload"] += GPU in tree_flatten(full)[0] and not (isinstance(self, OnGpu) or kwargs.get("non_blocking"))
        return real_to(self, *full[0], **full[1])

    def tensor(values, *, device=None, **kwargs):
        """Create it on the host first, as torch does."""
        made = real_tensor(values, **kwargs)
        return made if device is None else made.to(device)

    def getitem(self, places):
        each = places if isinstance(places, tuple) else (places,)
        assert not any(isinstance(place, OnGpu) for place in each), "a tensor of the host, indices of the GPU"
        return real_item(self, places)

    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: HOPPER.name,
        "get_device_properties": lambda *_: HOPPER,
        "current_stream": lambda *_: None,
        "device_of": lambda _: contextlib.nullcontext(),
        "empty_cache": lambda: None,
        "Event": _Event,
        "Stream": _Stream,
        "stream": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "__getitem__", getitem)
    monkeypatch.setattr(torch, "tensor", tensor)
    real_submit = ThreadPoolExecutor.submit

    def submit(self, work, *args, **kwargs):
        """Simulate the device also in a run's threads, because a mode applies to one thread."""

        def within(*args, **kwargs):
            with _Mode():
                return work(*args, **kwargs)

        return real_submit(self, within, *args, **kwargs)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    with attention.working_sdpa(CPU, torch.bfloat16):
        monkeypatch.setattr(
            attention, "_sdpa", lambda _backends: contextlib.nullcontext()
        )  # they are the CPU's already
        with _Mode():
            yield
