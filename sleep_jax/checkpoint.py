"""Checkpoints of a life, atomic under a kill at any moment; the only file that imports orbax.

    <workdir>/config.json            the configuration the directory belongs to
    <workdir>/phases/<name>/         one per phase boundary, kept for ever: later nights distil from them
    <workdir>/ckpt/<phase>-<step>/   the latest two inside the running phase

A checkpoint is `arrays/` (orbax) and `meta.json` (plain JSON). Both are written into a hidden directory next
to the final one, which a single rename then makes visible: what has its final name is complete. The work
directory must therefore be on a POSIX file system, local or shared.
"""

import json
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sleep_jax import trees
from sleep_jax.types import Array, Tree

PathLike = str | os.PathLike
ROLLING = 2  # the older one stays loadable while the newer is written and proven
SHOWN = 5  # differing paths named in an error


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or used with this configuration."""


def save_boundary(workdir: PathLike, name: str, state: Tree, meta: dict[str, Any]) -> None:
    """Preserves the state at a phase boundary; returns when it is safely on disk.

    Args:
      workdir: the work directory.
      name: "<cycle>-<phase>", the directory's name under `phases/`.
      state: a pytree of arrays.
      meta: JSON values such as the data iterator's position and counters (tuples come back as lists).

    Raises:
      CheckpointError: the name is taken, `meta` is not JSON, or the disk refuses. Nothing earlier is touched.
    """
    final = _child(workdir, "phases", name)
    if final.exists():
        raise CheckpointError(
            f"boundary {final} exists already, and boundaries are never overwritten: continue from it, or "
            "choose another --workdir"
        )
    _write(final, state, {"name": name}, meta)


def load_boundary(workdir: PathLike, name: str, abstract: Tree) -> tuple[Tree, dict[str, Any]]:
    """The state and meta that `save_boundary` stored under this name.

    Args:
      workdir: the work directory.
      name: one of `boundaries(workdir)`.
      abstract: what the state must look like: its structure with shapes and dtypes (`jax.eval_shape`). A leaf
        that has a sharding is restored into it, any other onto the default device.

    Returns:
      state: bit for bit what was saved, in the structure of `abstract`.
      meta: the JSON values.

    Raises:
      CheckpointError: no such boundary, it does not fit `abstract`, or it cannot be read.
    """
    for path, record in _complete(_absolute(workdir) / "phases"):
        if path.name == name:
            return _read(path, record, abstract), record["meta"]
    found = ", ".join(boundaries(workdir)) or "none"
    raise CheckpointError(f'no boundary "{name}" in {_absolute(workdir) / "phases"}; there are: {found}')


def boundaries(workdir: PathLike) -> list[str]:
    """Names of the complete boundaries, in the order in which they were written."""
    return [path.name for path, _ in _complete(_absolute(workdir) / "phases")]


def save_rolling(workdir: PathLike, phase: str, step: int, state: Tree, meta: dict[str, Any]) -> None:
    """Stores the state inside a phase and drops all but the latest two of its checkpoints.

    Those of other phases stay: a night may pass through several, of which only the last is resumed for good.
    Arguments and errors are those of `save_boundary`; a checkpoint of the same phase and step is replaced.
    """
    step = int(step)
    _write(_child(workdir, "ckpt", f"{phase}-{step:09d}"), state, {"phase": phase, "step": step}, meta)
    mine = [path for path, record in _complete(_absolute(workdir) / "ckpt") if record["phase"] == phase]
    for path in mine[:-ROLLING]:
        _remove(path)


def load_rolling(workdir: PathLike, phase: str, abstract: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
    """The latest (step, state, meta) inside this phase, or None; `abstract` and errors as `load_boundary`."""
    for path, record in reversed(_complete(_absolute(workdir) / "ckpt")):
        if record["phase"] == phase:
            return record["step"], _read(path, record, abstract), record["meta"]
    return None


def clear_rolling(workdir: PathLike) -> None:
    """Drops every rolling checkpoint: called once the boundary that ends the phase is complete."""
    for path, _ in _complete(_absolute(workdir) / "ckpt"):
        _remove(path)


def metas(workdir: PathLike) -> list[dict[str, Any]]:
    """The meta of every complete checkpoint, boundaries and rolling ones, each in the order of writing."""
    return [r["meta"] for parent in ("phases", "ckpt") for _, r in _complete(_absolute(workdir) / parent)]


def sweep(workdir: PathLike) -> None:
    """Deletes what a killed process left half written or half deleted."""
    for parent in ("phases", "ckpt"):
        for path in (_absolute(workdir) / parent).glob(".*"):
            if path.suffix in (".half", ".gone"):
                _remove(path)


def work_dir_config(workdir: PathLike, config_json: str, ignore: tuple[str, ...] = ()) -> None:
    """Opens a work directory for one configuration: sweeps it, and writes or compares `config.json`.

    Where nothing has been lived yet, as after a command that was refused, the new configuration is taken.

    Args:
      workdir: the work directory; made if it is not there.
      config_json: the configuration as a JSON object.
      ignore: dotted keys, with everything below them, that may differ from what the directory was begun with.

    Raises:
      CheckpointError: the directory belongs to another configuration; every differing key with both values.
    """
    path = _absolute(workdir) / "config.json"
    sweep(workdir)
    marks = "meta.json", "tokenizer.json"  # of a checkpoint and of a birth
    if not (path.exists() and any(next(path.parent.rglob(mark), None) for mark in marks)):
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_name(".config.json.half")
            half.write_text(config_json)
            _sync(half)
            half.replace(path)
        return
    try:
        old = _flat(json.loads(path.read_text()))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): mend it or choose another --workdir") from error
    new = _flat(json.loads(config_json))
    differ = [
        f"  {key}: {old.get(key, 'absent')} in {path}, {new.get(key, 'absent')} now"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not any(f"{key}.".startswith(f"{k}.") for k in ignore)
    ]
    if differ:
        raise CheckpointError(
            "the work directory belongs to another configuration:\n" + "\n".join(differ) + "\n"
            "Choose another --workdir for this configuration, or set these keys back to continue here."
        )


def _flat(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key to JSON text, which unlike a number compares equal to itself when it is NaN."""
    if not (isinstance(config, dict) and config):
        return {prefix: json.dumps(config)}
    table = {}
    for key, value in config.items():
        table.update(_flat(value, f"{prefix}.{key}" if prefix else key))
    return table


