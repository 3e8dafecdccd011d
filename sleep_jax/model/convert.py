"""Parameters of checkpoints as transformers saves them: their tensors to ours and back."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from sleep_jax import trees
from sleep_jax.tensorfile import some
from sleep_jax.types import Array, Tree

_LAYER = "model.layers.{n}."
_ATTN, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."
# Our path to the name of theirs and its axes, in our letters: "HK" is one axis, of heads times head size.
# {n} counts layers, which are one array here and one each there. Both directions are read off this table.
TENSORS = {
    "embed_VD": ("model.embed_tokens.weight", "V D"),
    "head_DV": ("lm_head.weight", "V D"),
    "final_norm/scale": ("model.norm.weight", "D"),
    "blocks/attn_norm/scale": (_LAYER + "input_layernorm.weight", "D"),
    "blocks/mlp_norm/scale": (_LAYER + "post_attention_layernorm.weight", "D"),
    "blocks/attn/q_NDHK": (_ATTN + "q_proj.weight", "HK D"),
    "blocks/attn/k_NDJK": (_ATTN + "k_proj.weight", "JK D"),
    "blocks/attn/v_NDJK": (_ATTN + "v_proj.weight", "JK D"),
    "blocks/attn/o_NHKD": (_ATTN + "o_proj.weight", "D HK"),
    "blocks/attn/q_bias_NHK": (_ATTN + "q_proj.bias", "HK"),
    "blocks/attn/k_bias_NJK": (_ATTN + "k_proj.bias", "JK"),
    "blocks/attn/v_bias_NJK": (_ATTN + "v_proj.bias", "JK"),
    "blocks/attn/q_norm/scale": (_ATTN + "q_norm.weight", "K"),
    "blocks/attn/k_norm/scale": (_ATTN + "k_norm.weight", "K"),
    "blocks/mlp/gate_NDF": (_MLP + "gate_proj.weight", "F D"),
    "blocks/mlp/up_NDF": (_MLP + "up_proj.weight", "F D"),
    "blocks/mlp/down_NFD": (_MLP + "down_proj.weight", "D F"),
}
# Where what they add is normed too, `post_attention` is that norm.
POST_NORMS = {
    "blocks/attn_post_norm/scale": (_LAYER + "post_attention_layernorm.weight", "D"),
    "blocks/mlp_norm/scale": (_LAYER + "pre_feedforward_layernorm.weight", "D"),
    "blocks/mlp_post_norm/scale": (_LAYER + "post_feedforward_layernorm.weight", "D"),
}
NO_LOGIT = re.compile(r"(.*\.)?rotary_emb\.inv_freq")  # computed anew, as transformers does


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one of our arrays stands in a checkpoint.

    Attributes:
      names: of its tensors, one per layer or the only one.
      stacked: whether layers are one array here.
      shape: of each tensor there.
      split: the same with every axis of ours apart.
      order: of our axes in theirs.
    """

    names: list[str]
    stacked: bool
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of theirs in our axes, without a copy."""
        return tensor.reshape(self.split).transpose(np.argsort(self.order))

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours in their axes."""
        return array.transpose(self.order).reshape(self.shape)


def _places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, _Place]:
    """Where each of our arrays stands, by its path."""
    table = TENSORS | POST_NORMS if POST_NORMS.keys() <= shapes.keys() else TENSORS
    return {path: _place(path, shape, *table[path]) for path, shape in shapes.items()}


def _place(path: str, shape: tuple[int, ...], name: str, groups: str) -> _Place:
    stacked = "{n}" in name
    letters = groups if path.endswith("/scale") else path.rpartition("_")[2].removeprefix("N")
    size = dict(zip(letters, shape[stacked:], strict=True))
    joined = groups.replace(" ", "")
    return _Place(
        names=[name.format(n=n) for n in range(shape[0])] if stacked else [name],
        stacked=stacked,
        shape=tuple(math.prod(size[a] for a in group) for group in groups.split()),
        split=tuple(size[a] for a in joined),
        order=tuple(letters.index(a) for a in joined),
    )


