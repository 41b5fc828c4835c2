"""Count the work of a step, and bound how fast a device can do it (the roofline model).

For each operator of PyTorch: its floating point operations (torch.utils.flop_counter), and the bytes of the tensors
that it reads and writes. Counting runs on fake tensors: it needs neither memory nor a GPU. The bound: operators run one
after another, and each takes at least operations / peak or bytes / bandwidth, whichever is longer. An eager step is
counted; compiled code fuses operators and may move fewer bytes.

Source: Williams et al. 2009, doi:10.1145/1498765.1498785.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_KINDS = {  # part of an operator's name -> its kind; the first that matches
    "convolution": "convolution",
    "batch_norm": "batch norm",
    "instance_norm": "instance norm",
    "threshold": "relu",
    "relu": "relu",
    "pool": "pooling",
    "upsample": "cat and upsample",
    "cat": "cat and upsample",
    "_fused_": "optimizer",
    "_foreach_": "optimizer",
    "_to_copy": "casts",
    "add": "additions",
}
_ONLY_WRITTEN = {torch.ops.aten.copy_, torch.ops.aten.zero_, torch.ops.aten.fill_}
_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided, torch.ops.aten.new_empty}


class Operator(NamedTuple):
    """Work of one operator."""

    kind: str
    flop: float
    nbytes: float  # read and written


class Work(NamedTuple):
    """Work of one step, all its images together."""

    operators: list[Operator]
    saved_bytes: float  # saved by the forward pass for the backward pass, without weights
    peak_bytes: float = 0  # most that is alive at one time: weights, gradients, moments, batch and activations

    @property
    def flop(self) -> float:
        """Floating point operations."""
        return sum(operator.flop for operator in self.operators)

    @property
    def nbytes(self) -> float:
        """Bytes that are read and written."""
        return sum(operator.nbytes for operator in self.operators)

    def by_kind(self) -> dict[str, float]:
        """Return the bytes of each kind of operator, the largest first."""
        total: Counter[str] = Counter()
        for operator in self.operators:
            total[operator.kind] += operator.nbytes
        return dict(total.most_common())


class Bound(NamedTuple):
    """The least time of a step."""

    seconds: float
    memory_share: float  # of that time, spent in operators bound by memory rather than by arithmetic


def bound(work: Work, flops: float, bytes_per_s: float) -> Bound:
    """Bound the time of a step by peak operations a second in its precision, and by bytes a second of memory."""
    pairs = [(operator.flop / flops, operator.nbytes / bytes_per_s) for operator in work.operators]
    seconds = sum(max(pair) for pair in pairs)
    return Bound(seconds, sum(memory for arithmetic, memory in pairs if memory > arithmetic) / seconds)


def count(build: Callable[[], Callable[[], Any]]) -> Work:
    """Count the work of the step that `build` makes with its network and its batch, on fake tensors of the CPU.

    Later calls are counted, since the first one makes the optimizer's state. Autocast casts as on a GPU.
    """
    counter, saved, alive = _Counter(), _Saved(), _Alive()
    with FakeTensorMode(), _AsOnGPU():
        with alive:  # apart from the counter, which takes operators to pieces that exist at no time
            step = build()
            step()
            alive.reset()
            step()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor), counter:
            step()
    return Work(counter.operators, saved.total(), alive.peak)


def forward_gflop(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the GFLOP per image of a forward pass of a real network on zeros of shape (B, C, H, W)."""
    parameter = next(model.parameters())
    was_training = model.training
    counter = _Counter()
    with torch.no_grad(), counter:
        model.eval()(torch.zeros(shape, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    return sum(operator.flop for operator in counter.operators) / shape[0] / 1e9


class _AsOnGPU(TorchFunctionMode):
    """Interpolates in the dtype of the input, as autocast does on a GPU; on a CPU it would use float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.interpolate and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Counter(TorchDispatchMode):
    """Keeps an Operator for each call that reaches the device."""

    def __init__(self):
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func.namespace == "prim":  # a query about a tensor
            return func(*args, **kwargs)
        if packet not in flop_registry and "upsample" not in str(packet):  # decomposed, upsampling is traced in float32
            with self:  # a composite operator counts as its parts
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        flop = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        nbytes = _moved(func, args, kwargs, out)
        if nbytes:
            name = str(packet).removeprefix("aten.")
            kind = next((word for part, word in _KINDS.items() if part in name), "other")
            self.operators.append(Operator(kind, flop, nbytes))
        return out


def _moved(func, args: tuple, kwargs: dict, out: Any) -> int:
    """Return the bytes of the tensors that are read and written; 0 for a view."""
    if func.is_view or func._overloadpacket in _EMPTY:
        return 0
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((a, kwargs[a.name]) for a in arguments if a.name in kwargs)]
    changed = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
    read = [value for _, value in given]
    if func._overloadpacket in _ONLY_WRITTEN:
        read = read[1:]
    made = [] if changed else [out]
    return sum(_bytes(value) for value in (read, changed, made))


def _bytes(values: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(values) if isinstance(tensor, Tensor))


class _Alive(TorchDispatchMode):
    """Sums the bytes of the storages that exist, without an allocator's rounding and the workspaces of kernels."""

    def __init__(self):
        super().__init__()
        self._storages: dict[int, int] = {}
        self._now = self.peak = 0

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak = self._now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, address: int) -> None:
        self._now -= self._storages.pop(address)


class _Saved:
    """Sums what autograd saves: each storage once, however many operators save it."""

    def __init__(self):
        self._storages: dict[int, tuple[int, Any]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            self._storages[storage._cdata] = (storage.nbytes(), storage)  # held, so that its address is not reused
        return tensor

    def total(self) -> int:
        return sum(size for size, _ in self._storages.values())
