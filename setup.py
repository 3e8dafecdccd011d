"""Package metadata: installing puts `sleep_jax` alone into site-packages; the rest runs from a checkout."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "sleep_jax/__init__.py").read_text()).group(1)
TEST = ["pytest>=8", "pytest-xdist>=3.7", "rapidfuzz", "hypothesis", "scipy", "setuptools"]
# Another program that checkpoints are compared with (of torch the last release that this was done with); the
# tests that need it are skipped without.
TEST += ["jinja2", "safetensors", "torch<2.14", "transformers>=5"]
TFDS = ["tensorflow-datasets"]
HF = ["huggingface_hub", "jinja2"]  # checkpoints by name, and their chat templates

setuptools.setup(
    name="sleep_jax",
    version=VERSION,
    description="Continual learning for language models by wake and sleep, in JAX",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["sleep_jax", "sleep_jax.*"]),
    package_data={"sleep_jax": ["assets/**/*"]},
    install_requires=[
        "absl-py",
        "chex",
        # flax up to 0.12.8 breaks on jax 0.11.1 and later, and Python 3.11 ends with jax 0.10.
        'jax>=0.10,<0.11; python_version < "3.12"',
        'jax>=0.10; python_version >= "3.12"',
        "flax>=0.12.8",
        "grain>=0.2.12",
        "ml-collections>=1.0",
        "numpy",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "rich",
        "tensorboardX",
        "tokenizers",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "tfds": TFDS,
        "hf": HF,
        "bench": ["torch", "transformers", "peft", "trl", "datasets"],  # what it is compared with
        "test": TEST,
        "dev": [*TEST, "ruff"],
    },
)
