import unittest

from absl.testing import absltest

from serve.api import errors
from serve.api import fixtures
from serve.api import prompts


class PromptsTest(absltest.TestCase, unittest.IsolatedAsyncioTestCase):
  async def encode(self, given, **settings):
    context = fixtures.context(fixtures.FakeEngine(), **settings)
    return await prompts.encode(
      given, context, add_special_tokens=False, param="prompt", most=16
    )

  async def test_kinds(self):
    for given, num in (("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2]], 2)):
      self.assertLen(await self.encode(given), num)
    (text,) = await self.encode("M<|eot_id|>")
    self.assertEqual(text.tokens, (50, fixtures.END))
    self.assertEqual(text.text, "M<|eot_id|>")
    (ids,) = await self.encode([50])
    self.assertIsNone(ids.text)

  async def test_refuses(self):
    for given in (["a", 1], [1, [2]], ["a", [1]], [512], ["a"] * 17):
      with self.assertRaises(errors.ApiError):
        await self.encode(given)

  def test_room(self):
    context = fixtures.context(fixtures.FakeEngine(), max_len=8)

    def room(num, asked, usual):
      return prompts.max_tokens(
        (5,) * num, asked, context, usual=usual, param="prompt"
      )

    self.assertEqual(room(3, None, None), 5)
    self.assertEqual(room(3, None, 4), 4)
    self.assertEqual(room(3, None, 16), 5)
    self.assertEqual(room(3, 5, 16), 5)
    self.assertEqual(room(8, 0, 16), 0)
    for num, asked, param in (
      (3, 6, "max_tokens"),
      (8, None, "prompt"),
      (9, 0, "prompt"),
    ):
      with self.assertRaises(errors.ApiError) as caught:
        room(num, asked, 16)
      self.assertEqual(caught.exception.body.error.param, param)


if __name__ == "__main__":
  absltest.main()
