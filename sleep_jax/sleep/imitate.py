"""Learning to imitate: finishing a teacher's dream is rewarded for coming close (Sleep, Eq. 3-4)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sleep_jax import cost, evals, partition, rng, rollout
from sleep_jax.bounds import at_least
from sleep_jax.data.encoding import Encoded
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.model import memory as memory_lib
from sleep_jax.ops import edit_distance, policy_gradient
from sleep_jax.sleep.consolidate import Practice
from sleep_jax.sleep.selves import Self, seen_by
from sleep_jax.types import Array, Memory, Model, Rollout, Sampling, Tree


@dataclasses.dataclass(frozen=True)
class ImitateConfig:
    """Rewards and the samples they are taken on.

    Raises:
      ValueError: a value outside its range.
    """

    gamma: float = 0.5  # weight of the semantic reward in Eq. 3
    z0: int = 8  # largest edit distance, in tokens, that is rewarded
    semantic: Literal["answer", "hidden", "judge"] = "answer"
    threshold: float = 0.9  # "hidden": smallest cosine that means the same
    prompts: int = 2  # dreams finished per step, half of them of the day
    samples: int = 4  # G, continuations per dream
    max_new: int = 24  # tokens per continuation; dreams are cut so that their rest fits
    width: int = 48  # tokens, longest dream that is practised on, so that rows are not mostly padding
    refresh: int = 8  # steps that share one round of sampling

    def __post_init__(self):
        at_least(self, "sleep.imitate.", z0=0, max_new=1, refresh=1)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"sleep.imitate.gamma={self.gamma} is not in [0, 1]")
        if self.samples < 2:
            raise ValueError(
                f"sleep.imitate.samples={self.samples}: a leave-one-out baseline needs at least 2"
            )
        if self.prompts < 2 or self.prompts % 2:
            raise ValueError(f"sleep.imitate.prompts={self.prompts} must be even: half old, half new")
        if self.width <= self.max_new:
            raise ValueError(
                f"sleep.imitate.width={self.width} leaves no token of a dream before the "
                f"sleep.imitate.max_new={self.max_new} that are sampled"
            )


PRACTICE = cost.Kind(
    "practice", "lower sleep.imitate.refresh, prompts, samples, width or max_new (all in sleep.imitate)"
)
MEANING = cost.Kind(
    "comparing what is meant",
    "lower eval_batch, sleep.imitate.refresh, prompts or samples, rem.trials.at_once or model.max_len",
)


class SemanticReward(Protocol):
    """1 where the student's finished dream means the same as the teacher's, else 0."""

    def __call__(self, dreams: Sequence[list[int]], finished: Sequence[list[int]]) -> np.ndarray: ...


class AnswerMatch:
    """The last part of both dreams (answer, recalled prompt or text) is equal after normalisation."""

    def __init__(self, tok: Tokenizer):
        self.tok = tok

    def last_part(self, ids: list[int]) -> str:
        cut = max((i for i, t in enumerate(ids) if t in (self.tok.ans, self.tok.say)), default=0)
        return self.tok.decode(ids[cut + 1 :])

    def __call__(self, dreams, finished):
        return evals.matches(
            [self.last_part(f) for f in finished], [self.last_part(d) for d in dreams]
        ).astype(np.float32)


class HiddenCosine:
    """The cosine of the mean last hidden states, as the frozen birth model has them, reaches a threshold."""

    def __init__(self, model: Model, params: Tree, threshold: float):
        self.threshold = threshold

        @cost.Program
        def pooled(params, tokens_BT, lengths_B):
            hidden_BTD = model.apply(params, tokens_BT).hidden_BTD
            mask_BT = jnp.arange(tokens_BT.shape[1])[None] < lengths_B[:, None]
            mean_BD = (hidden_BTD * mask_BT[..., None]).sum(1) / lengths_B[:, None]
            return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-6)

        self._pooled = functools.partial(pooled, MEANING, params)
        self._width = model.config.max_len

    def __call__(self, dreams, finished):
        a_BD, b_BD = (self._pooled(*rollout.padded(x, self._width)) for x in (dreams, finished))
        return np.asarray((a_BD * b_BD).sum(-1) >= self.threshold, np.float32)


def yes_and_no(tok: Tokenizer) -> tuple[int, int]:
    """The tokens that a judge's answer is read from; raises as `Judge`."""
    yes, no = tok.encode(" yes")[0], tok.encode(" no")[0]
    if yes == no:
        raise ValueError(
            'sleep.imitate.semantic="judge": " yes" and " no" begin with the same token of this tokenizer'
        )
    return yes, no


