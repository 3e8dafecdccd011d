from configs import base


def get_config():
    c = base.get_config()
    c.study = "incorporation"
    c.method = "base,passage,own,seal,sleep"
    c.vocab_size = 512
    c.row_length, c.model.max_len, c.memory.periods = 192, 256, (576,)
    c.model.layers, c.model.ff, c.model.unroll = 3, 384, 3
    c.stream.strangers, c.stream.days = 3000, 1
    c.birth.epochs = 16
    c.memory.slots = 12
    c.wake.rule, c.wake.lr, c.wake.final, c.wake.passes = "adam", (3e-3,), 0.02, 4
    c.eval_batch = c.sleep.recall.batch_size = 128
    c.sleep.old_dreams, c.sleep.new_dreams = 600, 300
    c.sleep.steps, c.sleep.batch_rows, c.sleep.validate_every = 200, 4, 50
    c.sleep.optim.lr = 7e-3
    c.sleep.seed.alpha, c.sleep.seed.on_policy = 1.0, 0.0
    c.sleep.seed.prompt_weight = 0.5
    c.sleep.recall.rounds, c.sleep.recall.temperature = 6, 0.8
    c.sleep.skill_share, c.sleep.recall.max_new = 0.15, 190
    c.rem.roles, c.rem.per_context, c.rem.score = ("questions",), 20, "cosine"
    c.rem.top, c.rem.random = 8, 2
    c.rem.trials.rank, c.rem.trials.alpha = 8, 16.0
    return c
