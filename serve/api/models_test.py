import unittest

from absl.testing import absltest

from serve.api import fixtures


class ModelsTest(unittest.IsolatedAsyncioTestCase):
  async def test_models(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      _, models = await client.get("/v1/models")
      (model,) = models["data"]
      self.assertEqual(models["object"], "list")
      self.assertEqual(model["id"], fixtures.MODEL)
      self.assertEqual(model["object"], "model")
      self.assertEqual(model["max_model_len"], 4096)
      status, same = await client.get("/v1/models/fake/model")
      self.assertEqual((status, same), (200, model))
      status, body = await client.get("/v1/models/other")
      self.assertEqual(status, 404)
      self.assertEqual(body["error"]["code"], "model_not_found")

  async def test_version(self):
    async with fixtures.serving(fixtures.FakeEngine()) as client:
      _, body = await client.get("/version")
    self.assertTrue(body["version"])


if __name__ == "__main__":
  absltest.main()
