import os
import pathlib
import threading

from absl.testing import absltest

from model.hf import fixtures as hf_fixtures
from serve import config as config_lib
from serve import imports


class ImportsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / "imports"

  def model(self, name):
    folder = self.root / name
    hf_fixtures.write(folder, hf_fixtures.tensors())
    return folder

  def use(self, path, *, keep=8):
    with imports.hold(path, self.folder, keep=keep) as found:
      self.assertTrue((found.step / "meta").is_dir())
      return found

  def kept(self):
    return {place.name[:-17] for place in self.folder.glob("*-*/")}

  def test_keeps_what_was_used_last(self):
    a, b, c = (self.model(name) for name in "abc")
    self.assertTrue(self.use(a).is_new)
    self.assertTrue(self.use(b).is_new)
    self.assertFalse(self.use(a).is_new)
    (self.folder / "tokenizers").mkdir()
    foreign = self.folder / "mine-0123456789abcdef"
    foreign.mkdir()
    os.utime(foreign, ns=(0, 0))
    self.use(c, keep=2)
    # What has no lock was not imported.
    self.assertEqual(self.kept(), {"a", "c", "mine"})
    self.assertTrue((self.folder / "tokenizers").is_dir())
    self.assertLen([*self.folder.glob("*.lock")], 2)
    self.assertTrue(self.use(b, keep=2).is_new)
    self.assertEqual(self.kept(), {"b", "c", "mine"})

  def test_what_is_in_use_stays(self):
    a, b, c = (self.model(name) for name in "abc")
    with imports.hold(a, self.folder, keep=1) as held:
      self.use(b, keep=1)
      self.assertEqual(self.kept(), {"a", "b"})
      # It can be read by others, too.
      self.assertFalse(self.use(a, keep=1).is_new)
      self.assertEqual(self.kept(), {"a"})
      deleting = threading.Thread(target=imports.delete, args=[held])
      deleting.start()
      self.assertTrue((held.step / "meta").is_dir())
    deleting.join(30)
    self.assertFalse(held.step.exists())
    self.use(c, keep=1)
    self.assertEqual(self.kept(), {"c"})

  def test_the_settings_default(self):
    self.assertEqual(config_lib.ServeConfig().keep_imports, imports.KEPT)


if __name__ == "__main__":
  absltest.main()
