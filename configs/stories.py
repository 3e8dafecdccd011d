"""A downloaded storyteller learns of new characters, five nights, and goes on telling stories.

The model is Karpathy's stories260K (llama2.c: 260 thousand parameters, 512 words, trained on TinyStories), as
its files are: a .bin with its tokenizer beside it, --config.model.checkpoint=DIR/stories260K.bin. It is taken
as it is: of the 24 characters of birth it reads nothing.
Then eight new ones a day are told of, and asked for in beginnings of stories that stand nowhere in training.
What that costs it as a storyteller is the loss on stories that the untouched model tells ("general text").

Claim: most of a day is known the next morning in beginnings of stories that it never read, and much of that
four nights later; it tells stories nearly as before.
Cost: 7.5 minutes a day and night on one CPU core that other work shared.
Command: python -m launch.main --config=configs/stories.py --workdir=runs/stories
Choosing settings: --config.stream.probes=valid, never the test split.
Number: test, three lives (seeds 0, 1 and 0 of an earlier commit): a day is known to 58.4 +- 2.0 % right after
its night (2 % before it was read), the five to 44.0 +- 4.8 % at the end (sequential fine-tuning: 18.4 %);
general text costs 3.4 +- 0.6 % more nats a token (sequential: 624 %). Shorter nights with less of the past in
them (sleep.steps=1600, new_share=0.5, night_weight=3), one life: 57.8 % at the end, general text 5.6 % more.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.method = "sleep,sequential"
    c.model.checkpoint = "../shared/data/stories260K/stories260K.bin"
    c.stream.source, c.stream.days = "stories", 5
    c.model.max_len, c.row_length, c.memory.periods = 256, 192, (576,)
    c.model.unroll = 5
    c.birth.epochs = 0
    c.anchor.text, c.anchor.tokens = "self", 8192
    c.memory.slots, c.memory.rank = 7, 128
    c.wake.rule, c.wake.lr, c.wake.final, c.wake.passes = "adam", (6e-3,), 0.02, 16
    c.eval_batch = c.sleep.recall.batch_size = 128
    c.sleep.skill_share, c.sleep.recall.max_new = 0.3, 190
    c.sleep.old_dreams, c.sleep.new_dreams, c.sleep.new_share = 1000, 300, 0.4
    c.sleep.steps, c.sleep.batch_rows, c.sleep.validate_every, c.sleep.patience = 2000, 8, 80, 20
    c.sleep.optim.lr, c.sleep.blanks = 7e-3, 0.2
    c.sleep.seed.alpha, c.sleep.seed.on_policy = 1.0, 0.0
    c.sleep.seed.temperature, c.sleep.seed.missed = 2.0, 4.0
    # Nobody has shown it how one recalls, each night learns it for itself; at birth it read no character.
    c.sleep.seed.prompt_weight, c.sleep.recall_share, c.sleep.night_weight = 0.5, 0.3, 2.0
    c.sleep.recall.rounds, c.sleep.recall.temperature = 6, 0.8
    return c
