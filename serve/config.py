"""The server's settings; what the model is, its checkpoint says.

A file such as configs/default.py returns `to_config_dict` of a `ServeConfig`:
frozen dataclasses where it is written and below `main`, a locked ConfigDict
with command-line overrides in between.
"""

import dataclasses
import ipaddress
from typing import Any, Literal

import ml_collections

from model import overrides
from model import schema
from model import sharding


def _check_at_least(config: Any, path: str, minimum: int, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    if value is not None and value < minimum:
      raise ValueError(f"{path}.{name}={value} must be at least {minimum}.")


def _check_positive(config: Any, path: str, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    # `not >` and not `<=`: a value can be nan.
    if not value > 0:
      raise ValueError(f"{path}.{name}={value} must be above 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerConfig:
  """How the model is computed.

  Attributes:
    compute_dtype: Of activations; `auto`: float32 on a CPU, bfloat16 elsewhere.
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

  compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
  weights: Literal["none", "int8"] = "none"
  cache: Literal["compute_dtype", "int8"] = "compute_dtype"
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  page_size: int = 16
  cache_tokens: int | None = None
  max_rows: int = 32
  max_len: int | None = None
  prefill_tokens: int = 256
  compilation_cache: str = "~/.cache/cacao/compiled"

  def __post_init__(self):
    _check_at_least(
      self, "runner", 1, "page_size", "max_rows", "prefill_tokens"
    )
    _check_at_least(self, "runner", 2, "max_len")  # A prompt and an answer.
    _check_at_least(self, "runner", self.page_size, "cache_tokens")
    for name in ("context", "dcn_data", "dcn_fsdp"):
      if (getattr(self.mesh, name) or 1) > 1:
        raise ValueError(
          f"runner.mesh.{name}={getattr(self.mesh, name)} is for training; a"
          " server takes tensor, expert and data."
        )


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

  def __post_init__(self):
    path = "engine.speculation"
    _check_at_least(self, path, 1, "num_tokens", "min_ngram")
    if self.max_ngram < self.min_ngram:
      raise ValueError(
        f"{path}.max_ngram={self.max_ngram} must be at least {path}.min_ngram="
        f"{self.min_ngram}."
      )
    if self.method == "draft" and not self.checkpoint:
      raise ValueError(
        f"{path}.method='draft' needs a smaller model; name it with "
        f"{path}.checkpoint."
      )
    if self.method != "draft" and self.checkpoint:
      raise ValueError(
        f"{path}.checkpoint={self.checkpoint!r} is not used with "
        f"{path}.method={self.method!r}; set the method to 'draft'."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
  """Which requests are computed when.

  Attributes:
    prefix_caching: Keep the pages of texts that are finished for those that
      begin alike.
    max_queued_requests: Requests that wait; more are refused.
    max_queued_tokens: Tokens of their prompts; more are refused.
    stall_seconds: No step finished for so long, with requests: not alive.
    speculation: Guessing ahead.
  """

  prefix_caching: bool = True
  max_queued_requests: int = 256
  max_queued_tokens: int = 262_144
  stall_seconds: float = 60.0
  speculation: SpeculationConfig = SpeculationConfig()

  def __post_init__(self):
    _check_at_least(
      self, "engine", 1, "max_queued_requests", "max_queued_tokens"
    )
    _check_positive(self, "engine", "stall_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiConfig:
  """What the HTTP server allows.

  Attributes:
    host: Address to listen on; beyond loopback an API key is needed.
    port: 0 takes a free one.
    api_keys: File with one key a line; empty: none is needed.
    allow_no_key: Anyone who reaches `host` may ask, as where something in front
      of the server checks who does.
    tls_cert: File with the certificate chain; empty: plain HTTP.
    tls_key: File with its key.
    model_name: Under which the model is served; empty: its own.
    max_connections: Open at a time; more are closed at once.
    max_body_bytes: Of a request.
    max_choices: n and best_of, times prompts.
    max_inputs: Texts of a request for embeddings.
    max_stops: Stop strings of a request.
    max_schema_bytes: Of a JSON schema, regex or grammar.
    max_seconds: From a request's arrival to its end; clients may ask for less.
    body_seconds: How long a client may take to send a request's body.
    write_seconds: How long a client may take to read what it is sent.
    drain_seconds: How long running requests may go on after SIGTERM.
    log_format: Of the line about each request.
  """

  host: str = "127.0.0.1"
  port: int = 8000
  api_keys: str = ""
  allow_no_key: bool = False
  tls_cert: str = ""
  tls_key: str = ""
  model_name: str = ""
  max_connections: int = 1024
  max_body_bytes: int = 4 * 2**20
  max_choices: int = 128
  max_inputs: int = 2048
  max_stops: int = 16
  max_schema_bytes: int = 65_536
  max_seconds: float = 600.0
  body_seconds: float = 30.0
  write_seconds: float = 30.0
  drain_seconds: float = 30.0
  log_format: Literal["json", "text"] = "json"

  def __post_init__(self):
    _check_at_least(
      self,
      "api",
      1,
      "max_connections",
      "max_body_bytes",
      "max_choices",
      "max_inputs",
      "max_stops",
      "max_schema_bytes",
    )
    _check_positive(self, "api", "max_seconds", "body_seconds", "write_seconds")
    _check_at_least(self, "api", 0, "drain_seconds")
    if not 0 <= self.port < 2**16:
      raise ValueError(f"api.port={self.port} must be from 0 to 65535.")
    if bool(self.tls_cert) != bool(self.tls_key):
      raise ValueError(
        f"api.tls_cert={self.tls_cert!r} and api.tls_key={self.tls_key!r}: "
        "give both for HTTPS, or none for HTTP."
      )
    if not (self.is_local or self.api_keys or self.allow_no_key):
      raise ValueError(
        f"api.host={self.host!r} can be reached from other machines, and no "
        "API key is asked for. Name a file with one key a line, "
        "--api_keys=FILE; or listen on --host=127.0.0.1; or, if something in "
        "front of the server checks who may ask, say "
        "--config.api.allow_no_key=True."
      )

  @property
  def is_local(self) -> bool:
    """Whether only this machine reaches the server."""
    try:
      return ipaddress.ip_address(self.host).is_loopback
    except ValueError:  # A name.
      return self.host == "localhost"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
  """All of it.

  Attributes:
    runner: Computing.
    engine: Scheduling.
    api: HTTP.
    watch_seconds: Between looks for newer steps of the checkpoint with --watch.
    keep_imports: Imported models that stay on disk, those that were used last;
      at each start the others are deleted, unless a server is reading them.
  """

  runner: RunnerConfig = RunnerConfig()
  engine: EngineConfig = EngineConfig()
  api: ApiConfig = ApiConfig()
  watch_seconds: float = 5.0
  keep_imports: int = 8

  def __post_init__(self):
    if self.watch_seconds <= 0:
      raise ValueError(f"watch_seconds={self.watch_seconds} must be above 0.")
    if self.keep_imports < 1:
      raise ValueError(f"keep_imports={self.keep_imports} must be at least 1.")


def to_config_dict(config: ServeConfig) -> ml_collections.ConfigDict:
  """The locked ConfigDict that command-line flags may override."""
  return overrides.to_config_dict(config)


def from_config_dict(
  config: ml_collections.ConfigDict, *, base_dir: str
) -> ServeConfig:
  """The typed, validated settings.

  Args:
    config: As a config file returns it, with overrides applied.
    base_dir: Against which relative paths are resolved.

  Raises:
    ValueError: Names the field, its value and the fix.
  """
  serve = schema.from_dict(
    ServeConfig, overrides.to_plain(config), path="config"
  )

  def absolute(parent: Any, *names: str) -> Any:
    paths = {
      name: overrides.absolute_path(getattr(parent, name), base_dir)
      for name in names
    }
    return dataclasses.replace(parent, **paths)

  speculation = absolute(serve.engine.speculation, "checkpoint")
  return dataclasses.replace(
    serve,
    runner=absolute(serve.runner, "compilation_cache"),
    engine=dataclasses.replace(serve.engine, speculation=speculation),
    api=absolute(serve.api, "api_keys", "tls_cert", "tls_key"),
  )
