"""What can go wrong; the rest is in deploy_pack_test."""

import fcntl
import os
import pathlib
import shutil
from unittest import mock
import zipfile

from absl.testing import absltest

from serve import deploy_unpack


class UnpackTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.archive = self.root / "archive"
    with zipfile.ZipFile(self.archive, "w") as file:
      file.writestr("__main__.py", "not this")
      file.writestr("tree/start.py", "this")
      file.writestr("tree/deep/down/here", "and this")
    self.folder = self.root / "unpacked/tree"

  def unpack(self):
    return deploy_unpack.unpack(self.archive, self.folder)

  def test_unpack(self):
    self.assertTrue(self.unpack())
    files = sorted(f for f in self.folder.rglob("*") if f.is_file())
    self.assertEqual(
      [str(f.relative_to(self.folder)) for f in files],
      ["deep/down/here", "start.py"],
    )
    self.assertEqual(files[0].read_text(), "and this")
    self.assertFalse(self.unpack())

  def test_no_room(self):
    usage = shutil.disk_usage(self.root)._replace(free=3)
    with (
      mock.patch.object(shutil, "disk_usage", return_value=usage),
      self.assertRaisesRegex(OSError, "12 bytes are needed, and 3 are free"),
    ):
      self.unpack()
    self.assert_nothing_left()

  def test_an_interrupt_leaves_nothing(self):
    with (
      mock.patch.object(os, "rename", side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      self.unpack()
    self.assert_nothing_left()

  def assert_nothing_left(self):
    self.assertEqual(os.listdir(self.folder.parent), ["tree.lock"])

  def test_errors_are_one_line(self):
    self.archive.write_bytes(b"no archive")
    with self.assertRaisesRegex(SystemExit, "is damaged .*Copy it again"):
      deploy_unpack.main(str(self.archive), str(self.folder))

  def test_old_versions_are_deleted_unless_in_use(self):
    root = self.folder.parent
    trees = [root / f"server-{digit * 16}" for digit in "abcd"]
    for tree in [*trees, root / "server-other"]:
      tree.mkdir(parents=True)
      (tree / "main").write_text("main.py")
    old, in_use, new, mine = trees
    for tree in (old, in_use, mine):
      os.utime(tree / "main", (0, 0))
    with open(in_use / "main") as file:
      fcntl.flock(file, fcntl.LOCK_SH)
      self.assertEqual(deploy_unpack.forget(mine), [old])
    self.assertCountEqual(
      os.listdir(root), [in_use.name, new.name, mine.name, "server-other"]
    )
    self.assertEqual(deploy_unpack.forget(mine), [in_use])


if __name__ == "__main__":
  absltest.main()
