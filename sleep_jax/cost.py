"""What a program costs, known before it runs: its FLOPs from its text, its memory from the compiler."""

import math
from typing import Any

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
      device, loops taken once, "bytes": {"argument", "output", "temp"} of one}.
    """
    traced = run.trace(*args)
    program = traced.lower().compile()
    memory = program.memory_analysis()
    sizes = {k: getattr(memory, f"{k}_size_in_bytes") for k in ("argument", "output", "temp")}
    analysis = program.cost_analysis() or {}
    counted = {"flops": flops(traced, trips), "xla_flops": float(analysis.get("flops", 0.0))}
    return program, {**counted, "bytes": sizes}
