import dataclasses
import pathlib

from absl.testing import absltest

from data import fixtures
from data import manifest


class ManifestTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")
    self.dataset = self.folder / "dataset"
    self.manifest = fixtures.write_dataset(
      self.dataset, ["one text", "another"], tokenizer=tokenizer
    )

  def test_save_and_load(self):
    other = self.folder / "other"
    other.mkdir()
    self.manifest.save(other)
    self.assertEqual(manifest.load(other), self.manifest)
    self.assertEqual([f.name for f in other.iterdir()], [manifest.FILE])

  def test_digest_changes_with_the_tokens_of_any_shard(self):
    first, second = self.manifest.shards
    changed = dataclasses.replace(second, tokens_sha256="0" * 64)
    other = dataclasses.replace(self.manifest, shards=(first, changed))
    self.assertNotEqual(other.digest, self.manifest.digest)

  def test_damage_is_named(self):
    shard = self.manifest.shards[0]
    self.assertEqual(shard.damage(self.dataset, digests=True), "")
    file = self.dataset / shard.records_file
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    self.assertEqual(shard.damage(self.dataset, digests=False), "")
    self.assertIn("sha256", shard.damage(self.dataset, digests=True))

  def test_a_failed_write_leaves_the_file(self):
    file = self.folder / "x"
    manifest.write_atomically(file, "old")
    with self.assertRaises(UnicodeEncodeError):
      manifest.write_atomically(file, "\ud800")
    self.assertEqual(file.read_text(), "old")


if __name__ == "__main__":
  absltest.main()
