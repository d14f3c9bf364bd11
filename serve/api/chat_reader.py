"""Reads a chat's answer as it comes: what is thought, said and called."""

from collections.abc import Collection
import re

from serve.api import chat_rules
from serve.api import reasoning
from serve.api import responses
from serve.api import tool_calls


class Reader:
  """Of one answer.

  Attributes:
    is_done: What is wanted is complete, whatever the model goes on to write.
  """

  def __init__(
    self,
    tools: chat_rules.Tools | None,
    *,
    thought_prompt: str | None,
    skipped: Collection[str] = (),
  ):
    """Nothing is read yet.

    Args:
      tools: How calls are found; None: there are none.
      thought_prompt: What the answer goes on with, if the model thinks.
      skipped: What is not to be shown of what is said.
    """
    self._thinks = None
    if thought_prompt is not None:
      self._thinks = reasoning.Reader(thought_prompt)
    self._calls = None
    if tools is not None:
      self._calls = tool_calls.Reader(
        tools.kind,
        tools.names,
        is_parallel=tools.is_parallel,
        schemas=tools.schemas,
      )
    self._skipped = None
    if skipped:
      self._skipped = re.compile("|".join(map(re.escape, skipped)))
    self._thought = ""
    self._said = ""
    self._tool_calls: list[responses.ToolCall] = []

  @property
  def is_done(self) -> bool:
    return self._calls is not None and self._calls.is_done

  @property
  def has_calls(self) -> bool:
    """Whether a tool is called."""
    return bool(self._tool_calls)

  def push(self, text: str, *, is_last: bool) -> responses.Delta:
    """Takes more of the answer, and says what is new."""
    thought, said = "", text
    if self._thinks is not None:
      thought, said = self._thinks.push(text)
      if is_last:
        rest_thought, rest_said = self._thinks.finish()
        thought += rest_thought
        said += rest_said
    events: list[tool_calls.Event] = [tool_calls.Text(text=said)]
    if self._calls is not None:
      events = self._calls.push(said)
      if is_last:
        events += self._calls.finish()
    delta = responses.Delta()
    if thought:
      self._thought += thought
      delta.reasoning_content = thought
    said = "".join(e.text for e in events if isinstance(e, tool_calls.Text))
    if self._skipped is not None:
      said = self._skipped.sub("", said)
    if said:
      self._said += said
      delta.content = said
    calls = self._call_deltas(events)
    if calls:
      delta.tool_calls = calls
    return delta

  def message(self, shows_thought: bool) -> responses.Message:
    """The answer as a whole."""
    made = responses.Message(content=self._said)
    if self._thought and shows_thought:
      made.reasoning_content = self._thought
    if self._tool_calls:
      made.tool_calls = self._tool_calls
      made.content = self._said or None
    return made

  def _call_deltas(
    self, events: list[tool_calls.Event]
  ) -> list[responses.ToolCallDelta]:
    deltas: list[responses.ToolCallDelta] = []
    for event in events:
      if isinstance(event, tool_calls.Start):
        function = responses.FunctionCall(name=event.name, arguments="")
        self._tool_calls.append(
          responses.ToolCall(id=event.id, function=function)
        )
        deltas.append(
          responses.ToolCallDelta(
            index=event.index,
            id=event.id,
            type="function",
            function=responses.FunctionCall(name=event.name, arguments=""),
          )
        )
      elif isinstance(event, tool_calls.Arguments):
        self._tool_calls[event.index].function.arguments += event.text
        if deltas and deltas[-1].index == event.index:
          deltas[-1].function.arguments += event.text
        else:
          deltas.append(
            responses.ToolCallDelta(
              index=event.index,
              function=responses.FunctionCall(arguments=event.text),
            )
          )
    return deltas
