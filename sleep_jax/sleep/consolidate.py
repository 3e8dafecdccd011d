"""Memory consolidation by Knowledge Seeding: the objective over one fresh slot, and what feeds it.

Source: Sleep (2606.03979), section 3.3 and Eq. 3-4, with generalised distillation from GKD (2306.13649).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import cost, partition
from sleep_jax.bounds import above_zero, at_least
from sleep_jax.data import encoding, packing
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.ops import divergence
from sleep_jax.ops.chunked import over_positions
from sleep_jax.ops.masked import entropy, masked_mean, token_logps
from sleep_jax.ops.policy_gradient import reinforce_loss
from sleep_jax.sleep.recall import Dream
from sleep_jax.sleep.selves import Self, seen_by
from sleep_jax.types import Array, Batch, Memory, Model, Objective, Tree

SCORING = cost.Kind("scoring by a teacher", cost.SCORED)
LOOKS = cost.Kind("looking at held-out dreams", "set model.logit_chunk=64, lower sleep.batch_rows")
JUDGING = cost.Kind("judging free text", "set model.logit_chunk=64, " + cost.SCORED)
LIFT = 100.0  # of a router score: opens a slot, and leaves float32 the score to 1e-5


@dataclasses.dataclass(frozen=True)
class SeedConfig:
    """Knowledge Seeding.

    Raises:
      ValueError: a value outside its range.
    """

    beta: float = 0.0  # generalised JSD: 0 forward KL, 1 reverse KL
    temperature: float = 1.0  # that both distributions are softened by before they are compared
    kl_clip: float = 0.0  # largest contribution of a vocabulary entry, in nats; 0 is none
    alpha: float = 0.95  # weight of distillation; 1 - alpha goes to imitation
    on_policy: float = 0.1  # lambda, weight of the student's own samples in distillation
    prompt_weight: float = 0.2  # weight of a dream's prompt tokens against its answer's
    routing: float = 1.0  # weight of the router's own loss: open on the day's dreams, closed on the past's
    missed: float = 1.0  # factor on it where the router should open: a dream missed against one too many
    forced: float = 0.5  # share of the steps with the fresh slot open whatever its router says

    def __post_init__(self):
        at_least(self, "sleep.seed.", kl_clip=0, prompt_weight=0, routing=0, missed=0)
        above_zero(self, "sleep.seed.", "temperature")
        for key in ("beta", "alpha", "on_policy", "forced"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"sleep.seed.{key}={getattr(self, key)} is not in [0, 1]")
        if self.forced == 1 and not self.routing:
            raise ValueError(
                "sleep.seed.forced=1 with sleep.seed.routing=0: a router that is never asked and has no loss "
                "of its own learns nothing"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lesson:
    """Rows with what their teacher says of them.

    The teacher's last hidden states stand for its logits: the output head is frozen and shared, so one matrix
    product gives them back, and D numbers per token are kept instead of V.

    Attributes:
      own_B: 1 for rows that the fresh slot is for, 0 for what others know.
    """

    rows: Batch
    hidden_BTD: Array
    own_B: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Practice:
    """The student's own continuations, with the teacher's hidden states and the advantage of each.

    `sampled_BT[:, t]` is 1 where the token *after* position t was sampled by the student.
    """

    tokens_BT: Array
    sampled_BT: Array
    hidden_BTD: Array
    advantage_B: Array


Join = Callable[[Tree, Tree, Memory], tuple[Tree, Memory]]


def into_slot(level: int, index: int) -> Join:
    """The student is the memory with one slot written: `join(slot, params, memory) -> (params, memory)`."""
    return lambda slot, params, memory: (params, memory_lib.write_slot(memory, slot, level, index))


def into_backbone(delta: Tree, params: Tree, memory: Memory) -> tuple[Tree, Memory]:
    """The student without expansion: a delta on the MLP weights (the ablation of the paper's Table 1)."""
    fast = delta if memory.fast is None else jax.tree.map(jnp.add, memory.fast, delta)
    return params, dataclasses.replace(memory, fast=fast)


def objective(
    model: Model, config: SeedConfig, join: Join, place: tuple[int, int] | None = None
) -> Objective:
    """Minus J_KS (Sleep, section 3.3), over what `join` makes a student of: the parameters of one slot.

        loss = alpha ((1 - lambda) E_D F(teacher || student) + lambda E_{y~student} F(teacher || student))
               - (1 - alpha) E_{y~student} r(y) + rho E_D (1 + (mu - 1) own) BCE(router, own)

    F is the generalised JSD of GKD per token, of logits divided by tau = `config.temperature` and times
    tau^2, so that its gradient stays roughly as large as without (Hinton et al. 2015, 1503.02531, section 2,
    for forward KL; the paper softens nothing, which is tau = 1). The reward term is a policy gradient with
    the advantages of the batch. There is no gradient through sampling. `frozen` is `(params, memory)`: the
    backbone and the memory that the slot joins; a batch is `{"lesson": Lesson, "practice": Practice}`, or
    one of them alone.

    Two things are ours, the paper does not say how a router is trained; both need the slot's `place` (level
    and index). The last term, with rho = `config.routing` and mu = `config.missed`, is the binary
    cross-entropy of its router score, mean over layers and tokens: it should open on rows of its own (own =
    1) and nowhere else. Distillation alone lets a slot open wherever it does the dreams at hand no harm.
    (Routers read what the slot's experts in the layers below have written, so these learn from it too.) And
    in a share `config.forced` of the steps, drawn by the key, the slot is open on all of the lesson, so that
    it does little harm where its router errs; a key of None never forces it.
    """
    routed = place is not None and config.routing > 0
    forced = config.forced if place is not None else 0.0
    clip, tau = config.kl_clip or None, config.temperature

    def student(trainable, frozen, tokens_BT, lift=None, **where):
        params, memory = join(trainable, *frozen)
        if lift is not None:
            memory = memory_lib.lift_slot(memory, *place, lift)
        return model.apply(params, tokens_BT, memory=memory, **where), params

    def compared(teacher_BTD, teachers, student_BTD, students, *next_BT):
        """tau^2 F of the softened distributions (the cap holds for what comes out), the student's entropy,
        and its log-probability of the next token where one is given; heads are of the parameters given."""

        def part(teacher_BTD, student_BTD, *next_BT):
            logits = model.unembed(teachers, teacher_BTD), model.unembed(students, student_BTD)
            soft = (z_BTV / tau for z_BTV in logits)
            kl_BT = tau**2 * divergence.generalised_jsd(*soft, config.beta, clip and clip / tau**2)
            entropy_BT = entropy(jax.lax.stop_gradient(logits[1]))
            return kl_BT, entropy_BT, *(token_logps(logits[1], y_BT) for y_BT in next_BT)

        return over_positions(part, model.config.logit_chunk, teacher_BTD, student_BTD, *next_BT)

    def taught(trainable, frozen, lesson: Lesson, key):
        rows = lesson.rows
        where = {"segments_BT": rows.segments_BT, "positions_BT": rows.positions_BT}
        lift = LIFT * jax.random.bernoulli(key, forced) if forced and key is not None else None
        out, own = student(trainable, frozen, rows.tokens_BT, lift, **where)
        kl_BT, entropy_BT = compared(lesson.hidden_BTD, frozen[0], out.hidden_BTD, own)
        terms = {"kl": masked_mean(kl_BT, rows.weights_BT)}
        metrics = {"entropy": masked_mean(entropy_BT, rows.weights_BT)}
        if routed:
            score_NBT, read_BT = out.router_NBTLE[..., *place], rows.segments_BT > 0
            score_NBT = score_NBT if lift is None else score_NBT - lift
            own_BT = jnp.broadcast_to(lesson.own_B[:, None], read_BT.shape)
            crossed_BT = (jax.nn.softplus(score_NBT) - own_BT * score_NBT).mean(0)
            crossed_BT *= 1 + (config.missed - 1) * own_BT
            terms["routing"] = masked_mean(crossed_BT, read_BT)
            open_BT = (score_NBT >= 0).mean(0)
            metrics["open_on_own"] = masked_mean(open_BT, read_BT * own_BT)
            metrics["open_on_others"] = masked_mean(open_BT, read_BT * (1 - own_BT))
        return terms, metrics

    def practised(trainable, frozen, practice: Practice):
        out, own = student(trainable, frozen, practice.tokens_BT)
        next_BT = jnp.pad(practice.tokens_BT[:, 1:], ((0, 0), (0, 1)))
        kl_BT, entropy_BT, logps_BT = compared(practice.hidden_BTD, frozen[0], out.hidden_BTD, own, next_BT)
        terms = {
            "kl_on_policy": masked_mean(kl_BT, practice.sampled_BT),
            "imitation": reinforce_loss(logps_BT, practice.advantage_B, practice.sampled_BT),
        }
        return terms, {"entropy_on_policy": masked_mean(entropy_BT, practice.sampled_BT)}

    def totals(trainable, frozen, batch, key):
        terms, metrics = {}, {}
        if "lesson" in batch:
            terms, metrics = taught(trainable, frozen, batch["lesson"], key)
        if "practice" in batch:
            more_terms, more_metrics = practised(trainable, frozen, batch["practice"])
            terms, metrics = terms | more_terms, metrics | more_metrics
        return terms, metrics

    def counts(batch):
        counted = {}
        if "lesson" in batch:
            rows = batch["lesson"].rows
            counted["kl"] = rows.weights_BT.sum()
            if routed:
                counted["routing"] = (rows.segments_BT > 0).sum()
        if "practice" in batch:
            sampled = batch["practice"].sampled_BT.sum()
            counted |= {"kl_on_policy": sampled, "imitation": sampled}
        return counted

    weights = {
        "kl": config.alpha * (1 - config.on_policy),
        "kl_on_policy": config.alpha * config.on_policy,
        "imitation": 1 - config.alpha,
    }
    if routed:
        weights["routing"] = config.routing
    return Objective(weights, counts, totals)


def encode(tok: Tokenizer, dreams: Sequence[Dream], max_len: int) -> list[encoding.Encoded]:
    """What a dream is asked for: pairs from prompt to answer, free text as it is."""
    return encoding.encode(tok, [d.example for d in dreams], max_len)


def encode_recalling(tok: Tokenizer, dreams: Sequence[Dream], max_len: int) -> list[encoding.Encoded]:
    """Pairs from answer to prompt, so that later nights can dream of them.

    All tokens behind <recall> weigh alike: in a dream of a later night they will all be sampled.
    """
    pairs = [d.example for d in dreams if d.example.prompt]
    recalled = (encoding.encode_recalling(tok, pair, max_len) for pair in pairs)
    return [dataclasses.replace(e, prompt_length=1) for e in recalled]


@functools.lru_cache(maxsize=8)
def scorer(model: Model):
    """`score(kind, params, memory, adapter, tokens_BT, segments_BT, positions_BT) -> hidden_BTD`."""

    @cost.Program
    def score(params, memory, adapter, tokens_BT, segments_BT=None, positions_BT=None):
        where = {"segments_BT": segments_BT, "positions_BT": positions_BT}
        return model.apply(params, tokens_BT, memory=memory, adapter=adapter, **where).hidden_BTD

    return score


def lessons(
    score,
    params: Tree,
    memory: Memory,
    teachers: Sequence[tuple[Self, Sequence[encoding.Encoded]]],
    row_length: int,
    batch_size: int,
    prompt_weight: float,
    own: bool,
) -> Lesson:
    """Every teacher's sequences packed into rows of their own, and scored by it; numpy arrays, rows first.

    `own` says of all of them whether the fresh slot is for them.
    """
    parts = []
    for self_, encoded in teachers:
        if not encoded:
            continue
        rows, _ = packing.pack(encoded, row_length, weight_prompt=prompt_weight)
        fields = rows.tokens_BT, rows.segments_BT, rows.positions_BT
        hidden_BTD = _scored(score, params, seen_by(memory, self_), self_.adapter, fields, batch_size)
        parts.append(Lesson(rows, hidden_BTD, np.full(len(hidden_BTD), own, np.float32)))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def lessons_in_context(
    score,
    params: Tree,
    memory: Memory,
    context: Sequence[int],
    encoded: Sequence[encoding.Encoded],
    row_length: int,
    max_len: int,
    batch_size: int,
    prompt_weight: float,
) -> Lesson:
    """Sequences taught by a self that has the day's text before each of them (level 0 feeding level 1).

    One sequence per row: the teacher alone reads what stands before it; the student gets the sequence and
    the teacher's hidden states of it.

    Raises:
      ValueError: context and row do not fit the model.
    """
    width = len(context)
    if width + row_length > max_len:
        raise ValueError(
            f"{width} tokens of context (sleep.day_in_context) and row_length={row_length} exceed "
            f"model.max_len={max_len}: put fewer documents into the context or raise model.max_len"
        )
    rows = jax.tree.map(
        lambda *xs: np.concatenate(xs),
        *(packing.pack([e], row_length, weight_prompt=prompt_weight)[0] for e in encoded),
    )
    n = len(rows.tokens_BT)
    before = np.broadcast_to(np.asarray(context, np.int32), (n, width))
    tokens = np.concatenate([before, rows.tokens_BT], axis=1)
    segments = np.concatenate([np.ones_like(before), rows.segments_BT], axis=1)
    positions = np.concatenate(
        [np.broadcast_to(np.arange(width), before.shape), rows.positions_BT + width], axis=1
    )
    fields = tokens, segments, positions.astype(np.int32)
    hidden_BTD = _scored(score, params, memory, None, fields, batch_size)[:, width:]
    return Lesson(rows, hidden_BTD, np.ones(n, np.float32))


def _scored(
    score,
    params: Tree,
    memory: Memory,
    adapter: Tree | None,
    fields: tuple[np.ndarray, ...],
    batch_size: int,
    kind: cost.Kind = SCORING,
) -> np.ndarray:
    """What `score` says of all rows, `batch_size` at a time; the last call repeats the last row."""
    n = len(fields[0])
    memory = memory_lib.without_locked(memory)
    found = []
    for start in range(0, n, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), n - 1)
        rows = partition.put_rows([x[index] for x in fields], params)
        found.append(partition.fetch(score(kind, params, memory, adapter, *rows)))
    return np.concatenate(found)[:n]


