import base64
import unittest

from absl.testing import absltest
import numpy as np

from serve.api import fixtures

_PATH = "/v1/embeddings"


class EmbeddingsTest(absltest.TestCase, unittest.IsolatedAsyncioTestCase):
  async def test_several_in_both_forms(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine) as client:
      status, body = await client.post(
        _PATH, input=[[5], [6, 7]], dimensions=fixtures.EMBEDDING_SIZE
      )
      _, packed = await client.post(
        _PATH, input=[6, 7], encoding_format="base64"
      )
    self.assertEqual(status, 200)
    self.assertEqual(
      [entry["embedding"] for entry in body["data"]], [[1.0] * 4, [2.0] * 4]
    )
    self.assertEqual([entry["index"] for entry in body["data"]], [0, 1])
    self.assertEqual(body["usage"], {"prompt_tokens": 3, "total_tokens": 3})
    data = base64.b64decode(packed["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), [2.0] * 4)
    for request in engine.requests:
      self.assertTrue(request.pools)
      self.assertEqual(request.max_tokens, 0)

  async def test_many_do_not_fill_the_queue(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine, max_inputs=50) as client:
      inputs = [[5] * (1 + number % 3) for number in range(50)]
      status, body = await client.post(_PATH, input=inputs)
      refused, _ = await client.post(_PATH, input=[[5]] * 51)
    self.assertEqual((status, refused), (200, 400))
    self.assertEqual(
      [entry["embedding"][0] for entry in body["data"]],
      [1.0 + number % 3 for number in range(50)],
    )
    self.assertEqual([e["index"] for e in body["data"]], list(range(50)))
    self.assertLen(engine.requests, 50)

  async def test_refuses(self):
    engine = fixtures.FakeEngine()
    async with fixtures.serving(engine, max_len=8) as client:
      for fields, param in (
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": [5] * 9}, "input"),
        ({"input": "a", "stream": True}, "stream"),
      ):
        status, body = await client.post(_PATH, **fields)
        self.assertEqual(status, 400)
        self.assertEqual(body["error"]["param"], param)
    self.assertEmpty(engine.requests)


if __name__ == "__main__":
  absltest.main()
