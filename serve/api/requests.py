"""Bodies of requests: every field that is known, and what it may be.

A field that is not here is refused by name. One whose type is None, or an
`Only` field, is known to OpenAI's clients, but may only ask for what is done
anyway. null is as if a field were left out.
"""

from typing import Annotated, Any, Literal

import msgspec

from serve.api import fields
from serve.api import messages as messages_lib

# In JSON, all of these are one list: what is mixed in it is found out later.
_Texts = (
  str
  | Annotated[
    list[
      str
      | fields.TokenId
      | Annotated[list[fields.TokenId], msgspec.Meta(min_length=1)]
    ],
    msgspec.Meta(min_length=1),
  ]
)
Prompt = Annotated[_Texts, msgspec.Meta(title="Prompt")]
Inputs = Annotated[_Texts, msgspec.Meta(title="Inputs")]
_Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]
_TokenKey = Annotated[
  str, msgspec.Meta(pattern="^(0|[1-9][0-9]{0,9})$", title="TokenKey")
]
_Object = dict[str, Any]
_Tools = Annotated[
  list[messages_lib.Tool], msgspec.Meta(max_length=128, title="Tools")
]
_Arguments = Annotated[_Object, msgspec.Meta(title="TemplateArguments")]
_Regex = Annotated[str, msgspec.Meta(extra_json_schema={"format": "regex"})]
# A schema as an object, or as the text of one.
Schema = _Object | str
_Choices = Annotated[
  list[Annotated[str, msgspec.Meta(min_length=1)]],
  msgspec.Meta(min_length=1, max_length=1024),
]


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
  """Of any request."""


class StreamOptions(Body, kw_only=True):
  """Of a streamed answer.

  Attributes:
    include_usage: The last chunk but [DONE] has the usage.
    continuous_usage_stats: So has every other.
    include_obfuscation: Padding against guessing texts by their lengths: none.
  """

  include_usage: bool | None = None
  continuous_usage_stats: bool | None = None
  include_obfuscation: fields.OnlyFalse = None


class TextFormat(Body, kw_only=True, tag="text"):
  """No rule."""


class JsonObjectFormat(Body, kw_only=True, tag="json_object"):
  """Any JSON object."""


class JsonSchema(Body, kw_only=True, rename={"schema_": "schema"}):
  """A schema and its name.

  Attributes:
    name: Changes nothing.
    schema_: The JSON schema; none: any object.
    description: Changes nothing.
    strict: It is always followed.
  """

  name: fields.Label
  schema_: _Object | None = None
  description: str | None = None
  strict: bool | None = None


class JsonSchemaFormat(Body, kw_only=True, tag="json_schema"):
  """JSON that follows a schema."""

  json_schema: JsonSchema


class StructuredOutputs(Body, kw_only=True):
  """What an answer must obey: one of these.

  Attributes:
    json: A JSON schema.
    regex: A regular expression.
    choice: One of these texts.
    grammar: A grammar in Lark's syntax.
    json_object: Any JSON object.
  """

  json: Schema | None = None
  regex: _Regex | None = None
  choice: _Choices | None = None
  grammar: str | None = None
  json_object: bool | None = None


