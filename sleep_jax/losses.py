"""What the network is trained on: sums over tokens, with their counts."""

from sleep_jax.ops.masked import masked_mean, token_logps
from sleep_jax.types import Batch, Mean, Memory, Model, Objective, Tree


def next_token(
    model: Model, params: Tree, memory: Memory | None, batch: Batch, adapter: Tree | None = None
) -> Mean:
    """Negative log-likelihood of the targets, -log p(x_{t+1} | x_{<=t}), in nats per weighted token."""
    logits_BTV = model.apply(
        params,
        batch.tokens_BT,
        memory=memory,
        adapter=adapter,
        segments_BT=batch.segments_BT,
        positions_BT=batch.positions_BT,
    ).logits_BTV
    return masked_mean(-token_logps(logits_BTV, batch.targets_BT), batch.weights_BT)


def supervised(model: Model) -> Objective:
    """Next-token prediction over the backbone; `frozen` is the memory, or None."""

    def totals(params, frozen, batch, key):
        del key
        return {"nll": next_token(model, params, frozen, batch)}, {}

    return Objective({"nll": 1.0}, lambda batch: {"nll": batch.weights_BT.sum()}, totals)
