"""One optimiser step from an objective, exact under micro-batching and under sharding."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sleep_jax.types import Array, Mean, Objective, TrainState, Tree

Step = Callable[..., tuple[TrainState, dict[str, Mean]]]


def init(optimizer: optax.GradientTransformation, trainable: Tree) -> TrainState:
    """The state before the first step."""
    return TrainState(step=jnp.int32(0), params=trainable, opt_state=optimizer.init(trainable))


def make(objective: Objective, optimizer: optax.GradientTransformation, micro_batches: int = 1) -> Step:
    """A pure `step(state, frozen, batch, key, *, reduce) -> (state, metrics)`.

    Args:
      objective: what to minimise over `state.params`; `frozen` is never differentiated.
      optimizer: applied once per step.
      micro_batches: M, how many equal parts the batch's leading axis is processed in, one after another. All
        of them get the same key, as all devices do: randomness of a row has to travel in the batch.

    Returns:
      The step. `reduce` sums a pytree over mapped devices (identity under jit). Metrics hold every term, the
      objective's own metrics and the gradient norm before clipping. The gradient of a batch that counts
      nothing is zero, never NaN.

    Raises:
      ValueError: at the first call, for a batch whose rows do not divide into the micro-batches.
    """

    def divide(x: Array) -> Array:
        rows, rest = divmod(x.shape[0], micro_batches)
        if rest:
            raise ValueError(
                f'a batch of {x.shape[0]} rows (of each device in mode "map") does not divide into '
                f"micro_batches={micro_batches} parts: change one to fit the other"
            )
        # Neighbours into different parts: rows are split over devices in blocks, and every device shall have
        # its share of every part.
        return x.reshape(rows, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def step(state: TrainState, frozen: Tree, batch: Tree, key: Array, *, reduce=lambda tree: tree):
        counts = reduce(objective.counts(batch))
        scale = {k: objective.weights[k] / jnp.where(n > 0, n, 1.0) for k, n in counts.items()}

        def loss(params, part, key):
            terms, metrics = objective.totals(params, frozen, part, key)
            return sum(scale[k] * term.total for k, term in terms.items()), {**metrics, **terms}

        gradient = jax.grad(loss, has_aux=True)

        def accumulate(total, part):
            return jax.tree.map(jnp.add, total, gradient(state.params, part, key)), None

        if micro_batches == 1:
            grads, metrics = gradient(state.params, batch, key)
        else:
            parts = jax.tree.map(divide, batch)
            first = jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], parts), key)
            # In float32 whatever the parameters are: small parts would vanish in a large sum.
            zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), first)
            (grads, metrics), _ = jax.lax.scan(accumulate, zero, parts)
        grads, metrics = reduce((grads, metrics))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = Mean(optax.tree.norm(grads), jnp.float32(1))
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
