import multiprocessing
import pathlib

from absl.testing import absltest

from data import directory_lock


def add_lines(folder, name):
  for _ in range(20):
    with directory_lock.hold(folder):
      file = folder / "lines"
      # Without the lock the other's line would be lost.
      text = file.read_text() if file.exists() else ""
      file.write_text(f"{text}{name}\n")


class DirectoryLockTest(absltest.TestCase):
  def test_one_holder_at_a_time(self):
    folder = pathlib.Path(self.create_tempdir().full_path) / "new" / "folder"
    context = multiprocessing.get_context("spawn")
    processes = [
      context.Process(target=add_lines, args=(folder, name)) for name in "abc"
    ]
    for process in processes:
      process.start()
    for process in processes:
      process.join()
      self.assertEqual(process.exitcode, 0)
    lines = (folder / "lines").read_text().split()
    self.assertCountEqual(lines, "abc" * 20)

  def test_refuses_what_cannot_be_written(self):
    file = pathlib.Path(self.create_tempfile().full_path)
    with (
      self.assertRaisesRegex(ValueError, "cannot be written .* choose"),
      directory_lock.hold(file / "folder"),
    ):
      self.fail("held")


if __name__ == "__main__":
  absltest.main()
