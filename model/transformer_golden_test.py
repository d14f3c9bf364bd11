"""The decoder against Hugging Face Transformers; see testdata/README.md."""

import json
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import config as model_config
from model import transformer

_CASES = ("llama_gqa_untied", "llama_kanana15_tied", "llama3_rope_scaling")
_TESTDATA = pathlib.Path(__file__).parent / "testdata"
# float32 noise of these models is 2e-5 in logits; the mildest mistake tried
# (an RMSNorm epsilon of 1e-6 for 1e-5) moves them by 4e-4.
_LOGITS_ATOL = 1e-4

_NAMES = {
  "model.embed_tokens.weight": "embed_VD",
  "model.norm.weight": "final_norm.scale_D",
  "lm_head.weight": "head_DV",
}
_LAYER_NAMES = {
  "input_layernorm": "mixer_norm.scale_D",
  "self_attn.q_proj": "mixer.q_DNH",
  "self_attn.k_proj": "mixer.k_DKH",
  "self_attn.v_proj": "mixer.v_DKH",
  "self_attn.o_proj": "mixer.o_NHD",
  "post_attention_layernorm": "feed_forward_norm.scale_D",
  "mlp.gate_proj": "feed_forward.gate_DF",
  "mlp.up_proj": "feed_forward.up_DF",
  "mlp.down_proj": "feed_forward.down_FD",
}


def read_config(folder):
  hf = json.loads((folder / "config.json").read_text())
  rope = hf["rope_parameters"]
  scaling = None
  if rope["rope_type"] == "llama3":
    scaling = model_config.Llama3Scaling(
      factor=rope["factor"],
      low_freq_factor=rope["low_freq_factor"],
      high_freq_factor=rope["high_freq_factor"],
      original_max_seq_len=rope["original_max_position_embeddings"],
    )
  return model_config.dense(
    name=folder.name,
    vocab_size=hf["vocab_size"],
    dim=hf["hidden_size"],
    num_layers=hf["num_hidden_layers"],
    num_heads=hf["num_attention_heads"],
    num_kv_heads=hf["num_key_value_heads"],
    head_dim=hf["head_dim"],
    mlp_dim=hf["intermediate_size"],
    tie_embeddings=hf["tie_word_embeddings"],
    rope=model_config.RopeConfig(theta=rope["rope_theta"], scaling=scaling),
    norm_eps=hf["rms_norm_eps"],
    max_seq_len=hf["max_position_embeddings"],
  )


def find(params, name):
  """Our parameter that holds a Hugging Face tensor, and its layer or None."""
  match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", name)
  layer = int(match[1]) if match else None
  if match:
    ours = f"group_0.block_0.{_LAYER_NAMES[match[2]]}"
  else:
    ours = _NAMES[name]
  *folders, leaf = ours.split(".")
  for folder in folders:
    params = params[folder]
  return params, leaf, layer


def convert(tensor, leaf, shape):
  """[out, in] as PyTorch has it -> [in, out], heads apart."""
  tensor = tensor if leaf == "embed_VD" else tensor.T
  return tensor.reshape(shape)


def read_params(folder, shapes):
  weights = np.load(folder / "weights.npz")
  params = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shapes)
  for name in weights:
    parent, leaf, layer = find(params, name)
    where = ... if layer is None else layer
    parent[leaf][where] = convert(
      weights[name], leaf, parent[leaf][where].shape
    )
  assert not any(np.isnan(x).any() for x in jax.tree.leaves(params))
  return params


