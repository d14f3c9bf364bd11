import copy
import json
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data.megatron import compare as compare_lib
from data.megatron import golden_cases

_GOLDENS = pathlib.Path("data/testdata/megatron")
_ALL = "all_text_int64le_sha256"
_ORDER = (
  "counts",
  "dataset_index_int16le_sha256",
  "dataset_sample_index_int64le_sha256",
)


class GoldenCasesTest(parameterized.TestCase):
  cases: dict[str, Any]
  all_arrays: dict[str, np.ndarray]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with open(_GOLDENS / "goldens.json") as file:
      cls.cases = json.load(file)
    with np.load(_GOLDENS / "goldens.npz") as file:
      cls.all_arrays = {name: file[name] for name in file.files}

  def first(self, kind: str, name: str = "") -> None:
    """A case (the first, unless named), to be changed, and its arrays."""
    self.kind = kind
    self.name = name or next(iter(self.cases[kind]))
    self.case = copy.deepcopy(self.cases[kind][self.name])
    prefix = f"{kind}/{self.name}/"
    self.arrays = {
      name: array
      for name, array in self.all_arrays.items()
      if name.startswith(prefix)
    }

  def differences(self) -> str:
    compare = compare_lib.Compare(f"{self.kind}/{self.name}", self.arrays)
    corpora = golden_cases.Corpora(
      _GOLDENS, self.cases["corpora"], first_n=self.cases["first_n"]
    )
    check = golden_cases.KINDS[self.kind]
    check(compare, self.name, self.case, corpora, "x86")
    return "; ".join(compare.result().differences)

  @parameterized.parameters(*golden_cases.KINDS)
  def test_every_array_counts(self, kind):
    self.first(kind)
    self.assertEmpty(self.differences())
    self.assertNotEmpty(self.arrays)
    for name, kept in list(self.arrays.items()):
      if not kept.size:
        continue
      with self.subTest(name):
        del self.arrays[name]
        with self.assertRaisesRegex(ValueError, f"no array {name}"):
          self.differences()
        self.arrays[name] = kept
        if name.endswith("/pick"):
          continue
        changed = kept.copy()
        changed.reshape(-1)[-1] += 1
        self.arrays[name] = changed
        self.assertIn("1 of", self.differences())
        if not name.endswith("/text"):
          self.arrays[name] = kept.astype(np.float16)
          self.assertIn("not float16", self.differences())
        self.arrays[name] = kept

  @parameterized.parameters(
    *(("corpora", f) for f in ("bin_sha256", "idx_sha256")),
    ("corpora", "tokens_int64_sha256"),
    *(("gpt", f) for f in ("split_range", "tokens_per_epoch", "num_epochs")),
    *(("gpt", f) for f in ("separate_final_epoch", "length", _ALL)),
    *(("blend_helper", f) for f in _ORDER),
  )
  def test_a_value_that_differs_or_is_missing(self, kind, field):
    self.first(kind)
    self.case[field] = "changed"
    self.assertRegex(self.differences(), f"^{field} is .*changed$")
    del self.case[field]
    self.assertEqual(self.differences(), f"{field} is missing")

  @parameterized.parameters(
    *(("corpora", f) for f in ("dtype", "sequences", "documents", "tokens")),
    ("corpora", "multimodal"),
    ("gpt", "dtypes"),
    ("items", "length"),
    ("blend_helper", "weights_normalized_hex"),
    *(("exhaustive_helper", f) for f in _ORDER),
  )
  def test_a_value_that_may_be_missing(self, kind, field):
    self.first(kind)
    self.case[field] = "changed"
    self.assertRegex(self.differences(), f"^{field} is .*changed$")
    del self.case[field]
    self.assertEmpty(self.differences())

  def test_a_split_of_a_blend(self):
    self.first("blend")
    theirs = self.case["splits"]["train"]
    may_be_missing = ("kind", "length", "size", "weights_used")
    for field in list(theirs):
      kept = theirs[field]
      with self.subTest(field):
        theirs[field] = "changed"
        self.assertRegex(self.differences(), f"^train: {field} is .*changed$")
        del theirs[field]
        missing = f"train: {field} is missing"
        self.assertEqual(
          self.differences(), "" if field in may_be_missing else missing
        )
      theirs[field] = kept
    theirs["novel"] = 1
    self.assertStartsWith(self.differences(), "train: novel is no known field")
    self.case["splits"]["train"] = None
    self.assertIn("train is built, not None", self.differences())

  @parameterized.parameters("corpora", "gpt", "items", "blend")
  def test_a_field_that_is_not_known(self, kind):
    self.first(kind)
    self.case["novel"] = 1
    self.assertEqual(
      self.differences(), "novel is no known field of such a case"
    )

  @parameterized.parameters("gpt", "blend")
  def test_options_that_are_left_open(self, kind):
    usual = {"extra": True, "drop_last": True, "surplus": 0.005}
    name = next(
      name
      for name, case in self.cases[kind].items()
      if all(
        case.get(option, value) == value for option, value in usual.items()
      )
    )
    self.first(kind, name)
    for option in usual:
      self.case.pop(option, None)
    self.assertEmpty(self.differences())
    self.case |= {"extra": None, "drop_last": None}
    self.assertEmpty(self.differences())

  def test_a_split_without_anything(self):
    self.first("gpt")
    self.case |= {"split": "0,0,1", "which": "train"}
    with self.assertRaisesRegex(ValueError, "'0,0,1' has no train part"):
      self.differences()

  def test_an_option_that_is_not_known(self):
    self.first("items")
    self.case["opts"] = {"novel": True}
    with self.assertRaisesRegex(TypeError, "novel"):
      self.differences()
    self.first("items")
    self.case |= {"num_samples": None, "epochs": 2.0}
    with self.assertRaisesRegex(ValueError, "epochs are given"):
      self.differences()


if __name__ == "__main__":
  absltest.main()
