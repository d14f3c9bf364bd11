"""Modules of multi-token prediction: value, packing, gradients."""

import functools
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import kv_cache
from model import mtp
from model import transformer

_DIM, _VOCAB, _MODULES = 16, 23, 2
_BLOCK = model_config.BlockConfig(
  mixer=model_config.AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
  feed_forward=model_config.MlpConfig(dim=24),
)
_CONFIG = model_config.ModelConfig(
  name="tiny",
  vocab_size=_VOCAB,
  dim=_DIM,
  groups=(model_config.LayerGroup(pattern=(_BLOCK,), repeats=2),),
  tie_embeddings=True,
  mtp=model_config.MtpConfig(block=_BLOCK, num_modules=_MODULES),
)
# Two documents and padding; a document of one token, which has none ahead.
_SEGMENT_IDS = np.array(
  [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]]
)


def batch():
  tokens = np.random.default_rng(1).integers(0, _VOCAB, _SEGMENT_IDS.shape)
  positions = [
    [list(row[:i]).count(segment) for i, segment in enumerate(row)]
    for row in _SEGMENT_IDS
  ]
  return {
    "tokens": jnp.asarray(tokens),
    "positions": jnp.array(positions),
    "segment_ids": jnp.asarray(_SEGMENT_IDS),
  }


@functools.cache
def setup(remat: Any = "none"):
  execution = model_config.ExecutionConfig(compute_dtype="float32", remat=remat)
  graphdef, shapes = transformer.abstract(_CONFIG, execution)
  # By NumPy: compiling JAX's random numbers takes longer than the tests.
  rng = np.random.default_rng(0)
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(
      rng.uniform(0.5, 1.5, x.shape)
      if path[-1].key == "scale_D"
      else rng.normal(0, 0.3, x.shape),
      jnp.float32,
    ),
    shapes,
  )

  @jax.jit
  def predict(params, batch):
    model = transformer.bind(graphdef, params)
    output = model(**batch)
    return output, model.predict_ahead(output, **batch)

  return graphdef, params, predict


@functools.partial(jax.jit, static_argnums=0)
def run_block(places, params, x):
  """The block of module d alone, on one row [T, D]."""
  model = transformer.bind(setup()[0], params)
  span = kv_cache.span(
    None, positions=None, segment_ids=None, shape=(1, len(x))
  )
  return getattr(model, f"mtp_{places - 1}").block(x[None], span)[0][0]


def slow(params, residual, tokens):
  """The paper's formulas for one document [T], position by position.

  Gives the normed hidden states of each module, [T - d, D].
  """
  length = len(tokens)
  embed = np.asarray(params["embed_VD"])[tokens]

  def rms(x, norm):
    scale = np.asarray(norm["scale_D"])
    return x / np.sqrt(np.mean(x**2) + _CONFIG.norm_eps) * scale

  hidden = np.asarray(residual)
  results = []
  for places in range(1, _MODULES + 1):
    p = params[f"mtp_{places - 1}"]
    # Behind what is looked at stand zeros, so that all shapes are alike.
    entered = np.zeros((_SEGMENT_IDS.shape[1], _DIM), np.float32)
    for i in range(length - places):
      both = np.concatenate(
        [
          rms(hidden[i], p["hidden_norm"]),
          rms(embed[i + places], p["embed_norm"]),
        ]
      )
      entered[i] = both @ np.concatenate([p["hidden_DM"], p["embed_DM"]])
    hidden = np.asarray(run_block(places, params, entered))
    results.append(
      [rms(hidden[i], p["final_norm"]) for i in range(length - places)]
    )
  return results


class MtpTest(parameterized.TestCase):
  def test_equals_each_document_alone(self):
    _, params, predict = setup()
    inputs = batch()
    output, predictions = predict(params, inputs)
    self.assertLen(predictions, _MODULES)
    for row, segments in enumerate(_SEGMENT_IDS):
      for segment in set(segments) - {0}:
        where = np.flatnonzero(segments == segment)
        wanted = slow(
          params,
          np.asarray(output.residual)[row, where],
          inputs["tokens"][row, where],
        )
        for places, prediction in enumerate(predictions, start=1):
          hidden = np.asarray(prediction.hidden)
          for i, expected in enumerate(wanted[places - 1]):
            np.testing.assert_allclose(
              hidden[row, where[i]], expected, rtol=1e-4, atol=1e-5
            )

  def test_sees_the_tokens_up_to_its_own(self):
    # Module d at position i reads tokens up to i + d, and none further.
    _, params, predict = setup()
    inputs = batch()
    _, before = predict(params, inputs)
    row, changed = 1, 8
    tokens = inputs["tokens"].at[row, changed].add(1) % _VOCAB
    _, after = predict(params, inputs | {"tokens": tokens})
    for places, (old, new) in enumerate(zip(before, after, strict=True), 1):
      moved = jnp.abs(old.hidden - new.hidden)[row].max(axis=-1) > 1e-6
      first = int(jnp.argmax(moved))
      self.assertEqual(first, changed - places)

  def test_gradient_reaches_modules_and_trunk_alike_with_remat(self):
    inputs = batch()
    gradients = []
    for remat in ("none", "full"):
      _, params, predict = setup(remat)

      def loss(params, predict=predict):
        _, predictions = predict(params, inputs)
        valid = mtp.has_ahead(inputs["segment_ids"], _MODULES)
        return sum(
          jnp.sum(valid[..., None] * jnp.sin(p.hidden)) for p in predictions
        )

      gradients.append(jax.jit(jax.grad(loss))(params))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients[0]):
      name = jax.tree_util.keystr(path)
      with self.subTest(name):
        largest = float(jnp.abs(gradient).max())
        # The modules branch off before the norm of the model's own head.
        if name == "['final_norm']['scale_D']":
          self.assertEqual(largest, 0)
        else:
          self.assertGreater(largest, 1e-4)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      *gradients,
    )

  def test_ahead(self):
    x = jnp.array([[1, 2, 3, 4]])
    np.testing.assert_array_equal(mtp.ahead(x, 1), [[2, 3, 4, 0]])
    np.testing.assert_array_equal(mtp.ahead(x, 3), [[4, 0, 0, 0]])
    np.testing.assert_array_equal(mtp.ahead(x, 5), [[0, 0, 0, 0]])

  def test_has_ahead_within_the_segment_only(self):
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
    np.testing.assert_array_equal(
      mtp.has_ahead(segment_ids, 1), [[1, 1, 0, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
      mtp.has_ahead(segment_ids, 2), [[1, 0, 0, 0, 0, 0, 0]]
    )


if __name__ == "__main__":
  absltest.main()