class Judge:
    """A frozen language model is asked whether both mean the same; "yes" must outweigh "no".

    The question is put as `template.format(a=..., b=...)` behind <bos>, with <ans> to ask for the answer. Of
    two texts that do not fit into the model, each keeps its beginning.

    Raises:
      ValueError: the tokenizer does not tell "yes" from "no" by their first token, or the question leaves no
        room for two texts in `model.max_len`.
    """

    template = "Do these two mean the same? First: {a} Second: {b}"

    def __init__(
        self,
        model: Model,
        params: Tree,
        tok: Tokenizer,
        memory: Memory | None = None,
        kind: cost.Kind = MEANING,
    ):
        """`memory` None is none; `kind` is what is judged for, which says the keys to lower."""
        self.tok = tok
        self.yes, self.no = yes_and_no(tok)
        self.room = self.room_of(tok, model.config.max_len)  # tokens of each text
        self._verdict = functools.partial(_verdict(model, self.yes, self.no), kind, params, memory)
        self._width = model.config.max_len

    @classmethod
    def room_of(cls, tok: Tokenizer, max_len: int) -> int:
        """Tokens that the question leaves to each of two texts; raises as `Judge`."""
        wording = len(tok.encode(" " + cls.template.format(a="", b="")))
        room = (max_len - 2 - wording) // 2
        if room < 1:
            raise ValueError(
                f"a judge's question takes {wording} tokens and leaves no room for two texts in "
                f"model.max_len={max_len}: raise it"
            )
        return room

    def __call__(self, dreams, finished):
        texts = [
            self.template.format(a=self.tok.decode(d[: self.room]), b=self.tok.decode(f[: self.room]))
            for d, f in zip(dreams, finished, strict=True)
        ]
        asked = [[self.tok.bos, *self.tok.encode(" " + t)[: self._width - 2], self.tok.ans] for t in texts]
        return np.asarray(self._verdict(*rollout.padded(asked, self._width)), np.float32)


@functools.lru_cache(maxsize=4)
def _verdict(model: Model, yes: int, no: int) -> cost.Program:
    def verdict(params, memory, tokens_BT, lengths_B):
        hidden_BTD = model.apply(params, tokens_BT, memory=memory).hidden_BTD
        last_BTD = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)
        last_BV = model.unembed(params, last_BTD)[:, 0]
        return last_BV[:, yes] > last_BV[:, no]

    return cost.Program(verdict)


@functools.partial(jax.jit, static_argnums=4)
def _absolute(dreams_BT, dream_lengths_B, tokens_BT, lengths_B, z0):
    distance_B = edit_distance.levenshtein(tokens_BT, lengths_B, dreams_BT, dream_lengths_B)
    return distance_B, edit_distance.imitation_reward(distance_B, lengths_B, dream_lengths_B, z0)


def rewards(
    finished: Rollout,
    dreams: tuple[np.ndarray, np.ndarray],
    semantic: SemanticReward | None,
    config: ImitateConfig,
) -> dict[str, np.ndarray]:
    """r = gamma r_sem + (1 - gamma) r_abs for each row, with its parts (Eq. 3).

    Without a semantic reward r is r_abs alone (the ablation of Table 1).
    """
    tokens, lengths = dreams
    distance, absolute = _absolute(tokens, lengths, finished.tokens_BT, finished.length_B, config.z0)
    parts = {"distance": np.asarray(distance), "absolute": np.asarray(absolute)}
    if semantic is None:
        return {**parts, "reward": parts["absolute"]}
    parts["semantic"] = semantic(
        [t[:n].tolist() for t, n in zip(tokens, lengths, strict=True)],
        [t[:n].tolist() for t, n in zip(finished.tokens_BT, finished.length_B, strict=True)],
    )
    return {**parts, "reward": config.gamma * parts["semantic"] + (1 - config.gamma) * parts["absolute"]}


def retold(
    model: Model,
    params: Tree,
    memory: Memory,
    dreams: Sequence[Encoded],
    semantic: SemanticReward | None,
    config: ImitateConfig,
    *,
    max_new: int,
    batch_size: int,
) -> np.ndarray:
    """The reward (Eq. 3) of one self for each dream, which it finishes greedily from the dream's prompt.

    Raises:
      ValueError: a prompt leaves no room for `max_new` tokens in `model.max_len`.
    """
    if not dreams:
        return np.zeros(0)
    finished = rollout.generate(
        model,
        params,
        memory,
        rollout.padded([e.tokens[: e.prompt_length] for e in dreams]),
        jax.random.key(0),
        Sampling(max_new, temperature=0.0),
        batch_size=batch_size,
    )
    told = rollout.padded([e.tokens for e in dreams], model.config.max_len)
    parts = (slice(start, start + batch_size) for start in range(0, len(dreams), batch_size))
    found = [rewards(*jax.tree.map(lambda x, p=p: x[p], (finished, told)), semantic, config) for p in parts]
    return np.concatenate([f["reward"] for f in found])


