from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from serve import logprobs
from serve import request as request_lib

_compute = jax.jit(logprobs.compute, static_argnames="num_top")


class LogprobsTest(parameterized.TestCase):
  @parameterized.parameters(0, 5, 20)
  def test_is_what_the_definition_says(self, num_top):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 37)).astype(np.float32) * 5
    logits[0, 0] = np.round(logits[0, 0])  # With ties.
    logits[1, 1, 4:9] = -np.inf
    tokens = rng.integers(37, size=(3, 2)).astype(np.int32)
    result = jax.device_get(_compute(logits, tokens, num_top=num_top))
    shares = np.exp(logits.astype(np.float64))
    with np.errstate(divide="ignore"):
      expected = np.log(shares / shares.sum(-1, keepdims=True))
    for index in np.ndindex(3, 2):
      value = logprobs.values(result, index, num_top=num_top)
      row, token = expected[index], tokens[index]
      self.assertAlmostEqual(value.logprob, row[token], places=4)
      self.assertEqual(
        value.rank, sum(other >= row[token] for other in row.tolist())
      )
      order = sorted(range(37), key=lambda v, row=row: (-row[v], v))
      self.assertEqual([v for v, _ in value.top], order[:num_top])
      np.testing.assert_allclose(
        [share for _, share in value.top], row[order[:num_top]], atol=1e-4
      )

  def test_fewer_than_were_computed(self):
    logits = np.array([[0.0, 3.0, 1.0, 2.0]], np.float32)
    result = jax.device_get(_compute(logits, np.array([3]), num_top=20))
    value = logprobs.values(result, (0,), num_top=2)
    self.assertIsInstance(value, request_lib.TokenLogprobs)
    self.assertEqual([token for token, _ in value.top], [1, 3])
    self.assertEqual(value.top[1][1], value.logprob)
    self.assertEqual(value.rank, 2)

  def test_large_logits_are_no_trouble(self):
    logits = np.array([[1e4, 1e4, -1e4]], np.float32)
    result = _compute(logits, np.array([0]), num_top=0)
    self.assertAlmostEqual(float(result.logprob[0]), -np.log(2), places=5)
    self.assertEqual(result.top_ids.shape, (1, 0))

  def test_numbers_that_are_computed(self):
    wanted = [0, 1, 5, 6, 20]
    self.assertEqual([logprobs.num_top(n) for n in wanted], [0, 5, 5, 20, 20])


if __name__ == "__main__":
  absltest.main()
