import json
import pathlib

from absl.testing import absltest
import numpy as np

from model.hf import fixtures
from model.hf import gguf_fixtures
from model.hf import source


class SourceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "model"

  def check(self, opened, vocab_size):
    source.check_tokenizer(opened, vocab_size, count_ids=fixtures.count_ids)

  def test_folder(self):
    tensors = fixtures.tensors()
    fixtures.write_tokenizer(self.folder, size=300)
    (self.folder / "merges.txt").write_text("a b")
    (self.folder / "README.md").write_text("no part of it")
    fixtures.write(self.folder, tensors)
    found = source.open_source(self.folder)
    self.assertEqual(found.config, fixtures.config())
    self.assertEqual(found.described_by, self.folder / "config.json")
    self.assertIsNone(found.generation_config)
    self.assertCountEqual(found.tensors, tensors)
    self.assertIn("tokenizer.json", found.tokenizer)
    self.assertEqual(found.tokenizer["merges.txt"], b"a b")
    self.assertNotIn("README.md", found.tokenizer)

  def test_gguf(self):
    self.folder.mkdir()
    tensors = gguf_fixtures.make_tensors("llama")
    file = gguf_fixtures.write(self.folder / "tiny.gguf", tensors)
    with self.assertRaisesRegex(ValueError, "get the model's tokenizer.json"):
      source.open_source(file)
    fixtures.write_tokenizer(self.folder, size=300)
    for path in (file, self.folder):
      found = source.open_source(path)
      self.assertEqual(found.config["model_type"], "llama")
      self.assertEqual(found.described_by, path)
      np.testing.assert_array_equal(
        found.tensors.read("model.embed_tokens.weight"),
        tensors["token_embd.weight"],
      )
      self.assertIn("tokenizer.json", found.tokenizer)

  def test_json_files(self):
    fixtures.write(self.folder, fixtures.tensors())
    file = self.folder / "generation_config.json"
    for content, message in (("{", "is not JSON"), ("[]", "holds no JSON obj")):
      file.write_text(content)
      with self.assertRaisesRegex(ValueError, f"{file} {message}"):
        source.open_source(self.folder)
    file.write_text('{"top_k": 3}')
    opened = source.open_source(self.folder)
    self.assertEqual(opened.generation_config, {"top_k": 3})
    with self.assertRaisesRegex(ValueError, "other.json does not exist; name"):
      source.open_source(self.folder, config_file="other.json")

  def test_tokenizer_must_fit(self):
    fixtures.write_tokenizer(self.folder, size=300)
    fixtures.write(self.folder, fixtures.tensors())
    opened = source.open_source(self.folder)
    self.check(opened, 300)
    with self.assertRaisesRegex(ValueError, "ids up to 299, .* is 299: it is"):
      self.check(opened, 299)
    file = self.folder / "tokenizer.json"
    keys = json.loads(file.read_text())
    token = keys["added_tokens"][0] | {"id": 300, "content": "<image>"}
    for special in (True, False):
      added = [*keys["added_tokens"], token | {"special": special}]
      file.write_text(json.dumps(keys | {"added_tokens": added}))
      opened = source.open_source(self.folder)
      if special:
        self.check(opened, 300)
      else:
        with self.assertRaisesRegex(ValueError, "ids up to 300, .* is 300: it"):
          self.check(opened, 300)
    (self.folder / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with self.assertRaisesRegex(ValueError, str(self.folder)):
      self.check(source.open_source(self.folder), 300)


if __name__ == "__main__":
  absltest.main()
