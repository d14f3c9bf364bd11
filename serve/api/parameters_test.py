import time

from absl.testing import absltest
from absl.testing import parameterized

from serve import conventions
from serve.api import errors
from serve.api import fixtures
from serve.api import parameters
from serve.api import requests


def _context(**settings):
  return fixtures.context(fixtures.FakeEngine(), **settings)


def _read(context, **fields):
  body = requests.Completion(model=fixtures.MODEL, prompt="a", **fields)
  return parameters.read(body, context, num_logprobs=None, user="")


class ParametersTest(parameterized.TestCase):
  def test_what_the_model_wants_unless_it_is_said(self):
    made = fixtures.context(
      fixtures.FakeEngine(),
      generation=conventions.Generation(
        temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.2
      ),
    )
    usual = _read(made).sampling
    self.assertEqual(usual.temperature, 0.6)
    self.assertEqual(usual.top_k, 20)
    self.assertEqual(usual.repetition_penalty, 1.2)
    said = _read(made, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0).sampling
    self.assertEqual(
      (said.temperature, said.top_k, said.top_p, said.min_p),
      (0.0, None, 1.0, 0.0),
    )

  @parameterized.parameters(-1, 0, fixtures.VOCAB_SIZE, 10**6)
  def test_top_k_off(self, top_k):
    self.assertIsNone(_read(_context(), top_k=top_k).sampling.top_k)

  def test_seeds(self):
    self.assertEqual(parameters.choice_seed(5, 0), 5)
    seeds = {
      parameters.choice_seed(seed, index)
      for seed in (5, -5, 2**40)
      for index in range(10)
    }
    self.assertLen(seeds, 30)
    self.assertTrue(all(0 <= seed < 2**32 for seed in seeds))
    context = _context()
    self.assertNotEqual(_read(context).seed, _read(context).seed)

  def test_time(self):
    context = _context(max_seconds=100.0)
    now = time.monotonic()
    for asked, seconds in ((None, 100.0), (3.0, 3.0), (1000.0, 100.0)):
      found, deadline = parameters.limit_time(asked, context)
      self.assertEqual(found, seconds)
      self.assertBetween(deadline, now + seconds, now + seconds + 60)

  def test_a_key_is_the_user(self):
    body = requests.Completion(model=fixtures.MODEL, prompt="a", user="b")
    for key, user in (("key-1", "key-1"), ("", "b")):
      found = parameters.read(body, _context(), num_logprobs=None, user=key)
      self.assertEqual(found.user, user)

  def test_tokens(self):
    parameters.check_tokens([0, fixtures.VOCAB_SIZE - 1], _context(), "x")
    with self.assertRaisesRegex(errors.ApiError, "x has token 512"):
      parameters.check_tokens([fixtures.VOCAB_SIZE], _context(), "x")


if __name__ == "__main__":
  absltest.main()
