"""Log-probabilities in the two shapes of OpenAI's API, and in vLLM's."""

from collections.abc import Sequence
import math

from serve import detokenizer
from serve import request as request_lib
from serve.api import responses

_Entries = Sequence[request_lib.TokenLogprobs | None]

# JSON has no infinity: the log-probability of what cannot be.
_IMPOSSIBLE = -9999.0


def completion(
  tokens: Sequence[int],
  entries: _Entries,
  offsets: Sequence[int],
  vocabulary: detokenizer.Vocabulary | None,
) -> responses.CompletionLogprobs:
  """Of a completion, or a piece of it.

  Args:
    tokens: Ids.
    entries: Of each; None: nothing predicts it.
    offsets: Of each: characters before it.
    vocabulary: Ids to text.
  """
  tops: list[dict[str, float] | None] = []
  for token, entry in zip(tokens, entries, strict=True):
    if entry is None:
      tops.append(None)
      continue
    top: dict[str, float] = {}
    # Several tokens can be the same text: the likeliest stands for all.
    for other, value in (*entry.top, (token, entry.logprob)):
      top.setdefault(text(other, vocabulary), _finite(value))
    tops.append(top)
  return responses.CompletionLogprobs(
    tokens=[text(token, vocabulary) for token in tokens],
    token_logprobs=[
      None if entry is None else _finite(entry.logprob) for entry in entries
    ],
    top_logprobs=tops,
    text_offset=list(offsets),
  )


def chat(
  tokens: Sequence[int],
  entries: Sequence[request_lib.TokenLogprobs],
  vocabulary: detokenizer.Vocabulary,
) -> responses.ChatLogprobs:
  """Of a chat's answer, or a piece of it."""
  content = []
  for token, entry in zip(tokens, entries, strict=True):
    top = [
      responses.TopLogprob(
        token=vocabulary.text(other),
        logprob=_finite(value),
        bytes=list(vocabulary.token_bytes(other)),
      )
      for other, value in entry.top
    ]
    content.append(
      responses.ChatLogprob(
        token=vocabulary.text(token),
        logprob=_finite(entry.logprob),
        bytes=list(vocabulary.token_bytes(token)),
        top_logprobs=top,
      )
    )
  return responses.ChatLogprobs(content=content)


def prompt(
  tokens: Sequence[int],
  entries: _Entries,
  vocabulary: detokenizer.Vocabulary | None,
) -> responses.PromptLogprobs:
  """Of a prompt, by token id."""
  found: responses.PromptLogprobs = []
  for token, entry in zip(tokens, entries, strict=True):
    if entry is None:
      found.append(None)
      continue
    ranked = {
      other: (value, rank) for rank, (other, value) in enumerate(entry.top, 1)
    }
    ranked[token] = (entry.logprob, entry.rank)
    found.append(
      {
        str(other): responses.PromptLogprob(
          logprob=_finite(value),
          rank=rank,
          decoded_token=text(other, vocabulary),
        )
        for other, (value, rank) in ranked.items()
      }
    )
  return found


def text(token: int, vocabulary: detokenizer.Vocabulary | None) -> str:
  """A token as OpenAI's completions write it; torn characters as bytes."""
  if vocabulary is None:
    return f"token_id:{token}"
  data = vocabulary.token_bytes(token)
  try:
    return data.decode()
  except UnicodeDecodeError:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(value: float) -> float:
  return value if math.isfinite(value) else _IMPOSSIBLE
