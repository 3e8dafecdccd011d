"""The dreams of stage 1: every self recalls what it, and no self before it, knows."""

import dataclasses
from collections import Counter
from collections.abc import Container, Sequence

import numpy as np

from sleep_jax import cost, evals, rng, rollout
from sleep_jax.bounds import at_least
from sleep_jax.data import encoding
from sleep_jax.data.stream import Example
from sleep_jax.data.tokenizer import Tokenizer
from sleep_jax.sleep.selves import Self, seen_by
from sleep_jax.types import Array, Memory, Model, Sampling, Tree


@dataclasses.dataclass(frozen=True)
class Dream:
    """One dream and its fate.

    Attributes:
      example: what was dreamt; prompt '' is free text. None when malformed.
      teacher: name of the self that dreamt it and supervises it.
      credited: the experience it belongs to.
      source: 'dreamt', or 'day' where the prompt is the day's own input.
      reason: '' when kept, otherwise why not.
    """

    example: Example | None
    teacher: str
    credited: str
    source: str
    reason: str
    text: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason


DREAMS = cost.Kind("dreaming", "lower sleep.recall.batch_size or sleep.recall.max_new")
CHECKS = cost.Kind("answering dreams", "lower sleep.recall.batch_size or sleep.recall.answer_max_new")
WORTHWHILE = 0.1  # of a round's dreams must be kept, or there is no other: what there was has been dreamt


@dataclasses.dataclass(frozen=True)
class RecallConfig:
    """How dreams are sampled and which are kept.

    Raises:
      ValueError: a value outside its range.
    """

    temperature: float = 1.0
    max_new: int = 48  # tokens
    rounds: int = 4  # most rounds of sampling to fill a quota
    surplus: float = 1.5  # dreams sampled per dream still wanted
    batch_size: int = 256
    answer_max_new: int = 16  # tokens of an answer
    per_answer: float = 3.0  # most dreams of one answer, in even shares over the answers dreamt

    def __post_init__(self):
        at_least(self, "sleep.recall.", max_new=1, rounds=1, surplus=1, batch_size=1, answer_max_new=1)
        if self.temperature <= 0:
            raise ValueError(
                f"sleep.recall.temperature={self.temperature} must be above 0: at 0 all dreams are the same"
            )


