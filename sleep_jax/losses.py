"""What the network is trained on: sums over tokens, with their counts."""

from sleep_jax.ops.chunked import over_positions
from sleep_jax.ops.masked import masked_mean, token_logps
from sleep_jax.types import Array, Batch, Mean, Memory, Model, Objective, Tree


def next_token(
    model: Model, params: Tree, memory: Memory | None, batch: Batch, adapter: Tree | None = None
) -> Mean:
    """Negative log-likelihood of the targets, -log p(x_{t+1} | x_{<=t}), in nats per weighted token."""

    def nll(hidden_BTD: Array, targets_BT: Array) -> Array:
        return -token_logps(model.unembed(params, hidden_BTD), targets_BT)

    hidden_BTD = model.apply(
        params,
        batch.tokens_BT,
        memory=memory,
        adapter=adapter,
        segments_BT=batch.segments_BT,
        positions_BT=batch.positions_BT,
    ).hidden_BTD
    nll_BT = over_positions(nll, model.config.logit_chunk, hidden_BTD, batch.targets_BT)
    return masked_mean(nll_BT, batch.weights_BT)


def supervised(model: Model) -> Objective:
    """Next-token prediction over the backbone; `frozen` is the memory, or None."""

    def totals(params, frozen, batch, key):
        del key
        return {"nll": next_token(model, params, frozen, batch)}, {}

    return Objective({"nll": 1.0}, lambda batch: {"nll": batch.weights_BT.sum()}, totals)
