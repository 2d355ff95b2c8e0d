import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import (
    CNN,
    MODEL_NAMES,
    TEXT_MODELS,
    MobileNetV2,
    ResNet,
    ResNetC,
    ResNeXt,
    ShuffleNetV2,
    apply_model,
    count_parameters,
    create_model,
    features,
    init_model,
)

_SMALL_CNN = CNN(num_classes=3, widths=(4, 6), hidden=5)
_SMALL_RESNETC = ResNetC(num_classes=3, blocks_per_stage=1)
_SMALL_RESNET = ResNet(num_classes=3, stage_sizes=(1,))
_SMALL_MOBILENET = MobileNetV2(num_classes=3, stages=((2, 8, 1, 2),), head=6)
_SMALL_SHUFFLENET = ShuffleNetV2(num_classes=3, widths=(8,), stage_sizes=(2,), head=6)


def _initialised(module, shape):
    params, state = init_model(module, jax.random.key(0), shape)
    return {"params": params, **state}


def _shapes(name, *, shape, num_classes, **kwargs):
    module = create_model(name, num_classes=num_classes, **kwargs)
    return jax.eval_shape(
        lambda key: init_model(module, key, shape), jax.eval_shape(lambda: jax.random.key(0))
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("cnn", 10, 357_514),
        ("resnetc20", 10, 272_282),
        ("resnetc32", 10, 466_714),
        ("resnet18", 10, 11_173_962),
        ("resnet34", 10, 21_282_122),
        ("resnet50", 100, 23_705_252),
        ("resnext29", 100, 34_518_948),
        ("mobilenetv2", 100, 2_369_380),
        ("shufflenetv2", 100, 1_360_896),
    ],
)
def test_parameter_counts(name, num_classes, count):
    params, state = _shapes(name, shape=(32, 32, 3), num_classes=num_classes)
    assert count_parameters(params) == count
    assert list(state) == ["batch_stats"]


_NORMED = {*MODEL_NAMES} - {*TEXT_MODELS, "scattering", "resnetc32", "resnet34"}


@pytest.mark.parametrize("name", sorted(_NORMED))
@pytest.mark.parametrize(
    ("norm", "shape"), [("batch", (28, 28, 1)), ("group", (8, 8, 1)), ("none", (64, 64, 3))]
)
def test_every_network_takes_every_norm_and_size(name, norm, shape):
    module = create_model(name, num_classes=7, norm=norm)
    params, state = _shapes(name, shape=shape, num_classes=7, norm=norm)
    assert list(state) == (["batch_stats"] if norm == "batch" else [])
    logits, new_state = jax.eval_shape(
        lambda variables, x: apply_model(module, variables, x, train=True),
        {"params": params, **state},
        jax.ShapeDtypeStruct((5, *shape), jnp.float32),
    )
    assert logits.shape == (5, 7)
    assert logits.dtype == jnp.float32
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.parametrize(
    "module",
    [_SMALL_CNN, _SMALL_CNN.copy(norm="group"), _SMALL_RESNETC, _SMALL_RESNET, _SMALL_MOBILENET],
)
def test_masked_is_sliced_in_training_even_with_nan(module):
    variables = _initialised(module, (8, 8, 2))
    params = variables.pop("params")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 8, 8, 2)).astype(np.float32)
    where = np.array([True, False, True, True, False])
    x[~where] = np.nan

    @jax.jit
    def grad(params, x, mask):
        def loss(params):
            logits, state = apply_model(
                module, {"params": params, **variables}, x, train=True, where=mask
            )
            kept = logits if mask is None else jnp.where(mask[:, None], logits, 0)
            return jnp.sin(kept).sum(), (logits, state)

        return jax.grad(loss, has_aux=True)(params)

    d_params, (logits, state) = grad(params, x, where)
    d_params_s, (logits_s, state_s) = grad(params, x[where], None)
    np.testing.assert_allclose(logits[where], logits_s, rtol=1e-4, atol=1e-4)
    assert np.isfinite(logits).all()
    chex.assert_trees_all_close((d_params, state), (d_params_s, state_s), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("module", "width"),
    [(_SMALL_CNN, 5), (_SMALL_RESNETC, 64), (_SMALL_MOBILENET, 6), (_SMALL_SHUFFLENET, 6)],
)
def test_features_feed_the_last_dense_layer(module, width):
    variables = _initialised(module, (8, 8, 1))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)

    @jax.jit
    def run(variables, x):
        return features(module, variables, x), apply_model(module, variables, x, train=False)

    penultimate, logits = run(variables, x)
    assert penultimate.shape == (4, width)
    last = [layer for name, layer in variables["params"].items() if name.startswith("Dense")][-1]
    bias = last["bias"].reshape(1, -1)
    np.testing.assert_allclose(penultimate @ last["kernel"] + bias, logits, rtol=1e-4, atol=1e-5)


def test_cnn_takes_any_number_of_widths_and_refuses_small_images():
    for widths, size in [((3,), 2), ((3, 4, 5, 6), 16)]:
        params, _ = _shapes("cnn", shape=(size, size, 1), num_classes=2, widths=widths)
        assert params["Dense_0"]["kernel"].shape == (widths[-1], 128)
        with pytest.raises(ValueError, match=f"at least {size}×{size} pixels"):
            _shapes("cnn", shape=(size, size - 1, 1), num_classes=2, widths=widths)
    with pytest.raises(InputError, match="widths: got \\(\\); must name at least one width"):
        _shapes("cnn", shape=(8, 8, 1), num_classes=2, widths=[])


def test_convolutions_start_from_the_reference_codes_distributions():
    module = ResNeXt(num_classes=20, blocks_per_stage=1, cardinality=2, base_width=8)
    params = _initialised(module, (8, 8, 1))["params"]
    grouped = params["GroupedBottleneck_2"]["Conv_1"]["kernel"]
    assert grouped.shape == (3, 3, 32, 64)
    np.testing.assert_allclose(grouped.std(), np.sqrt(2 / (3 * 3 * 64)), rtol=0.02)
    np.testing.assert_allclose(params["Dense_0"]["kernel"].std(), np.sqrt(2 / 1024), rtol=0.02)
    assert not params["Dense_0"]["bias"].any()

    params = _initialised(_SMALL_RESNETC, (8, 8, 1))["params"]
    kernel = params["PreActivationBlock_2"]["Conv_1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (3 * 3 * 64)), rtol=0.02)

    params = _initialised(MobileNetV2(3, stages=((6, 8, 1, 1),)), (4, 4, 1))["params"]
    depthwise = params["InvertedResidual_0"]["Conv_1"]
    assert depthwise["kernel"].shape == (3, 3, 1, 192)
    for values in depthwise.values():  # U(-1/3, 1/3): nine inputs each
        assert 0.95 / 3 < np.abs(values).max() <= 1 / 3
