import threading
import unittest

from absl.testing import absltest

from serve.api import errors
from serve.api import fixtures


class ContextTest(absltest.TestCase, unittest.IsolatedAsyncioTestCase):
  def test_the_model(self):
    context = fixtures.context(fixtures.FakeEngine())
    context.check_model(None)
    context.check_model(fixtures.MODEL)
    with self.assertRaises(errors.ApiError) as caught:
      context.check_model("other")
    self.assertEqual(caught.exception.status, 404)

  def test_words(self):
    context = fixtures.context(fixtures.FakeEngine())
    self.assertIs(context.known_words, context.words)
    self.assertIs(context.vocabulary, context.known_words.vocabulary)
    wordless = fixtures.context(fixtures.FakeEngine(), None)
    self.assertIsNone(wordless.vocabulary)
    with self.assertRaisesRegex(errors.ApiError, "no tokenizer"):
      _ = wordless.known_words

  async def test_work_is_done_elsewhere(self):
    context = fixtures.context(fixtures.FakeEngine())
    name = await context.work(lambda: threading.current_thread().name)
    self.assertStartsWith(name, "api")


if __name__ == "__main__":
  absltest.main()
