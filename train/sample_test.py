"""Sampling against a loop that anyone can read."""

import dataclasses
import functools
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from data import fixtures as data_fixtures
from data import tokenizer as tokenizer_lib
from model import config as model_config
from model import transformer
from train import fixtures
from train import sample


class SampleTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    run = fixtures.run_config()
    self.graphdef, _ = transformer.abstract(run.model, run.execution)
    params = transformer.init(run.model, run.execution, seed=1)
    # Larger weights make the choices differ from position to position.
    self.params = jax.tree.map(lambda x: 4 * x, params)

  def _greedy(self, prompt, total):
    """One token at a time from an ever longer sequence, without padding."""
    tokens = list(prompt)
    model = transformer.bind(self.graphdef, self.params)
    while len(tokens) < total:
      hidden = model(jnp.array([tokens])).hidden
      logits = model.logits(hidden)[0, -1]
      tokens.append(int(jnp.argmax(logits)))
    return tokens

  def test_greedy_equals_the_plain_loop(self):
    prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5]]
    total = 10
    padded = jnp.array([p + [299] * (total - len(p)) for p in prompts])
    got = sample.continue_tokens(
      self.params,
      padded,
      jnp.array([len(p) for p in prompts]),
      jax.random.key(0),
      graphdef=self.graphdef,
      temperature=0.0,
    )
    expected = [self._greedy(prompt, total) for prompt in prompts]
    np.testing.assert_array_equal(got, expected)
    self.assertGreater(len(set(expected[0][3:])), 1)

  def test_padding_changes_nothing(self):
    """Not even where experts have a capacity."""
    experts = model_config.MoeConfig(
      num_experts=8, experts_per_token=2, dim=16, capacity_factor=1.0
    )
    model = fixtures.model(tie_embeddings=False, init_std=0.5)
    (group,) = model.groups
    block = dataclasses.replace(group.pattern[0], feed_forward=experts)
    model = dataclasses.replace(
      model, groups=(dataclasses.replace(group, pattern=(block,)),)
    )
    execution = model_config.ExecutionConfig(compute_dtype="float32")
    graphdef, _ = transformer.abstract(model, execution)
    params = transformer.init(model, execution, seed=0)
    prompts = np.random.default_rng(0).integers(0, 300, (4, 5))
    run = jax.jit(
      functools.partial(
        sample.continue_tokens, graphdef=graphdef, temperature=0.0
      )
    )
    texts = [
      run(
        params,
        jnp.asarray(np.pad(prompts, ((0, 0), (0, 8)), constant_values=fill)),
        jnp.full((4,), 5),
        jax.random.key(0),
      )
      for fill in (0, 17)
    ]
    np.testing.assert_array_equal(*texts)

  def test_temperature_follows_the_distribution(self):
    # 4000 first tokens after one prompt against softmax of the logits.
    rows = 4000
    temperature = 0.5
    got = sample.continue_tokens(
      self.params,
      jnp.full((rows, 2), 7),
      jnp.full((rows,), 1),
      jax.random.key(0),
      graphdef=self.graphdef,
      temperature=temperature,
    )
    model = transformer.bind(self.graphdef, self.params)
    logits = model.logits(model(jnp.array([[7]])).hidden)[0, 0] / temperature
    expected = np.array(jax.nn.softmax(logits))
    counts = np.bincount(np.array(got[:, 1]), minlength=len(expected)) / rows
    # Four standard deviations of each count.
    bound = 4 * np.sqrt(expected * (1 - expected) / rows) + 1e-3
    self.assertTrue((np.abs(counts - expected) < bound).all())

  def _sampler(self, prompts):
    folder = pathlib.Path(self.create_tempdir().full_path)
    data_fixtures.write_tokenizer(folder)
    return sample.Sampler(
      graphdef=self.graphdef,
      tokenizer=tokenizer_lib.Tokenizer.load(folder),
      prompts=prompts,
      num_tokens=6,
      temperature=1.0,
    )

  def test_texts_begin_with_their_prompts(self):
    prompts = ("In the", "문장", "")
    texts = self._sampler(prompts)(self.params, seed=3)
    for prompt, text in zip(prompts, texts, strict=True):
      self.assertStartsWith(text, prompt)

  def test_seeds_differ_and_repeat(self):
    sampler = self._sampler(("In the",))
    self.assertEqual(sampler(self.params, seed=1), sampler(self.params, seed=1))
    self.assertNotEqual(
      sampler(self.params, seed=1), sampler(self.params, seed=2)
    )


if __name__ == "__main__":
  absltest.main()
