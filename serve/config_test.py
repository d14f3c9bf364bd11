"""Settings of the server: what is refused, and the way through a ConfigDict."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from model import sharding
from serve import config as config_lib
from serve.configs import default

_Api = config_lib.ApiConfig
_Engine = config_lib.EngineConfig
_Runner = config_lib.RunnerConfig
_Speculation = config_lib.SpeculationConfig


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    (_Runner, {"page_size": 0}, "runner.page_size=0 must be at least 1"),
    (_Runner, {"max_len": 1}, "runner.max_len=1 must be at least 2"),
    (_Runner, {"cache_tokens": 8}, "runner.cache_tokens=8 .* at least 16"),
    (
      _Runner,
      {"mesh": sharding.MeshConfig(context=2)},
      "runner.mesh.context=2 is for training",
    ),
    (_Engine, {"max_queued_requests": 0}, "engine.max_queued_requests=0"),
    (_Engine, {"stall_seconds": 0.0}, "engine.stall_seconds=0.0 .* above 0"),
    (_Speculation, {"min_ngram": 3, "max_ngram": 2}, "max_ngram=2 .*ngram=3"),
    (_Speculation, {"method": "draft"}, "needs a smaller model"),
    (_Speculation, {"checkpoint": "x"}, "checkpoint='x' is not used"),
    (config_lib.ServeConfig, {"keep_imports": 0}, "keep_imports=0"),
    (_Api, {"port": 65536}, "api.port=65536 must be from 0 to 65535"),
    (_Api, {"max_body_bytes": 0}, "api.max_body_bytes=0"),
    (_Api, {"write_seconds": float("nan")}, "api.write_seconds=nan"),
    (_Api, {"drain_seconds": -1.0}, "api.drain_seconds=-1.0"),
    (_Api, {"tls_cert": "c.pem"}, "tls_key='': give both"),
  )
  def test_refuses(self, cls, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(**settings)

  @parameterized.parameters("127.0.0.1", "127.1.2.3", "::1", "localhost")
  def test_no_key_is_needed_on_loopback(self, host):
    self.assertTrue(_Api(host=host).is_local)

  @parameterized.parameters("0.0.0.0", "::", "", "10.0.0.1", "host.example")
  def test_beyond_loopback_a_key_is_needed(self, host):
    with self.assertRaisesRegex(ValueError, "--api_keys=FILE"):
      _Api(host=host)
    self.assertFalse(_Api(host=host, api_keys="keys").is_local)
    self.assertFalse(_Api(host=host, allow_no_key=True).is_local)

  def test_file(self):
    config = config_lib.from_config_dict(default.get_config(), base_dir="/here")
    again = config_lib.to_config_dict(config)
    self.assertEqual(
      config_lib.from_config_dict(again, base_dir="/there"), config
    )

  def test_defaults(self):
    config = config_lib.from_config_dict(default.get_config(), base_dir="/")
    cache = config.runner.compilation_cache
    self.assertStartsWith(cache, "/")
    expected = dataclasses.replace(
      config_lib.ServeConfig(),
      runner=_Runner(compilation_cache=cache),
    )
    self.assertEqual(config, expected)

  def test_overrides(self):
    flags = default.get_config()
    flags.runner.max_len = 4096
    flags.runner.mesh.tensor = 2
    flags.api.api_keys = "keys.txt"
    flags.engine.speculation.method = "draft"
    flags.engine.speculation.checkpoint = "gs://bucket/draft"
    config = config_lib.from_config_dict(flags, base_dir="/here")
    self.assertEqual(config.runner.max_len, 4096)
    self.assertEqual(config.runner.mesh.tensor, 2)
    self.assertEqual(config.api.api_keys, "/here/keys.txt")
    self.assertEqual(config.engine.speculation.checkpoint, "gs://bucket/draft")
    with self.assertRaises(TypeError):
      flags.runner.max_len = "long"
    with self.assertRaises(AttributeError):
      flags.api.prot = 80

  def test_unknown_choice(self):
    flags = default.get_config()
    flags.runner.weights = "int4"
    with self.assertRaisesRegex(ValueError, "config.runner.weights='int4'"):
      config_lib.from_config_dict(flags, base_dir="/")


if __name__ == "__main__":
  absltest.main()
