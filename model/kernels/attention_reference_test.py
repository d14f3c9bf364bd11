from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from model.kernels import attention_cases
from model.kernels import attention_reference

_CASES = attention_cases.SELF | attention_cases.CACHE


def definition(case, given):
  """Attention one query of one head at a time, in float64."""
  q, k, v = (np.asarray(a, np.float64) for a in given.arrays[:3])
  q_ids, k_ids = (
    np.asarray(given.q_segment_ids),
    np.asarray(given.k_segment_ids),
  )
  start = np.broadcast_to(given.q_start, q.shape[:1])
  options = case.options
  out = np.zeros((*q.shape[:3], v.shape[3]))
  for b, t, n in np.ndindex(q.shape[:3]):
    row = start[b] + t
    first = 0 if case.window is None else max(0, row - case.window + 1)
    seen = [s for s in range(first, row + 1) if k_ids[b, s] == q_ids[b, t]]
    if not seen:
      continue
    head = n // (q.shape[2] // k.shape[2])
    scores = options["scale"] * k[b, seen, head] @ q[b, t, n]
    if case.softcap is not None:
      scores = case.softcap * np.tanh(scores / case.softcap)
    total = np.exp(scores).sum()
    if case.sinks:
      total += np.exp(float(given.arrays[3][n]))
    out[b, t, n] = np.exp(scores) @ v[b, seen, head] / total
  return out


class AttentionReferenceTest(parameterized.TestCase):
  @parameterized.named_parameters(*_CASES.items())
  def test_equals_the_definition(self, case):
    given = attention_cases.operands(case, 23)

    def attend(*args, **kwargs):
      return attention_reference.attend(*args, **kwargs, **case.options)

    out, *gradients = attention_cases.value_and_gradients(attend, given)
    np.testing.assert_allclose(out, definition(case, given), atol=2e-6)
    for gradient in gradients:
      self.assertTrue(np.isfinite(gradient).all())
      self.assertGreater(np.abs(gradient).max(), 0)

  def test_no_key_seen(self):
    case = attention_cases.CACHE["cache"]
    given = attention_cases.operands(case, 5)

    def attend(*args, **kwargs):
      out = attention_reference.attend(*args, **kwargs, **case.options)
      return out.at[:, :-1].set(0).at[:-1].set(0)

    for array in attention_cases.value_and_gradients(attend, given):
      np.testing.assert_array_equal(array, 0)

  def test_visible_is_cut_with_the_keys(self):
    rng = np.random.default_rng(0)
    q_ids = jnp.asarray(rng.integers(1, 3, size=(2, 6)))
    k_ids = jnp.asarray(rng.integers(1, 3, size=(2, 9)))
    start = jnp.array([0, 3])
    whole = attention_reference.visible(q_ids, k_ids, q_start=start, window=4)
    piece = attention_reference.visible(
      q_ids, k_ids[:, 4:7], q_start=start, k_start=4, window=4
    )
    np.testing.assert_array_equal(piece, whole[:, :, 4:7])


if __name__ == "__main__":
  absltest.main()