def recall(
    model: Model,
    tok: Tokenizer,
    params: Tree,
    memory: Memory,
    self_: Self,
    before: Self | None,
    quota: int,
    share_pairs: float,
    key: Array,
    config: RecallConfig,
    *,
    longest: int | None = None,
    beside: Sequence[Dream] = (),
    long: bool = False,
) -> list[Dream]:
    """Dreams of one self until `quota` are kept, the rounds are used up, or hardly anything new comes up.

    The self answers the prompt that it dreamt: that answer takes the place of the dreamt one. The dream is
    *inconsistent* when they differ and no other dream has been answered so as dreamt: then the answer is no
    more than a slip. It is *known* when the self before it (`before`) answers the same, because then that one
    dreams and supervises it. This is our reading; the paper samples from the teacher and says no more.

    Args:
      share_pairs: share of dreams that open with <recall> (an answer, then what asks for it); the rest is
        free text.
      longest: tokens that a dream may have, to be taught and to be asked again; None is what the model can
        hold beside an answer.
      beside: what this self has answered already: its prompts are not asked again, and a copy of it is a
        *duplicate*, known or not.
      long: whether what is longer than an answer may be is taken as it was dreamt, such as a dream of how one
        dreams, and of a text that did not end what there is of it; otherwise the one is answered like any
        other, the other malformed.

    Returns:
      All dreams, kept or not, in the order they were dreamt.
    """
    longest = longest or model.config.max_len - config.answer_max_new
    dreams: list[Dream] = []
    seen = {d.example for d in beside}
    told: set[str] = set()
    # By prompt, the self's answer and whether the self before gives the same: each is asked once.
    heard = {d.example.prompt: (d.example.answer, False) for d in beside}
    kept = 0
    for round_ in range(config.rounds):
        if kept >= quota:
            break
        n = max(int((quota - kept) * config.surplus), config.batch_size // 4)
        sampled = _sample(
            model, tok, params, memory, self_, n, share_pairs, rng.fold(key, round_), config, long
        )
        examples, reasons = _judge(
            model, tok, params, memory, self_, before, [e for e, _ in sampled], told, heard, longest,
            config, long,
        )  # fmt: skip
        sampled = [(example, text) for example, (_, text) in zip(examples, sampled, strict=True)]
        before_round = kept
        limit = _limit(sampled, dreams, reasons, quota, config)
        counts = Counter(d.example.answer for d in dreams if d.kept and d.example.prompt)
        for (example, text), reason in zip(sampled, reasons, strict=True):
            if not reason and example in seen:
                reason = "duplicate"
            if not reason and (kept >= quota or (example.prompt and counts[example.answer] >= limit)):
                reason = "quota"
            if not reason:
                seen.add(example)
                counts[example.answer] += 1
                kept += 1
            dreams.append(Dream(example, self_.name, self_.knows[-1], "dreamt", reason, text))
        if kept - before_round < WORTHWHILE * n:
            break
    return dreams


def _limit(sampled, dreams, reasons, quota, config) -> float:
    answers = {d.example.answer for d in dreams if d.kept and d.example.prompt}
    answers |= {e.answer for (e, _), r in zip(sampled, reasons, strict=True) if not r and e.prompt}
    return config.per_answer * quota / max(len(answers), 1)


def _sample(
    model, tok, params, memory, self_, n, share_pairs, key, config, long
) -> list[tuple[Example | None, str]]:
    pairs = round(n * share_pairs)
    opening = np.array([tok.recall] * pairs + [tok.bos] * (n - pairs), np.int32)[:, None]
    out = rollout.generate(
        model,
        params,
        seen_by(memory, self_),
        (opening, np.ones(n, np.int32)),
        key,
        Sampling(config.max_new, config.temperature),
        batch_size=config.batch_size,
        kind=DREAMS,
    )
    sampled = []
    for tokens, length in zip(out.tokens_BT, out.length_B, strict=True):
        ids = tokens[:length].tolist()
        sampled.append((_parse(tok, ids, long), tok.decode(ids)))
    return sampled


def _parse(tok: Tokenizer, ids: list[int], long: bool) -> Example | None:
    if ids[0] == tok.recall:
        return encoding.parse_recalling(tok, ids)
    text = encoding.parse_answering(tok, ids)
    whole = long or ids[-1] == tok.eos
    if text is None and whole and not {tok.ans, tok.say, tok.recall, tok.pad} & set(ids):
        body = tok.decode(ids).strip()
        text = Example("", body) if _readable(body) else None
    return text


def _fits(tok: Tokenizer, example: Example, longest: int) -> bool:
    return not example.prompt or len(encoding.encode_answering(tok, example).tokens) <= longest


def _judge(
    model, tok, params, memory, self_, before, examples, told, heard, longest, config, long
) -> tuple[list[Example | None], list[str]]:
    """The examples as the self answers them, and the reason against each, '' where there is none.

    `told` gathers the answers that were dreamt and given alike, `heard` for each prompt the self's answer and
    whether the self before it gives the same.
    """
    reasons = ["" if e and _fits(tok, e, longest) else "malformed" for e in examples]
    asked = [i for i, e in enumerate(examples) if not reasons[i] and e.prompt]
    if long:
        asked = [i for i in asked if len(tok.encode(" " + examples[i].answer)) <= config.answer_max_new]
    fresh = [Example(p, "?") for p in dict.fromkeys(examples[i].prompt for i in asked) if p not in heard]

    def ask(who: Self) -> list[str]:
        return rollout.answer(
            model,
            tok,
            params,
            seen_by(memory, who),
            fresh,
            max_new=config.answer_max_new,
            batch_size=config.batch_size,
            whole=True,
            kind=CHECKS,
        )

    answers = ask(self_)
    known = evals.matches(ask(before), answers) if before is not None else [False] * len(fresh)
    heard |= {e.prompt: (a, bool(k)) for e, a, k in zip(fresh, answers, known, strict=True)}
    own = [heard[examples[i].prompt][0] for i in asked]
    consistent = evals.matches(own, [examples[i].answer for i in asked])
    told |= {evals.normalise(a) for a, c in zip(own, consistent, strict=True) if c}
    examples = list(examples)
    for i, answer in zip(asked, own, strict=True):
        prompt = examples[i].prompt
        examples[i] = Example(prompt, answer)
        if not (_readable(answer) and _fits(tok, examples[i], longest)):
            reasons[i] = "malformed"
        elif evals.normalise(answer) not in told:
            reasons[i] = "inconsistent"
        elif heard[prompt][1]:
            reasons[i] = "known"
    return examples, reasons


def _readable(text: str) -> bool:
    return bool(text.strip()) and "\ufffd" not in text


def day_at_hand(
    model: Model,
    tok: Tokenizer,
    params: Tree,
    memory: Memory,
    awake: Self,
    documents: Sequence[Example],
    config: RecallConfig,
    *,
    longest: int | None = None,
) -> list[Dream]:
    """The day's inputs as prompts, with the awake self's own answers; the day's answers are not looked at.

    An answer that is blank, no text, did not end, or makes the dream longer than `longest` tokens (as in
    `recall`) cannot be taught.
    """
    longest = longest or model.config.max_len - config.answer_max_new
    pairs = list(dict.fromkeys(e.prompt for e in documents if e.prompt))
    answers = rollout.answer(
        model,
        tok,
        params,
        seen_by(memory, awake),
        [Example(p, "?") for p in pairs],
        max_new=config.answer_max_new,
        batch_size=config.batch_size,
        whole=True,
        kind=CHECKS,
    )
    dreams = []
    for example in map(Example, pairs, answers):
        reason = "" if _readable(example.answer) and _fits(tok, example, longest) else "malformed"
        dreams.append(Dream(example, awake.name, awake.knows[-1], "day", reason))
    return dreams + [Dream(e, awake.name, awake.knows[-1], "day", "") for e in documents if not e.prompt]


def contradicted(dreams: Sequence[Dream], new: Sequence[Dream]) -> list[Dream]:
    """Dreams of the past, those set aside whose prompt the day's kept dreams answer otherwise: *superseded*.

    The later one wins: a night that taught both would teach its slot to open on the one and stay closed on
    the other, of the same prompt.
    """
    today = {evals.normalise(d.example.prompt): evals.normalise(d.example.answer) for d in new if d.kept}

    def stale(e: Example) -> bool:
        return bool(e.prompt) and evals.normalise(e.answer) != today.get(
            evals.normalise(e.prompt), evals.normalise(e.answer)
        )

    return [_set_aside(d, "superseded") if d.kept and stale(d.example) else d for d in dreams]


def without(dreams: Sequence[Dream], barred: Container[str]) -> list[Dream]:
    """Dreams, those set aside that ask what the learner keeps back to be asked: *held back*."""
    return [
        _set_aside(d, "held back") if d.kept and evals.normalise(d.example.prompt) in barred else d
        for d in dreams
    ]


def _set_aside(dream: Dream, reason: str) -> Dream:
    return dataclasses.replace(dream, reason=reason)