@dataclasses.dataclass(frozen=True)
class Practiser:
    """Samples `refresh` steps of practice at once.

    Attributes:
      memory: with fast memory open, as the awake teacher has it.
      student: from what is trained to the student's backbone and memory.
      pools: for the old and for the new, the teachers with their encoded dreams.
    """

    model: Model
    tok: Tokenizer
    params: Tree
    memory: Memory
    student: Callable[[Tree], tuple[Tree, Memory]]
    pools: tuple[Sequence[tuple[Self, Sequence[Encoded]]], Sequence[tuple[Self, Sequence[Encoded]]]]
    semantic: SemanticReward | None
    config: ImitateConfig
    score: Callable[..., Array]
    seed: int

    def round(self, trainable: Tree, number: int) -> tuple[Practice, dict[str, float]]:
        """Practice of `refresh` steps, rows first (steps * prompts * samples), and what it showed.

        Rows of one step stand together: the first half old, the second new. (Half and half is our reading.)
        """
        c = self.config
        draw = np.random.default_rng([self.seed, number])
        half = c.prompts // 2
        drawn = []  # per step: `half` old, then `half` new
        pools = self._short()
        for _ in range(c.refresh):
            for pool in pools:
                sizes = np.array([len(e) for _, e in pool], float)
                for _ in range(half):
                    self_, encoded = pool[draw.choice(len(pool), p=sizes / sizes.sum())]
                    drawn.append((self_, encoded[draw.integers(len(encoded))]))
        width = min(c.width, self.model.config.max_len)
        cuts = [_cut(draw, e, c.max_new, width - c.max_new) for _, e in drawn]
        repeat = np.repeat(np.arange(len(drawn)), c.samples)
        prompts = rollout.padded(
            [e.tokens[:k] for (_, e), k in zip(drawn, cuts, strict=True)], width - c.max_new
        )
        dreams = rollout.padded([e.tokens for _, e in drawn], width)
        finished = rollout.generate(
            self.model,
            *self.student(trainable),
            (prompts[0][repeat], prompts[1][repeat]),
            rng.fold(rng.stream(self.seed, "sleep/practice"), number),
            Sampling(c.max_new),
            batch_size=len(repeat),
            kind=PRACTICE,
        )
        parts = rewards(finished, (dreams[0][repeat], dreams[1][repeat]), self.semantic, c)
        advantage = policy_gradient.leave_one_out(parts["reward"].reshape(-1, c.samples)).reshape(-1)
        hidden = self._teach(finished.tokens_BT, [drawn[i][0] for i in repeat])
        practice = Practice(
            tokens_BT=finished.tokens_BT,
            sampled_BT=np.pad(finished.sampled_BT[:, 1:], ((0, 0), (0, 1))),
            hidden_BTD=hidden,
            advantage_B=np.asarray(advantage),
        )
        shown = {k: float(v.mean()) for k, v in parts.items()}
        shown["length"] = float(finished.sampled_BT.sum(-1).mean())
        return practice, shown

    def _short(self):
        """The pools without dreams that are longer than a row of practice; for an empty one the other."""
        width = min(self.config.width, self.model.config.max_len)
        kept = ([(s, [e for e in es if 1 < len(e.tokens) <= width]) for s, es in pool] for pool in self.pools)
        old, new = ([(s, es) for s, es in pool if es] for pool in kept)
        if not old and not new:
            raise ValueError(f"no dream fits into the {width} tokens of sleep.imitate.width: raise it")
        return old or new, new or old

    def stage(self, account) -> Callable[[int, Tree, Tree | None], tuple[Tree, dict[str, float]]]:
        """`stage(step, trainable, lesson) -> (batch, shown)` for `fit`; sampled tokens go on the account."""
        rows = self.config.prompts * self.config.samples
        current: dict = {}

        def stage(step: int, trainable: Tree, lesson: Tree | None):
            number, offset = divmod(step, self.config.refresh)
            if current.get("number") != number:
                practice, shown = self.round(trainable, number)
                account().dreamt += int(practice.sampled_BT.sum())
                current.update(number=number, practice=practice, shown=shown)
            part = jax.tree.map(lambda x: x[offset * rows : (offset + 1) * rows], current["practice"])
            batch = {"practice": part} if lesson is None else {"lesson": lesson, "practice": part}
            return batch, current["shown"]

        return stage

    def _teach(self, tokens_BT: np.ndarray, teachers: Sequence[Self]) -> np.ndarray:
        """Last hidden states, each row from its teacher: one call for all that differ in open slots alone."""
        n, width = tokens_BT.shape
        hidden = np.zeros((n, width, self.model.config.width), np.float32)
        kinds = [(t.awake, id(t.adapter)) for t in teachers]
        for kind in dict.fromkeys(kinds):
            rows = np.flatnonzero([k == kind for k in kinds])
            active = np.stack([teachers[i].active for i in rows])
            first = teachers[rows[0]]
            memory = memory_lib.with_active(seen_by(self.memory, first), active)
            told = partition.put_rows(tokens_BT[rows], self.params)
            memory = memory_lib.without_locked(memory)
            scored = self.score(PRACTICE, self.params, memory, first.adapter, told)
            hidden[rows] = partition.fetch(scored)
        return hidden


def _cut(draw: np.random.Generator, encoded: Encoded, max_new: int, width: int) -> int:
    """A random prefix of 1 to `width` tokens, that leaves at least one and at most `max_new` to finish.

    That what is left is bounded is our reading: the paper cuts anywhere.
    """
    n = len(encoded.tokens)
    return int(draw.integers(max(1, n - max_new), min(n - 1, width) + 1))
