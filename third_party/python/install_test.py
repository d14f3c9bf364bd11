"""Tests of how packages are described to Bazel."""

import importlib.metadata
import os
import pathlib
from unittest import mock

from absl.testing import absltest

from third_party.python import install

_LOCK = """\
# A comment.
jax[tpu]==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r requirements.in
ml-dtypes==2.0 ; sys_platform != 'win32' \\
    --hash=sha256:cc
uv==3.0 \\
    --hash=sha256:dd
"""


class InstallTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.lock = pathlib.Path(self.create_tempfile("lock.txt", _LOCK))

  def distributions(self, **requires):
    """Returns installed distributions of these names and requirements."""
    site = pathlib.Path(self.create_tempdir())
    for name, lines in requires.items():
      (site / f"{name}-1.dist-info").mkdir()
      (site / f"{name}-1.dist-info/METADATA").write_text(
        f"Name: {name}\n"
        + "".join(f"Requires-Dist: {line}\n" for line in lines)
      )
    return {
      install.normalise(distribution.name): distribution
      for distribution in importlib.metadata.distributions(path=[str(site)])
    }

  def test_normalise(self):
    self.assertEqual(install.normalise("ML.dtypes-x"), "ml_dtypes_x")

  def test_asked_for(self):
    asked = install.asked_for(self.lock)
    self.assertEqual([r.name for r in asked], ["jax", "ml-dtypes", "uv"])
    self.assertEqual(asked[0].extras, {"tpu"})

  def test_locked_requirement(self):
    lines = install.locked_requirement(self.lock, "uv").splitlines()
    self.assertEqual(lines, ["uv==3.0 \\", "    --hash=sha256:dd"])
    with self.assertRaisesRegex(SystemExit, "no pip"):
      install.locked_requirement(self.lock, "pip")

  def test_dependencies(self):
    distributions = self.distributions(
      jax=["ml-dtypes>=1", 'libtpu; extra == "tpu"', 'cuda; extra == "cuda"'],
      libtpu=[],
      cuda=[],
      ml_dtypes=['winonly; sys_platform == "win32"', "absent"],
      winonly=[],
    )
    graph = install.dependencies(distributions, install.asked_for(self.lock))
    self.assertEqual(graph["jax"], {"ml_dtypes", "libtpu"})
    self.assertEqual(graph["ml_dtypes"], set())

  def test_components(self):
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    cycle = install.components(graph)
    self.assertEqual(cycle["a"], {"a"})
    self.assertEqual(cycle["b"], {"b", "c"})
    self.assertEqual(cycle["c"], {"b", "c"})
    self.assertEqual(cycle["d"], {"d"})

  def test_pip_settings_reach_uv(self):
    settings = {
      "PIP_INDEX_URL": "https://mirror.example/simple",
      "PIP_CERT": "/ca.pem",
      "PIP_TRUSTED_HOST": "mirror.example",
    }
    with mock.patch.dict(os.environ, settings):
      os.environ.pop("SSL_CERT_FILE", None)
      env = install.uv_environment()
    self.assertEqual(env["UV_DEFAULT_INDEX"], "https://mirror.example/simple")
    self.assertEqual(env["SSL_CERT_FILE"], "/ca.pem")
    self.assertEqual(env["UV_INSECURE_HOST"], "mirror.example")

  def test_own_settings_of_uv_win(self):
    settings = {"PIP_INDEX_URL": "https://a", "UV_DEFAULT_INDEX": "https://b"}
    with mock.patch.dict(os.environ, settings):
      self.assertEqual(
        install.uv_environment()["UV_DEFAULT_INDEX"], "https://b"
      )


if __name__ == "__main__":
  absltest.main()
