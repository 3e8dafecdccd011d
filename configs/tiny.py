"""Three days among invented people, on a laptop.

Claim: Sleep keeps what it was born with, learns most of what joint training learns and keeps part of it;
sequential fine-tuning forgets.
Cost: 5 min 42 s on 2 CPU cores, birth included.
Command: python -m launch.main
Number: everything 83.9 % (sequential 22.7, joint 99.7), birth 99.5 -> 100.0 %, seed 0; see the README.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.method = "sleep,sequential,joint"
    c.vocab_size = 512
    c.model.layers, c.model.ff, c.model.unroll = 3, 384, 3
    c.birth.epochs = 16
    c.wake.rule, c.wake.lr, c.wake.final, c.wake.passes = "adam", (3e-3,), 0.02, 4
    c.sleep.old_dreams, c.sleep.new_dreams = 600, 300
    c.sleep.steps, c.sleep.validate_every = 200, 50
    c.sleep.optim.lr = 7e-3
    c.sleep.seed.prompt_weight = 0.5  # prompts hold the names, and dreams of them must be spelt right
    c.sleep.recall.rounds, c.sleep.recall.temperature = 6, 0.8
    return c
