"""CLINC150, class-incremental: 75 intents at birth, then five nights of one domain (15 intents) each.

The utterance is read and the intent is written as text, without a task id. Data:
`{data_dir}/clinc150/data_full.json` and `domains.json` as published (clinc/oos-eval).

Claim: Sleep takes on a domain a night and keeps most of the earlier; sequential fine-tuning keeps the last.
Cost: 2 M parameters; birth 14 minutes and a Sleep life 32 to 40 on one of two busy CPU cores, 7 and 20 on
both as two devices.
Command: python -m launch.main --config=configs/clinc150.py --workdir=runs/clinc150
On two cores: XLA_FLAGS=--xla_force_host_platform_device_count=2 before it splits every batch over them.
Dreams only, in another --workdir: --config.sleep.day_at_hand=False and, to share the birth,
--config.birth.checkpoint=runs/clinc150/birth
With practice (on-policy part and imitation): --config.sleep.seed.alpha=0.95 --config.sleep.seed.on_policy=0.1
Choosing settings: --config.stream.probes=valid, never the test split.
Number: of all 150 intents after five nights, seeds 0 to 2, 80.9 +- 0.2 % with the day at hand and 80.6 +-
0.4 % with dreams only (birth 89.9 -> 82.8 % in both); generative replay 78.2 +- 1.3 and 71.5 +- 0.6 %
(birth 72.1 and 61.8 %), sequential 9.0 +- 0.1 %; RESULTS.md says at which commit.
"""

from configs import base


def get_config():
    c = base.get_config()
    c.stream.source = "clinc150"
    c.data_dir = "../shared/data"
    c.model.width, c.model.layers, c.model.heads, c.model.kv_heads, c.model.ff = 192, 4, 6, 6, 512
    c.model.unroll = 4
    c.model.max_len, c.row_length, c.memory.periods = 96, 80, (480,)
    c.answer_tokens, c.sleep.recall.answer_max_new = 24, 24  # for intents that have longer names
    c.wake.rule, c.wake.lr, c.wake.final, c.wake.passes = "adam", (4e-3,), 0.02, 4
    c.birth.epochs, c.birth.blanks = 12, 0.15
    c.memory.rank = 128
    c.baseline.blanks = 0.15
    c.sleep.steps, c.sleep.old_dreams, c.sleep.new_dreams = 700, 4000, 3000
    c.sleep.night_weight, c.sleep.blanks = 2.0, 0.15
    c.sleep.seed.alpha, c.sleep.seed.on_policy, c.sleep.seed.temperature = 1.0, 0.0, 2.0
    c.sleep.new_share, c.sleep.recall_share = 0.4, 0.25
    c.sleep.seed.prompt_weight = 0.05
    c.sleep.recall.temperature, c.sleep.recall.per_answer = 0.9, 2.0
    return c
