"""What the studies of stage 2 share: several arms from one learner, each in a directory of its own."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from sleep_jax import checkpoint, life, methods, report
from sleep_jax.fit import World
from sleep_jax.phases import State
from sleep_jax.settings import Config, as_json
from sleep_jax.sleep import rem
from sleep_jax.sleep.dream import DreamConfig, Sleeper, Task
from sleep_jax.types import Array, Tree


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to take in what a study gives: a passage, or the demonstrations of a puzzle.

    Attributes:
      read: learn anything at all; False asks the learner as it is.
      dream: learn from what is dreamt of it; False from the passage alone, or by the regimen
        `puzzles.regimen`.
      learn: dreams of a dreamer that has learnt by ReST-EM; False are dreams of the learner as it is.
      select: dreams are tried that rank by their gradients; False are as many drawn at random.
      ground: lines of dreams that are not grounded are struck, where `rem.common` says so.
      random_expert: whether each router opens one random expert more while it dreams; None is as
        `rem.random_expert` says. Before the first night there is none to open.
      keep: Knowledge Seeding into a fresh slot: of passages, or of what solved the puzzles that dreaming was
        learnt on, before others come. False leaves adapters, added to the weights where more is learnt after.
    """

    read: bool = True
    dream: bool = True
    learn: bool = True
    select: bool = True
    ground: bool = True
    random_expert: bool | None = None
    keep: bool = True


def compare(
    config: Config,
    workdir: str,
    arms: Mapping[str, Arm],
    parts: Sequence[str],
    live: Callable[[World, Arm, State], None],
    show: Callable[[pathlib.Path, list[dict]], None],
) -> list[dict]:
    """Every (seed, arm) that the configuration names; each part that is written is not done again.

    Directories are <workdir>[/seed<k>]/birth, /grown (the life before the study) and /<arm>.

    Args:
      arms: by name.
      parts: names of the JSON files that a finished arm has written.
      live: `live(world, arm, grown)` does all parts of an arm.
      show: `show(root, collected)` tables of what is done so far, after every arm.

    Returns:
      What every finished arm of the directory came to, as `collected` has it.

    Raises:
      ValueError: an unknown arm, or whatever the data or the directory make impossible.
    """
    names = [n.strip() for n in config.method.split(",") if n.strip()]
    if unknown := [n for n in names if n not in arms]:
        raise ValueError(f"config.method={config.method!r}: {unknown} are not arms of {', '.join(arms)}")
    root = pathlib.Path(workdir)
    config = life.sized(config, root)
    checkpoint.work_dir_config(root, as_json(config), ignore=life.FREE_KEYS)
    material = life.read(config, root)
    for seed in range(config.seed, config.seed + config.seeds):
        base = root / f"seed{seed}" if config.seeds > 1 else root
        newborn = life.birth(config, seed, base / "birth", material)
        _, grown = life.live(config, seed, base / "grown", material, newborn, "grown", methods.get("sleep"))
        for name in names:
            print(f"{name} · seed {seed}", flush=True)
            world = life.world_of(config, seed, base / name, material, newborn.tok, name)
            world.newborn = newborn.params
            checkpoint.sweep(world.workdir)
            try:
                live(world, arms[name], grown)
            except FloatingPointError as error:  # the other arms and seeds are not to blame
                print(f"{name} · seed {seed} ends here, without a row in the tables: {error}", flush=True)
            world.writer.close()
            show(root, collected(root, tuple(arms), parts))
            report.write(root)
    return collected(root, tuple(arms), parts)


def dreaming(arm: Arm, config: DreamConfig) -> DreamConfig:
    """How an arm dreams: without `arm.select` as many are tried, but any of them."""
    if not arm.select:
        config = dataclasses.replace(config, top=0, random=config.top + config.random)
    if not arm.ground:
        config = dataclasses.replace(config, common=0.0)
    if arm.random_expert is not None:
        config = dataclasses.replace(config, random_expert=arm.random_expert)
    return config


def taught(
    world: World, who: Sleeper, start: Tree, tasks: Sequence[Task], config: DreamConfig, key: Array
) -> tuple[Tree | None, list[rem.Round]]:
    """`rem.learn_to_dream`, every round on record as it ends: dreams/round-<n>.jsonl and rounds.json."""
    ended = rem.on_record(world, "round", "rounds", "dreaming")
    return rem.learn_to_dream(who, start, tasks, config, key, world.seed, ended)


def collected(root: pathlib.Path, arms: Sequence[str], parts: Sequence[str]) -> list[dict]:
    """What every arm below this directory came to that has all its parts, by arm and seed."""
    found = []
    for arm in arms:
        for folder in sorted([*root.glob(arm), *root.glob(f"seed*/{arm}")]):
            if all((folder / f"{part}.json").exists() for part in parts):
                rounds = folder / "rounds.json"
                told = {part: json.loads((folder / f"{part}.json").read_text()) for part in parts}
                told["rounds"] = json.loads(rounds.read_text()) if rounds.exists() else []
                found.append({"arm": arm, "seed": folder.parent.name} | told)
    return found
