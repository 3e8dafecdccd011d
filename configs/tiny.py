"""Three days among invented people, on a laptop.

Claim: Sleep keeps nearly all that it was born with, learns most of what joint training learns and keeps most
of it; sequential fine-tuning forgets.
Cost: 4 min 50 s on 2 CPU cores, birth and installation included.
Command: python -m launch.main
With practice (on-policy part and imitation): --config.sleep.seed.alpha=0.95 --config.sleep.seed.on_policy=0.1
Number: everything 89.1 % (sequential 22.7, joint 99.7), birth 99.5 -> 99.5 %, seed 0; see the README.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.method = "sleep,sequential,joint"
    c.vocab_size = 512
    c.model.layers, c.model.ff, c.model.unroll = 3, 384, 3
    c.birth.epochs = 16
    c.wake.rule, c.wake.lr, c.wake.final, c.wake.passes = "adam", (3e-3,), 0.02, 4
    c.eval_batch = c.sleep.recall.batch_size = 128
    c.sleep.old_dreams, c.sleep.new_dreams = 600, 300
    c.sleep.steps, c.sleep.batch_rows, c.sleep.validate_every = 400, 8, 80
    c.sleep.optim.lr = 7e-3
    c.sleep.seed.alpha, c.sleep.seed.on_policy = 1.0, 0.0
    c.sleep.seed.prompt_weight = 0.5  # prompts hold the names, and dreams of them must be spelt right
    c.sleep.recall.rounds, c.sleep.recall.temperature = 6, 0.8
    return c
