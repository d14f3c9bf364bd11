import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import gated_delta_rule

_KEY_HEADS, _HEADS, _KEY_DIM, _VALUE_DIM = 2, 4, 8, 6
# Three chunks, the last not full.
_LENGTH = 150


def inputs(length, *, decay=0.2, rows=2, seed=0):
  """q, k, v, log decay, beta, state; by the names of `mix`."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  return {
    "q_BTKH": normal(rows, length, _KEY_HEADS, _KEY_DIM),
    "k_BTKH": normal(rows, length, _KEY_HEADS, _KEY_DIM),
    "v_BTNV": normal(rows, length, _HEADS, _VALUE_DIM),
    "log_decay_BTN": -decay * jax.nn.softplus(normal(rows, length, _HEADS)),
    "beta_BTN": jax.nn.sigmoid(normal(rows, length, _HEADS)),
    "state_BNHV": normal(rows, _HEADS, _KEY_DIM, _VALUE_DIM),
  }


def segments(length):
  """Two rows: one of three documents, one padded before, between and behind."""
  ids = np.ones((2, length), np.int32)
  ids[0, length // 3 :] = 2
  ids[0, length // 2 + 1 :] = 3
  ids[1, :2] = 0
  ids[1, length // 2 + 1 : length // 2 + 4] = 0
  ids[1, -3:] = 0
  return ids


def definition(arrays, segment_ids, state_segment_ids):
  """Row by row, token by token and head by head, in float64."""
  arrays = {k: np.asarray(v, np.float64) for k, v in arrays.items()}
  memory = arrays["state_BNHV"].copy()
  out = np.zeros_like(arrays["v_BTNV"])
  for b, n in np.ndindex(memory.shape[:2]):
    shared = n // (_HEADS // _KEY_HEADS)
    segment = state_segment_ids[b]
    for t in range(out.shape[1]):
      if segment_ids[b, t] == 0:
        continue
      if segment_ids[b, t] != segment:
        memory[b, n] = 0
        segment = segment_ids[b, t]
      q = arrays["q_BTKH"][b, t, shared]
      k = arrays["k_BTKH"][b, t, shared]
      q = q / np.sqrt(q @ q + 1e-6) / np.sqrt(_KEY_DIM)
      k = k / np.sqrt(k @ k + 1e-6)
      s = np.exp(arrays["log_decay_BTN"][b, t, n]) * memory[b, n]
      wrong = arrays["v_BTNV"][b, t, n] - s.T @ k
      memory[b, n] = s + arrays["beta_BTN"][b, t, n] * np.outer(k, wrong)
      out[b, t, n] = memory[b, n].T @ q
  return out, memory


@functools.partial(jax.jit, static_argnames="implementation")
def mix(arrays, segment_ids, state_segment_ids, *, implementation):
  return gated_delta_rule.mix(
    **arrays,
    segment_ids=segment_ids,
    state_segment_ids=state_segment_ids,
    implementation=implementation,
  )


@functools.partial(jax.jit, static_argnames="implementation")
def with_gradients(arrays, segment_ids, cotangents, *, implementation):
  """Outputs, 0 for padding; and the gradients of all arrays."""

  def function(arrays):
    out, state = mix(
      arrays, segment_ids, jnp.array([1, 1]), implementation=implementation
    )
    return jnp.where(segment_ids[..., None, None] > 0, out, 0), state

  outputs, vjp = jax.vjp(function, arrays)
  return outputs, vjp(cotangents)[0]


def assert_close(actual, wanted, tolerance=1e-4):
  """All leaves, relative to the largest number of each."""

  def one(a, b):
    a, b = np.asarray(a), np.asarray(b)
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

  jax.tree.map(one, actual, wanted)


class GatedDeltaRuleTest(parameterized.TestCase):
  @parameterized.parameters("reference", "chunked")
  def test_equals_the_definition(self, implementation):
    arrays, ids = inputs(_LENGTH), segments(_LENGTH)
    # Row 1 goes on from its state, row 0 does not.
    before = np.array([7, 1])
    out, state = mix(arrays, ids, before, implementation=implementation)
    wanted_out, wanted_state = definition(arrays, ids, before)
    assert_close(np.where(ids[..., None, None] > 0, out, 0), wanted_out)
    assert_close(state, wanted_state)

  @parameterized.parameters(
    # Remembers nearly all; forgets at once; less than a chunk.
    {"length": _LENGTH, "decay": 0.01},
    {"length": _LENGTH, "decay": 10.0},
    {"length": 13, "decay": 0.2},
  )
  def test_chunks_equal_the_reference_in_value_and_gradient(
    self, length, decay
  ):
    arrays, ids = inputs(length, decay=decay), segments(length)
    shapes = inputs(length, seed=1)
    cotangents = shapes["v_BTNV"], shapes["state_BNHV"]
    assert_close(
      with_gradients(arrays, ids, cotangents, implementation="chunked"),
      with_gradients(arrays, ids, cotangents, implementation="reference"),
    )

  def test_one_key_again_and_again_is_solved_exactly(self):
    arrays = inputs(_LENGTH, decay=0.0)
    arrays["k_BTKH"] = jnp.broadcast_to(
      arrays["k_BTKH"][:, :1], arrays["k_BTKH"].shape
    )
    arrays["beta_BTN"] = jnp.ones_like(arrays["beta_BTN"])
    ids, before = np.ones((2, _LENGTH), np.int32), np.array([1, 1])
    out, state = mix(arrays, ids, before, implementation="chunked")
    assert_close((out, state), definition(arrays, ids, before))

  def test_goes_on_where_it_ended(self):
    arrays, ids = inputs(_LENGTH), segments(_LENGTH)
    run = functools.partial(mix, implementation="chunked")
    whole, last = run(arrays, ids, np.array([0, 0]))
    half = _LENGTH // 2
    state, before = arrays.pop("state_BNHV"), np.array([0, 0])
    outs = []
    for part in (slice(half), slice(half, None)):
      given = {k: v[:, part] for k, v in arrays.items()}
      out, state = run(given | {"state_BNHV": state}, ids[:, part], before)
      before = ids[:, half - 1]
      outs.append(out)
    assert_close((jnp.concatenate(outs, axis=1), state), (whole, last))

  def test_padding_leaves_the_state_as_it_is(self):
    arrays, ids = inputs(_LENGTH), np.zeros((2, _LENGTH), np.int32)
    _, state = mix(arrays, ids, np.array([1, 1]), implementation="chunked")
    np.testing.assert_array_equal(state, arrays["state_BNHV"])

  def test_the_backward_pass_keeps_a_state_for_each_chunk(self):
    def kept(implementation):
      arrays = jax.eval_shape(lambda: inputs(4096))
      ids = jax.ShapeDtypeStruct((2, 4096), jnp.int32)
      vjp = jax.eval_shape(
        lambda arrays, ids: jax.vjp(
          lambda arrays: gated_delta_rule.mix(
            **arrays,
            segment_ids=ids,
            state_segment_ids=ids[:, 0],
            implementation=implementation,
          ),
          arrays,
        )[1],
        arrays,
        ids,
      )
      return sum(x.size for x in jax.tree.leaves(vjp))

    given = sum(x.size for x in jax.eval_shape(lambda: inputs(4096)).values())
    self.assertLess(kept("chunked"), 2 * given)
    self.assertGreater(kept("reference"), 4 * given)

  def test_keeps_the_dtype_of_values_and_a_float32_state(self):
    arrays = jax.tree.map(lambda x: x.astype(jnp.bfloat16), inputs(5))
    out, state = jax.eval_shape(
      functools.partial(mix, implementation="auto"),
      arrays,
      np.ones((2, 5), np.int32),
      np.array([1, 1]),
    )
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertEqual(state.dtype, jnp.float32)

  def test_refuses_unknown_implementations(self):
    with self.assertRaisesRegex(ValueError, "implementation='fast'"):
      mix(
        inputs(2), np.ones((2, 2), int), np.ones(2, int), implementation="fast"
      )


if __name__ == "__main__":
  absltest.main()
