import functools
import http.server
import os
import pathlib
import threading
from unittest import mock
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import fsspec

from data import manifest
from data.sources import storage


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, format, *args):
    del format, args


class StorageTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))
    self.memory = fsspec.filesystem("memory")
    self.memory.store.clear()
    for name in ("a/1.txt", "a/b/2.txt", "a/3.md", "a/.hidden"):
      (self.folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / "in" / name).write_text(name)
      self.memory.pipe(f"/in/{name}", name.encode())

  @parameterized.parameters(
    ("a", ["1.txt", "3.md", "b/2.txt"]),
    ("a/", ["1.txt", "3.md", "b/2.txt"]),
    ("a/1.txt", ["1.txt"]),
    ("a/*.txt", ["a/1.txt"]),
    ("a/**/*.txt", ["a/1.txt", "a/b/2.txt"]),
  )
  def test_finds_files_here_and_elsewhere_alike(self, path, expected):
    expected_content = [f"a/{name.removeprefix('a/')}" for name in expected]
    for root in (
      f"{self.folder}/in",
      f"file://{self.folder}/in",
      "memory://in",
    ):
      found = storage.find(f"{root}/{path}")
      content = [file.read_text() for file in storage.fetch(found)]
      self.assertEqual(content, expected_content)
      if "*" not in path:
        self.assertEqual([file.relative for file in found], expected)

  def fetch(self) -> pathlib.Path:
    (copy,) = storage.fetch(storage.find("memory://in/a/1.txt"))
    return copy

  def test_existence(self):
    for root in (f"{self.folder}/in", "memory://in"):
      self.assertTrue(storage.exists(f"{root}/a/1.txt"))
      self.assertTrue(storage.exists(f"{root}/a"))
      self.assertFalse(storage.exists(f"{root}/a/1"))

  @parameterized.parameters("missing", "a/4.txt", "a/*.rst", "empty")
  def test_nothing_is_an_error(self, path):
    (self.folder / "in" / "empty").mkdir()
    for root in (f"{self.folder}/in", "memory://in"):
      with self.assertRaisesRegex(
        ValueError, f"{path.replace('*', '.')}' does not exist or has no files"
      ):
        storage.find(f"{root}/{path}")

  def test_a_copy_is_made_once(self):
    copy = self.fetch()
    with mock.patch.object(storage, "_blocks", side_effect=AssertionError):
      self.assertEqual(self.fetch(), copy)
    self.assertTrue(copy.is_relative_to(storage.cache_dir()))

  def test_a_file_that_changes_there_is_copied_again(self):
    self.fetch()
    self.memory.pipe("/in/a/1.txt", b"A/1.TXT")  # Of the same size.
    self.assertEqual(self.fetch().read_text(), "A/1.TXT")

  def test_a_copy_that_is_damaged_is_made_again(self):
    self.fetch().write_text("")
    self.assertEqual(self.fetch().read_text(), "a/1.txt")

  def test_files_that_are_not_whole_are_refused(self):
    with (
      mock.patch.object(storage, "_blocks", return_value=[b"a/1"]),
      self.assertRaisesRegex(ValueError, "1.txt has 7 bytes, but 3 were read"),
    ):
      self.fetch()
    self.assertEqual(self.fetch().read_text(), "a/1.txt")

  def test_a_file_that_is_written_meanwhile_is_refused(self):
    def blocks(_):
      yield b"a/1.txt"
      self.memory.pipe("/in/a/1.txt", b"a/2.txt")

    with (
      mock.patch.object(storage, "_blocks", blocks),
      self.assertRaisesRegex(ValueError, "changed while it was read"),
    ):
      self.fetch()

  def test_text_is_read_in_place_where_changes_can_be_told(self):
    url = "memory://in/a/1.txt"
    (file,) = storage.find(url)
    with storage.read_in_place([file]) as places:
      self.assertEqual(places, [file.name])
    key = storage.content_key(file)
    self.assertEqual(storage.content_key(*storage.find(url)), key)
    self.memory.pipe("/in/a/1.txt", b"A/1.TXT")
    self.assertNotEqual(storage.content_key(*storage.find(url)), key)
    self.assertFalse((storage.cache_dir() / "copies").exists())
    # Otherwise it is copied.
    with mock.patch.object(storage, "_VERSION_FIELDS", {"size"}):
      (file,) = storage.find(url)
      with storage.read_in_place([file]) as (place,):
        self.assertEqual(pathlib.Path(place).read_text(), "A/1.TXT")

  def test_files_of_an_archive(self):
    archive = self.folder / "x.zip"
    with zipfile.ZipFile(archive, "w") as out:
      out.writestr("a/1.txt", "one")
      out.writestr("a/2.txt", "two")
    found = storage.find(f"zip://a/*.txt::{archive}")
    with storage.read_in_place(found) as places:
      texts = [pathlib.Path(place).read_text() for place in places]
    self.assertEqual(texts, ["one", "two"])
    self.assertNotEqual(*map(storage.content_key, found))

  def test_failures_are_messages(self):
    with self.assertRaisesRegex(ValueError, "Protocol not known.*; use one of"):
      storage.find("nowhere://a")
    missing = ImportError("Install s3fs to access S3")
    with (
      mock.patch.object(storage.core, "url_to_fs", side_effect=missing),
      self.assertRaisesRegex(ValueError, "Install s3fs .*; add that package"),
    ):
      storage.find("s3://bucket/a.txt")
    with (
      mock.patch.object(self.memory, "open", side_effect=OSError("no")),
      self.assertRaisesRegex(
        ValueError, r"memory://.*1.txt cannot be read \(OSError: no\); correct"
      ),
    ):
      self.fetch()

  def test_files_of_a_web_server(self):
    handler = functools.partial(_Quiet, directory=str(self.folder / "in"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    url = f"http://127.0.0.1:{server.server_port}/a"
    (copy,) = storage.fetch(storage.find(f"{url}/1.txt"))
    self.assertEqual(copy.read_text(), "a/1.txt")
    self.assertFalse(storage.exists(f"{url}/2.txt"))
    with self.assertRaisesRegex(ValueError, "does not exist"):
      storage.find(f"{url}/2.txt")
    # The server tells times in seconds.
    file = self.folder / "in" / "a" / "1.txt"
    file.write_text("A/1.TXT")
    os.utime(file, (1, 1))
    self.assertEqual(
      storage.fetch(storage.find(f"{url}/1.txt"))[0].read_text(), "A/1.TXT"
    )

  def test_the_fingerprint_is_of_the_content(self):
    file = self.folder / "in" / "a" / "1.txt"
    self.assertEqual(storage.fingerprint(file), manifest.sha256(file))
    with mock.patch.object(manifest, "sha256", side_effect=AssertionError):
      storage.fingerprint(file)
    stat = file.stat()
    file.write_text("A/1.TXT")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    self.assertEqual(storage.fingerprint(file), manifest.sha256(file))
    with self.assertRaisesRegex(ValueError, "cannot be read"):
      storage.fingerprint(self.folder / "missing")

  def test_a_damaged_note_is_none(self):
    note = self.folder / "note.json"
    storage.write_note(note, {"a": 1})
    self.assertEqual(storage.read_note(note), {"a": 1})
    for content in ("", "[1]", '{"a":'):
      note.write_text(content)
      self.assertEqual(storage.read_note(note), {})

  def test_a_file_is_new_or_as_it_was(self):
    file = self.folder / "file"
    file.write_text("old")
    with self.assertRaises(KeyError), storage.new_file(file) as partial:
      partial.write_text("new")
      raise KeyError
    self.assertEqual(file.read_text(), "old")
    self.assertEmpty(list(self.folder.glob(".partial-*")))
    with (
      self.assertRaisesRegex(ValueError, "cannot be written .*XDG_CACHE_HOME"),
      storage.new_file(file / "below"),
    ):
      pass


if __name__ == "__main__":
  absltest.main()
