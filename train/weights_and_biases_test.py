"""What wandb is given, by a stand-in; and what is said where it is missing."""

import pathlib
import sys
import types
from typing import Any
from unittest import mock

from absl.testing import absltest

from train import weights_and_biases


class FakeWandb(types.ModuleType):
  """The part of the package that is used, keeping what it is given."""

  class Error(Exception):
    pass

  def __init__(self, refuses: bool = False):
    super().__init__("wandb")
    self.refuses = refuses
    self.settings: list[dict[str, Any]] = []
    self.records: list[dict[str, Any]] = []
    self.metrics: list[tuple[str, Any]] = []
    self.exit_codes: list[int] = []

  def init(self, **settings):
    if self.refuses:
      raise self.Error("api_key not configured")
    self.settings.append(settings)
    return self

  def Histogram(self, values):  # noqa: N802
    return ("histogram", values)

  def define_metric(self, name, step_metric=None):
    self.metrics.append((name, step_metric))

  def log(self, record):
    self.records.append(record)

  def finish(self, exit_code):
    self.exit_codes.append(exit_code)


class WeightsAndBiasesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir("my_run").full_path)

  def _open(self):
    return weights_and_biases.Run(
      self.workdir, project="llm", config={"run": {"steps": 3}}
    )

  def test_records(self):
    fake = FakeWandb()
    with mock.patch.dict(sys.modules, wandb=fake):
      run = self._open()
      run.log(3, "train", {"loss": 2.5, "router/load": [0.25, 0.75]})
      run.log(4, "sample/0", {"text": "한국어"})
      run.close()
    (settings,) = fake.settings
    self.assertEqual(settings["project"], "llm")
    self.assertEqual(settings["name"], "my_run")
    self.assertEqual(settings["config"], {"run": {"steps": 3}})
    self.assertEqual(settings["dir"], str(self.workdir))
    self.assertEqual(
      fake.records,
      [
        {
          "step": 3,
          "train/loss": 2.5,
          "train/router/load": ("histogram", [0.25, 0.75]),
        },
        {"step": 4, "sample/0/text": "한국어"},
      ],
    )
    self.assertEqual(fake.metrics, [("step", None), ("*", "step")])
    self.assertEqual(fake.exit_codes, [0])

  def test_resumes_the_same_run(self):
    fake = FakeWandb()
    with mock.patch.dict(sys.modules, wandb=fake):
      self._open().close()
      self._open().close()
    first, second = fake.settings
    self.assertEqual(first["id"], second["id"])
    self.assertEqual(second["resume"], "allow")

  def test_a_run_that_failed(self):
    fake = FakeWandb()
    with mock.patch.dict(sys.modules, wandb=fake):
      self._open().close(KeyError, KeyError(), None)
    self.assertEqual(fake.exit_codes, [1])

  def test_missing(self):
    with (
      mock.patch.dict(sys.modules, {"wandb": None}),
      self.assertRaisesRegex(
        ValueError, "observe.wandb_project='llm' needs the package wandb.*pip"
      ),
    ):
      weights_and_biases.load("llm")

  def test_refused(self):
    with (
      mock.patch.dict(sys.modules, wandb=FakeWandb(refuses=True)),
      self.assertRaisesRegex(ValueError, "api_key not.*WANDB_API_KEY"),
    ):
      self._open()


if __name__ == "__main__":
  absltest.main()
