"""The skeptical student: which head learns from whom, and the network with two heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill_core import cross_entropy, distillation_loss, kl_divergence, models
from distill_core.config import InputError
from distill_core.models.network import Network
from nasty.attacks.skeptical import SOWN, check_auxiliary, skeptical_loss

C, T, ALPHA, BETA = 5, 4.0, 0.9, 0.3
softmax = functools.partial(special.softmax, axis=-1)


def skeptical(student, auxiliary, teacher, labels, awake=1.0, where=None):
    settings = {"temperature": T, "alpha": ALPHA, "self_weight": BETA}
    return skeptical_loss(student, auxiliary, teacher, labels, **settings, awake=awake, where=where)


def gradients(*args):
    return jax.jit(jax.grad(lambda *a: jnp.sum(skeptical(*a)), (0, 1, 2)))(*args)


def draw(shape=(4,)):
    rng = np.random.default_rng(0)
    return (*rng.normal(scale=3, size=(3, *shape, C)).astype(np.float32), rng.integers(0, C, shape))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
def test_it_is_the_sum_of_its_terms(shape):
    @jax.jit
    def terms(student, auxiliary, teacher, labels):
        kd = distillation_loss(auxiliary, teacher, labels, temperature=T, alpha=ALPHA)
        own = BETA * kl_divergence(student, auxiliary, temperature=T)
        own += (1 - BETA) * cross_entropy(auxiliary, labels)
        return cross_entropy(student, labels) + kd + own

    found = jax.jit(skeptical)(*draw(shape))
    assert (found.shape, found.dtype) == (shape, jnp.float32)
    np.testing.assert_allclose(found, terms(*draw(shape)), rtol=1e-5)


def test_each_heads_gradient_by_hand():
    student, auxiliary, teacher, labels = draw()
    of_student, of_auxiliary, of_teacher = gradients(student, auxiliary, teacher, labels)
    y = np.eye(C)[labels]
    soft = softmax(auxiliary / T)
    expected = ALPHA * T * (soft - softmax(teacher / T))
    expected += BETA / T * (soft - softmax(student / T))
    expected += (2 - ALPHA - BETA) * (softmax(auxiliary) - y)
    # The final head trusts labels alone.
    np.testing.assert_allclose(of_student, softmax(student) - y, atol=1e-5)
    np.testing.assert_allclose(of_auxiliary, expected, atol=1e-5)
    np.testing.assert_array_equal(of_teacher, 0)


def test_during_the_delay_only_the_final_head_learns():
    args = draw()
    asleep = jax.jit(skeptical)(*args, np.array([0.0, 1.0, 0.0, 1.0], np.float32))
    np.testing.assert_allclose(asleep[::2], cross_entropy(args[0], args[3])[::2], rtol=1e-6)
    np.testing.assert_allclose(asleep[1::2], jax.jit(skeptical)(*args)[1::2], rtol=1e-6)
    _, of_auxiliary, _ = gradients(*args, 0.0)
    np.testing.assert_array_equal(of_auxiliary, 0)


def test_a_stingy_teacher_and_huge_logits_leave_it_finite():
    student, auxiliary, teacher, labels = draw()
    student, auxiliary = 1e4 * np.sign(student), 1e4 * np.sign(auxiliary)
    teacher[:, 2:] = -np.inf
    assert np.isfinite(jax.jit(skeptical)(student, auxiliary, teacher, labels)).all()
    assert all(np.isfinite(g).all() for g in gradients(student, auxiliary, teacher, labels))


def test_masked_entries_are_zero_and_harmless_whatever_they_hold(masked_is_sliced):
    masked_is_sliced(skeptical, [*draw((2, 3)), np.ones((2, 3), np.float32)], (0, 1, 2))


def student(**kwargs):
    return Network("nasty.attacks.skeptical:SkepticalCNN", C, kwargs, (8, 8, 1), (0.0,), (1.0,))


def run(network):
    """(parameters, logits, auxiliary logits) of a training step's pass."""
    params, state = jax.jit(network.init)(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    logits, _, sown = jax.jit(network.train_apply_sown)(params, state, images, jax.random.key(2))
    return params, logits, sown[SOWN]


def test_the_network_has_a_head_at_an_inner_block():
    network = student(widths=(4, 8), hidden=16)
    check_auxiliary(network)
    params, logits, auxiliary = run(network)
    assert logits.shape == auxiliary.shape == (3, C)
    assert not np.allclose(logits, auxiliary)
    assert params["Dense_0"]["kernel"].shape == (4 * 4 * 4, 16)  # after the first block
    plain, _ = jax.eval_shape(
        lambda key: models.init_model(models.CNN(C, (4, 8), 16), key, (8, 8, 1)), jax.random.key(0)
    )
    heads = 4 * 4 * 4 * 16 + 16 + 2 * 16 + 16 * C + C
    assert models.count_parameters(params) == models.count_parameters(plain) + heads


def test_the_block_can_be_chosen_and_a_single_one_serves():
    params, _, _ = run(student(widths=(4, 8), hidden=16, auxiliary_block=2))
    assert params["Dense_0"]["kernel"].shape == (2 * 2 * 8, 16)
    assert run(student(widths=(4,), hidden=16, norm="none"))[2].shape == (3, C)
    with pytest.raises(InputError, match="^model_kwargs.auxiliary_block: "):
        run(student(widths=(4, 8), auxiliary_block=3))


def test_a_network_without_the_head_is_refused():
    plain = Network("cnn", C, {"widths": (4,), "hidden": 8}, (8, 8, 1), (0.0,), (1.0,))
    with pytest.raises(InputError, match="^model: "):
        check_auxiliary(plain)
