"""A look into a bank of slots."""

from sleep_jax.types import Memory, Tree


def read_slot(memory: Memory, level: int, index: int) -> Tree:
    """The parameters of one slot, in the form that `memory.write_slot` takes."""
    bank = memory.bank
    return {
        "a_NDR": bank["a_NLEDR"][:, level, index],
        "b_NRD": bank["b_NLERD"][:, level, index],
        "w_ND": bank["w_NLDE"][:, level, :, index],
        "pool_ND": bank["pool_NLDE"][:, level, :, index],
        "bias_N": bank["bias_NLE"][:, level, index],
    }
