import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sleep_jax.ops import divergence, masked

BETAS = [0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0]


def _pair(seed, scale=3.0, shape=(2, 3, 17)):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) * scale for _ in range(2))


def _entries(teacher_BTV, student_BTV, beta):
    """The definition in float64, by probabilities."""
    p, q = (special.softmax(z.astype(np.float64), axis=-1) for z in (teacher_BTV, student_BTV))
    if beta == 0:
        return special.rel_entr(p, q)
    if beta == 1:
        return special.rel_entr(q, p)
    m = beta * p + (1 - beta) * q
    return beta * special.rel_entr(p, m) + (1 - beta) * special.rel_entr(q, m)


def _automatic(teacher_BTV, student_BTV, beta, clip=None):
    """The definition again, left to automatic differentiation."""
    logp, logq = jax.nn.log_softmax(teacher_BTV), jax.nn.log_softmax(student_BTV)
    p, q = jnp.exp(logp), jnp.exp(logq)
    if beta == 0:
        entries = p * (logp - logq)
    elif beta == 1:
        entries = q * (logq - logp)
    else:
        logm = jnp.log(beta * p + (1 - beta) * q)
        entries = beta * p * (logp - logm) + (1 - beta) * q * (logq - logm)
    return jnp.sum(entries if clip is None else jnp.minimum(entries, clip), -1)


@pytest.mark.parametrize("beta", BETAS)
def test_value_is_the_definition_relative_to_its_size(beta):
    teacher_BTV, student_BTV = _pair(0)
    value_BT = divergence.generalised_jsd(teacher_BTV, student_BTV, beta)
    assert value_BT.shape == (2, 3)
    assert value_BT.dtype == jnp.float32
    np.testing.assert_allclose(value_BT, _entries(teacher_BTV, student_BTV, beta).sum(-1), rtol=1e-4)


@pytest.mark.parametrize("clip", [None, 0.02])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_written_gradient_equals_automatic_one(beta, clip):
    teacher_BTV, student_BTV = _pair(1)
    weights_BT = _pair(2, shape=(2, 3))[0]
    gradients = [
        jax.grad(lambda z, f=f: jnp.sum(weights_BT * f(teacher_BTV, z, beta, clip)))(student_BTV)
        for f in (divergence.generalised_jsd, _automatic)
    ]
    np.testing.assert_allclose(*gradients, atol=2e-5)
    assert np.abs(gradients[0]).max() > 1e-2


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_beta_scales_the_kl_near_the_ends_instead_of_vanishing(beta):
    teacher_BTV, student_BTV = _pair(3, scale=1.0)
    near, end = min(beta, 1 - beta), round(beta)

    def gradient(beta):
        return jax.grad(lambda z: divergence.generalised_jsd(teacher_BTV, z, beta).sum())(student_BTV)

    value_BT = divergence.generalised_jsd(teacher_BTV, student_BTV, beta) / near
    np.testing.assert_allclose(value_BT, divergence.generalised_jsd(teacher_BTV, student_BTV, end), rtol=1e-3)
    np.testing.assert_allclose(gradient(beta) / near, gradient(float(end)), atol=1e-3)


