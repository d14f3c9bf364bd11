"""Small tokenizers with chat templates, and rows in memory, for tests."""

import hashlib
import json
import pathlib
from typing import Any

_TESTDATA = pathlib.Path(__file__).parent / "testdata"

# Each message between two tokens, as Qwen has it.
CHATML = (
  "{% for m in messages %}"
  "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A role between two tokens, and a BOS, as Llama 3 has it.
HEADERS = (
  "{{ bos_token }}{% for m in messages %}"
  "{{ '<|im_start|>' + m.role + '<|header_end|>\n\n' }}"
  "{{ m.content | trim + '<|im_end|>' }}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant<|header_end|>\n\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
  "{% if messages[0].role != 'system' %}"
  "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
)
# Thoughts of answers before the last question are taken out.
THINKING = (
  "{% set ns = namespace(last=0) %}"
  "{% for m in messages %}{% if m.role == 'user' %}"
  "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
  "{% for m in messages %}{% set text = m.content %}"
  "{% if m.role == 'assistant' and loop.index0 < ns.last %}"
  "{% set text = text.split('</think>')[-1] %}{% endif %}"
  "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# An answer is begun with a thought that is not written when it is known.
THOUGHTLESS = (
  "{% for m in messages %}"
  "{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}"
  "{{ '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# With what training needs, and with white space of all kinds.
TAGGED = """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {% generation %}
        {{- m.content + '<|im_end|>' }}
        {%- endgeneration -%}
        {{ '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TOOLS = (
  "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}"
  "{% endif %}{% for m in messages %}"
  "{{ '<|im_start|>' + m.role + '\n' + m.content }}"
  "{% for call in m.tool_calls %}"
  "{{ '<call>' + call.function.name + call.function.arguments | tojson }}"
  "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No special tokens, and words that join over the border of an answer.
PLAIN = (
  "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

_NAMES = {
  "<|start_header_id|>": "<|im_start|>",
  "<|end_header_id|>": "<|header_end|>",
  "<|eot_id|>": "<|im_end|>",
}


class Rows:
  """Rows in memory, as `data/sources/records.py` gives those of files."""

  def __init__(self, rows: list[dict[str, Any]]):
    self._rows = rows
    self.digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._rows[index]

  def name_of(self, index: int) -> str:
    return f"rows.jsonl:{index + 1}"


def write_tokenizer(folder: pathlib.Path, template: str) -> pathlib.Path:
  """Writes a tokenizer of 512 ids, of bytes, with a chat template."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in ("tokenizer.json", "tokenizer_config.json"):
    text = (_TESTDATA / "tiny_bytelevel_bpe" / file).read_text()
    for old, new in _NAMES.items():
      text = text.replace(old, new)
    (folder / file).write_text(text)
  (folder / "chat_template.jinja").write_text(template)
  return folder


def chat(*contents: str, system: str = "") -> list[dict[str, Any]]:
  """Messages of the user and the assistant in turn."""
  messages: list[dict[str, Any]] = []
  if system:
    messages.append({"role": "system", "content": system})
  for index, content in enumerate(contents):
    role = "assistant" if index % 2 else "user"
    messages.append({"role": role, "content": content})
  return messages