def load(tensors: Mapping[str, np.ndarray], like: Tree, rows: int, where: str = "the checkpoint") -> Tree:
    """Our parameters from tensors of theirs, array by array and part by part of the mesh.

    The host holds one array at a time, of which every device gets its part; views of files take none.

    Args:
      tensors: by their names; views of files (`tensorfile.read`), or arrays.
      like: our parameters as shapes, dtypes and shardings (`Partitioner.abstract`).
      rows: V of the checkpoint. Where ours is larger, the words that it lacks start as any of its own might
        (`_new_words`). No other logit changes.
      where: name of the checkpoint, for messages.

    Returns:
      The tree of `like`, placed as it says.

    Raises:
      ValueError: a tensor that is missing, of another shape than config.json makes it, or that has no place.
    """
    table = trees.named(like)
    places = _places({path: _shape_there(path, x.shape, rows) for path, x in table.items()})
    wanted = {name: place.shape for place in places.values() for name in place.names}
    _check(tensors, wanted, "head_DV" not in table, where)

    def leaf(path: str, x: jax.ShapeDtypeStruct) -> Array:
        place = places[path]
        words = path.rpartition("_")[2].find("V")

        def part(index: tuple[slice, ...]) -> np.ndarray:
            if place.stacked:
                layers = place.names[index[0]]
                out = np.empty((len(layers), *(len(range(n)[i]) for n, i in _zip(x.shape, index))), x.dtype)
                for n, name in enumerate(layers):
                    out[n] = place.ours(tensors[name])[index[1:]]
                return out
            whole = place.ours(tensors[place.names[0]])
            found = whole[index].astype(x.dtype)
            if words < 0 or (here := range(x.shape[words])[index[words]]).stop <= rows:
                return found
            new = _new_words(np.moveaxis(whole, words, 0), x.shape[words] - rows, index[1 - words])
            new = new[max(here.start - rows, 0) : here.stop - rows]
            return np.concatenate([found, np.moveaxis(new, 0, words).astype(x.dtype)], words)

        return jax.make_array_from_callback(x.shape, x.sharding, part)

    return jax.tree.unflatten(jax.tree.structure(like), [leaf(path, x) for path, x in table.items()])


def _new_words(table_VD: np.ndarray, count: int, columns: slice) -> np.ndarray:
    """Some columns of `count` words that a checkpoint lacks, the same in every run and on every mesh.

    They are drawn with the mean and the standard deviation of each column, over some 4096 words: a large
    table is never copied for it. As the mean itself all of them would be one word: nothing that reads or
    answers could tell <ans> from <say>, and a model whose backbone is frozen never would.
    """
    had = table_VD[:: max(len(table_VD) // 4096, 1), columns]
    drawn = np.random.default_rng(0).normal(size=(count, table_VD.shape[1]))[:, columns]
    return had.mean(0, dtype=np.float32) + had.std(0, dtype=np.float32) * drawn


def _zip(shape: tuple[int, ...], index: tuple[slice, ...]):
    """Sizes and slices of the axes behind the layers."""
    return zip(shape[1:], index[1:], strict=True)


def _shape_there(path: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    letters = path.rpartition("_")[2]
    return tuple(rows if "V" in letters and letters[i] == "V" else n for i, n in enumerate(shape))


def _check(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], tied: bool, where: str
) -> None:
    """Holds the tensors of a checkpoint to what its config.json makes of them."""
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(
            f"{where} lacks {len(missing)} of {len(wanted)} tensors that its config.json asks for: "
            f"{some(missing)}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{where}: {name} has the shape {list(tensors[name].shape)}, its config.json makes it "
                f"{list(shape)}: they are not of one checkpoint"
            )
    spare = [name for name in tensors if name not in wanted and not NO_LOGIT.fullmatch(name)]
    if tied and "lm_head.weight" in spare:  # written though it is the embedding
        same = np.array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
        spare = [name for name in spare if not (name == "lm_head.weight" and same)]
    if spare:
        raise ValueError(
            f"{where} holds {len(spare)} tensors that its config.json has no place for: {some(spare)}"
        )


def tensors_of(params: Tree) -> tuple[dict[str, tuple[tuple[int, ...], str]], Callable[[str], np.ndarray]]:
    """Our parameters as tensors of theirs; the inverse of `load`.

    Returns:
      Shape and dtype of every tensor by its name, and a function that gives the tensor of a name.
    """
    table = trees.named(params)
    places = _places({path: x.shape for path, x in table.items()})
    at = {name: (path, n) for path, place in places.items() for n, name in enumerate(place.names)}
    shapes = {name: (places[path].shape, str(table[path].dtype)) for name, (path, _) in at.items()}

    def get(name: str) -> np.ndarray:
        path, n = at[name]
        array = table[path][n] if places[path].stacked else table[path]
        return places[path].theirs(np.asarray(array))

    return shapes, get
