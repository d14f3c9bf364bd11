"""How a model's texts begin and end, and how it is meant to be sampled.

What a checkpoint says of it: its tokenizer, and for an imported model the
config.json and generation_config.json that came with it.
"""

import dataclasses
import enum
import math
from typing import Any

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model.hf import importer

# Of generation_config.json: what no server needs, or another file says.
_HARMLESS = (
  "_from_model_config",
  "bos_token_id",
  "cache_implementation",
  "do_sample",
  "eos_token_id",
  "max_length",
  "max_new_tokens",
  "output_attentions",
  "output_hidden_states",
  "output_scores",
  "pad_token_id",
  "return_dict_in_generate",
  "transformers_version",
  "trust_remote_code",
  "use_cache",
)
# Values with which a setting does nothing.
_NEUTRAL: dict[str, float] = {
  "diversity_penalty": 0,
  "encoder_no_repeat_ngram_size": 0,
  "encoder_repetition_penalty": 1,
  "epsilon_cutoff": 0,
  "eta_cutoff": 0,
  "guidance_scale": 1,
  "length_penalty": 1,
  "no_repeat_ngram_size": 0,
  "num_beam_groups": 1,
  "num_beams": 1,
  "num_return_sequences": 1,
  "penalty_alpha": 0,
  "typical_p": 1,
}


class Start(enum.Enum):
  """What comes before a text that is to be continued."""

  # What tokenizer.json puts there: a BOS, or nothing.
  TOKENIZER = "tokenizer"
  # The end of another, as between the documents that we train on.
  AFTER_END = "after_end"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
  """What generation_config.json wants where a request says nothing.

  Attributes:
    temperature: 0 if it asks for greedy text (do_sample: false).
    top_k: None also where it says 0, which is all.
    top_p: None: it does not say; so with the others.
    min_p: Likewise.
    repetition_penalty: Likewise.
    max_tokens: Of a continuation.
    left_out: What it has that this server cannot do, such as `num_beams=4`.
  """

  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  repetition_penalty: float | None = None
  max_tokens: int | None = None
  left_out: tuple[str, ...] = ()

  @property
  def fields(self) -> dict[str, float]:
    """What it says, as fields of a request."""
    values = {
      "temperature": self.temperature,
      "top_k": self.top_k,
      "top_p": self.top_p,
      "min_p": self.min_p,
      "repetition_penalty": self.repetition_penalty,
      "max_tokens": self.max_tokens,
    }
    return {name: v for name, v in values.items() if v is not None}


def start(meta: checkpoint.Meta) -> Start:
  """How the model's texts begin.

  An imported model's tokenizer says what comes first, if anything; a document
  that we train on follows the end of another.
  """
  imported = importer.CONFIG_FILE in meta.files
  return Start.TOKENIZER if imported else Start.AFTER_END


def encode(
  text: str, tokenizer: tokenizer_lib.Tokenizer, begin: Start
) -> list[int]:
  """Ids of a text to be continued, begun as the training texts are.

  At least one. Not for what a chat template rendered: that has all it needs.
  """
  if begin is Start.TOKENIZER:
    ids = tokenizer.encode_with_special_tokens(text, add=True)
    return ids or [tokenizer.eos_id]
  return [tokenizer.eos_id, *tokenizer.encode_with_special_tokens(text)]


def begin_id(tokenizer: tokenizer_lib.Tokenizer, begin: Start) -> int | None:
  """The token that `encode` puts before texts; None: it puts none there.

  A tokenizer may name a BOS that it does not put anywhere.
  """
  if begin is Start.AFTER_END:
    return tokenizer.eos_id
  plain = tokenizer.encode_with_special_tokens("a")
  begun = tokenizer.encode_with_special_tokens("a", add=True)
  return None if begun[: len(plain)] == plain else begun[0]


def end_ids(
  meta: checkpoint.Meta, tokenizer: tokenizer_lib.Tokenizer | None
) -> frozenset[int]:
  """The tokens that end a text; an imported model may name several."""
  ends = set() if tokenizer is None else {tokenizer.eos_id}
  for name in (importer.CONFIG_FILE, importer.GENERATION_FILE):
    if name in meta.files:
      found = meta.json(name).get("eos_token_id")
      ends |= set(found if isinstance(found, list) else [found])
  # A token that the model has no logit for is never chosen.
  size = meta.model.vocab_size
  return frozenset(i for i in ends if i is not None and 0 <= i < size)


def generation(meta: checkpoint.Meta) -> Generation:
  """How the model is meant to be sampled.

  Raises:
    ValueError: A setting is not of its kind.
  """
  if importer.GENERATION_FILE not in meta.files:
    return Generation()
  values = meta.json(importer.GENERATION_FILE)

  def number(name: str, smallest: float, largest: float) -> float | None:
    value = values.get(name)
    if value is None:
      return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not smallest <= value <= largest:
      raise ValueError(
        f"generation_config.json: {name} is {value!r}; it must be a number"
        f" from {smallest:g} to {largest:g}. Correct it in the model's folder"
        " and import it again."
      )
    return value

  temperature = number("temperature", 0.0, math.inf)
  top_k = number("top_k", 0, 2**31)
  max_tokens = number("max_new_tokens", 1, 2**31)
  return Generation(
    temperature=0.0 if values.get("do_sample") is False else temperature,
    top_k=int(top_k) if top_k else None,
    top_p=number("top_p", 0.0, 1.0),
    min_p=number("min_p", 0.0, 1.0),
    repetition_penalty=number("repetition_penalty", 1e-6, math.inf),
    max_tokens=None if max_tokens is None else int(max_tokens),
    left_out=_left_out(values),
  )


def _left_out(values: dict[str, Any]) -> tuple[str, ...]:
  known = {field.name for field in dataclasses.fields(Generation)}
  return tuple(
    f"{name}={value!r}"
    for name, value in values.items()
    if name not in known
    and name not in _HARMLESS
    and value not in (None, False, [], {})
    and not (name in _NEUTRAL and value == _NEUTRAL[name])
  )
