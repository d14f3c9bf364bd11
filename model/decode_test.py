import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from model import config as model_config
from model import decode
from model import fixtures
from model import transformer

_NUM_TOKENS = 5


# The longest prompt passes its original context at the third token.
_LONG = model_config.RopeConfig(
  scaling=model_config.LongRopeScaling(
    short_factor=(1.0, 1.1, 1.2, 1.3),
    long_factor=(2.0, 3.0, 4.0, 6.0),
    original_max_seq_len=8,
    factor=4.0,
  )
)


class GreedyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("default", model_config.RopeConfig()), ("longrope", _LONG)
  )
  def test_equals_forward_passes_over_all_tokens(self, rope):
    config, execution = fixtures.config(rope=rope), fixtures.execution()
    graphdef, shapes = transformer.abstract(config, execution)
    rng = np.random.default_rng(0)
    # So large that logits differ clearly.
    params = jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 3, shapes
    )
    lengths = np.array([6, 1, 4], np.int32)
    prompts = rng.integers(0, config.vocab_size, (3, 6)).astype(np.int32)
    greedy = jax.jit(
      functools.partial(
        decode.greedy, graphdef=graphdef, num_tokens=_NUM_TOKENS
      )
    )
    out = greedy(params, prompts, lengths)
    self.assertEqual(out.tokens.shape, (3, _NUM_TOKENS))
    self.assertEqual(out.logits.shape, (3, _NUM_TOKENS, config.vocab_size))
    # What stands behind a prompt does not matter.
    padding = np.arange(6) >= lengths[:, None]
    again = greedy(params, np.where(padding, 7, prompts), lengths)
    np.testing.assert_array_equal(again.tokens, out.tokens)

    @jax.jit
    def forward(params, texts, segment_ids):
      model = transformer.bind(graphdef, params)
      return model.logits(model(texts, segment_ids=segment_ids).hidden)

    texts = np.zeros((3, 6 + _NUM_TOKENS), np.int32)
    for row, length in enumerate(lengths):
      texts[row, :length] = prompts[row, :length]
    for step in range(_NUM_TOKENS):
      ends = lengths + step
      valid = np.arange(texts.shape[1]) < ends[:, None]
      logits = forward(params, texts, valid.astype(np.int32))
      logits = np.asarray(logits)[range(3), ends - 1]
      np.testing.assert_allclose(out.logits[:, step], logits, atol=1e-4)
      chosen = logits.argmax(axis=-1)
      np.testing.assert_array_equal(out.tokens[:, step], chosen)
      texts[range(3), ends] = chosen
    self.assertGreater(len(np.unique(out.tokens)), 3)

  def test_turning_points(self):
    self.assertEqual(decode.turning_points(fixtures.config()), [])
    self.assertEqual(decode.turning_points(fixtures.config(rope=_LONG)), [8])

  def test_forbidden(self):
    config, execution = fixtures.config(num_layers=1), fixtures.execution()
    graphdef, shapes = transformer.abstract(config, execution)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    # All logits are equal: the first id that is allowed is chosen.
    out = jax.jit(
      functools.partial(
        decode.greedy, graphdef=graphdef, num_tokens=2, forbidden=(0, 1, 3)
      )
    )(params, np.ones((1, 2), np.int32), np.array([2]))
    np.testing.assert_array_equal(out.tokens, [[2, 2]])
    np.testing.assert_array_equal(out.logits, np.zeros((1, 2, 64)))


if __name__ == "__main__":
  absltest.main()
