"""The chunked loss against its direct form, in values, gradients and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.losses import cross_entropy, kl_divergence
from swingdistill import soft_targets, swing_loss, swing_loss_from_hidden, token_temperatures
from swingdistill.variants import anchored_targets, reference_mix, released_entries

B, L, V, D, E = 2, 7, 37, 5, 3  # 14 tokens; neither they nor V are multiples of the chunks below
KEY = jax.random.key(5)
HEATS = {"t_min": 2.0, "t_max": 9.0, "gamma": 1.5}
PLAIN = {"alpha": 0.6, "noise_scale": 0, "clip": 2.0}
NOISED = {**PLAIN, "noise_scale": 0.5}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    drawn = {
        "student": (normal(B, L, D), normal(V, D)),
        "teacher": (2 * normal(B, L, E), normal(V, E)),
        "reference": (normal(B, L, D), normal(V, D)),
        "labels": rng.integers(0, V, (B, L)),
        "scores": np.float32(rng.uniform(size=(B, L)) * (rng.uniform(size=(B, L)) < 0.4)),
        "ids": 7 * np.arange(B * L, dtype=np.uint32).reshape(B, L),
        "weights": np.float32(rng.uniform(size=(B, L))),
    }
    drawn["weights"][[0, 1], [2, 6]] = 0.0
    return jax.tree.map(jnp.asarray, drawn)


def logits(pair):
    return jnp.einsum("...d,vd->...v", *pair, preferred_element_type=jnp.float32)


def direct(student, batch, *, alpha, noise_scale, clip, heats=HEATS, variant="swing",
           teacher_weight=0.0, entries=None, keep_ce=False):  # fmt: skip
    """The weighted sum from whole logits."""
    scores = batch["scores"]
    teacher, reference = logits(batch["teacher"]), logits(batch["reference"])
    scale = noise_scale
    if jnp.ndim(scale) == 0 and not isinstance(scale, int):
        scale = jnp.where(scores > 0, scale, 0.0)
    if entries is not None:
        noised = (scale > 0)[..., None]
        teacher = jnp.where(noised, released_entries(teacher, reference, entries), teacher)
    noise = {"noise_scale": scale, "clip": clip, "noise_ids": batch["ids"]}
    temperatures = token_temperatures(scores, **heats)
    if variant == "anchored":
        target = anchored_targets(
            KEY, teacher, reference, temperatures, t_min=heats["t_min"], **noise
        )
    else:
        target = soft_targets(KEY, teacher, temperatures, **noise)
    if variant == "reference_mix":
        target = reference_mix(
            target, reference, scores, teacher_weight=teacher_weight, temperature=heats["t_min"]
        )
    values = swing_loss(
        logits(student),
        target,
        batch["labels"],
        scores,
        alpha=alpha,
        temperature=heats["t_min"],
        keep_ce=keep_ce,
    )
    return jnp.sum(batch["weights"] * values)


def chunked(student, batch, *, chunk=4, heats=HEATS, **settings):
    if "variant" in settings or "entries" in settings:
        hidden, embedding = batch["reference"]
        settings |= {"reference_hidden": hidden, "reference_embedding": embedding}
    return swing_loss_from_hidden(
        *student,
        *batch["teacher"],
        batch["labels"],
        batch["scores"],
        key=KEY,
        noise_ids=batch["ids"],
        weights=batch["weights"],
        chunk=chunk,
        **heats,
        **settings,
    )


def gradients(form, batch, **settings):
    @jax.jit
    def call(student, batch):
        return jax.value_and_grad(functools.partial(form, **settings))(student, batch)

    return call(batch["student"], batch)


def assert_same(found, expected, tolerance=1e-5):
    """Equal relative to the largest value of each leaf."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max(), rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_it_is_the_direct_form_for_a_chunk_of_any_size(batch, chunk):
    found = gradients(chunked, batch, chunk=chunk, **NOISED)
    assert_same(found, gradients(direct, batch, **NOISED))
    if chunk == 4:
        alone = jax.jit(functools.partial(chunked, **NOISED))(batch["student"], batch)
        np.testing.assert_allclose(alone, found[0], rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        {**PLAIN, "heats": {"t_min": 1.0, "t_max": 5.0}},
        {**NOISED, "heats": {"t_min": 1, "t_max": 5.0}, "keep_ce": True},
        {**NOISED, "noise_scale": jnp.linspace(0, 1, B * L).reshape(B, L)},
        {**NOISED, "variant": "anchored"},
        {**NOISED, "variant": "reference_mix", "teacher_weight": 0.3},
        {**NOISED, "entries": 4},
        {**NOISED, "variant": "anchored", "entries": 4},
        {**PLAIN, "alpha": 0.0},
    ],
    ids=["plain", "unit", "keep_ce", "noise per token", "anchored", "mix", "entries", "both", "ce"],
)
def test_every_setting_is_the_direct_forms(batch, settings):
    found, expected = (gradients(form, batch, **settings) for form in (chunked, direct))
    assert_same(found, expected)


