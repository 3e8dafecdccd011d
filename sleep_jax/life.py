"""A life: birth, then days and nights over a stream of experiences, and what is told of it at the end."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from sleep_jax import (
    anchor,
    checkpoint,
    evals,
    losses,
    methods,
    metrics,
    notes,
    optim,
    phases,
    pretrained,
    report,
    rng,
    settings,
    steps,
    terminal,
)
from sleep_jax.data import encoding, stream
from sleep_jax.data.stream import Example, Experience
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.fit import Account, World, fit
from sleep_jax.methods import finetune
from sleep_jax.methods.base import Method
from sleep_jax.model import memory as memory_lib
from sleep_jax.model.build import build
from sleep_jax.ops import retention
from sleep_jax.partition import Partitioner
from sleep_jax.phases import State
from sleep_jax.settings import Config, as_json
from sleep_jax.sleep import imitate
from sleep_jax.sleep.selves import Slot
from sleep_jax.types import Array, Batch, Tree

BIRTH = "000-birth"
# Where and how a life is computed, not what it is: these may differ between two runs in one directory.
FREE_KEYS = ("data_dir", "stream.path", "method", "mesh", "model.remat", "model.unroll", "model.logit_chunk")


def run(config: Config, workdir: str) -> list[metrics.Summary]:
    """Lives every (seed, method) that the configuration names, each in a directory of its own, and reports.

    Directories are <workdir>, <workdir>/<method> where there are several methods, and
    <workdir>/seed<k>/<method> where there are several seeds. Births are made once per seed, in <...>/birth,
    and shared by the methods. The same command on the same directory resumes.

    Raises:
      ValueError, CheckpointError, FileNotFoundError, ImportError: what the configuration, the data or the
        directory make impossible, mostly before anything is lived (the same directory then takes the
        configuration that is put right); what a program takes of a device is known when it is compiled, and
        what a day is asked when its notes are taken.
    """
    names = [n.strip() for n in config.method.split(",") if n.strip()]
    chosen = {name: methods.get(name) for name in names}
    root = pathlib.Path(workdir)
    config = sized(config, root)
    checkpoint.work_dir_config(root, as_json(config), ignore=FREE_KEYS)
    material = read(config, root)
    summaries, nights = [], {}
    for seed in range(config.seed, config.seed + config.seeds):
        base = root / f"seed{seed}" if config.seeds > 1 else root
        newborn = birth(config, seed, base / "birth", material)
        noted = with_notes(config, seed, base / "notes", material, newborn)
        for name, method in chosen.items():
            workdir = base / name if len(chosen) > 1 or config.seeds > 1 else base
            summaries.append(live(config, seed, workdir, noted, newborn, name, method)[0])
            if slept := metrics.read_jsonl(workdir / "links.jsonl")[0]:
                nights[f"{name} · seed {seed}"] = slept
            report.write(root)
    terminal.closing_table(summaries, nights)
    print(f"report: {root / 'report.html'}")
    return summaries


def read(config: Config, root: pathlib.Path) -> stream.Stream:
    """What lives of a configuration read, as `phases.in_order_lived` has it; raises as `stream.load`."""
    material = stream.load(dataclasses.replace(config.stream, data_dir=config.data_dir))
    return phases.in_order_lived(root, material)


def sized(config: Config, root: pathlib.Path) -> Config:
    """The configuration with the sizes of its `model.checkpoint`, if it names one; raises as `pretrained`.

    Once there is a birth of it below `root` it is needed no more: where it is gone, its sizes are taken from
    what is written there.
    """
    if not config.model.checkpoint:
        return config
    try:
        model = pretrained.shape(config.model)
    except (FileNotFoundError, ImportError) as gone:
        births = [root / "birth", *root.glob("seed*/birth")]
        if config.birth.checkpoint:
            births.append(pathlib.Path(config.birth.checkpoint))
        born = any(BIRTH in checkpoint.boundaries(birth) for birth in births)
        if not (born and (root / "config.json").exists()):
            raise
        print(f"{gone}. What has been born of it is gone on from.", flush=True)
        written = settings.load(json.loads((root / "config.json").read_text())).model
        model = pretrained.with_own(written, config.model)
    return dataclasses.replace(config, model=model)


def with_notes(
    config: Config, seed: int, folder: pathlib.Path, material: stream.Stream, newborn: "Newborn"
) -> stream.Stream:
    """The stream with the notes that the newborn takes of its days, see `notes`; raises as it does."""
    model = build(config.model.holding(newborn.tok.vocab_size), config.memory, eos=newborn.tok.eos)
    who = notes.reader(model, newborn.tok, newborn.params, material.skills, config)
    material, said = notes.taken(who, folder, material, config, seed)
    for line in said:
        print(line, flush=True)
    return material


@dataclasses.dataclass
class Newborn:
    """What all lives of one seed start from.

    Attributes:
      anchor: rows of general text; None without any.
      untouched: their loss before birth, in nats per token; None without a checkpoint to begin with.
    """

    tok: Tokenizer
    params: Tree
    anchor: Batch | None = None
    untouched: float | None = None


def world_of(
    config: Config,
    seed: int,
    workdir: pathlib.Path,
    material: stream.Stream,
    tok: Tokenizer,
    name: str,
    read_only: bool = False,
) -> World:
    """What a life of a method in a directory lives in; with `read_only` nothing is logged."""
    of = {"method": [name], "seed": [str(seed)], "data": stream.told(material)}
    if not read_only:  # a birth that is given may have read other things
        phases.claim(workdir, of)
    return World(
        config=config,
        seed=seed,
        workdir=workdir,
        stream=material,
        tok=tok,
        model=build(config.model.holding(tok.vocab_size), config.memory, eos=tok.eos),
        partitioner=Partitioner(config.mesh),
        writer=None if read_only else metrics.MetricsWriter(workdir, phases.position(workdir)),
        account=Account(),
        of=of,
    )


def birth(config: Config, seed: int, workdir: pathlib.Path, material: stream.Stream) -> Newborn:
    """The model that has read the birth documents: trained here, or taken from `birth.checkpoint`.

    Training begins with random numbers or with `model.checkpoint`, which may have read nothing in our form
    of questions and answers: that is what the birth documents then teach it. With `birth.epochs` 0 it is
    taken as it is.

    Raises:
      FileNotFoundError: `birth.checkpoint` is not the birth of a life.
    """
    given = pathlib.Path(config.birth.checkpoint) if config.birth.checkpoint else None
    file = (given or workdir) / "tokenizer.json"
    if given and not (file.exists() and BIRTH in checkpoint.boundaries(given)):
        raise FileNotFoundError(
            f"birth.checkpoint={given} holds no tokenizer.json with phases/{BIRTH}: name the folder birth/ "
            "that launch.main wrote"
        )
    source = config.model.checkpoint
    if file.exists():
        tok = Tokenizer.load(file)
    elif source:
        tok = pretrained.tokenizer(source, config.tokenizer)
    elif config.tokenizer:
        tok = Tokenizer.load(config.tokenizer)
    else:
        tok = Tokenizer.train(encoding.texts((*material.birth.train, *material.skills)), config.vocab_size)
    world = world_of(config, seed, given or workdir, material, tok, "birth", read_only=given is not None)
    _fits(world)
    if not file.exists():
        tok.save(file)
    first = rng.stream(seed, "birth/init")
    like = State(jax.eval_shape(world.model.init, first), None)
    if given:
        return _born(world, phases.load(world, BIRTH, like).params)

    def train(state: State) -> State:
        place, key = world.partitioner, rng.stream(seed, "birth/anchor")
        if source:
            params = pretrained.params(source, place.abstract(like.params))
            _set_anchor(world, params, key, untouched=True)
        else:
            params = place.made(world.model.init, first)
        if not config.birth.epochs:
            return dataclasses.replace(state, params=params)
        shown = list(material.skills)
        if config.anchor.rehearsed:
            own = _own_texts(world, params, config.anchor.rehearsed, rng.fold(key, 1))
            shown += [Example("", text) for text in own]
        rows = finetune.pack(world, material.birth.train, shown, config.birth.prompt_weight)
        finetune.read(world, material.birth)
        count = max(len(rows.tokens_BT) * config.birth.epochs // config.birth.batch_rows, 1)
        batches = finetune.batches(world, rows, config.birth.batch_rows, seed, config.birth.blanks)
        optimizer = optim.make(config.birth.optim, count)
        step = steps.make(losses.supervised(world.model), optimizer, config.micro_batches)
        trained, _ = fit(world, BIRTH, 0, step, steps.init(optimizer, params), None, batches, count)
        if not source:
            _set_anchor(world, trained.params, key, untouched=False)
        return dataclasses.replace(state, params=trained.params)

    checkpoint.sweep(workdir)
    state = phases.phase(world, BIRTH, like, train)
    world.writer.close()
    return _born(world, state.params)


def _own_texts(world: World, params: Tree, count: int, key: Array) -> list[str]:
    """What a model says of itself, each text no longer than a row."""
    c = world.config
    return anchor.said(world.model, world.tok, params, count, c.row_length, key, c.eval_batch // 4)


def _set_anchor(world: World, params: Tree, key: Array, untouched: bool) -> None:
    """Writes down the general text of a life, if it has any, and what the model at hand makes of it."""
    c = world.config
    if not c.anchor.text:
        return
    if c.anchor.text == anchor.OWN:
        texts = _own_texts(world, params, -(-c.anchor.tokens // c.row_length), key)
    else:
        texts = anchor.read(c.anchor.text)
    rows = anchor.rows(world.tok, texts, c.row_length, c.anchor.tokens)
    found = anchor.loss(world.model, params, None, rows, c.eval_batch // 4) if untouched else None
    anchor.save(world.workdir, c.anchor.text, texts, found)


def _born(world: World, params: Tree) -> Newborn:
    c = world.config
    if not c.anchor.text:
        return Newborn(world.tok, params)
    texts, untouched = anchor.load(world.workdir, c.anchor.text)
    rows = anchor.rows(world.tok, texts, c.row_length, c.anchor.tokens)
    return Newborn(world.tok, params, rows, untouched)


def _fits(world: World) -> None:
    """Encodes the whole life, and divides its batches, before a part of it is lived.

    Raises:
      ValueError: what is too long, or rows that do not divide over the mesh, with the keys.
    """
    c, tok = world.config, world.tok
    rows = c.rows() | {"memory.periods[0] / row_length": c.memory.periods[0] // c.row_length}
    if c.dreams_on:
        rows["rem.learn.batch_rows"] = c.rem.learn.batch_rows
    world.partitioner.check_rows(rows)
    if "judge" in (c.sleep.imitate.semantic, c.rem.grader):
        imitate.yes_and_no(tok)
        imitate.Judge.room_of(tok, c.model.max_len)
    encoding.encode(tok, world.stream.skills, c.row_length)
    for experience in (world.stream.birth, *world.stream.days):
        finetune.documents(world, experience.train)
        _can_be_asked(world, experience.name, experience.test, "answer_tokens", c.answer_tokens)
        if c.sleep.day_at_hand and experience is not world.stream.birth:
            pairs = [e for e in experience.train if e.prompt]
            key, room = "sleep.recall.answer_max_new", c.sleep.recall.answer_max_new
            _can_be_asked(world, experience.name, pairs, key, room)


def _can_be_asked(world: World, name: str, asked: Sequence[Example], key: str, room: int) -> None:
    """Raises where a prompt leaves no room for an answer; tells of answers that need more than there is."""
    encoding.prompts(world.tok, asked, world.config.model.max_len - room, f"model.max_len - {key}")
    long = np.flatnonzero(encoding.answer_lengths(world.tok, asked) > room)
    if len(long):
        print(
            f"{name}: {len(long)} of {len(asked)} answers do not fit into {key}={room} tokens and can never "
            f"be given, {asked[long[0]].answer[:60]!r} for one: raise it",
            flush=True,
        )


def live(
    config: Config,
    seed: int,
    workdir: pathlib.Path,
    material: stream.Stream,
    newborn: Newborn,
    name: str,
    method: Method,
) -> tuple[metrics.Summary, State]:
    """One method's days and nights, resumed where they stand: what is said of them, and how they end."""
    checkpoint.sweep(workdir)
    world = world_of(config, seed, workdir, material, newborn.tok, name)
    world.newborn = newborn.params
    memory = world.partitioner.made(world.model.init_memory, rng.stream(seed, "birth/memory"))
    lived: list[Experience] = [material.birth]

    def begin(state: State) -> State:
        return asked(dataclasses.replace(state, extra=method.extra(world, state.params)))

    def asked(state: State) -> State:
        told = state.anchor
        if newborn.anchor is not None:
            resting, rows = memory_lib.rest(state.memory), config.eval_batch // 4
            told = [*told, anchor.loss(world.model, state.params, resting, newborn.anchor, rows)]
        return dataclasses.replace(state, retention=[*state.retention, measure(state)], anchor=told)

    def measure(state: State) -> list[float | None]:
        answerer = method.answerer(world, state, lived[1:])
        # The next experience is asked too, before it is lived: forward transfer needs R[i, i + 1].
        ahead = material.days[len(lived) - 1 : len(lived)]
        probes = evals.latest(lived, ahead)
        said = evals.answers(answerer, probes)
        told, found = [], []
        for experience, asked, answers in zip((*lived, *ahead), probes, said, strict=True):
            right = evals.matches(answers, [p.answer for p in asked])
            found.append(float(right.mean()) if len(right) else None)
            told += [
                metrics.Answer(experience.name, p.prompt, p.answer, answer, bool(r))
                for p, answer, r in zip(asked, answers, right, strict=True)
            ]
        metrics.write_answers(workdir, len(lived) - 1, told)
        return found + [None] * (len(material.days) + 1 - len(found))

    def phase_name(cycle: int, i: int) -> str:
        return f"{cycle:03d}-{method.phases[i][0]}"

    def through(cycle: int, i: int, state: State) -> State:
        state = method.phases[i][1](world, phase_name(cycle, i), state, cycle, material.days[cycle - 1])
        if i == len(method.phases) - 1:
            state = asked(state)
        return state

    state = State(newborn.params, memory, extra=method.extra_like(newborn.params))
    state = phases.phase(world, BIRTH, state, begin)
    for cycle, experience in enumerate(material.days, 1):
        print(f"{name} · seed {seed} · day {cycle} of {len(material.days)}: {experience.name}", flush=True)
        lived.append(experience)
        for i in range(len(method.phases)):
            state = phases.phase(world, phase_name(cycle, i), state, functools.partial(through, cycle, i))
        if len(state.retention) < len(lived):  # a night was taken out since
            state = asked(state)
        print(terminal.morning(publish(world, state, name, newborn.untouched)), flush=True)
    summary = publish(world, state, name, newborn.untouched)
    world.writer.close()
    return summary, state