def test_forward_and_reverse_kl_are_the_two_ends():
    teacher_BTV, student_BTV = _pair(4)
    forward_BT = divergence.generalised_jsd(teacher_BTV, student_BTV, 0)
    np.testing.assert_allclose(forward_BT, _entries(teacher_BTV, student_BTV, 0).sum(-1), rtol=1e-4)
    reverse_BT = divergence.generalised_jsd(student_BTV, teacher_BTV, 1)
    np.testing.assert_allclose(forward_BT, reverse_BT, rtol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_properties(beta):
    teacher_BTV, student_BTV = _pair(5)
    value_BT = divergence.generalised_jsd(teacher_BTV, student_BTV, beta)
    assert (value_BT > 0).all()
    np.testing.assert_allclose(
        value_BT, divergence.generalised_jsd(teacher_BTV + 5.0, student_BTV - 7.0, beta), rtol=1e-4, atol=1e-8
    )
    if 0 < beta < 1:
        assert (value_BT <= special.entr(beta) + special.entr(1 - beta) + 1e-6).all()
        mirrored_BT = divergence.generalised_jsd(student_BTV, teacher_BTV, 1 - beta)
        np.testing.assert_allclose(value_BT, mirrored_BT, rtol=1e-4)
    np.testing.assert_allclose(divergence.generalised_jsd(teacher_BTV, teacher_BTV, beta), 0.0, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("beta", BETAS)
def test_underflowing_probabilities_keep_value_and_gradient_finite(beta, clip):
    teacher_TV = jnp.array([[0.0, -1000.0, 2.0], [0.0, 1000.0, 0.0], [-jnp.inf, 0.0, 1.0]])
    student_TV = jnp.array([[1.0, 500.0, 0.0], [0.0, -1000.0, 3.0], [-jnp.inf, 2.0, 0.0]])
    value, gradient_TV = jax.value_and_grad(
        lambda z: divergence.generalised_jsd(teacher_TV, z, beta, clip).sum()
    )(student_TV)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient_TV).all()
    # The third row's forbidden token is as good as absent from the vocabulary.
    np.testing.assert_allclose(
        divergence.generalised_jsd(teacher_TV, student_TV, beta, clip)[2],
        divergence.generalised_jsd(teacher_TV[2, 1:], student_TV[2, 1:], beta, clip),
        rtol=1e-5,
    )


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_disjoint_distributions_reach_the_entropy_of_the_mixture(beta):
    value = divergence.generalised_jsd(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]), beta)
    np.testing.assert_allclose(value, special.entr(beta) + special.entr(1 - beta), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_clip_limits_each_entry(beta):
    teacher_BTV, student_BTV = _pair(6)
    entries_BTV = _entries(teacher_BTV, student_BTV, beta)
    assert (entries_BTV > 0.05).any()
    np.testing.assert_allclose(
        divergence.generalised_jsd(teacher_BTV, student_BTV, beta, clip=0.05),
        np.minimum(entries_BTV, 0.05).sum(-1),
        atol=1e-5,
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_nothing_flows_into_the_teacher(beta):
    teacher_BTV, student_BTV = _pair(7)
    gradient_BTV = jax.grad(lambda z: divergence.generalised_jsd(z, student_BTV, beta).sum())(teacher_BTV)
    np.testing.assert_array_equal(gradient_BTV, 0.0)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_masked_positions_of_bad_logits_have_zero_gradient(beta):
    teacher_BTV, student_BTV = (z.copy() for z in _pair(8))
    teacher_BTV[0, 1], student_BTV[1, 2] = np.nan, np.inf
    where_BT = np.ones((2, 3))
    where_BT[0, 1] = where_BT[1, 2] = 0

    def loss(student_BTV):
        value_BT = divergence.generalised_jsd(teacher_BTV, student_BTV, beta)
        return masked.masked_mean(value_BT, where_BT).value()

    value, gradient_BTV = jax.jit(jax.value_and_grad(loss))(student_BTV)
    assert jnp.isfinite(value)
    np.testing.assert_array_equal(np.any(gradient_BTV != 0, axis=-1), where_BT == 1)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_vmapped_gradient_equals_looped(beta):
    teacher_BTV, student_BTV = _pair(9)

    def gradient(teacher_TV, student_TV):
        return jax.grad(lambda z: divergence.generalised_jsd(teacher_TV, z, beta).mean())(student_TV)

    looped_BTV = np.stack([gradient(*row) for row in zip(teacher_BTV, student_BTV, strict=True)])
    np.testing.assert_allclose(jax.vmap(gradient)(teacher_BTV, student_BTV), looped_BTV, atol=1e-6)


def test_low_precision_logits_give_float32_values_and_their_own_gradient():
    teacher_BTV, student_BTV = (jnp.asarray(z, jnp.bfloat16) for z in _pair(10))
    value_BT, pullback = jax.vjp(lambda z: divergence.generalised_jsd(teacher_BTV, z, 0.5), student_BTV)
    np.testing.assert_allclose(
        value_BT, _entries(np.float32(teacher_BTV), np.float32(student_BTV), 0.5).sum(-1), rtol=1e-4
    )
    assert pullback(value_BT)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_beta_outside_its_range(beta):
    with pytest.raises(ValueError, match=rf"beta.*\[0, 1\].*{beta}"):
        divergence.generalised_jsd(jnp.zeros(3), jnp.zeros(3), beta)


def test_traced_beta():
    with pytest.raises(TypeError, match="beta"):
        jax.jit(lambda beta: divergence.generalised_jsd(jnp.zeros(3), jnp.zeros(3), beta))(0.5)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_clip_that_would_leave_nothing(clip):
    with pytest.raises(ValueError, match=f"clip.*{clip}"):
        divergence.generalised_jsd(jnp.zeros(3), jnp.zeros(3), 0.0, clip)


def test_different_vocabularies():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        divergence.generalised_jsd(jnp.zeros((2, 3)), jnp.zeros((2, 4)), 0.0)