def test_the_settings_may_be_traced(batch):
    def call(form):
        def loss(student, scalars):
            alpha, scale, clip, t_max = scalars
            heats = {"t_min": 2.0, "t_max": t_max}
            return form(student, batch, alpha=alpha, noise_scale=scale, clip=clip, heats=heats)

        return jax.jit(jax.value_and_grad(loss))(batch["student"], jnp.array([0.6, 0.5, 2.0, 9.0]))

    assert_same(call(chunked), call(direct))


def test_a_factor_after_the_sum_scales_the_gradients(batch):
    scaled = gradients(lambda *a, **k: -3.0 * chunked(*a, **k), batch, **NOISED)
    assert_same(scaled, jax.tree.map(lambda x: -3.0 * x, gradients(chunked, batch, **NOISED)))


def test_gradients_flow_on_into_what_made_the_hidden_states(batch):
    """A tied embedding, which is also the input's, gets both of its gradients."""

    def through(form):
        def loss(embedding):
            hidden = jnp.tanh(embedding[batch["labels"]])
            return form((hidden, embedding), batch, **NOISED)

        return jax.jit(jax.grad(loss))(batch["student"][1])

    assert_same(through(chunked), through(direct))


def test_devices_that_share_a_batch_add_up_to_it(batch):
    split = {"teacher": (0, None), "student": (0, None), "reference": None}
    axes = {name: split.get(name, 0) for name in batch}
    parts = jax.tree.map(lambda x: x[:, None] if x.shape[0] == B else x, batch)

    @functools.partial(jax.pmap, in_axes=((0, None), axes))
    def call(student, part):
        return jax.value_and_grad(chunked)(student, part, **NOISED)

    value, (of_hidden, of_embedding) = call(parts["student"], parts)
    found = value.sum(), (of_hidden[:, 0], of_embedding.sum(0))
    assert_same(found, gradients(direct, batch, **NOISED))


def test_a_token_of_weight_zero_contributes_nothing_whatever_it_holds(batch):
    dead = batch["weights"] == 0
    assert dead.sum() == 2
    poisoned = dict(batch)
    for name in ("student", "teacher", "reference"):
        hidden, embedding = batch[name]
        poisoned[name] = jnp.where(dead[..., None], jnp.nan, hidden), embedding
    for name, junk in (("labels", -9), ("scores", jnp.nan), ("ids", 0)):
        poisoned[name] = jnp.where(dead, junk, batch[name])
    settings = {**NOISED, "variant": "anchored"}
    found, clean = (gradients(chunked, each, **settings) for each in (poisoned, batch))
    assert_same(found, clean, 1e-6)
    np.testing.assert_array_equal(found[1][0][dead], 0)


def test_the_frozen_side_gets_no_gradient(batch):
    def loss(teacher, scores, weights, student):
        return chunked(student, {**batch, "teacher": teacher, "scores": scores, "weights": weights},
                       **NOISED)  # fmt: skip

    call = jax.grad(loss, (0, 1, 2, 3))
    *frozen, student = call(batch["teacher"], batch["scores"], batch["weights"], batch["student"])
    for leaf in jax.tree.leaves(frozen):
        np.testing.assert_array_equal(leaf, 0)
    assert np.abs(student[0]).max() > 0


def test_bfloat16_comes_in_and_its_gradients_go_out_with_float32_between(batch):
    networks = {name: batch[name] for name in ("student", "teacher", "reference")}
    half = {**batch, **jax.tree.map(lambda x: x.astype(jnp.bfloat16), networks)}
    found, expected = (gradients(form, half, **NOISED) for form in (chunked, direct))
    assert found[0].dtype == jnp.float32
    assert all(leaf.dtype == jnp.bfloat16 for leaf in found[1])
    assert_same(found[0], expected[0])
    assert_same(found[1], expected[1], 0.01)  # the direct form rounds the logits' gradient as well
    mixed = {**half, "student": (half["student"][0], batch["student"][1])}
    found, expected = (gradients(form, mixed, **NOISED) for form in (chunked, direct))
    assert [leaf.dtype for leaf in found[1]] == [jnp.bfloat16, jnp.float32]
    assert_same(found, expected, 0.01)


