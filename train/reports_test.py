"""The reports in configs/reports are what the compiler says now.

Takes about two CPU minutes for each; `UPDATE_GOLDENS=1 python -m
train.reports_test` writes them anew. Needs libtpu.
"""

import importlib
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from train import compile_report
from train import config
from train import topology

_HERE = pathlib.Path(__file__).parent
_DENSE = ("kanana_1_5_2b", "kanana_1_5_8b", "kanana_1_5_9_8b")
_REPORTS = [
  *((name, "v5e-256") for name in (*_DENSE, "kanana_moe_13b")),
  *((name, "v6e-256") for name in (*_DENSE, "kanana_moe_13b", "kanana_2_30b")),
]


class ReportsTest(parameterized.TestCase):
  @parameterized.parameters(*_REPORTS)
  def test_report(self, name, slice_name):
    module = importlib.import_module(f"train.configs.{name}")
    run = config.from_config_dict(module.get_config(slice_name), base_dir="/")
    (report,) = compile_report.compile_steps(run, topology.parse(slice_name))
    self.assertTrue(report.memory.fits, report.memory.refusal)
    text = compile_report.to_text(report)
    golden = pathlib.Path("configs") / "reports" / f"{name}_{slice_name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
      tree = os.environ.get("BUILD_WORKSPACE_DIRECTORY", _HERE.parent)
      (pathlib.Path(tree) / "train" / golden).write_text(text)
    self.assertEqual(
      text,
      (_HERE / golden).read_text(),
      "The step has changed; UPDATE_GOLDENS=1 python -m train.reports_test",
    )


if __name__ == "__main__":
  absltest.main()