def _absolute(workdir: PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute()


def _child(workdir: PathLike, parent: str, name: str) -> pathlib.Path:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise CheckpointError(f'"{name}" cannot name a checkpoint: letters, digits, "_", "-" and "." only')
    return _absolute(workdir) / parent / name


def _complete(parent: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Every complete checkpoint of a directory with its record, oldest first."""
    found = []
    for file in parent.glob("[!.]*/meta.json"):
        try:
            found.append((file.parent, json.loads(file.read_text())))
        except ValueError as error:
            raise CheckpointError(f"{file} is damaged ({error}): move {file.parent} away to go on") from error
    return sorted(found, key=lambda item: item[1]["order"])


def _sync(path: pathlib.Path) -> None:
    """Forces a file or a directory's entries to the disk: no power cut undoes what a rename promised."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: pathlib.Path) -> None:
    """Deletes a directory; hides it in one step first, so that half of it never looks complete."""
    if jax.process_index() == 0 and path.exists():
        if not path.name.startswith("."):
            path = path.rename(path.with_name(f".{path.name}.gone"))
        shutil.rmtree(path)


def _layout(tree: Tree) -> dict[str, str]:
    return {path: f"{x.dtype}{list(x.shape)}" for path, x in trees.named(tree).items()}


def _write(final: pathlib.Path, state: Tree, record: dict[str, Any], meta: dict[str, Any]) -> None:
    record = {**record, "meta": meta, "leaves": _layout(state)}
    try:
        json.dumps(record)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the meta of {final} is not JSON: {error}") from error
    needed = trees.nbytes(state)
    half = final.with_name(f".{final.name}.half")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove(half)
        # Orbax refuses arrays without elements; their shape in the record is all there is to them.
        ocp.save(half / "arrays", {path: x for path, x in trees.named(state).items() if x.size})
        if jax.process_index() == 0:
            order = 1 + max((r["order"] for _, r in _complete(final.parent)), default=-1)
            (half / "meta.json").write_text(json.dumps({"order": order, **record}, indent=1))
            for path in [*half.rglob("*"), half]:
                _sync(path)
            _remove(final)
            half.rename(final)
            _sync(final.parent)
        multihost_utils.sync_global_devices(f"checkpoint {final.name}")
    except Exception as error:
        shutil.rmtree(half, ignore_errors=True)
        disk = next(p for p in final.parents if p.exists())
        raise CheckpointError(
            f"could not write checkpoint {final}: {_brief(error)}. It needs up to {needed:,} bytes; "
            f"{shutil.disk_usage(disk).free:,} bytes are free there. Earlier checkpoints are intact. "
            "Make room, or move all to a larger disk and set --workdir; then run the command again."
        ) from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:400]}"


def _read(path: pathlib.Path, record: dict[str, Any], abstract: Tree) -> Tree:
    _check_fit(path, record["leaves"], _layout(abstract))
    wanted = trees.named(abstract)
    try:
        stored = ocp.load(path / "arrays", {k: _target(x) for k, x in wanted.items() if np.prod(x.shape)})
    except Exception as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {_brief(error)}. Move it away to continue from the one before."
        ) from error
    leaves = [_placed(stored.pop(k, None), x) for k, x in wanted.items()]  # never all of it twice
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _target(leaf: Any) -> Any:
    """What orbax shall restore: a sharded jax array where the leaf says how, else an array on the host."""
    if getattr(leaf, "sharding", None) is not None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _placed(value: Any, leaf: Any) -> Array:
    if value is None:
        value = jnp.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    return jnp.array(value, leaf.dtype) if sharding is None else jax.device_put(value, sharding)


def _check_fit(path: pathlib.Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    every = {**stored, **wanted}
    differ = [
        f"  {key}: {stored.get(key, 'nothing')} in the checkpoint, {wanted.get(key, 'nothing')} now"
        for key in every
        if stored.get(key) != wanted.get(key)
    ]
    if differ:
        rest = [f"  and {len(differ) - SHOWN} more"] if len(differ) > SHOWN else []
        raise CheckpointError(
            f"checkpoint {path} is of another architecture; {len(differ)} of {len(every)} arrays differ:\n"
            + "\n".join(differ[:SHOWN] + rest)
            + "\nSet model and memory (birth.optim, wake, sleep.optim or baseline.optim for the arrays of an "
            "optimiser) to what it was written with, which stands in config.json of its work directory, or "
            "choose another --workdir."
        )
