"""Operations counted from a program, against XLA's own count on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import models
from distill_core.models.flops import count_flops

# Without those that only have more of the same blocks.
# Fourier transforms and moduli, most of scattering, are no products.
LEFT_OUT = (*models.TEXT_MODELS, "scattering", "resnetc32", "resnet34")
IMAGE_MODELS = [name for name in models.MODEL_NAMES if name not in LEFT_OUT]


def xla_count(function, *args):
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def network(name, shape, dtype=jnp.float32, **kwargs):
    """(apply, shapes of its variables)."""
    module = models.create_model(name, num_classes=10, **kwargs)
    params, state = jax.eval_shape(
        lambda key: models.init_model(module, key, shape, dtype=dtype), jax.random.key(0)
    )

    def apply(variables, x):
        return models.apply_model(module, variables, x, train=False)

    return apply, {"params": params, **state}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_each_image_network_has_the_operations_that_xla_counts(name):
    apply, variables = network(name, (32, 32, 3))
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    ours, theirs = count_flops(apply, variables, image), xla_count(apply, variables, image)
    assert 0.95 * theirs < ours < theirs  # theirs has elementwise operations, too


def test_a_transformer_has_the_operations_that_xla_counts_attention_included():
    sizes = {"width": 64, "num_layers": 2, "num_heads": 4, "max_length": 96}
    apply, variables = network("transformer", (96,), jnp.int32, **sizes)
    tokens = jax.ShapeDtypeStruct((2, 96), jnp.int32)
    ours, theirs = count_flops(apply, variables, tokens), xla_count(apply, variables, tokens)
    assert 0.95 * theirs < ours < theirs


@pytest.mark.parametrize("name", ["resnetc20", "shufflenetv2"])
def test_a_backward_pass_counts_with_its_dilated_and_grouped_convolutions(name):
    apply, variables = network(name, (16, 16, 3))
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    forward = count_flops(apply, variables, image)

    def gradient(variables, x):
        return jax.grad(lambda params: jnp.sum(apply({**variables, "params": params}, x)))(
            variables["params"]
        )

    ours = count_flops(gradient, variables, image)
    assert ours == pytest.approx(xla_count(gradient, variables, image), rel=0.07)
    assert 2.5 * forward < ours < 3 * forward  # none for the images' own gradient


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
def test_products_with_padding_do_not_count(stride, padding):
    image, kernel = np.ones((1, 7, 9, 4)), np.ones((3, 2, 4, 5))

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (stride, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # Each output of a convolution of ones counts the products that met a value.
    assert count_flops(convolve, image, kernel) == 2 * np.sum(convolve(image, kernel))


def test_a_loop_counts_as_often_as_it_runs_and_a_branch_as_its_longest():
    x = np.ones((4, 4), np.float32)

    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=7)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(loop, x) == 7 * 2 * 4**3
    assert count_flops(branch, x) == 2 * 2 * 4**3
    assert count_flops(jax.jit(jax.checkpoint(jax.vmap(lambda row: row @ x))), x) == 2 * 4**3
