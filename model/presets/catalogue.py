"""Every preset of a published model, for tests and tables."""

from collections.abc import Callable
import functools

from model import config as model_config
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt2
from model.presets import gpt_oss
from model.presets import kanana
from model.presets import llama
from model.presets import mistral
from model.presets import mixtral
from model.presets import olmo
from model.presets import phi
from model.presets import qwen
from model.presets import smollm

PUBLISHED: tuple[Callable[[], model_config.ModelConfig], ...] = (
  deepseek.v2_lite,
  deepseek.v2,
  deepseek.v3,
  functools.partial(deepseek.v3, mtp=True),
  gemma.v2_2b,
  gemma.v2_9b,
  gemma.v2_27b,
  gemma.v3_270m,
  gemma.v3_1b,
  gemma.v3_4b,
  gemma.v3_12b,
  gemma.v3_27b,
  gpt2.small,
  gpt2.medium,
  gpt2.large,
  gpt2.xl,
  gpt_oss.m20b,
  gpt_oss.m120b,
  kanana.v1_5_2b,
  kanana.v1_5_8b,
  kanana.v1_5_9_8b,
  kanana.moe_13b,
  kanana.v2_30b_a3b,
  llama.v2_7b,
  llama.v2_13b,
  llama.v3_8b,
  llama.v3_70b,
  llama.v3_1_8b,
  llama.v3_1_405b,
  llama.v3_2_1b,
  llama.v3_2_3b,
  mistral.v0_1_7b,
  mistral.v0_3_7b,
  mistral.nemo_12b,
  mixtral.v0_1_8x7b,
  mixtral.v0_1_8x22b,
  olmo.v2_1b,
  olmo.v2_7b,
  olmo.v2_13b,
  olmo.v2_32b,
  olmo.olmoe_1b_7b,
  phi.v3_mini_4k,
  qwen.v2_0_5b,
  qwen.v2_1_5b,
  qwen.v2_7b,
  qwen.v2_72b,
  qwen.v2_5_7b,
  qwen.v2_5_14b,
  qwen.v2_5_32b,
  qwen.v3_0_6b,
  qwen.v3_1_7b,
  qwen.v3_4b,
  qwen.v3_8b,
  qwen.v3_14b,
  qwen.v3_32b,
  qwen.v3_30b_a3b,
  qwen.v3_235b_a22b,
  qwen.v3_next_80b_a3b,
  smollm.v2_135m,
  smollm.v2_360m,
  smollm.v2_1_7b,
)
