"""Eight CPU devices for every test, so that sharded code meets a real mesh; must run before jax starts.

Freed memory is kept, as `launch.main` does. Programs, those of processes that tests start among them, are
compiled with as little thought as XLA can be brought to: they run for milliseconds and took far longer.
"""

import importlib.metadata
import os

# Devices that are threads wait for each other; XLA would abort where other jobs keep the cores for 40 s.
FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones end at flags that they do not know
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # the older emitters compile in a quarter of the time
for flag, value in FLAGS.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from launch import heap  # noqa: E402

heap.keep()

import dataclasses  # noqa: E402
import functools  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

EOS = 2


@pytest.fixture(scope="session")
def tiny():
    """`tiny(**settings) -> Model`: settings of model and memory together; the same give the same model."""
    from sleep_jax.model.build import build
    from sleep_jax.model.config import MemoryConfig, ModelConfig

    model_keys = {f.name for f in dataclasses.fields(ModelConfig)}
    small = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 4, "ff": 24}
    small |= {"max_len": 32, "periods": (16,), "slow_levels": 2, "slots": 3, "rank": 4}

    @functools.cache
    def make(**settings):
        parts = ({}, {})
        for key, value in (small | settings).items():
            parts[key not in model_keys][key] = value
        return build(ModelConfig(**parts[0]), MemoryConfig(**parts[1]), eos=EOS)

    return make


@pytest.fixture(scope="session")
def scatter():
    """`scatter(shapes, seed) -> tree`: normal numbers in place of a tree's arrays, norm scales around 1."""

    def fill(shapes, seed, size=0.3):
        rng = np.random.default_rng(seed)

        def leaf(path, x):
            if x.dtype == bool:
                return np.zeros(x.shape, bool)
            about = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
            return (about + size * rng.normal(size=x.shape)).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return fill


@pytest.fixture(scope="session")
def grown(scatter):
    """`grown(model) -> (params, memory)`: nothing is zero but the mask of open slots."""

    @functools.cache
    def make(model, seed=0):
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = scatter(jax.eval_shape(model.init, key), seed)
        memory = scatter(jax.eval_shape(model.init_memory, key), seed + 1)
        return jax.device_put((params, memory))

    return make


@pytest.fixture(scope="session")
def compiled(request):
    """A directory of compiled programs that outlives the session."""
    return request.config.cache.mkdir("xla")


@pytest.fixture(scope="session")
def born(tmp_path_factory, compiled):
    """A small birth, for `config.birth.checkpoint`."""
    import lives

    from sleep_jax import life
    from sleep_jax.data import stream

    path = tmp_path_factory.mktemp("born") / "birth"
    config = lives.config(checkpoint_every=1000)
    with lives.quick(compiled):
        life.birth(config, config.seed, path, stream.load(config.stream))
    return path


@pytest.fixture(scope="session")
def lived(tmp_path_factory, compiled, born):
    """The work directory of two days and nights without incident."""
    import lives

    from sleep_jax import life

    path = tmp_path_factory.mktemp("lived") / "life"
    with lives.quick(compiled):
        life.run(lives.config(birth={"checkpoint": str(born)}), str(path))
    return path


@pytest.fixture(scope="session")
def begun(lived):
    """`begun(workdir, *boundaries)`: the life of `lived` once more, as it was at the last of these."""
    import lives

    return functools.partial(lives.copy, lived)
