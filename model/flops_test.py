from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from model import config as model_config
from model import flops
from model import transformer
from model.presets import kanana


def dense(**overrides):
  shape: dict[str, Any] = {
    "name": "test",
    "vocab_size": 32_000,
    "dim": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 64,
    "mlp_dim": 1408,
    "tie_embeddings": False,
  }
  return model_config.dense(**shape | overrides)


class FlopsTest(parameterized.TestCase):
  def test_parameters_by_hand(self):
    count = flops.count_parameters(dense())
    attention = 2 * 512 * 8 * 64 + 2 * 512 * 4 * 64
    matmul = 8 * (attention + 3 * 512 * 1408) + 512 * 32_000
    self.assertEqual(count.embedding, 32_000 * 512)
    self.assertEqual(count.matmul, matmul)
    self.assertEqual(count.total, matmul + 32_000 * 512 + (2 * 8 + 1) * 512)

  def test_tied_embedding_is_stored_once_and_multiplied(self):
    tied = flops.count_parameters(dense(tie_embeddings=True))
    untied = flops.count_parameters(dense())
    self.assertEqual(tied.matmul, untied.matmul)
    self.assertEqual(tied.total, untied.total - 32_000 * 512)

  def test_training_flops_by_hand(self):
    per_token = flops.train_per_token(dense(), seq_len=512)
    # 6 per multiplied parameter; per layer 12 N H for each of T / 2 keys.
    matmul = 6 * (8 * (786_432 + 2_162_688) + 16_384_000)
    attention = 8 * 12 * 8 * 64 * 256
    self.assertEqual(per_token, matmul + attention)
    self.assertAlmostEqual(4096 * per_token / 1.034e12, 1, delta=1e-3)

  def test_forward_is_a_third(self):
    config = kanana.v1_5_2b()
    self.assertEqual(
      flops.train_per_token(config, seq_len=4096),
      3 * flops.forward_per_token(config, seq_len=4096),
    )

  @parameterized.parameters(32, 256)
  def test_agrees_with_the_compiler(self, seq_len):
    # One layer: XLA counts the body of a scan once. All T x T scores are
    # computed by the reference, twice what causal attention needs.
    config = dense(num_layers=1, dim=128, num_heads=4, mlp_dim=352)
    execution = model_config.ExecutionConfig(
      compute_dtype="float32", attention="reference"
    )
    graphdef, shapes = transformer.abstract(config, execution)

    def forward(params, tokens):
      model = transformer.bind(graphdef, params)
      return model.logits(model(tokens))

    tokens = jax.ShapeDtypeStruct((2, seq_len), jnp.int32)
    analysis: Any = (
      jax.jit(forward).lower(shapes, tokens).compile().cost_analysis()
    )
    needed = flops.forward_per_token(config, seq_len=seq_len)
    unneeded = 2 * seq_len * 4 * 64
    self.assertAlmostEqual(
      analysis["flops"] / (2 * seq_len * (needed + unneeded)), 1, delta=0.05
    )


if __name__ == "__main__":
  absltest.main()
