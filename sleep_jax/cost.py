"""What a program costs, known before it runs: its FLOPs from its text, its memory from the compiler.

Every program that holds a model is a `Program`, or a step that `fit` compiles: neither runs before its memory
has been held against what there is.
"""

import dataclasses
import gc
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from sleep_jax.figures import scaled


def flops(traced: Any, trips: int | None = None) -> int:
    """Floating-point operations of the matrix products of a program, over all devices.

        sum over products [b, m, k] x [b, k, n] of 2 b m k n, as often as each is taken

    XLA's own cost analysis takes the body of a loop once, so that a scan over layers counts as one of them,
    and the parts of a batch as one. What is no matrix product is left out: 1 % of a training step of
    configs/clinc150.py by XLA's count. What nothing depends on is too; layers that are recomputed count
    twice, and the gradient of the first layer's input counts even where nothing below is trained: a scan
    takes it, and only the compiler of unrolled layers sees that it need not.

    Args:
      traced: `jax.jit(f).trace(...)`.
      trips: iterations of every `while` loop that holds a product; a scan tells its own.

    Raises:
      ValueError: there is such a loop, and no `trips`.
    """
    return _products(partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, True)[0], trips)


def _products(jaxpr: core.Jaxpr, trips: int | None) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            continue
        inner = [_products(part, trips) for part in core.jaxprs_in_params(eqn.params)]
        match eqn.primitive.name:
            case "scan":
                total += eqn.params["length"] * sum(inner)
            case "while" if any(inner):
                if trips is None:
                    raise ValueError("a while loop with matrix products, but `trips` does not say how often")
                total += trips * sum(inner)
            case "cond":
                total += max(inner)
            case "shard_map":  # the program of one device
                total += eqn.params["mesh"].size * sum(inner)
            case _:
                total += sum(inner)
    return total


def compiled(run: Any, *args: Any, trips: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A jitted function compiled for these arguments, and what it costs.

    Args:
      run: the function, with `run.trace` as `jax.jit` has it.
      args: to compile it for.
      trips: as `flops` takes it.

    Returns:
      The compiled function, and {"flops": over all devices, "xla_flops": by XLA's cost analysis of one
      device, loops taken once, "bytes": as `memory` has them}.
    """
    traced = run.trace(*args)
    program = traced.lower().compile()
    analysis = program.cost_analysis() or {}
    counted = {"flops": flops(traced, trips), "xla_flops": float(analysis.get("flops", 0.0))}
    return program, {**counted, "bytes": memory(program)}


def memory(program: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of one device, {"argument", "output", "alias", "temp"}.

    What is handed out in the place of an argument is alias and not taken twice.
    """
    found = program.memory_analysis()
    return {k: getattr(found, f"{k}_size_in_bytes") for k in ("argument", "output", "alias", "temp")}


CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def needed(sizes: dict[str, int]) -> int:
    """Bytes of one device while a program of these sizes runs."""
    return sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]


def room() -> int:
    """Bytes of one device: what its allocator may take, and of a CPU device its share of the host's memory.

    Where the process is in a control group (a container, a Slurm job), the host's memory is its limit.
    """
    devices = jax.local_devices()
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
    if all(limits):
        return min(limits)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if CGROUP.exists() and (limit := CGROUP.read_text().strip()).isdigit():
        host = min(host, int(limit))
    return host // len(devices)


def held() -> int:
    """Bytes that arrays of this process take now, of the device that holds most."""
    in_use = [(d.memory_stats() or {}).get("bytes_in_use") for d in jax.local_devices()]
    if all(x is not None for x in in_use):
        return max(in_use)
    of: dict[jax.Device, int] = dict.fromkeys(jax.local_devices(), 0)
    for x in jax.live_arrays():
        for device in x.sharding.addressable_devices:
            of[device] = of.get(device, 0) + math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return max(of.values())


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a program is run for.

    Attributes:
      name: of one run, as in "<name> takes 1.2 GB".
      lower: what to do where it does not fit while it runs, with the keys.
    """

    name: str
    lower: str


GRADIENT = "set model.remat=full and model.logit_chunk=64, lower row_length or "  # then keys of the batch
SCORED = "lower row_length or eval_batch (a quarter of it is read at once)"

_told: dict[str, int] = {}  # by the name of a kind, the bytes that were told of last


def tell(kind: Kind, sizes: dict[str, int]) -> None:
    """Prints what a program takes of a device, once a kind, and again where it takes twice as much.

    Raises:
      ValueError: it takes more than there is; names the keys that lower it.
    """
    take, have = needed(sizes), room()
    beside = max(held() - sizes["argument"], 0)  # and not of this program
    if take + beside > have:
        gc.collect()  # what nobody refers to any more may be in the way
        beside = max(held() - sizes["argument"], 0)
    told = f"{kind.name} takes {scaled(take, 'B')} of the {scaled(have, 'B')} of each device"
    if take + beside > have:
        given, working, other = (scaled(n, "B") for n in (sizes["argument"], sizes["temp"], beside))
        raise ValueError(
            f"{told}: {given} for parameters, memory and batch, {working} while it runs; {other} of other "
            f"things lie there. It cannot run. For what it takes while it runs, {kind.lower}; for parameters "
            "and memory, spread the model over more devices (mesh.fsdp, mesh.model) or, where it is not "
            "trained itself, set model.param_dtype=bfloat16"
        )
    if take >= 2 * _told.get(kind.name, 0):
        _told[kind.name] = take
        print(told, flush=True)


class Program:
    """A function jitted and compiled ahead of its first run with arguments of other shapes.

        score = Program(function)
        hidden_BTD = score(kind, *args)

    What it takes is then held against what there is (`tell`). Nothing is compiled twice, not for another
    kind either.
    """

    def __init__(self, function: Callable, donate: tuple[int, ...] = ()):
        """`donate` are positions of arguments whose memory a run may reuse."""
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._ready: dict[Any, tuple[jax.stages.Compiled, set[Kind]]] = {}

    def trace(self, *args: Any) -> jax.stages.Traced:
        """As `jax.jit` has it."""
        return self._jitted.trace(*args)

    def __call__(self, kind: Kind, *args: Any) -> Any:
        """The function's result.

        Raises:
          ValueError: it takes more than a device has.
        """
        leaves, structure = jax.tree.flatten(args)
        types = structure, *((jax.typeof(x), getattr(x, "sharding", None)) for x in leaves)
        if types not in self._ready:
            self._ready[types] = self.trace(*args).lower().compile(), set()
        program, told = self._ready[types]
        if kind not in told:
            tell(kind, memory(program))
            told.add(kind)
        return program(*args)
