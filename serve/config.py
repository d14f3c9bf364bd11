"""The server's settings; what the model is, its checkpoint says."""

import dataclasses
from typing import Literal

from model import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerConfig:
  """How the model is computed.

  Attributes:
    compute_dtype: Of activations.
    weights: `int8` stores matrices in 8 bits with a scale per output channel.
    cache: `int8` stores keys and values in 8 bits with a scale per head.
    mesh: Of one replica; `data` is the number of replicas.
    page_size: Tokens of a page of the cache.
    cache_tokens: Tokens that the cache has room for; unset: as many as fit into
      the accelerator's memory, on a CPU what `max_rows` texts of full length
      need, at most a quarter of the machine's memory.
    max_rows: Requests that are decoded at the same time.
    max_len: Tokens of a prompt and its continuation; unset: the model's
      max_seq_len, or what the cache has room for.
    prefill_tokens: Prompt tokens computed in one step, at most.
    compilation_cache: Folder in which compiled programs are kept; empty: none.
  """

  compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
  weights: Literal["none", "int8"] = "none"
  cache: Literal["compute_dtype", "int8"] = "compute_dtype"
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  page_size: int = 16
  cache_tokens: int | None = None
  max_rows: int = 32
  max_len: int | None = None
  prefill_tokens: int = 256
  compilation_cache: str = "~/.cache/cacao/compiled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculationConfig:
  """How tokens ahead are guessed; what is written does not depend on it.

  Attributes:
    method: `ngram` looks for the text's last tokens earlier in it; `draft` asks
      a smaller model.
    num_tokens: Guessed at a time.
    min_ngram: Fewest last tokens that must be found again.
    max_ngram: Most that are looked for.
    checkpoint: Of the smaller model, with the same vocabulary.
  """

  method: Literal["none", "ngram", "draft"] = "none"
  num_tokens: int = 4
  min_ngram: int = 2
  max_ngram: int = 4
  checkpoint: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
  """Which requests are computed when.

  Attributes:
    prefix_caching: Keep the pages of texts that are finished for those that
      begin alike.
    max_queued_requests: Requests that wait; more are refused.
    max_queued_tokens: Tokens of their prompts; more are refused.
    speculation: Guessing ahead.
  """

  prefix_caching: bool = True
  max_queued_requests: int = 256
  max_queued_tokens: int = 262_144
  speculation: SpeculationConfig = SpeculationConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiConfig:
  """What the HTTP server allows.

  Attributes:
    host: Address to listen on; beyond loopback an API key is needed.
    port: 0 takes a free one.
    api_keys: File with one key a line; empty: none is needed.
    tls_cert: File with the certificate chain; empty: plain HTTP.
    tls_key: File with its key.
    model_name: Under which the model is served; empty: its own.
    max_body_bytes: Of a request.
    max_choices: n and best_of, times prompts.
    max_stops: Stop strings of a request.
    max_schema_bytes: Of a JSON schema, regex or grammar.
    max_seconds: From a request's arrival to its end; clients may ask for less.
    drain_seconds: How long running requests may go on after SIGTERM.
    write_seconds: How long a client may take to read what it is sent.
  """

  host: str = "127.0.0.1"
  port: int = 8000
  api_keys: str = ""
  tls_cert: str = ""
  tls_key: str = ""
  model_name: str = ""
  max_body_bytes: int = 4 * 2**20
  max_choices: int = 16
  max_stops: int = 16
  max_schema_bytes: int = 65_536
  max_seconds: float = 600.0
  drain_seconds: float = 30.0
  write_seconds: float = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
  """All of it.

  Attributes:
    runner: Computing.
    engine: Scheduling.
    api: HTTP.
    watch_seconds: Between looks for newer steps of the checkpoint with --watch.
  """

  runner: RunnerConfig = RunnerConfig()
  engine: EngineConfig = EngineConfig()
  api: ApiConfig = ApiConfig()
  watch_seconds: float = 5.0
