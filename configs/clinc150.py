from configs import base


def get_config():
    c = base.get_config()
    c.stream.source = "clinc150"
    c.data_dir = "../shared/data"
    c.model.width, c.model.layers, c.model.heads, c.model.kv_heads, c.model.ff = 192, 4, 6, 6, 512
    c.model.unroll = 4
    c.model.max_len, c.row_length, c.memory.periods = 96, 80, (480,)
    c.wake.rule, c.wake.lr, c.wake.passes = "adam", (1e-3,), 6
    c.sleep.steps, c.sleep.old_dreams = 400, 5000
    return c
