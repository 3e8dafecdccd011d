"""A life as it stands in its directory, at the last boundary that it has reached; needs no data."""

import dataclasses
import json
import pathlib

import jax

from sleep_jax import checkpoint, methods, settings
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model.build import build
from sleep_jax.partition import MeshConfig, Partitioner
from sleep_jax.phases import State
from sleep_jax.settings import Config
from sleep_jax.types import Model


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a life is.

    Attributes:
      root: the directory that its config.json is in.
      workdir: its own, with its phases/.
      boundary: name of the last.
      meta: what stands beside the arrays there.
      config, tok, model: what it is made of.
    """

    root: pathlib.Path
    workdir: pathlib.Path
    boundary: str
    meta: dict
    config: Config
    tok: Tokenizer
    model: Model

    def state(self, boundary: str = "") -> State:
        """The state at a boundary, by default the last.

        It lies on one device, or is spread as in its life where parameters were split and as many are here.

        Raises:
          CheckpointError: it cannot be read, or is of another architecture than config.json says.
        """
        key = jax.random.key(0)
        like, (method, *_) = State(jax.eval_shape(self.model.init, key), None), self.meta["of"]["method"]
        if method != "birth":  # which has no memory yet
            like.memory = jax.eval_shape(self.model.init_memory, key)
        if method in methods.METHODS:
            like.extra = methods.get(method).extra_like(like.params)
        name = boundary or self.boundary
        arrays, meta = checkpoint.load_boundary(self.workdir, name, self._place().abstract(like.arrays()))
        return State.restore(arrays, meta["state"])

    def _place(self) -> Partitioner:
        mesh = self.config.mesh
        if (mesh.fsdp, mesh.model) != (1, 1):
            try:
                return Partitioner(mesh)
            except ValueError as error:
                print(f"on one device: {error}", flush=True)
        return Partitioner(MeshConfig(), jax.devices()[:1])


def read(workdir: str | pathlib.Path) -> Standing:
    """The life in `workdir`, the directory that holds its phases/.

    Raises:
      ValueError: it is not that of a life, or holds several.
      FileNotFoundError: what the life was made of is gone.
    """
    workdir = pathlib.Path(workdir)
    names = checkpoint.boundaries(workdir)
    if not names:
        raise ValueError(_no_life(workdir))
    root = next((p for p in (workdir, *workdir.absolute().parents[:2]) if (p / "config.json").exists()), None)
    if root is None:
        raise ValueError(f"there is no config.json in {workdir} or the two directories above it")
    config = settings.load(json.loads((root / "config.json").read_text()))
    births = [pathlib.Path(config.birth.checkpoint)] if config.birth.checkpoint else []
    births += [p / "birth" for p in (workdir, workdir.absolute().parent)]
    birth = next((p for p in births if (p / "tokenizer.json").exists()), births[0])
    tok = Tokenizer.load(birth / "tokenizer.json")
    return Standing(
        root=root,
        workdir=workdir,
        boundary=names[-1],
        meta=checkpoint.metas(workdir)[len(names) - 1],  # boundaries come first, rolling checkpoints after
        config=config,
        tok=tok,
        model=build(config.model.holding(tok.vocab_size), config.memory, eos=tok.eos),
    )


def _no_life(workdir: pathlib.Path) -> str:
    below = sorted(
        str(path.parent)
        for depth in ("*/phases", "*/*/phases")
        for path in workdir.glob(depth)
        if path.parent.name != "birth"
    )
    if below:
        return f"--workdir={workdir} holds several lives: name one of {', '.join(below)}"
    return f"--workdir={workdir} holds no life: it must be a directory that launch.main has written"
