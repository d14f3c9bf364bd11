import functools

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from model import fixtures
from model import transformer
from serve import logprobs
from serve import sampling
from serve import shapes
from serve import step

_FORM = shapes.Format(windows=(0,), num_pieces=4)


class StepTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = fixtures.config()
    graphdef, _ = transformer.abstract(config, fixtures.execution())
    cls.network = step.Network(graphdef=graphdef, tables={0: 0})
    cls.params = fixtures.params(config, fixtures.execution())
    cls.model = transformer.bind(graphdef, cls.params)

  def test_reads_and_goes_on(self):
    """As without pages; padding, of rows and of tokens, counts for nothing."""
    tokens = jnp.arange(3, 10)
    layers = self.model.make_pages(num_pages={0: 5}, page_size=4, rows=2)
    packed = _FORM.make(2, 8)
    _FORM.fill(packed, 0, np.array([3, 1, 0, 0]), (1, 0, 6, 6, 0, 1))
    _FORM.tokens(packed)[0, :6] = tokens[:6]
    read = functools.partial(
      step.read, network=self.network, form=_FORM, num_rows=4, num_tokens=32
    )
    layers, logits, pooled, hidden = jax.jit(read)(self.params, layers, packed)
    want = self.model(tokens[None])
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    near(hidden[:6], want.hidden[0, :6])
    self.assertEqual(hidden.shape, (32, 16))
    np.testing.assert_array_equal(hidden[6:], 0)
    near(pooled[0], np.sum(want.hidden[0, :6], axis=0))
    near(logits[0, 0], self.model.logits(want.hidden)[0, 5])

    packed = _FORM.make(2, 0)
    _FORM.fill(packed, 0, np.array([3, 1, 0, 0]), (1, 6, 7, 1, 0, 1))
    go_on = functools.partial(step.go_on, network=self.network, form=_FORM)
    _, logits = jax.jit(go_on)(
      self.params,
      layers,
      np.array([0, tokens[6]]),
      packed,
      np.zeros((2, 0), np.int32),
    )
    near(logits[0, 0], self.model.logits(want.hidden)[0, 6])

  def test_chooses(self):
    state = sampling.make(num_slots=3, vocab_size=64)
    logits = np.zeros((2, 2, 64), np.float32)
    logits[0, 0, 5] = logits[0, 1, 6] = logits[1, :, 7] = 1
    header = _FORM.header(_FORM.make(1, 0), 2)
    header[0] = 2, 4, 5, 1, 1, 1
    choose = functools.partial(
      step.choose, form=_FORM, variant=sampling.Variant.GREEDY
    )
    state, chosen = choose(
      state, jnp.array(logits), jnp.array(header), jnp.array([[5], [0]])
    )
    self.assertEqual(chosen.tolist(), [[2, 1, 5, 6], [0, 1, 7, 7]])
    self.assertEqual(state.last_token.tolist(), [0, 0, 6])
    ofs = step.chosen_logprobs(jnp.array(logits), chosen, num_top=5)
    want = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(ofs.logprob[0], want[0, [0, 1], [5, 6]], 1e-5)

  def test_logprobs_of_a_prompt(self):
    rng = np.random.default_rng(0)
    hidden = jnp.array(rng.normal(size=(128, 16)), jnp.float32)
    targets = jnp.array(rng.integers(0, 64, 128))
    got = step.prompt_logprobs(
      self.params, hidden, targets, network=self.network, num_top=5
    )
    want = logprobs.compute(
      self.model.logits(hidden[None])[0], targets, num_top=5
    )
    np.testing.assert_array_equal(got.top_ids, want.top_ids)
    np.testing.assert_allclose(got.logprob, want.logprob, rtol=1e-5)


if __name__ == "__main__":
  absltest.main()