def test_the_terms_are_there_for_logging(batch):
    settings = {**PLAIN, "heats": {"t_min": 2.0, "t_max": 2.0}}
    total, terms = chunked(batch["student"], batch, has_aux=True, **settings)
    student, teacher = logits(batch["student"]), logits(batch["teacher"])
    kl = jnp.sum(batch["weights"] * kl_divergence(teacher, student, temperature=2.0))
    hard = jnp.sum(batch["weights"] * cross_entropy(student, batch["labels"]))
    np.testing.assert_allclose(terms["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(terms["cross_entropy"], hard, rtol=1e-5)
    np.testing.assert_allclose(total, direct(batch["student"], batch, **settings), rtol=1e-5)
    for label in (-1, V):  # outside the vocabulary
        wrong = {**batch, "labels": batch["labels"].at[1, 1].set(label)}
        assert np.isnan(chunked(batch["student"], wrong, **PLAIN))


def shapes(jaxpr):
    """Of everything that a program computes, inside loops and branches too."""
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


def test_no_more_logits_than_a_chunks_exist_at_a_time(batch):
    def logit_rows(form):
        program = jax.make_jaxpr(jax.value_and_grad(form))(batch["student"], batch)
        return max(int(np.prod(s[:-1])) for s in shapes(program.jaxpr) if s and s[-1] == V)

    settings = {**NOISED, "variant": "anchored"}
    assert logit_rows(functools.partial(direct, **settings)) == B * L
    assert logit_rows(functools.partial(chunked, chunk=3, **settings)) == 3


def test_memory_is_that_of_a_chunk():
    def normal(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    tokens, vocabulary = (4, 256), 2003
    large = {
        name: (normal(*tokens, 8), normal(vocabulary, 8))
        for name in ("student", "teacher", "reference")
    }
    large |= {"labels": jax.ShapeDtypeStruct(tokens, jnp.int32),
              "ids": jax.ShapeDtypeStruct(tokens, jnp.uint32),
              "scores": normal(*tokens), "weights": normal(*tokens)}  # fmt: skip

    def bytes_of(form, **settings):
        call = jax.jit(jax.value_and_grad(functools.partial(form, **NOISED, **settings)))
        return call.lower(large["student"], large).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(chunked, chunk=16) < bytes_of(direct) / 15


@pytest.mark.parametrize(
    ("field", "settings", "tokens"),
    [
        *[("variant", {"variant": "other"}, {}), ("chunk", {"chunk": 0}, {})],
        *[("alpha", {"alpha": 1.5}, {}), ("clip", {"clip": 0.0}, {})],
        *[("noise_scale", {"noise_scale": scale}, {}) for scale in (-1.0, jnp.ones(L))],
        ("t_max", {"heats": {"t_min": 4.0, "t_max": 2.0}}, {}),
        *[("noise_ids", NOISED, {"ids": ids}) for ids in (None, jnp.zeros(L, jnp.uint32))],
        ("labels", {}, {"labels": jnp.zeros((B, L))}),
        ("weights", {}, {"weights": jnp.ones(L)}),
        ("privacy_scores", {}, {"scores": jnp.ones(L)}),
        *[
            ("reference_hidden, reference_embedding", needs, {"reference": (None, None)})
            for needs in ({"variant": "anchored"}, {"entries": 3})
        ],
        ("teacher_hidden .*", {}, {"teacher": (jnp.ones((B, L, E)), jnp.ones((V - 1, E)))}),
        ("student_hidden .*", {}, {"student": (jnp.ones((L, D)), jnp.ones((V, D)))}),
    ],
)
def test_wrong_settings_and_tokens_that_do_not_belong_together_are_refused(
    batch, field, settings, tokens
):
    batch = {**batch, **tokens}
    with pytest.raises(ValueError, match=f"^{field}: "):
        chunked(batch["student"], batch, **{**PLAIN, **settings})


def test_targets_made_before_stand_in_for_the_teachers(batch):
    """Where the first class is not negative; other classes have probability 0 there."""
    rng = np.random.default_rng(3)
    scores = np.asarray(batch["scores"])
    classes = np.stack([rng.permutation(V)[:4] for _ in range(B * L)]).reshape(B, L, 4)
    classes[scores == 0] = -1
    log_probs = np.asarray(jax.nn.log_softmax(rng.normal(size=(B, L, 4)).astype(np.float32)))
    targets = np.array(jax.nn.log_softmax(logits(batch["teacher"]) / HEATS["t_min"]))
    for place in np.argwhere(scores > 0):
        row = np.full(V, -np.inf, np.float32)
        row[classes[tuple(place)]] = log_probs[tuple(place)]
        targets[tuple(place)] = row
    values = swing_loss(
        logits(batch["student"]),
        jnp.asarray(targets),
        batch["labels"],
        batch["scores"],
        alpha=0.6,
        temperature=HEATS["t_min"],
    )
    found = chunked(batch["student"], batch, **PLAIN, released=(classes, log_probs))
    np.testing.assert_allclose(found, np.sum(batch["weights"] * values), rtol=1e-5)
