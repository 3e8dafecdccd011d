"""Devices as a mesh, rules for how arrays are split over it, and where a training step is jitted.

Mesh axes: "data" splits the batch, "fsdp" batch and parameters, "model" heads, hidden units and words.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from sleep_jax import trees
from sleep_jax.types import Array, Tree

AXES = ("data", "fsdp", "model")
BATCH = ("data", "fsdp")

# The first pattern found in a path decides; () keeps the whole array on every device. Optimiser moments end
# in the names of their parameters. A scalar (a step, an optimiser's counter) needs no rule: nothing to split.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"_VD$", ("model", "fsdp")),
    (r"_DV$", ("fsdp", "model")),
    (r"\b(q_NDHK|[kv]_NDJK)$", (None, "fsdp", "model", None)),
    (r"\bo_NHKD$", (None, "model", None, "fsdp")),
    (r"\b[qkv]_bias_N[HJ]K$", (None, "model", None)),
    (r"\b(gate|up)_NDF$", (None, "fsdp", "model")),
    (r"\bdown_NFD$", (None, "model", "fsdp")),
    (r"scale[^/]*$", ()),
    (r"\ba_NLEDR$", (None, None, None, "fsdp", None)),
    (r"\bb_NLERD$", (None, None, None, None, "fsdp")),
    (r"\b(w|pool)_NLDE$", (None, None, "fsdp", None)),
    (r"\ba_NDR$", (None, "fsdp", None)),
    (r"\bb_NRD$", (None, None, "fsdp")),
    (r"\b(w|pool)_ND$", (None, "fsdp")),
    (r"\b(bias_NLE|bias_N|active_LE|\w+_L)$", ()),
    (r"_(a_NIR|b_NRO)$", ()),
)

Step = Callable[..., tuple[Tree, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis takes; -1 is what the others leave.

    Attributes:
      data: copies of the parameters.
      fsdp: parts of every parameter that are gathered when used.
      model: parts of every layer that compute at the same time.
      mode: "jit" lets the compiler insert the communication; "map" runs the step per device and sums
        explicitly (what `jax.pmap` does), with all parameters on every device.

    Raises:
      ValueError: a size that is neither positive nor -1, two of -1, an unknown mode, or parameters to split
        in mode "map".
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    mode: str = "jit"

    def __post_init__(self):
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(
                    f"config.mesh.{axis}={size} must be a positive number of devices, or -1 for the rest"
                )
        rest = [f"config.mesh.{axis}" for axis, size in sizes.items() if size == -1]
        if len(rest) > 1:
            raise ValueError(
                f"{' and '.join(rest)} are both -1, but only one axis can take the rest of the devices"
            )
        if self.mode not in ("jit", "map"):
            raise ValueError(f'config.mesh.mode="{self.mode}" must be "jit" or "map"')
        if self.mode == "map" and (self.fsdp, self.model) != (1, 1):
            raise ValueError(
                'config.mesh.mode="map" keeps all parameters on every device, but '
                f"config.mesh.fsdp={self.fsdp} and config.mesh.model={self.model} split them: "
                'set both to 1, or config.mesh.mode="jit"'
            )


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of all devices with axes ("data", "fsdp", "model").

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    filled = [size if size != -1 else max(len(devices) // known, 1) for size in sizes]
    if math.prod(filled) != len(devices):
        asked = " * ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        need = f"a multiple of {known}" if -1 in sizes else f"{known}"
        raise ValueError(
            f"{asked} needs {need} devices, but there are {len(devices)}: change one to fit the other"
        )
    return jax.make_mesh(tuple(filled), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """How the array of this path is split, by the first of `RULES` that its path matches.

    Args:
      path: path of the array, a key of `trees.named`.
      shape: its shape.
      sizes: number of devices on each mesh axis.

    Raises:
      ValueError: no rule, a rule for another rank, or a dimension that its mesh axis does not divide.
    """
    if not shape:
        return P()
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), None)
    if axes is None:
        raise ValueError(
            f"no rule of partition.RULES says how to split {path} {list(shape)}: add one, () to copy it"
        )
    if axes and len(axes) != len(shape):
        raise ValueError(
            f"the rule {axes} of partition.RULES for {path} does not have the rank of {list(shape)}"
        )
    for i, axis in enumerate(axes):
        if axis is not None and shape[i] % sizes[axis]:
            of_words = path.rpartition("_")[2][i] == "V"
            size = "the tokenizer's size (vocab_size)" if of_words else "the size in config.model"
            raise ValueError(
                f"{path} {list(shape)}: dimension {i} of size {shape[i]} does not divide over "
                f'{sizes[axis]} devices of mesh axis "{axis}": change config.mesh.{axis}={sizes[axis]} '
                f"or {size} so that one divides the other"
            )
    return P(*axes)


class Partitioner:
    """Places arrays on a mesh and compiles training steps for it.

    With a single device everything is plain: no mesh, `jax.jit` alone.

    Attributes:
      config: the `MeshConfig`.
      mesh: the mesh of all devices.
    """

    def __init__(self, config: MeshConfig, devices: Sequence[jax.Device] | None = None):
        """Builds the mesh over `devices` (default: all of this program); raises as `make_mesh`."""
        self.config = config
        self.mesh = make_mesh(config, jax.devices() if devices is None else devices)

    def shardings(self, tree: Tree) -> Tree:
        """The sharding of every array of a tree of parameters, memory or state; raises as `spec`."""
        if self.mesh.size == 1:
            one = SingleDeviceSharding(self.mesh.devices.item())
            return jax.tree.map(lambda _: one, tree)
        if self.config.mode == "map":
            return jax.tree.map(lambda _: NamedSharding(self.mesh, P()), tree)
        sizes = dict(self.mesh.shape)
        specs = [spec(path, x.shape, sizes) for path, x in trees.named(tree).items()]
        return jax.tree.unflatten(jax.tree.structure(tree), [NamedSharding(self.mesh, s) for s in specs])

    def abstract(self, tree: Tree) -> Tree:
        """Shapes, dtypes and shardings alone: the target to restore a checkpoint into."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, self.shardings(tree)
        )

    def placed(self, tree: Tree) -> Tree:
        """Parameters, memory or state placed by the rules; what lies there already is not copied."""
        return jax.device_put(tree, self.shardings(tree))

    def made(self, init: Callable[[Array], Tree], key: Array) -> Tree:
        """`init(key)`, parameters or memory, every part made where the rules place it: never whole."""
        if self.mesh.size == 1:
            return self.placed(init(key))
        return jax.jit(init, out_shardings=self.shardings(jax.eval_shape(init, key)))(key)

    def put(self, tree: Tree) -> Tree:
        """Places a copy of parameters, memory or state by the rules; donating it leaves `tree` usable."""
        return self.placed(jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree))

    def check_rows(self, batches: dict[str, int]) -> None:
        """Makes sure that batches of so many rows, by the keys that say so, divide over the devices.

        Raises:
          ValueError: those that do not, with their keys and the mesh's.
        """
        split = _split(self.mesh)
        if wrong := [f"{key} = {rows}" for key, rows in batches.items() if rows % split]:
            asked = " * ".join(f"config.mesh.{axis}={self.mesh.shape[axis]}" for axis in BATCH)
            raise ValueError(
                f"{', '.join(wrong)} rows do not divide over {asked} = {split} devices: make them multiples "
                f"of {split}, or change config.mesh"
            )

    def put_batch(self, batch: Tree) -> Tree:
        """Places a batch, its rows split over the mesh axes "data" and "fsdp".

        Args:
          batch: arrays of the host, the leading axis being this process's share of the rows.

        Raises:
          ValueError: the rows of all processes do not divide over the devices.
        """
        if self.mesh.size == 1:
            return jax.device_put(batch, self.mesh.devices.item())
        split = math.prod(self.mesh.shape[axis] for axis in BATCH)
        for path, x in trees.named(batch).items():
            rows = np.shape(x)[0] * jax.process_count()
            if rows % split:
                asked = " * ".join(f"config.mesh.{axis}={self.mesh.shape[axis]}" for axis in BATCH)
                raise ValueError(
                    f"a batch of {rows} rows ({path} {list(np.shape(x))} from each of {jax.process_count()} "
                    f"processes) does not divide over {asked} = {split} devices: make the batch size a "
                    f"multiple of {split}, or change config.mesh"
                )
        sharding = NamedSharding(self.mesh, P(BATCH))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def compile(
        self, step: Step, donate: tuple[int, ...] = (0,)
    ) -> Callable[..., tuple[Tree, dict[str, Any]]]:
        """Compiles `step(state, frozen, batch, key, *, reduce) -> (state, metrics)` for the mesh.

        The step is pure. It passes every sum over rows (gradients of a total, `Mean`s, counts) through
        `reduce` before using it, and does not differentiate through `reduce`. That is the sum over devices in
        mode "map", where a step sees its own rows only, and the identity otherwise, so that all modes give
        the same numbers. Randomness of a row has to travel in the batch (`rng.per_row`): `key` is the same on
        every device.

        Args:
          step: the step.
          donate: positions of arguments whose memory the step may reuse.

        Returns:
          `run(state, frozen, batch, key) -> (state, metrics)`, with `run.trace` as `jax.jit` has it. The
          state comes back placed as `put` places it, the metrics on every device.

        Raises:
          ValueError: at the first call, for a state without rules or a mapped step that never reduces.
        """
        if self.mesh.size == 1:
            return jax.jit(functools.partial(step, reduce=_nothing), donate_argnums=donate)
        run = self._mapped(step) if self.config.mode == "map" else self._global(step)
        return _OnMesh(jax.jit(run, donate_argnums=donate), self.mesh)

    def _global(self, step: Step) -> Step:
        def run(state: Tree, frozen: Tree, batch: Tree, key: Array):
            state, metrics = step(state, frozen, batch, key, reduce=_nothing)
            copies = jax.tree.map(lambda _: NamedSharding(self.mesh, P()), metrics)
            return jax.lax.with_sharding_constraint((state, metrics), (self.shardings(state), copies))

        return run

    def _mapped(self, step: Step) -> Step:
        def run(state: Tree, frozen: Tree, batch: Tree, key: Array):
            reduced = []

            def reduce(tree: Tree) -> Tree:
                reduced.append(True)
                return jax.lax.psum(tree, BATCH)

            result = step(state, frozen, batch, key, reduce=reduce)
            if not reduced:
                raise ValueError('config.mesh.mode="map" needs a step that sums over devices with `reduce`')
            return result

        # With check_vma, jax.grad would sum over devices by itself, and `reduce` then once more.
        return jax.shard_map(
            run, mesh=self.mesh, in_specs=(P(), P(), P(BATCH), P()), out_specs=(P(), P()), check_vma=False
        )