def mean_kl(objective: Objective, lesson: Lesson, frozen: Tree, batch_size: int) -> Callable[[Tree], float]:
    """`loss(trainable)`, the objective's "kl" per weighted token of a whole lesson, for stopping early."""
    n = len(lesson.hidden_BTD)
    padded = jax.tree.map(lambda x: np.pad(x, [(0, -n % batch_size)] + [(0, 0)] * (x.ndim - 1)), lesson)

    @cost.Program
    def part(trainable, frozen, batch):
        return objective.totals(trainable, frozen, {"lesson": batch}, None)[0]["kl"]

    def loss(trainable: Tree) -> float:
        batches = (
            jax.tree.map(lambda x, i=i: x[i : i + batch_size], padded) for i in range(0, n, batch_size)
        )
        # Fetched one by one: CPU devices that wait for each other must not hold two batches at once.
        means = [
            partition.fetch(part(LOOKS, trainable, frozen, partition.put_rows(batch, frozen)))
            for batch in batches
        ]
        return float(sum(m.total for m in means) / sum(m.count for m in means))

    return loss


@functools.lru_cache(maxsize=8)
def _likeliest(model: Model):
    """`likeliest(kind, params, memory, adapter, tokens_BT, segments_BT, positions_BT) -> tokens_BT`."""

    @cost.Program
    def likeliest(params, memory, adapter, tokens_BT, segments_BT, positions_BT):
        where = {"segments_BT": segments_BT, "positions_BT": positions_BT}
        hidden_BTD = model.apply(params, tokens_BT, memory=memory, adapter=adapter, **where).hidden_BTD

        def best(h_BTD):
            return jnp.argmax(model.unembed(params, h_BTD), -1)

        return over_positions(best, model.config.logit_chunk, hidden_BTD)

    return likeliest


def token_accuracy(model: Model, params: Tree, memory: Memory, rows: Batch, batch_size: int) -> float:
    """Share of the tokens that count in packed rows [B, T] which are the likeliest, given those before."""
    fields = rows.tokens_BT, rows.segments_BT, rows.positions_BT
    found_BT = _scored(_likeliest(model), params, memory, None, fields, batch_size, JUDGING)
    return float(((found_BT == rows.targets_BT) * rows.weights_BT).sum() / rows.weights_BT.sum())
