"""Bodies of responses, as OpenAI's API has them.

UNSET fields are there only where they were asked for; `stop_reason`, which says
more than `finish_reason`, always is.
"""

from typing import Literal

import msgspec
from msgspec import UNSET
from msgspec import UnsetType


class _Struct(msgspec.Struct, kw_only=True):
  pass


class PromptDetails(_Struct, kw_only=True):
  """Of the prompt's tokens, those that were found computed."""

  cached_tokens: int


class Usage(_Struct, kw_only=True):
  """Tokens of a request; a prompt counts once, however many its answers."""

  prompt_tokens: int
  completion_tokens: int
  total_tokens: int
  prompt_tokens_details: PromptDetails


class PromptLogprob(_Struct, kw_only=True):
  """Of one token of the prompt."""

  logprob: float
  rank: int | None
  decoded_token: str


# By token id; null for the first token, which nothing predicts.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(_Struct, kw_only=True):
  """Of a completion's tokens.

  Attributes:
    tokens: As text; `bytes:` and hex if it is not whole characters.
    token_logprobs: null for the prompt's first.
    top_logprobs: The likeliest, and the token itself.
    text_offset: Characters of `text` before each.
  """

  tokens: list[str]
  token_logprobs: list[float | None]
  top_logprobs: list[dict[str, float] | None]
  text_offset: list[int]


class CompletionChoice(_Struct, kw_only=True):
  """One answer, or a piece of it."""

  index: int
  text: str
  logprobs: CompletionLogprobs | None
  finish_reason: Literal["stop", "length"] | None
  stop_reason: str | int | None = None
  prompt_logprobs: PromptLogprobs | UnsetType = UNSET
  token_ids: list[int] | UnsetType = UNSET
  prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(_Struct, kw_only=True):
  """The answer of /v1/completions."""

  id: str
  object: Literal["text_completion"] = "text_completion"
  created: int
  model: str
  system_fingerprint: str
  choices: list[CompletionChoice]
  usage: Usage | UnsetType | None = UNSET


class TopLogprob(_Struct, kw_only=True):
  """A token that was likely."""

  token: str
  logprob: float
  bytes: list[int] | None


class ChatLogprob(_Struct, kw_only=True):
  """Of a token of a chat's answer."""

  token: str
  logprob: float
  bytes: list[int] | None
  top_logprobs: list[TopLogprob]


class ChatLogprobs(_Struct, kw_only=True):
  """Of a chat's answer."""

  content: list[ChatLogprob] | None
  refusal: None = None


class FunctionCall(_Struct, kw_only=True):
  """A call of a function, or a piece of it."""

  name: str | UnsetType = UNSET
  arguments: str


class ToolCall(_Struct, kw_only=True):
  """A call of a tool."""

  id: str
  function: FunctionCall
  type: Literal["function"] = "function"


class ToolCallDelta(_Struct, kw_only=True):
  """A piece of a call; the first has id, type and name."""

  index: int
  function: FunctionCall
  id: str | UnsetType = UNSET
  type: Literal["function"] | UnsetType = UNSET


class Message(_Struct, kw_only=True):
  """What the model says."""

  role: Literal["assistant"] = "assistant"
  content: str | None
  refusal: None = None
  reasoning_content: str | UnsetType = UNSET
  tool_calls: list[ToolCall] | UnsetType = UNSET


class Delta(_Struct, kw_only=True):
  """What is new of a message."""

  role: Literal["assistant"] | UnsetType = UNSET
  content: str | UnsetType = UNSET
  reasoning_content: str | UnsetType = UNSET
  tool_calls: list[ToolCallDelta] | UnsetType = UNSET


ChatFinish = Literal["stop", "length", "tool_calls"]


class ChatChoice(_Struct, kw_only=True):
  """One answer."""

  index: int
  message: Message
  logprobs: ChatLogprobs | None
  finish_reason: ChatFinish
  stop_reason: str | int | None = None
  token_ids: list[int] | UnsetType = UNSET


class Chat(_Struct, kw_only=True):
  """The answer of /v1/chat/completions."""

  id: str
  object: Literal["chat.completion"] = "chat.completion"
  created: int
  model: str
  system_fingerprint: str
  choices: list[ChatChoice]
  usage: Usage
  service_tier: Literal["default"] = "default"
  prompt_logprobs: PromptLogprobs | UnsetType = UNSET
  prompt_token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(_Struct, kw_only=True):
  """A piece of an answer."""

  index: int
  delta: Delta
  logprobs: ChatLogprobs | None
  finish_reason: ChatFinish | None
  stop_reason: str | int | UnsetType | None = UNSET
  token_ids: list[int] | UnsetType = UNSET


class ChatChunk(_Struct, kw_only=True):
  """A piece of a streamed chat."""

  id: str
  object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
  created: int
  model: str
  system_fingerprint: str
  choices: list[ChatChunkChoice]
  usage: Usage | UnsetType | None = UNSET
  service_tier: Literal["default"] = "default"
  prompt_logprobs: PromptLogprobs | UnsetType = UNSET
  prompt_token_ids: list[int] | UnsetType = UNSET


class Embedding(_Struct, kw_only=True):
  """Of one text."""

  object: Literal["embedding"] = "embedding"
  index: int
  embedding: list[float] | str


class EmbeddingUsage(_Struct, kw_only=True):
  """Tokens of all texts."""

  prompt_tokens: int
  total_tokens: int


class Embeddings(_Struct, kw_only=True):
  """The answer of /v1/embeddings."""

  object: Literal["list"] = "list"
  data: list[Embedding]
  model: str
  usage: EmbeddingUsage


class Model(_Struct, kw_only=True):
  """What is served.

  Attributes:
    id: Its name in requests.
    created: When it was loaded.
    max_model_len: Tokens of a prompt and its answer.
    owned_by: Nobody in particular.
    object: What this is.
  """

  id: str
  created: int
  max_model_len: int
  owned_by: str = "cacao"
  object: Literal["model"] = "model"


class Models(_Struct, kw_only=True):
  """All that are served: one."""

  object: Literal["list"] = "list"
  data: list[Model]


class Tokens(_Struct, kw_only=True):
  """The answer of /tokenize."""

  tokens: list[int]
  count: int
  max_model_len: int
  token_strs: list[str] | None = None


class Text(_Struct, kw_only=True):
  """The answer of /detokenize."""

  prompt: str


class TokenizerInfo(_Struct, kw_only=True):
  """The answer of /tokenizer_info: what a client needs to make prompts.

  Attributes:
    eos_token: Ends a text.
    bos_token: Begins one: the `eos_token` where the model was trained on texts
      that follow each other's end. None: /tokenize puts nothing there.
  """

  eos_token: str | None
  bos_token: str | None
  pad_token: str | None
  chat_template: str | None
  vocab_size: int
  max_model_len: int
  eos_token_ids: list[int]
  additional_chat_templates: dict[str, str] = {}


class Version(_Struct, kw_only=True):
  """The answer of /version."""

  version: str