def put_rows(rows: Tree, like: Tree) -> Tree:
    """Places rows that every process holds whole where `like` lies, split over its mesh as a batch is.

    What is sampled or scored row by row is then computed once, not on every device. Rows that do not divide
    are left as they are, and computed everywhere.
    """
    mesh = _mesh(like)
    if mesh is None or any(len(x) % _split(mesh) for x in jax.tree.leaves(rows)):
        return rows
    sharding = NamedSharding(mesh, P(BATCH))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), rows)


def row_split(like: Tree) -> int:
    """Into how many parts `put_rows` splits rows for what `like` lies on; 1 on a single device."""
    mesh = _mesh(like)
    return _split(mesh) if mesh else 1


def _split(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def fetch(tree: Tree) -> Tree:
    """Numpy arrays of a tree, whole on every process."""

    def whole(x: Array | np.ndarray) -> np.ndarray:
        apart = isinstance(x, jax.Array) and not x.is_fully_addressable
        return multihost_utils.process_allgather(x, tiled=True) if apart else np.asarray(x)

    return jax.tree.map(whole, tree)


def _mesh(tree: Tree) -> Mesh | None:
    """The mesh that a tree lies on; None on a single device."""
    shardings = (getattr(x, "sharding", None) for x in jax.tree.leaves(tree))
    return next((s.mesh for s in shardings if isinstance(s, NamedSharding) and s.mesh.size > 1), None)


class _OnMesh:
    """A jitted function that is traced and run with the mesh set."""

    def __init__(self, jitted: Any, mesh: Mesh):
        self._jitted, self._mesh = jitted, mesh

    def __call__(self, *args):
        with jax.set_mesh(self._mesh):
            return self._jitted(*args)

    def trace(self, *args):
        with jax.set_mesh(self._mesh):
            return self._jitted.trace(*args)


def _nothing(tree: Tree) -> Tree:
    return tree
