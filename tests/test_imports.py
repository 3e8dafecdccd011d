"""The arrows of the layout, read from the imports themselves."""

import ast
import graphlib
import pathlib
import re
import runpy
import sys

import pytest
import setuptools

ROOT = pathlib.Path(__file__).parent.parent

# A module imports from lines above its own only, or from its own folder on the same line. A new module must
# be placed here.
LAYERS = (
    ("types", "bounds", "figures"),
    ("trees", "rng", "cost", "tensorfile"),
    ("ops", "data"),
    ("model", "losses", "optim", "partition", "checkpoint", "metrics", "evals"),
    ("steps", "rollout", "terminal", "pretrained"),
    ("anchor", "wake", "sleep.selves", "sleep.recall", "sleep.consolidate", "sleep.imitate", "sleep.trials"),
    ("sleep.importance", "sleep.graders", "sleep.grounding"),
    ("sleep.dream",),
    ("sleep.puzzling",),
    ("settings",),  # the configurations of everything above, gathered
    ("fit", "notes"),
    ("phases", "sleep.seeding"),
    ("sleep.night",),
    ("sleep.rem",),
    ("methods",),
    ("charts", "runs", "studies.tables"),
    ("report_dreams", "report_answers"),
    ("report",),
    ("life", "saying"),
    ("studies", "standing"),
    ("forgetting", "exporting", "asking"),
)
OURS = "sleep_jax"


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for folder in (OURS, "launch", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(path, *, when_loaded=False):
    """Modules that a file imports; `when_loaded` leaves out imports inside functions."""
    tree = ast.parse(path.read_text())
    nodes = list(tree.body) if when_loaded else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively: say from where"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
    return found


def layer(module):
    """The line of LAYERS that a module of ours stands on, by its own name or its folder's."""
    name = module.removeprefix(f"{OURS}.")
    for i, names in enumerate(LAYERS):
        if any(name == n or name.startswith(f"{n}.") for n in names):
            return i
    return None


LIBRARY = [m for m in FILES if m.startswith(f"{OURS}.") and m != f"{OURS}.sleep"]


def test_there_is_something_to_hold():
    assert len(LIBRARY) > 40 and {f"{OURS}.ops.masked", f"{OURS}.life", "launch.main", "configs.base"} <= {
        *FILES
    }


def unit(module):
    """The folder of a module, or the module itself where it lies in none."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", LIBRARY)
def test_nothing_imports_upward(module):
    own = layer(module)
    assert own is not None, f"{module} has no place in LAYERS of tests/test_imports.py"
    for other in imports(FILES[module]):
        if other.startswith(f"{OURS}."):
            above = layer(other)
            beside = above == own and unit(other) == unit(module)
            assert above is not None, f"{module} imports {other}, which has no place in LAYERS"
            assert above < own or beside, f"{module} imports {other}, which does not stand above it"


def test_there_is_no_circle():
    graph = {m: {i for i in imports(path, when_loaded=True) if i in FILES} for m, path in FILES.items()}
    for module, others in graph.items():
        others -= {parent for parent in others if module.startswith(f"{parent}.")}
    graphlib.TopologicalSorter(graph).prepare()


def users(library):
    """Our files that import a library, as paths from the root."""
    return {
        str(path.relative_to(ROOT))
        for path in FILES.values()
        if any(i == library or i.startswith(f"{library}.") for i in imports(path))
    }


def test_only_the_model_imports_flax():
    folders = {pathlib.Path(f).parent.as_posix() for f in users("flax")}
    assert folders == {"sleep_jax/model"}


def test_only_one_file_imports_orbax():
    assert users("orbax") == {"sleep_jax/checkpoint.py"}


def test_what_holds_a_model_is_jitted_where_its_memory_is_looked_at():
    """By `cost.Program`, or as a training step; edit distances hold none."""

    def jits(path):
        nodes = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute))
        return any(n.attr == "jit" and getattr(n.value, "id", "") == "jax" for n in nodes)

    assert {m for m in LIBRARY if jits(FILES[m])} == {
        f"{OURS}.cost", f"{OURS}.partition", f"{OURS}.sleep.imitate"
    }  # fmt: skip


def test_data_knows_no_model_and_no_operation():
    for module, path in FILES.items():
        if module.startswith(f"{OURS}.data"):
            ours = {i for i in imports(path) if i.startswith(OURS)}
            known = {f"{OURS}.types", f"{OURS}.bounds"}
            assert all(i in known or i.startswith(f"{OURS}.data") for i in ours), (module, ours)


def test_operations_know_nothing_but_types_jax_and_its_assertions():
    for module, path in FILES.items():
        if module.startswith(f"{OURS}.ops"):
            roots = {
                i.split(".")[0] for i in imports(path) if not i.startswith((f"{OURS}.ops", f"{OURS}.types"))
            }
            known = {"collections", "functools", "math", "numbers", "numpy", "jax", "chex"}
            assert roots <= known, (module, roots)


def test_configs_import_nothing_but_ml_collections():
    for module, path in FILES.items():
        if module.startswith("configs."):
            assert {i.split(".")[0] for i in imports(path)} <= {"ml_collections", "configs"}, module


def test_the_library_knows_neither_configs_nor_launch():
    assert not {f for f in users("configs") | users("launch") if f.startswith(OURS)}


def test_the_library_never_sees_a_configdict():
    assert not {f for f in users("ml_collections") if f.startswith(OURS)}


def test_only_the_library_is_installed(monkeypatch):
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **fields: given.update(fields))
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, "setup.py", "exec"), {"__name__": "setup", "__file__": str(ROOT / "setup.py")})
    folders = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in (ROOT / OURS).rglob("*.py")}
    assert set(given["packages"]) == folders, "a folder without __init__.py is not installed, and no other is"


def test_every_library_that_is_imported_is_required(monkeypatch):
    """On a bare machine there is nothing but what setup.py names."""
    said = {}
    monkeypatch.setattr(setuptools, "setup", lambda **fields: said.update(fields))
    runpy.run_path(str(ROOT / "setup.py"))

    def names(requirements):
        bare = (re.split(r"[^\w-]", r)[0].replace("-", "_") for r in requirements)
        return {{"absl_py": "absl", "orbax_checkpoint": "orbax"}.get(name, name) for name in bare}

    def foreign(paths):
        roots = {i.split(".")[0] for path in paths for i in imports(path)}
        return roots - {*sys.stdlib_module_names, OURS, "launch", "configs"}

    run, extras = names(said["install_requires"]), said["extras_require"]
    assert foreign(FILES.values()) <= run | names(extras["tfds"] + extras["hf"] + extras["bench"])
    peers = {"launch/bench_dream.py", "launch/bench_peers.py"}
    assert users("torch") == users("peft") == users("transformers") == peers
    assert users("trl") == users("datasets") == {"launch/bench_peers.py"}
    tests = sorted((ROOT / "tests").rglob("*.py"))
    assert foreign(tests) - {path.stem for path in tests} <= run | names(extras["test"])
