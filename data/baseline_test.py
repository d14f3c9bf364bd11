import collections
import dataclasses
import math
import pathlib

from absl.testing import absltest

from data import baseline
from data import config as config_lib
from data import fixtures
from data.sources import array_record


def tokens_of(path):
  source = array_record.ArrayRecordSource(path)
  return source.read(0, source.num_tokens).tolist()


class BaselineTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.config = fixtures.write_mixture(root)

  def test_equals_the_definitions(self):
    found = baseline.measure(self.config)
    for source in self.config.sources:
      tokens = tokens_of(source.eval_path)
      own = collections.Counter(tokens)
      train_tokens = tokens_of(source.path)
      train = collections.Counter(train_tokens)
      entropy = -sum(math.log(own[t] / len(tokens)) for t in tokens)
      cross = -sum(
        math.log((train[t] + 1) / (len(train_tokens) + 300)) for t in tokens
      )
      result = found[source.name]
      for loss, nats in (
        (result.uniform, len(tokens) * math.log(300)),
        (result.own_unigram, entropy),
        (result.train_unigram, cross),
      ):
        self.assertAlmostEqual(loss.nats_per_token, nats / len(tokens))
        num_bytes = array_record.ArrayRecordSource(
          source.eval_path
        ).manifest.num_bytes
        self.assertAlmostEqual(
          loss.bits_per_byte, nats / math.log(2) / num_bytes
        )

  def test_blend_is_of_one_model(self):
    found = baseline.measure(self.config)
    nats = -0.0
    counts = {
      source.name: collections.Counter(tokens_of(source.eval_path))
      for source in self.config.sources
    }
    for token in range(300):
      p = sum(
        source.weight * counts[source.name][token] / counts[source.name].total()
        for source in self.config.sources
      )
      nats -= p * math.log(p) if p else 0
    self.assertAlmostEqual(
      found[baseline.BLEND].own_unigram.nats_per_token, nats
    )
    mean = sum(
      source.weight * found[source.name].own_unigram.nats_per_token
      for source in self.config.sources
    )
    self.assertGreater(nats, mean)

  def test_refuses(self):
    synthetic = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=9
    )
    with self.assertRaisesRegex(ValueError, "data.kind is synthetic"):
      baseline.measure(synthetic)
    sources = tuple(
      dataclasses.replace(s, eval_path="") for s in self.config.sources
    )
    with self.assertRaisesRegex(ValueError, "no eval_path"):
      baseline.measure(dataclasses.replace(self.config, sources=sources))


if __name__ == "__main__":
  absltest.main()
