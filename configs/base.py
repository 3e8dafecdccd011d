"""Every key there is, with its default; a study changes a few of them.

Claim: none, this is the reference that the studies start from.
Cost: as the study.
Command: python -m launch.main --config=configs/tiny.py --config.KEY=VALUE sets any key below.
Number: see configs/tiny.py and configs/clinc150.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.study = "life"  # "life", "incorporation" (knowledge_incorporation.py) or "few_shot" (few_shot_arc.py)
    c.method = "sleep"  # one method of sleep_jax/methods, or several separated by commas, the main one first
    c.seed = 0  # of everything random
    c.seeds = 1  # number of lives, with seeds seed, seed + 1, ...
    c.data_dir = ""  # folder that holds data sets, such as clinc150/data_full.json
    c.tokenizer = ""  # path of a tokenizer.json; empty trains one at birth, or is that of model.checkpoint
    c.vocab_size = 1024  # tokens, upper bound for a tokenizer trained at birth
    c.row_length = 64  # tokens per packed row
    c.answer_tokens = 16  # tokens, longest answer
    c.eval_batch = 256  # questions answered at once; a quarter as many rows are scored at once
    c.micro_batches = 1  # parts that training batches are split in, one after another: memory for time
    c.checkpoint_every = 96  # steps between rolling checkpoints
    c.log_every = 10  # steps between lines of metrics

    c.stream = s = ConfigDict()
    s.source = "biographies"  # biographies, stories, puzzles, clinc150, documents or tfds
    s.path = ""  # documents: folder of .txt and .md files, and of questions.jsonl
    s.birth = ""  # documents: source whose birth is this life's, all documents being days; "" is none
    s.seed = 0  # biographies, stories: who lives where; puzzles: which
    s.birth_fraction = 0.5  # share of domains, folders or classes that is known at birth
    s.days = 0  # days lived; 0 is all that there are (biographies: 3, stories: 5)
    s.probes = "test"  # split that a life is measured on; "valid" while settings are chosen; of biographies
    # "fold1" to "fold3" too, with other phrasings valid that "test" trains: for a birth of its own
    s.people_at_birth = 24  # biographies, stories
    s.people_per_day = 8  # biographies, stories
    s.attributes = 4  # biographies, stories: facts per person
    s.strangers = 0  # biographies, stories, puzzles: how many more there are at birth, with dreams of each
    s.puzzles = 0  # puzzles: solved at birth
    s.families = ("recolour", "keep", "frame", "shift")  # puzzles: of rules known at birth
    s.sides = (3, 6)  # puzzles: least and most rows, and columns, of a grid
    s.tfds_name = ""  # tfds: data set
    s.tfds_text = "text"  # tfds: feature that is read
    s.tfds_label = "label"  # tfds: feature that is answered
    s.tfds_splits = ("train[:90%]", "train[90%:]", "test")  # tfds: train, valid, test

    c.model = m = ConfigDict()
    # What a life starts from in place of random numbers: a folder as transformers saves it (Llama 3, SmolLM2,
    # Qwen 2.5, Qwen 3, Gemma 3), a .bin of llama2.c, or a name on the hub such as "Qwen/Qwen3-0.6B". Its
    # config.json then sets all keys below, those that name a family among them, but max_len, compute_dtype,
    # remat, unroll and logit_chunk (64 in place of 0 where it has more than 16,384 words), and the tokenizer
    # is its own. Parameters keep the type of its files unless param_dtype is other than float32.
    # Passes over the birth documents follow (birth.epochs).
    m.checkpoint = ""  # empty is training from scratch
    m.vocab_size = 1024  # tokens; the tokenizer's own number takes its place
    m.width = 128  # D, channels
    m.layers = 4  # N
    m.heads = 4  # H, query heads
    m.kv_heads = 4  # J, key/value heads
    m.head_size = 32  # K, channels
    m.ff = 352  # F, hidden units of an MLP
    m.max_len = 64  # tokens, longest sequence
    m.rope_theta = 10_000.0  # base of the rotary wavelengths
    m.rope_factor = 1.0  # that these are stretched by; 1: not (Llama 3.1: 8)
    m.rope_original = 0  # tokens, context before stretching: short wavelengths stay; 0 stretches all alike
    m.rope_low = 1.0  # turns in that context below which a wavelength is stretched wholly
    m.rope_high = 4.0  # turns in that context above which it is not stretched
    m.rope_local_theta = 0.0  # base in the layers of window_layers, not stretched (Gemma 3); 0: as elsewhere
    m.window = 0  # tokens that the layers of window_layers look back, their own included
    m.window_layers = ()  # counted from 0; the others see all
    m.norm_eps = 1e-6  # added to mean squares
    m.norm_plus_one = False  # norms multiply by 1 + what is stored (Gemma 3)
    m.post_norms = False  # RMSNorm of what attention adds and of what the MLP adds, as well (Gemma 3)
    m.tie_embeddings = True  # one table for input and output
    m.scaled_embeddings = False  # they enter the first layer times sqrt(width) (Gemma 3)
    m.qk_norm = False  # RMSNorm of queries and keys (Qwen 3, Gemma 3)
    m.qkv_bias = False  # (Qwen 2.5)
    m.query_scalar = 0  # scores are divided by its square root (Gemma 3); 0: by that of head_size
    m.activation = "silu"  # of the MLP's gate: "silu", or "gelu_tanh" (Gemma 3)
    m.param_dtype = "float32"  # of the backbone; what memory changes is float32 whatever this is
    m.compute_dtype = "float32"  # softmax and log-softmax are float32 whatever this is
    m.remat = "none"  # "dots": the backward pass computes all of a layer again but products with weights;
    # "full": all of it
    m.unroll = 1  # layers per iteration of the scan over depth
    m.logit_chunk = 0  # positions of a row whose logits exist at once in a loss; 0 is all

    c.memory = y = ConfigDict()
    y.periods = (512,)  # tokens between writes of each fast level, fastest first
    y.reading = "depth"  # which MLP weights a level owns: whole layers ("depth") or slices ("width")
    y.static_share = 0.0  # share of layers or slices without a level
    y.slow_levels = 1  # L, banks of expert slots
    y.slots = 6  # E, slots per bank, the last free one kept for merging
    y.rank = 64  # R, hidden units of an expert
    y.expert_scale = 2.0  # factor on an expert's output (alpha / R)

    c.mesh = d = ConfigDict()
    d.data = -1  # devices along each axis; -1 is the rest
    d.fsdp = 1  # parts that every parameter is stored in
    d.model = 1  # parts that every layer computes in
    d.mode = "jit"  # "jit", or "map" for one program per device

    c.birth = b = ConfigDict()
    b.checkpoint = ""  # folder birth/ of an earlier run to start from, in place of training
    b.epochs = 10  # passes over the birth documents; 0 takes model.checkpoint as it is
    b.batch_rows = 16  # rows per step
    b.blanks = 0.0  # share of the prompts' tokens that are blanked, others in every epoch
    b.prompt_weight = 1.0  # weight of predicting a prompt's tokens
    b.optim = _optim(lr=2e-3, weight_decay=0.1)

    c.anchor = h = ConfigDict()  # general text, whose loss every morning tells what a life costs elsewhere
    h.text = ""  # a file of text, "python" for Python's own manual of its language, "self" for what the
    # untouched model says, or '' for none
    h.tokens = 8192  # of it, at most
    h.rehearsed = 0  # other texts that the untouched model.checkpoint says, read at birth beside documents

    c.wake = w = ConfigDict()
    w.passes = 1  # times that a day is read
    w.rule = "sgd"  # "sgd" or "adam"
    w.lr = (1.0,)  # of each fast level in the morning
    w.final = 1.0  # of these in the evening, as a share
    w.clip = 1.0  # gradient norm per level and write
    w.notes = 0  # attempts to write down what each free text of a day says, as rem says; such notes are read
    # beside it, and some are kept back to be asked

    c.sleep = n = ConfigDict()
    n.day_at_hand = True  # the day's inputs are prompts until the night commits; False is dreams only
    n.day_in_context = 0  # documents of the day in the context of a third teacher; 0 is none
    n.old_dreams = 4000  # dreams per night of birth and earlier nights
    n.night_weight = 1.0  # of what an earlier night learnt against what birth did, example for example
    n.skill_share = 0.0  # share of old dreams that may be of what birth was shown how to do
    n.new_dreams = 1500  # dreams per night of the awake self, beside the day's inputs where they are at hand
    n.new_share = 0.5  # share of the day's rows in a batch
    n.recall_share = 0.2  # share of those that go from answer to prompt, to be dreamt of later
    n.blanks = 0.0  # share of dreamt prompts' tokens blanked for the student alone
    n.steps = 400  # most optimiser steps
    n.batch_rows = 16  # rows of dreams per step
    n.held_out = 0.08  # share of the dreams kept for stopping early and for judging the night
    n.validate_every = 50  # steps between looks at held-out dreams
    n.patience = 4  # looks without improvement before stopping
    n.margin = 0.2  # agreement on held-out old dreams that a night may lose before it is rolled back
    n.optim = _optim(lr=5e-3)

    n.seed = k = ConfigDict()
    k.beta = 0.0  # generalised JSD: 0 forward KL, 1 reverse KL
    k.temperature = 1.0  # that both distributions are softened by before they are compared
    k.kl_clip = 0.0  # nats, largest contribution of a vocabulary entry; 0 is none
    k.alpha = 0.95  # weight of distillation against imitation
    k.on_policy = 0.1  # lambda, weight of the student's own samples in distillation
    k.routing = 1.0  # weight of the router's own loss: open on the day's dreams, closed on the past's
    k.missed = 1.0  # factor on it where the router should open
    k.forced = 0.5  # share of the steps with the fresh slot open whatever its router says
    k.prompt_weight = 0.2  # weight of a dream's prompt tokens

    n.recall = r = ConfigDict()
    r.temperature = 1.0  # of the logits that dreams are sampled from
    r.max_new = 48  # tokens of a dream
    r.rounds = 4  # most rounds of sampling
    r.surplus = 1.5  # dreams sampled per dream wanted
    r.batch_size = 256  # dreams sampled at once
    r.answer_max_new = 16  # tokens of an answer, of a dream that is checked or of the day's questions
    r.per_answer = 3.0  # most dreams of one answer, in even shares

    n.imitate = i = ConfigDict()
    i.gamma = 0.5  # weight of the semantic reward
    i.z0 = 8  # tokens, largest edit distance that is rewarded
    i.semantic = "answer"  # same "answer", close "hidden" states of the newborn, or the newborn as "judge"
    i.threshold = 0.9  # "hidden": cosine
    i.width = 48  # tokens, longest dream that is practised on
    i.prompts = 2  # dreams finished per step
    i.samples = 4  # G, continuations of each
    i.max_new = 24  # tokens
    i.refresh = 8  # steps that share one round of sampling

    c.rem = g = ConfigDict()
    g.tasks = 8  # of a night of the method sleep_rem, each gathered from what stage 1 dreamt
    g.lines = 4  # dreams that are a task's context
    g.questions = 8  # dreams that measure what was learnt of it
    g.rounds = 2  # of ReST-EM: dream, try, learn from what helped
    g.roles = ("free",)  # what is asked for, in equal shares: "implications", "rewrite", "questions",
    # "completions", "free", or of puzzles "regimen"
    g.per_context = 5  # dreams of a context
    g.temperature = 1.0  # of the logits that dreams are sampled from
    g.top_p = 1.0  # of the probability, the likeliest tokens that dreams are drawn from
    g.max_new = 96  # tokens of a dream
    g.random_expert = True  # each router opens one random active expert more
    g.common = 0.0  # a line of a dream may use the words of its context, and those that at least this share
    # of the dreams shown at birth use; a line with any other is struck out. 0 strikes none
    g.batch_size = 64  # dreams sampled at once
    g.score = "norm"  # how dreams rank: "norm" of their gradient, its "cosine" with that of the context,
    # or "greedy" by what each adds to the others
    g.top = 4  # dreams of a context that are tried for their rank
    g.random = 1  # others that are tried for diversity
    g.recount = 20  # dreams of a context whose questions its awake instance answers for the night
    g.reread = True  # a trial learns the context itself beside its dreams
    g.grader = "exact"  # "exact", "f1", "contains" or "judge"
    g.best_of_n = False  # the dreamer learns from the best dream of every context, rewarded or not
    g.trials = t = ConfigDict()  # an adapter for each dream
    t.rank = 16  # R, columns of A and rows of B
    t.alpha = 32.0  # its product is scaled by alpha / rank
    t.steps = 20  # most updates
    t.batch_rows = 0  # rows of an update, taken in turns; 0 is all that the dream has
    t.at_once = 16  # trials that are trained together, rounded up to what the mesh splits rows into
    t.optim = _optim(lr=1e-2)
    t.optim.warmup = 0.0  # a trial is too short for any
    g.learn = u = ConfigDict()  # an adapter that learns to dream
    u.rank = 16  # as above
    u.alpha = 32.0  # as above
    u.epochs = 10  # passes over the rewarded dreams
    u.batch_rows = 8  # rows per step
    u.optim = _optim(lr=5e-3)

    c.passages = q = ConfigDict()  # study "incorporation"
    q.source = "biographies"  # "biographies", or "squad" from {data_dir}/seal_squad/
    q.train = 32  # passages that dreaming is learnt on
    q.single = 24  # passages that are incorporated each on its own
    q.continued = 50  # passages that are incorporated together
    q.edits = 8  # passages that are incorporated one after the other
    q.steps_for_one = 400  # most optimiser steps of a night that keeps one passage
    q.steps_for_many = 400  # of a night that keeps several

    c.puzzles = z = ConfigDict()  # study "few_shot"
    z.source = "generated"  # "generated", or "arc" from {data_dir}/arc_agi1/
    z.families = ("count", "fill", "negative", "inside")  # generated: of rules, see data/puzzles.py
    z.steps = 1  # generated: rules of a puzzle, one after the other
    z.train = 11  # puzzles that dreaming is learnt on
    z.given = 8  # held-out puzzles
    z.tries = 5  # regimens that are tried on each of these
    z.copies = 32  # changed copies of its demonstrations that a trial learns from
    z.votes = 4  # augmentations of a question whose answers are voted on
    z.regimen = "change by both, leave out 1, rate 0.3, steps 0.5, learn all"  # of the arm "ttt"

    c.baseline = a = ConfigDict()
    a.gradient_tokens = 0  # per cycle; 0 is what a day and a night of Sleep may spend
    a.batch_rows = 16  # rows per step
    a.blanks = 0.0  # share of the prompts' tokens that are blanked, as at birth
    a.replay_buffer = 200  # examples
    a.replay_share = 0.5  # experience replay: share of old rows
    a.ewc_strength = 300.0  # lambda
    a.ewc_examples = 400  # examples per experience for the Fisher diagonal
    a.optim = _optim(lr=1e-3)
    return c


def _optim(lr: float, weight_decay: float = 0.0) -> ConfigDict:
    c = ConfigDict()
    c.lr = lr  # peak learning rate
    c.warmup = 0.05  # share of the steps
    c.final = 0.1  # share of the peak at the end
    c.weight_decay = weight_decay  # on matrices
    c.b2 = 0.98  # Adam's second moment
    c.clip = 1.0  # global gradient norm
    return c
