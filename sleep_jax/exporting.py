"""A life as a checkpoint for other programs: what transformers can run, and its experts beside it."""

import json
import pathlib
from typing import Any

import numpy as np

from sleep_jax import pretrained, standing, tensorfile
from sleep_jax.model import convert, families
from sleep_jax.model import memory as memory_lib
from sleep_jax.sleep.selves import Slot
from sleep_jax.standing import Standing
from sleep_jax.types import Memory

EXPERTS = "experts"
EXPERT = "base_model.model.model.layers.{n}.mlp.experts.{i}."
FORMULA = (
    "mlp(h_t) + sum over experts i of scale * lora_B_i silu(lora_A_i h_t) where h_t router.weight_i + "
    "router.bias_i + (mean over s <= t of h_s) router.pool_i >= 0, with h the input of the MLP"
)


def export(workdir: str | pathlib.Path, out: str | pathlib.Path, plain: bool = False) -> str:
    """Writes the life in `workdir`, at the last boundary that it has reached, into the folder `out`.

    config.json, model.safetensors, tokenizer.json and tokenizer_config.json, which transformers loads. What
    fast memory holds is added to the MLP weights. Experts cannot be: which of them speak is decided token by
    token, and each has a nonlinearity of its own. They go into experts/adapter_model.safetensors, named as
    PEFT names adapters, with what they compute in adapter_config.json beside it; in a folder of their own,
    because transformers tries to load every adapter that lies beside a model.

    Args:
      workdir: of one life, the directory that holds its phases/, or of a birth.
      out: a folder, made if it is not there; it must be empty.
      plain: the backbone alone, without fast memory and experts.

    Returns:
      What was written, for a person.

    Raises:
      ValueError: no life, no architecture of transformers for its settings, or a folder that is not empty.
      FileNotFoundError, CheckpointError: as `standing.read` and `Standing.state`.
    """
    out = pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"--out={out} is there and not an empty folder: name another, nothing is overwritten"
        )
    life = standing.read(workdir)
    fields, told = _fields(life)
    state = life.state()
    params, memory = state.params, state.memory
    if memory is not None and not plain and any(np.any(x) for x in memory.fast.values()):
        params = memory_lib.merged(params, memory.fast)
        rounded = f", rounded to {fields['torch_dtype']}" if fields["torch_dtype"] != "float32" else ""
        told.append(f"fast memory is in the MLP weights{rounded}")
    out.mkdir(parents=True, exist_ok=True)
    tensorfile.write(out / tensorfile.ONE, *convert.tensors_of(params))
    if state.slots and not plain:
        (out / EXPERTS).mkdir()
        _write_experts(out / EXPERTS, life, memory, state.slots)
        told.append(
            f"{len(state.slots)} experts are in {EXPERTS}/ and NOT in {tensorfile.ONE}: they are routed "
            "token by token, so no weights of the model could hold them, and PEFT cannot load them; "
            "adapter_config.json says what they compute"
        )
    elif state.slots:
        told.append(f"without fast memory and without the {len(state.slots)} experts of its nights (--plain)")
    life.tok.save(out / "tokenizer.json")
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n")  # last: now it is a checkpoint
    return "\n".join([f"{out}: {fields['architectures'][0]} of {life.workdir} after {life.boundary}", *told])


def _fields(life: Standing) -> tuple[dict[str, Any], list[str]]:
    """config.json, and what has to be said of it."""
    c, told = life.model.config, []
    fields = families.write_config(c)
    fields |= {f"{kind}_token_id": getattr(life.tok, kind) for kind in ("bos", "eos", "pad")}
    if c.checkpoint:
        try:
            found = pretrained.find(c.checkpoint)
        except (ValueError, OSError, ImportError):
            told.append(
                f"max_position_embeddings is model.max_len={c.max_len}, eos_token_id what answers end with: "
                f"{c.checkpoint}, which knows better, is not there any more"
            )
        else:
            fields["max_position_embeddings"] = found.fields.get("max_position_embeddings", c.max_len)
            if others := [end for end in found.ends if end != life.tok.eos]:
                fields["eos_token_id"] = [life.tok.eos, *others]
    return fields, told


def _write_experts(out: pathlib.Path, life: Standing, memory: Memory, slots: list[Slot]) -> None:
    bank = {k: np.asarray(x) for k, x in memory.bank.items()}
    tensors = {}
    for n in range(life.model.config.layers):
        for i, slot in enumerate(slots):
            at, name = (n, slot.level), EXPERT.format(n=n, i=i)
            tensors[name + "lora_A.weight"] = bank["a_NLEDR"][*at, slot.index].T
            tensors[name + "lora_B.weight"] = bank["b_NLERD"][*at, slot.index].T
            tensors[name + "router.weight"] = bank["w_NLDE"][*at, :, slot.index]
            tensors[name + "router.pool"] = bank["pool_NLDE"][*at, :, slot.index]
            tensors[name + "router.bias"] = bank["bias_NLE"][*at, slot.index]
    about = {k: (x.shape, str(x.dtype)) for k, x in tensors.items()}
    tensorfile.write(out / "adapter_model.safetensors", about, tensors.__getitem__)
    config = {
        "peft_type": "SLEEP_EXPERTS",
        "base_model_name_or_path": "..",
        "r": life.config.memory.rank,
        "scale": life.config.memory.expert_scale,
        "formula": FORMULA,
        "experts": [{"nights": s.nights, "experiences": s.experiences} for s in slots],
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
