"""What a trained model writes: greedy continuations of prompts.

    bazel run //tools/generate -- --checkpoint=DIR \
      --prompt="The capital of France is"

With --chat each prompt is a user's message to a chat model.
"""

from collections.abc import Collection
import dataclasses
import time
from typing import Any

from absl import flags
import jax
import numpy as np

from data import chat
from data import tokenizer as tokenizer_lib
from model import decode
from model import sharding
from serve import conventions
from tools import command_line
from tools import trained_model

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir, its checkpoints, or one of them."
)
_PROMPT = flags.DEFINE_multi_string(
  "prompt", [], "What to continue; give it again for more."
)
_NUM_TOKENS = flags.DEFINE_integer(
  "num_tokens", 64, "Tokens of a continuation, at most.", lower_bound=1
)
_CHAT = flags.DEFINE_bool(
  "chat", False, "Prompts are messages; the tokenizer's template renders them."
)
_SHOW_IDS = flags.DEFINE_bool("show_ids", False, "Print token ids, too.")
_COMPUTE_DTYPE = flags.DEFINE_enum(
  "compute_dtype", "bfloat16", ["bfloat16", "float32"], "Of the activations."
)
_TENSOR = flags.DEFINE_integer(
  "tensor", 1, "Devices that share each matrix; the others share prompts."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Continuations.

  Attributes:
    prompts: Ids of each prompt.
    tokens: Ids of each continuation, up to its end.
    num_computed: Tokens that were computed, behind the ends too.
    seconds: What that took; compiling not counted.
    compile_seconds: What compiling took.
  """

  prompts: list[list[int]]
  tokens: list[list[int]]
  num_computed: int
  seconds: float
  compile_seconds: float


def encode(
  model: trained_model.TrainedModel,
  tokenizer: tokenizer_lib.Tokenizer,
  prompt: str,
  *,
  as_message: bool,
) -> list[int]:
  """Ids of a prompt, begun as the model's training texts are."""
  if as_message:
    text = chat.render(
      [{"role": "user", "content": prompt}],
      model.tokenizer,
      add_generation_prompt=True,
    )
    return tokenizer.encode_with_special_tokens(text)
  return conventions.encode(prompt, tokenizer, conventions.start(model.meta))


def generate(
  model: trained_model.TrainedModel,
  prompts: list[list[int]],
  *,
  ends: Collection[int],
  num_tokens: int,
) -> Texts:
  """Continues each prompt by up to `num_tokens` tokens.

  Raises:
    ValueError: A prompt and its continuation exceed the model's context.
  """
  longest = max(len(ids) for ids in prompts)
  if longest + num_tokens > model.config.max_seq_len:
    raise ValueError(
      f"The longest prompt has {longest} tokens; with --num_tokens="
      f"{num_tokens} that is more than the model's context of "
      f"{model.config.max_seq_len}. Shorten one of them."
    )
  shards = sharding.num_batch_shards(model.mesh)
  rows = -(-len(prompts) // shards) * shards
  tokens = np.zeros((rows, longest), np.int32)
  lengths = np.ones(rows, np.int32)
  for row, ids in enumerate(prompts):
    tokens[row, : len(ids)] = ids
    lengths[row] = len(ids)

  @jax.jit
  def run(params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    return decode.greedy(
      params, tokens, lengths, graphdef=model.graphdef, num_tokens=num_tokens
    ).tokens

  with jax.set_mesh(model.mesh):
    arrays = sharding.put_batch((tokens, lengths), model.mesh)
    start = time.perf_counter()
    compiled = run.lower(model.params, *arrays).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    chosen = jax.device_get(compiled(model.params, *arrays))
    seconds = time.perf_counter() - start
  return Texts(
    prompts=prompts,
    tokens=[_until(row, ends) for row in chosen[: len(prompts)].tolist()],
    num_computed=len(prompts) * num_tokens,
    seconds=seconds,
    compile_seconds=compile_seconds,
  )


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
  """The ids before the first end."""
  first = next((i for i, token in enumerate(ids) if token in ends), len(ids))
  return ids[:first]


def main() -> None:
  """Prints what the flags ask for."""
  model = trained_model.load(
    command_line.user_path(_CHECKPOINT.value),
    compute_dtype=_COMPUTE_DTYPE.value,
    tensor=_TENSOR.value,
  )
  tokenizer = tokenizer_lib.Tokenizer.load(model.tokenizer)
  prompts = [
    encode(model, tokenizer, prompt, as_message=_CHAT.value)
    for prompt in _PROMPT.value
  ]
  texts = generate(
    model,
    prompts,
    ends=conventions.end_ids(model.meta, tokenizer),
    num_tokens=_NUM_TOKENS.value,
  )
  for prompt, before, after in zip(
    _PROMPT.value, texts.prompts, texts.tokens, strict=True
  ):
    shown = f"> {prompt}\n" if _CHAT.value else prompt
    print(shown + _decode(tokenizer, before, after))
    if _SHOW_IDS.value:
      print(f"ids {before} -> {after}")
    print()
  rate = texts.num_computed / texts.seconds
  print(
    f"{len(prompts)} x {_NUM_TOKENS.value} tokens in {texts.seconds:.2f} s,"
    f" reading the prompts included: {rate:,.1f} tokens/s; compiled in"
    f" {texts.compile_seconds:.1f} s"
  )


def _decode(
  tokenizer: tokenizer_lib.Tokenizer, before: list[int], after: list[int]
) -> str:
  """The text of `after`; some tokenizers drop a space at a text's start."""
  prompt, whole = tokenizer.decode(before), tokenizer.decode(before + after)
  if whole.startswith(prompt):
    return whole.removeprefix(prompt)
  return tokenizer.decode(after)


if __name__ == "__main__":
  command_line.run(
    main,
    required=("checkpoint", "prompt"),
    errors=trained_model.ERRORS,
  )