def publish(world: World, state: State, name: str, untouched: float | None = None) -> metrics.Summary:
    """Writes retention.csv, links.jsonl, slots.json and summary.json as they follow from the state."""
    names = [world.stream.birth.name, *(d.name for d in world.stream.days)]
    # Days may have been added since the first of them was written down.
    rows = [row + [None] * (len(names) - len(row)) for row in state.retention]
    metrics.write_retention(world.workdir, names, rows)
    write_slots(world.workdir, state)
    n = len(rows)
    asked = [world.stream.birth, *world.stream.days][:n]
    weights = np.array([len(e.test) for e in asked], float)
    matrix = np.array([[np.nan if v is None else v for v in row[:n]] for row in rows])
    for links in state.links:
        k = links.night
        if k < n:
            before, after = (retention.mean(r[:k], weights[:k]) for r in matrix[k - 1 : k + 1])
            links = dataclasses.replace(links, after=rows[k][k], old_before=before, old_after=after)
        metrics.write_links(world.workdir, links)
    alike = (weights > 0).astype(float)  # every experience that is asked
    days = alike * (np.arange(n) > 0)
    seconds: dict[str, float] = {}
    for line in metrics.read_jsonl(world.workdir / "timings.jsonl")[0]:
        if "/" not in line["phase"]:
            seconds[line["phase"]] = seconds.get(line["phase"], 0.0) + line["seconds"]
    summary = metrics.Summary(
        method=name,
        seed=world.seed,
        final_accuracy=retention.final_average_accuracy(matrix, weights),
        birth_before=rows[0][0],
        birth_after=rows[-1][0],
        experiences=dict(zip(names[1:n], rows[-1][1:n], strict=True)),
        learning_accuracy=retention.learning_accuracy(matrix, days) if n > 1 else None,
        backward_transfer=retention.backward_transfer(matrix, alike) if n > 1 else None,
        # Against 0, what a network at random initialisation answers: it writes none of the expected texts.
        forward_transfer=retention.forward_transfer(matrix, np.zeros(n), alike) if n > 1 else None,
        forgetting_from_first=retention.forgetting_from_first(matrix, alike) if n > 1 else None,
        forgetting_from_peak=retention.forgetting_from_peak(matrix, alike) if n > 1 else None,
        wall_s=seconds,
        tokens={k: getattr(world.account, k) for k in ("source", "dreamt", "gradient")},
        flops=world.account.flops,
        peak_rss_bytes=metrics.peak_rss_bytes(),
        nights=state.nights,
        questions={e.name: len(e.test) for e in asked},
        anchor=state.anchor,
        anchor_untouched=untouched,
    )
    metrics.write_summary(world.workdir, summary)
    return summary


def write_slots(workdir: pathlib.Path, state: State) -> None:
    """Writes slots.json: the slots in use, then those whose nights were taken out."""

    def row(slot: Slot, forgotten: bool) -> metrics.Slot:
        return metrics.Slot(
            level=slot.level,
            slot=slot.index,
            night=slot.nights[-1],
            experience=", ".join(slot.experiences),
            documents=slot.documents,
            dreams=slot.dreams,
            dreams_file=slot.dreams_file,
            merged_from=slot.nights if len(slot.nights) > 1 else (),
            forgotten=forgotten,
            share_of_answers=None if forgotten else slot.share_of_answers,
        )

    in_use, gone = [row(s, False) for s in state.slots], [row(s, True) for s in state.forgotten]
    metrics.write_slots(workdir, in_use + gone)
