"""From a config.json to a model and its name map, and back."""

import dataclasses
import re
from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf import name_map
from model.hf.families import deepseek
from model.hf.families import family
from model.hf.families import gemma
from model.hf.families import gpt2
from model.hf.families import gpt_oss
from model.hf.families import llama
from model.hf.families import mixtral
from model.hf.families import olmo
from model.hf.families import olmoe
from model.hf.families import phi
from model.hf.families import qwen
from model.hf.families import qwen_next

# In the order in which a model that several could hold is given to one.
FAMILIES = (
  llama.LLAMA,
  llama.MISTRAL,
  mixtral.MIXTRAL,
  qwen.QWEN2,
  qwen.QWEN3,
  qwen.QWEN3_MOE,
  deepseek.DEEPSEEK_V2,
  deepseek.DEEPSEEK_V3,
  gemma.GEMMA2,
  gemma.GEMMA3,
  phi.PHI3,
  gpt_oss.GPT_OSS,
  olmo.OLMO2,
  olmoe.OLMOE,
  qwen_next.QWEN3_NEXT,
  gpt2.GPT2,
)

# Buffers of older files, in every family.
_BUFFERS = (r".*\.rotary_emb\.inv_freq",)


def read(
  values: dict[str, Any], *, where: str = "config.json"
) -> tuple[family.Family, model_config.ModelConfig]:
  """The family and the model that a config.json describes.

  Raises:
    ValueError: The architecture or a key that matters is not known.
  """
  by_type = {f.model_type: f for f in FAMILIES}
  kind = values.get("model_type")
  if kind not in by_type:
    hint = ""
    if "text_config" in values:
      hint = " (of a multimodal model only the text part could be imported)"
    raise ValueError(
      f"{where}: model_type={kind!r} is not supported{hint}; only "
      f"{', '.join(by_type)} are."
    )
  if values.get("quantization_config") is not None:
    raise ValueError(
      f"{where}: quantization_config={values['quantization_config']!r}: "
      "quantized weights are not supported; dequantize them first."
    )
  found = by_type[kind]
  reader = config_json.Reader(found.defaults | values, where=where)
  reader.get("quantization_config", default=None)
  try:
    config = found.read(reader)
  except TypeError as error:
    raise ValueError(f"{where}: a key has the wrong type: {error}.") from error
  reader.finish()
  return found, config


def write(
  config: model_config.ModelConfig,
) -> tuple[family.Family, dict[str, Any]]:
  """The family that can hold a model, and its config.json.

  Raises:
    ValueError: No architecture of Transformers that is known here computes
      the same function.
  """
  for candidate in FAMILIES:
    try:
      values = candidate.write(config)
      _, again = read(values)
    except ValueError:
      # It has no key for something, or no such value.
      continue
    if is_same(again, config):
      return candidate, values
  raise ValueError(
    f"Model {config.name!r} cannot be exported: no architecture of "
    f"Transformers computes its function (tried "
    f"{', '.join(f.model_type for f in FAMILIES)})."
  )


def is_same(
  one: model_config.ModelConfig, other: model_config.ModelConfig
) -> bool:
  """Whether two models compute the same function of the same tensors.

  Whatever they are called, however their layers are grouped, with or without
  multi-token prediction, which has no place in Transformers, and whatever is
  said of what they do not have.
  """
  return _plain(one) == _plain(other)


def _plain(config: model_config.ModelConfig) -> model_config.ModelConfig:
  """The one of all models that compute a function."""
  blocks = []
  for block in config.layers:
    if isinstance(block.feed_forward, model_config.MoeConfig):
      router = block.feed_forward.router
      if router.num_groups == 1:
        router = dataclasses.replace(router, group_score="max")
      if router.score == "softmax_after_topk":
        # The weights' sum is 1 already.
        router = dataclasses.replace(router, normalize=True)
      moe = dataclasses.replace(block.feed_forward, router=router)
      block = dataclasses.replace(block, feed_forward=moe)
    blocks.append(block)
  return dataclasses.replace(
    config, name="", mtp=None, groups=model_config.group_layers(blocks)
  )


def bind(
  found: family.Family,
  config: model_config.ModelConfig,
  params: dict[str, Any],
) -> list[name_map.Binding]:
  """Every tensor of the family's files, at its place in our parameters."""
  return name_map.bind(
    config,
    params,
    top=found.top_rules(config),
    layers=[
      found.layer_rules(config, block, i)
      for i, block in enumerate(config.layers)
    ],
  )


def is_ignored(
  found: family.Family, config: model_config.ModelConfig, name: str
) -> bool:
  """Whether a tensor of theirs is no part of the model.

  Buffers that are computed, and the layers behind the last one: DeepSeek keeps
  its multi-token prediction there, which Transformers does not load either.
  """
  patterns = _BUFFERS + found.ignored
  if any(re.fullmatch(pattern, name) for pattern in patterns):
    return True
  layer = re.match(r"model\.layers\.(\d+)\.", name)
  behind = layer is not None and int(layer[1]) >= config.num_layers
  return behind and found.model_type == "deepseek_v3"
