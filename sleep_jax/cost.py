"""What a program costs, known before it runs: its FLOPs from its text, its memory from the compiler."""

import math
import os
import pathlib
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


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
      device, loops taken once, "bytes": {"argument", "output", "alias", "temp"} of one, where what is handed
      out in the place of an argument is alias and not taken twice}.
    """
    traced = run.trace(*args)
    program = traced.lower().compile()
    memory = program.memory_analysis()
    sizes = {k: getattr(memory, f"{k}_size_in_bytes") for k in ("argument", "output", "alias", "temp")}
    analysis = program.cost_analysis() or {}
    counted = {"flops": flops(traced, trips), "xla_flops": float(analysis.get("flops", 0.0))}
    return program, {**counted, "bytes": sizes}


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


def check(name: str, sizes: dict[str, int]) -> str:
    """What a step takes of a device, for a person.

    Raises:
      ValueError: it takes more than there is; names the keys that lower it.
    """
    take, have = needed(sizes), room()
    told = f"{name}: a step takes {_size(take)} of the {_size(have)} of each device"
    if take <= have:
        return told
    kept, working = (_size(sizes[k]) for k in ("argument", "temp"))
    raise ValueError(
        f"{told}: {kept} for parameters, state and batch, {working} while it runs. It cannot run. For the "
        "latter raise micro_batches, set model.remat=True and model.logit_chunk=64, or lower row_length and "
        "the phase's batch_rows; for the former spread the model over more devices (mesh.fsdp, mesh.model) "
        "or set model.param_dtype=bfloat16"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