class Generation(Body, kw_only=True):
  """What requests for text have in common.

  Attributes:
    model: The name of the one that is served.
    stream: Answer in pieces, as server-sent events.
    stream_options: Of a streamed answer, and only there: a whole one has its
      usage anyway.
    n: Answers to each prompt.
    temperature: 0 takes the likeliest token; 1 if it is not given.
    top_p: Only the likeliest tokens whose probabilities reach this sum.
    top_k: Only so many of the likeliest tokens; -1 or 0: all.
    min_p: Only tokens at least this times as likely as the likeliest.
    presence_penalty: For tokens that are in the answer.
    frequency_penalty: For each time that they are.
    repetition_penalty: Divides logits of tokens in prompt or answer.
    logit_bias: Added to the logits, by token id.
    seed: The same seed gives the same answer.
    stop: Strings at which the answer ends.
    include_stop_str_in_output: The stop string is part of the answer.
    stop_token_ids: More tokens at which it ends.
    ignore_eos: Tokens that end a text are as others.
    min_tokens: No end before; at most what the answer may have.
    skip_special_tokens: Special tokens are not in the text.
    add_special_tokens: Begin the prompt as the tokenizer says, with a BOS for
      example; true if it is not given.
    prompt_logprobs: So many of the likeliest tokens at each of the prompt's.
    return_token_ids: The ids of prompt and answer are in the answer, too.
    response_format: A rule for the answer.
    structured_outputs: The same in vLLM's words.
    guided_json: The same in vLLM's older words.
    guided_regex: See there.
    guided_choice: See there.
    guided_grammar: See there.
    priority: Smaller is served first.
    user: Users share the machine evenly.
    timeout: Seconds after which the request ends with 408.
    use_beam_search: Not done.
    length_penalty: Of beam search.
    spaces_between_special_tokens: As the tokenizer's decoder does it.
    truncate_prompt_tokens: Not done: no prompt is ever shortened.
    allowed_token_ids: Not done.
    bad_words: Not done.
    cache_salt: Not done.
  """

  model: Annotated[str, msgspec.Meta(title="ModelName")]
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  n: fields.NumChoices | None = None
  temperature: fields.Temperature | None = None
  top_p: fields.PositiveProbability | None = None
  top_k: Annotated[int, msgspec.Meta(ge=-1, le=fields.LARGEST)] | None = None
  min_p: fields.Probability | None = None
  presence_penalty: fields.Penalty | None = None
  frequency_penalty: fields.Penalty | None = None
  repetition_penalty: fields.RepetitionPenalty | None = None
  logit_bias: (
    Annotated[dict[_TokenKey, _Bias], msgspec.Meta(max_length=300)] | None
  ) = None
  seed: fields.Seed | None = None
  stop: (
    fields.Stop
    | Annotated[list[fields.Stop], msgspec.Meta(title="Stops")]
    | None
  ) = None
  include_stop_str_in_output: bool | None = None
  stop_token_ids: (
    Annotated[list[fields.TokenId], msgspec.Meta(max_length=32)] | None
  ) = None
  ignore_eos: bool | None = None
  min_tokens: fields.Count | None = None
  skip_special_tokens: bool | None = None
  add_special_tokens: bool | None = None
  prompt_logprobs: fields.NumLogprobs | None = None
  return_token_ids: bool | None = None
  response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = (
    None
  )
  structured_outputs: StructuredOutputs | None = None
  guided_json: Schema | None = None
  guided_regex: _Regex | None = None
  guided_choice: _Choices | None = None
  guided_grammar: str | None = None
  priority: fields.Priority | None = None
  user: fields.Label | None = None
  timeout: fields.Seconds | None = None
  use_beam_search: fields.OnlyFalse = None
  length_penalty: fields.OnlyOne = None
  spaces_between_special_tokens: fields.OnlyTrue = None
  truncate_prompt_tokens: None = None
  allowed_token_ids: None = None
  bad_words: Annotated[list[str], msgspec.Meta(max_length=0)] | None = None
  cache_salt: None = None


class Completion(Generation, kw_only=True):
  """Of /v1/completions.

  Attributes:
    prompt: A text, several, token ids, or several lists of them.
    max_tokens: Of each answer; 16 if it is not given.
    best_of: So many answers are made, at least `n`; the likeliest are given.
    echo: The prompt is part of the answer.
    logprobs: Log-probabilities, and of so many of the likeliest tokens.
    suffix: Not done.
  """

  prompt: Prompt
  max_tokens: fields.NumTokens | None = None
  best_of: fields.NumChoices | None = None
  echo: bool | None = None
  logprobs: fields.NumLogprobs | None = None
  suffix: None = None


