import io
import json
import pathlib
import shutil
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data.megatron import goldens

_GOLDENS = pathlib.Path("data/testdata/megatron")


class GoldensTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "goldens"

  def copy(self, *kinds: str) -> None:
    """A few cases, to be changed."""
    self.folder.mkdir()
    shutil.copytree(_GOLDENS / "corpora", self.folder / "corpora")
    for file in self.folder.glob("corpora/*"):
      file.chmod(0o644)
    with open(_GOLDENS / "goldens.json") as file:
      cases = json.load(file)
    self.cases = {
      kind: dict(list(named.items())[:2]) if isinstance(named, dict) else named
      for kind, named in cases.items()
      if not kinds or kind in (*kinds, "first_n")
    }
    # Every corpus is described, for the cases that use it.
    self.cases["corpora"] = cases["corpora"]
    kept = [
      f"{kind}/{name}/"
      for kind, named in self.cases.items()
      if isinstance(named, dict)
      for name in named
    ]
    with np.load(_GOLDENS / "goldens.npz") as file:
      self.arrays = {
        name: file[name]
        for name in file.files
        if any(name.startswith(prefix) for prefix in kept)
      }

  def check(self) -> dict[str, tuple[str, ...]]:
    """The differences of the cases that fail."""
    (self.folder / "goldens.json").write_text(json.dumps(self.cases))
    np.savez(self.folder / "goldens.npz", **self.arrays)
    results = list(goldens.check(self.folder))
    return {r.name: r.differences for r in results if r.differences}

  def test_all_are_equal(self):
    results = list(goldens.check(_GOLDENS))
    self.assertEmpty([r for r in results if r.differences])
    self.assertGreater(len(results), 60)
    self.assertGreater(min(r.num_compared for r in results), 1)

  def test_a_part_is_equal(self):
    self.copy()
    self.assertEmpty(self.check())

  def test_arrays_and_values_that_differ(self):
    self.copy("gpt")
    name = next(iter(self.cases["gpt"]))
    self.arrays[f"gpt/{name}/document_index"][0] += 1
    self.cases["gpt"][name]["num_epochs"] += 1
    self.assertRegex(
      str(self.check()[f"gpt/{name}"]), "document_index.*num_epochs"
    )

  def test_what_cannot_be_read_fails_by_name(self):
    self.copy()
    del self.cases["gpt"][next(iter(self.cases["gpt"]))]["seed"]
    self.cases["items"]["mine"] = {"corpus": "none"}
    self.cases["novel"] = {}
    self.cases["blend_helper"]["w"] = 3
    self.arrays["gpt/unknown/text"] = np.zeros(1)
    failed = self.check()
    self.assertContainsSubset(
      {"items/mine", "novel", "blend_helper/w", "gpt/unknown/text"}, failed
    )
    self.assertLen(failed, 5)
    self.assertIn("KeyError: 'seed'", str(failed))

  def test_a_damaged_corpus_fails_its_cases(self):
    self.copy("gpt")
    corpus = next(iter(self.cases["gpt"].values()))["corpus"]
    file = self.folder / "corpora" / f"{corpus}.idx"
    file.write_bytes(file.read_bytes()[:-1])
    failed = self.check()
    self.assertIn(f"{corpus}.idx is damaged", failed[f"corpora/{corpus}"][0])
    self.assertTrue(any(name.startswith("gpt/") for name in failed))

  def test_what_is_about_the_folder_is_no_case(self):
    self.copy("exhaustive_helper")
    del self.cases["first_n"]
    self.cases |= {"python": "3.11", "made": 7}
    self.assertEmpty(self.check())
    self.cases |= {"gpt": "3.11", "novel": [], "other": None}
    self.assertContainsSubset({"gpt", "novel", "other"}, self.check())

  def test_a_name_that_is_there_twice(self):
    self.copy("exhaustive_helper")
    self.check()
    file = self.folder / "goldens.json"
    file.write_text(file.read_text().replace('"e1"', '"e0"'))
    (result,) = goldens.check(self.folder)
    self.assertIn("'e0' twice", str(result.differences))

  def test_arrays_that_cannot_be_read(self):
    self.copy("exhaustive_helper")
    self.check()
    file = self.folder / "goldens.npz"
    file.write_bytes(file.read_bytes()[:-50])
    (result,) = goldens.check(self.folder)
    self.assertIn("goldens.npz: File is not a zip", str(result.differences))
    file.unlink()
    with open(file, "wb") as out:
      np.save(out, np.zeros(3))
    (result,) = goldens.check(self.folder)
    self.assertIn("goldens.npz is one array", str(result.differences))

  @parameterized.parameters("[]", "{", "{}", '{"gpt": {}}', '{"first_n": -1}')
  def test_a_file_without_cases(self, text):
    self.copy("exhaustive_helper")
    self.arrays = {}
    self.check()
    (self.folder / "goldens.json").write_text(text)
    equal, lines = self.report(self.folder)
    self.assertFalse(equal)
    self.assertStartsWith(lines[0], "FAIL goldens: ")
    self.assertEqual(lines[1:], ["0 passed, 1 failed"])

  @parameterized.parameters("goldens.json", "goldens.npz")
  def test_a_folder_without_goldens(self, missing):
    self.copy("exhaustive_helper")
    self.check()
    (self.folder / missing).unlink()
    (result,) = goldens.check(self.folder)
    self.assertIn(missing, str(result.differences))

  def report(self, folder: pathlib.Path, rounding: Any = "x86"):
    out = io.StringIO()
    equal = goldens.report(folder, rounding=rounding, out=out)
    return equal, out.getvalue().splitlines()

  def test_reports_a_line_for_each_case(self):
    self.copy()
    self.check()
    equal, lines = self.report(self.folder)
    self.assertTrue(equal)
    self.assertEqual(lines[-1], f"{len(lines) - 1} passed, 0 failed")
    self.assertTrue(any(line.startswith("pass gpt/") for line in lines))
    self.cases["exhaustive_helper"]["e0"]["sizes"] = [1]
    self.check()
    equal, lines = self.report(self.folder)
    self.assertFalse(equal)
    self.assertEqual(lines[-1], f"{len(lines) - 2} passed, 1 failed")
    (failed,) = [line for line in lines if line.startswith("FAIL")]
    self.assertStartsWith(failed, "FAIL exhaustive_helper/e0: ")

  def test_reports_a_folder_without_goldens(self):
    equal, lines = self.report(self.folder)
    self.assertFalse(equal)
    self.assertEqual(lines[-1], "0 passed, 1 failed")

  def test_the_other_rounding_differs(self):
    equal, lines = self.report(_GOLDENS, "fused")
    self.assertFalse(equal)
    self.assertTrue(any("FAIL blend/" in line for line in lines))


if __name__ == "__main__":
  absltest.main()
