"""Your documents: every day of a dated folder is read that day, slept on, and asked for without it.

Beside the model's own form of questions and answers, which it learns at birth from invented people, nothing
is known of the documents. By day they are read, with notes that the model takes while it has each before it;
by night fast memory moves into a slot of its own. Asked is what questions.jsonl beside the documents asks,
and what the model kept back of its notes where there is none. Where a later document says otherwise, the
later one is right, and the report lists what is answered otherwise since. What it costs elsewhere is the loss
on Python's manual of itself, every morning.

Without a checkpoint this is a small life that shows that it works: a model of 0.7 M parameters is born here,
and can only read the kind of text that configs/notes/ holds (invented people, the third day corrects the
first). The settings are those of knowledge_incorporation.py.
With a checkpoint: --config=configs/learn_docs.py:checkpoint has settings for one of 0.1 to 8 B parameters.
They have not been measured on a real one, which this was built without.

Claim: what is read on one day is answered in other words after the night, what was known before stays, and
where documents contradict each other the later one is answered.
Cost: on one CPU core a birth of 8 to 12 minutes, then 2 to 4 minutes a day and night.
Command: python -m launch.main --config=configs/learn_docs.py --workdir=runs/notes
Own documents: python -m launch.main --config=configs/learn_docs.py:checkpoint
--config.model.checkpoint=Qwen/Qwen3-0.6B --config.stream.path=my_notes/ --workdir=runs/mine
Then: python -m launch.ask --workdir=runs/mine/sleep --compare
Number: seed 0: after three nights 78.1, 92.2 and 79.7 % of the days' questions (0 to 8 % before they were
read), birth 85.9 -> 87.0 %; of eight questions about what was corrected five have the later answer, none the
earlier one. Sequential fine-tuning: 26.6, 21.9 and 81.2 %, birth 4.2 %.
"""

from configs import knowledge_incorporation


def get_config(size: str = "small"):
    c = knowledge_incorporation.get_config()
    c.study, c.method = "life", "sleep,sequential"
    c.stream.source, c.stream.path, c.stream.days = "documents", "configs/notes", 0
    c.stream.birth = "biographies"
    c.wake.notes = 24
    c.anchor.text = "python"
    if size == "small":
        return c
    if size != "checkpoint":
        raise ValueError(f"learn_docs.py:{size} is neither :small nor :checkpoint")
    knowledge_incorporation.for_checkpoint(c)
    c.model.max_len, c.row_length, c.memory.periods = 1024, 512, (2048,)
    c.rem.max_new, c.rem.common = 256, 0.0  # it has words that the dreams of birth do not have
    return c