class Chat(Generation, kw_only=True):
  """Of /v1/chat/completions.

  Attributes:
    messages: The conversation.
    add_special_tokens: The template begins the prompt.
    max_tokens: Of each answer; if it is not given, what the context has room
      for.
    max_completion_tokens: The newer name of `max_tokens`; of both, the
      smaller holds.
    logprobs: Log-probabilities of the answer's tokens.
    top_logprobs: Of so many of the likeliest; only with `logprobs`.
    tools: Functions that the model may call.
    tool_choice: Whether and which.
    parallel_tool_calls: More than one.
    documents: Texts for the template.
    chat_template_kwargs: What else the template asks for.
    add_generation_prompt: The prompt ends with what begins an answer.
    continue_final_message: Or within the last message, to be gone on with.
    reasoning_effort: For a template that asks for it.
    include_reasoning: Whether what the model thinks is in the answer.
    chat_template: Not done: the model's own is used.
    echo: Not done.
    audio: Not done.
    function_call: `tool_choice` has taken its place.
    functions: `tools` has taken its place.
    metadata: Labels of stored answers; none are stored.
    modalities: Text.
    moderation: Not done.
    prediction: Not done.
    prompt_cache_key: All prompts that begin alike share their states anyway.
    prompt_cache_options: Not done.
    prompt_cache_retention: In memory.
    safety_identifier: A name of the user for others.
    service_tier: There is one.
    store: Nothing is stored.
    verbosity: Not done.
    web_search_options: Not done.
  """

  messages: Annotated[list[messages_lib.Message], msgspec.Meta(min_length=1)]
  add_special_tokens: fields.OnlyFalse = None
  max_tokens: fields.PositiveNumTokens | None = None
  max_completion_tokens: fields.PositiveNumTokens | None = None
  logprobs: bool | None = None
  top_logprobs: fields.NumLogprobs | None = None
  tools: _Tools | None = None
  tool_choice: (
    Literal["none", "auto", "required"] | messages_lib.NamedTool | None
  ) = None
  parallel_tool_calls: bool | None = None
  documents: (
    Annotated[list[dict[str, str]], msgspec.Meta(title="Documents")] | None
  ) = None
  chat_template_kwargs: _Arguments | None = None
  add_generation_prompt: bool | None = None
  continue_final_message: bool | None = None
  reasoning_effort: (
    Annotated[
      Literal["none", "minimal", "low", "medium", "high", "xhigh"],
      msgspec.Meta(title="ReasoningEffort"),
    ]
    | None
  ) = None
  include_reasoning: bool | None = None
  chat_template: None = None
  echo: fields.OnlyFalse = None
  audio: None = None
  function_call: None = None
  functions: None = None
  metadata: (
    Annotated[dict[str, fields.Label], msgspec.Meta(max_length=16)] | None
  ) = None
  modalities: (
    Annotated[list[Literal["text"]], msgspec.Meta(min_length=1, max_length=1)]
    | None
  ) = None
  moderation: None = None
  prediction: None = None
  prompt_cache_key: fields.Label | None = None
  prompt_cache_options: None = None
  prompt_cache_retention: Literal["in_memory"] | None = None
  safety_identifier: fields.Label | None = None
  service_tier: Literal["auto", "default"] | None = None
  store: fields.OnlyFalse = None
  verbosity: None = None
  web_search_options: None = None


class Embedding(Body, kw_only=True):
  """Of /v1/embeddings.

  Attributes:
    model: The name of the one that is served.
    input: As a completion's prompt, but many more of them.
    encoding_format: Numbers, or the base64 of little-endian float32.
    dimensions: The model's own, if given.
    user: Users share the machine evenly.
    priority: Smaller is served first.
    timeout: Seconds after which the request ends with 408.
    add_special_tokens: Begin each as the tokenizer says; true if not given.
  """

  model: Annotated[str, msgspec.Meta(title="ModelName")]
  input: Inputs
  encoding_format: Literal["float", "base64"] | None = None
  dimensions: (
    Annotated[int, msgspec.Meta(ge=1, le=fields.LARGEST, title="Dimensions")]
    | None
  ) = None
  user: fields.Label | None = None
  priority: fields.Priority | None = None
  timeout: fields.Seconds | None = None
  add_special_tokens: bool | None = None


class Tokenize(Body, kw_only=True):
  """Of /tokenize: a prompt or messages.

  Attributes:
    model: The name of the one that is served.
    prompt: A text; names of special tokens in it are these.
    messages: Or a conversation.
    tools: Functions that the model may call.
    add_special_tokens: Begin as the tokenizer says; true for a prompt.
    add_generation_prompt: The conversation ends with what begins an answer;
      true if it is not given.
    continue_final_message: Or within the last message.
    chat_template_kwargs: What else the template asks for.
    return_token_strs: The tokens as the vocabulary spells them, too.
  """

  model: Annotated[str, msgspec.Meta(title="ModelName")] | None = None
  prompt: str | None = None
  messages: (
    Annotated[list[messages_lib.Message], msgspec.Meta(min_length=1)] | None
  ) = None
  tools: _Tools | None = None
  add_special_tokens: bool | None = None
  add_generation_prompt: bool | None = None
  continue_final_message: bool | None = None
  chat_template_kwargs: _Arguments | None = None
  return_token_strs: bool | None = None


class Detokenize(Body, kw_only=True):
  """Of /detokenize.

  Attributes:
    model: The name of the one that is served.
    tokens: Ids of a text.
  """

  model: Annotated[str, msgspec.Meta(title="ModelName")] | None = None
  tokens: list[fields.TokenId]