class TransformerGoldenTest(parameterized.TestCase):
  def load(self, case, **execution):
    folder = _TESTDATA / case
    config = read_config(folder)
    execution = model_config.ExecutionConfig(
      compute_dtype="float32", **execution
    )
    self.graphdef, shapes = transformer.abstract(config, execution)
    self.params = read_params(folder, shapes)
    self.golden = np.load(folder / "golden.npz")
    self.tokens = jnp.asarray(self.golden["input_ids"])
    self.mask = self.golden["attention_mask"]

  def logits(self, params, tokens, **kwargs):
    model = transformer.bind(self.graphdef, params)
    return model.logits(model(tokens, **kwargs).hidden)

  def token_nll(self, params):
    logits = self.logits(
      params, self.tokens, segment_ids=jnp.asarray(self.mask)
    )
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    nll = -jnp.take_along_axis(log_probs, self.tokens[:, 1:, None], axis=-1)
    return nll[..., 0] * self.mask[:, 1:]

  def loss(self, params):
    token_nll = self.token_nll(params)
    return jnp.sum(token_nll) / np.sum(self.mask[:, 1:]), token_nll

  def assert_logits(self, logits, wanted):
    self.assertEqual(logits.dtype, jnp.float32)
    self.assertGreater(np.abs(wanted).max(), 5)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=_LOGITS_ATOL)

  @parameterized.product(
    case=_CASES, attention=("reference", "blockwise", "dot_product")
  )
  @jax.default_matmul_precision("highest")
  def test_logits(self, case, attention):
    self.load(case, attention=attention)
    real = self.mask == 1
    # Without segment_ids: padding on the right is after what is compared.
    logits = jax.jit(self.logits)(self.params, self.tokens)
    self.assert_logits(logits[real], self.golden["logits"][real])

  @parameterized.parameters(*_CASES)
  @jax.default_matmul_precision("highest")
  def test_left_padding(self, case):
    self.load(case)
    row = 1
    length = int(self.mask[row].sum())
    padding = self.mask.shape[1] - length
    self.assertGreater(padding, 0)
    tokens = np.roll(self.tokens[row], padding)
    segment_ids = np.roll(self.mask[row], padding)
    logits = jax.jit(self.logits)(
      self.params,
      jnp.asarray(tokens[None]),
      positions=jnp.asarray(np.maximum(np.cumsum(segment_ids) - 1, 0)[None]),
      segment_ids=jnp.asarray(segment_ids[None]),
    )
    self.assert_logits(logits[0, padding:], self.golden["logits"][row, :length])

  @parameterized.parameters(*_CASES)
  @jax.default_matmul_precision("highest")
  def test_rows_packed_into_one(self, case):
    self.load(case)
    length = int(self.mask[1].sum())
    tokens = np.concatenate([self.tokens[1, :length], self.tokens[2]])
    positions = np.concatenate([np.arange(length), np.arange(48)])
    segment_ids = np.concatenate([np.full(length, 1), np.full(48, 2)])
    logits = jax.jit(self.logits)(
      self.params,
      jnp.asarray(tokens[None]),
      positions=jnp.asarray(positions[None]),
      segment_ids=jnp.asarray(segment_ids[None]),
    )
    self.assert_logits(logits[0, :length], self.golden["logits"][1, :length])
    self.assert_logits(logits[0, length:], self.golden["logits"][2])

  @parameterized.product(case=_CASES, remat=("none", "full"))
  @jax.default_matmul_precision("highest")
  def test_loss_and_gradients(self, case, remat):
    self.load(case, remat=remat)
    (loss, token_nll), gradients = jax.jit(
      jax.value_and_grad(self.loss, has_aux=True)
    )(self.params)
    # Differences of two logits of up to 14, in float32.
    np.testing.assert_allclose(
      token_nll, self.golden["token_nll"], rtol=0, atol=3e-5
    )
    self.assertAlmostEqual(float(loss), float(self.golden["loss"]), delta=1e-5)
    names = [n for n in self.golden if n.startswith("grad/")]
    self.assertLen(names, 3)
    for name in names:
      parent, leaf, layer = find(gradients, name.removeprefix("grad/"))
      got = parent[leaf] if layer is None else parent[leaf][layer]
      wanted = convert(self.golden[name], leaf, got.shape)
      np.testing.assert_allclose(
        got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name
      )

  @parameterized.parameters(*_CASES)
  def test_bfloat16_is_near(self, case):
    self.load(case)
    config = read_config(_TESTDATA / case)
    self.graphdef, _ = transformer.abstract(
      config, model_config.ExecutionConfig(compute_dtype="bfloat16")
    )
    real = self.mask == 1
    logits = jax.jit(self.logits)(self.params, self.tokens)[real]
    difference = np.abs(logits - self.golden["logits"][real])
    # Transformers itself in bfloat16: at most 0.61, 0.05 on average.
    self.assertLess(difference.max(), 0.7)
    self.assertLess(difference.mean(), 0.06)


if __name__ == "__main__":
  absltest.main()
