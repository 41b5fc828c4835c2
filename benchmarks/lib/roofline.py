"""How much work a step is, counted and not timed, and how fast a device could do it at best.

Of each operator of PyTorch: its floating point operations, by torch's own counter (torch.utils.flop_counter), and the
bytes of the tensors that it reads and writes. Counting runs on fake tensors: no memory is filled, no GPU is needed.
The bound: operators run one after another, and each takes at least the longer of operations / peak and bytes /
bandwidth. It counts an eager step; compiled code joins operators and may move fewer bytes.
"""

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

_KINDS = {  # part of an operator's name -> what a reader calls it; the first that fits
    "convolution": "convolution",
    "batch_norm": "batch norm",
    "instance_norm": "instance norm",
    "threshold": "relu",
    "relu": "relu",
    "pool": "pooling",
    "upsample": "cat and upsample",
    "cat": "cat and upsample",
    "_fused_": "optimiser",
    "_foreach_": "optimiser",
    "_to_copy": "casts",
    "add": "additions",
}
_ONLY_WRITTEN = {torch.ops.aten.copy_, torch.ops.aten.zero_, torch.ops.aten.fill_}
_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided, torch.ops.aten.new_empty}


class Operator(NamedTuple):
    kind: str
    flop: float
    nbytes: float  # read and written


class Work(NamedTuple):
    """Of one step, all its images together."""

    operators: list[Operator]
    saved_bytes: float  # kept from the forward pass for the backward pass, weights not among them

    @property
    def flop(self) -> float:
        return sum(operator.flop for operator in self.operators)

    @property
    def nbytes(self) -> float:
        return sum(operator.nbytes for operator in self.operators)

    def by_kind(self) -> dict[str, float]:
        """Bytes of each kind of operator, the most first."""
        total: Counter[str] = Counter()
        for operator in self.operators:
            total[operator.kind] += operator.nbytes
        return dict(total.most_common())


class Bound(NamedTuple):
    seconds: float  # at least, for the step
    memory_share: float  # of that time: operators that wait for memory rather than for arithmetic


def bound(work: Work, flops: float, bytes_per_s: float) -> Bound:
    """flops: peak operations a second in this precision; bytes_per_s: of the device's memory."""
    pairs = [(operator.flop / flops, operator.nbytes / bytes_per_s) for operator in work.operators]
    seconds = sum(max(pair) for pair in pairs)
    return Bound(seconds, sum(memory for arithmetic, memory in pairs if memory > arithmetic) / seconds)


def count(build: Callable[[], Callable[[], Any]]) -> Work:
    """The work of a step: `build` makes the step with its network and its batch, on the CPU and all of it fake.

    The second call is counted: the first makes the optimiser's state. Autocast casts what it would cast on a GPU.
    """
    counter, kept = _Counter(), _Kept()
    with FakeTensorMode(), _AsOnGPU():
        step = build()
        step()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor), counter:
            step()
    return Work(counter.operators, kept.total())


def forward_gflop(model: nn.Module, shape: tuple[int, ...]) -> float:
    """GFLOP of one forward pass of a real network on (B, C, H, W) zeros, per image."""
    parameter = next(model.parameters())
    was_training = model.training
    with torch.no_grad(), (counter := _Counter()):
        model.eval()(torch.zeros(shape, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    return sum(operator.flop for operator in counter.operators) / shape[0] / 1e9


class _AsOnGPU(TorchFunctionMode):
    """On a CPU autocast enlarges pictures in float32, on a GPU it leaves them as they are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.interpolate and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Counter(TorchDispatchMode):
    """Keeps an Operator for each call that reaches a device."""

    def __init__(self):
        super().__init__()
        self.operators: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func.namespace == "prim":  # a question about a tensor
            return func(*args, **kwargs)
        if packet not in flop_registry and "upsample" not in str(packet):  # torch would trace that one in float32
            with self:  # an operator made of others is counted as these
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        flop = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        if nbytes := _moved(func, args, kwargs, out):
            name = str(packet).removeprefix("aten.")
            kind = next((word for part, word in _KINDS.items() if part in name), "other")
            self.operators.append(Operator(kind, flop, nbytes))
        return out


def _moved(func, args: tuple, kwargs: dict, out: Any) -> int:
    """Bytes of the tensors that are read and written; none for a view."""
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


class _Kept:
    """What autograd keeps: each piece of memory once, however many operators keep it."""

    def __init__(self):
        self._pieces: dict[int, tuple[int, Any]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            self._pieces[storage._cdata] = (storage.nbytes(), storage)  # held, so that no other gets its number
        return tensor

    def total(self) -> int:
        return sum(size for size, _ in self._pieces.values())
