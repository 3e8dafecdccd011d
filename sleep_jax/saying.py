"""What a checkpoint says: the shortest way to see that it was read as it was meant."""

import dataclasses

import jax

from sleep_jax import cost, pretrained, rollout
from sleep_jax.model.build import build
from sleep_jax.partition import Partitioner
from sleep_jax.settings import Config
from sleep_jax.types import Sampling

SAYING = cost.Kind("saying it", "lower --tokens or shorten the prompt")


def say(config: Config, prompt: str, chat: bool, sampling: Sampling) -> str:
    """How a checkpoint goes on.

    Args:
      config: `model.checkpoint`, its dtypes, `tokenizer`, `mesh` and `seed` are read; its `model.max_len`
        grows to what is said.
      prompt: a text to go on with, which may be empty; or with `chat` what the user says.
      chat: in the form of the checkpoint's own dialogues.
      sampling: how.

    Returns:
      The text that follows the prompt, up to the first token that ends it by the tokenizer or config.json.

    Raises:
      As `pretrained.find`, `pretrained.shape`, `pretrained.tokenizer` and `Tokenizer.asked`.
    """
    pretrained.shape(dataclasses.replace(config.model, max_len=1))  # what is wrong with it is said first
    tok = pretrained.tokenizer(config.model.checkpoint, config.tokenizer)
    if chat:
        ids = tok.asked([{"role": "user", "content": prompt}])
    else:
        ids = [tok.bos, *(tok.encode(" " + prompt) if prompt else ())]
    c = pretrained.shape(dataclasses.replace(config.model, max_len=len(ids) + sampling.max_new))
    c = c.holding(tok.vocab_size)
    model = build(c, config.memory, eos=tok.eos)
    stops = pretrained.find(c.checkpoint).ends
    like = Partitioner(config.mesh).abstract(jax.eval_shape(model.init, jax.random.key(0)))
    params = pretrained.params(c.checkpoint, like)
    asked, key = rollout.padded([ids]), jax.random.key(config.seed)
    out = rollout.generate(model, params, None, asked, key, sampling, batch_size=1, kind=SAYING)
    (said,) = rollout.completions(out, asked[1])
    ends = next((i for i, token in enumerate(said) if int(token) in stops), len(said))
    text = tok.decode(said[:ends])
    return text if prompt else text.removeprefix(" ")
