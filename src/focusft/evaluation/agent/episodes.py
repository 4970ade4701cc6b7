"""The talk of a model with its tools, several conversations at a time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from focusft.data.rows import Message
from focusft.errors import ConfigError
from focusft.evaluation.agent.interface import Backend, Budget, Episode, Reply, Tool
from focusft.evaluation.tool_calls import BrokenCall, ToolCall, parse_tool_calls


def run_episodes(
    conversations: Sequence[list[Message]],
    backend: Backend,
    *,
    tools: Sequence[Tool] = (),
    budget: Budget | None = None,
    batch_size: int = 8,
    error_role: str = "tool",
    samples: Sequence[int] | None = None,
) -> Iterator[tuple[int, Episode]]:
    """Let the model answer conversations, with tools if there are any.

    Args:
        conversations: Messages up to the point where the assistant is to write.
        backend: The model.
        tools: Its tools; without any, one reply ends an episode.
        budget: What each episode may use.
        batch_size: Episodes that go on at one time; one that ends makes room for the next.
        error_role: Role of the message that answers a turn without a good call: "tool", or
            "user" for templates that take a tool message only after a call.
        samples: For each conversation the number that the backend gets; their order if None.

    Yields:
        The index of a conversation and its episode, as they end.

    Raises:
        UserError: The sandbox or the backend does not work. Nothing that the model writes raises.
    """
    budget = budget or Budget()
    if error_role not in ("tool", "user"):
        raise ConfigError(f"error_role: {error_role!r} is unknown; use tool or user")
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size} is too small; set at least 1")
    waiting = deque(enumerate(conversations))
    active: list[tuple[int, Episode, float]] = []
    schemas = [tool.schema for tool in tools] or None
    while waiting or active:
        while waiting and len(active) < batch_size:
            index, messages = waiting.popleft()
            active.append((index, Episode([dict(m) for m in messages]), time.monotonic()))
        asked = time.monotonic()
        replies = backend.generate(
            [episode.messages for _, episode, _ in active],
            tools=schemas,
            max_new_tokens=[budget.tokens - _counted(episode) for _, episode, _ in active],
            samples=[samples[index] if samples else index for index, _, _ in active],
        )
        share = (time.monotonic() - asked) / len(active)
        going_on = []
        for (index, episode, started), reply in zip(active, replies, strict=True):
            episode.turns += 1
            episode.tokens += reply.tokens
            episode.free_tokens += reply.free_tokens
            answered = time.monotonic()
            _take_turn(episode, reply, tools, budget, started + budget.seconds, error_role)
            episode.seconds += share + time.monotonic() - answered
            if episode.ended:
                yield index, episode
            else:
                going_on.append((index, episode, started))
        active = going_on


def _take_turn(
    episode: Episode,
    reply: Reply,
    tools: Sequence[Tool],
    budget: Budget,
    deadline: float,
    error_role: str,
) -> None:
    """Add the reply to the episode, make its calls, and say whether that was the end."""
    # Under this name chat templates of thinking models look for it.
    thoughts = {"reasoning_content": reply.thinking} if reply.thinking else {}
    parsed = parse_tool_calls(reply.text, [tool.schema for tool in tools])
    if not tools or reply.truncated or not parsed.calls:
        # A call in a reply that was cut off is not made: it may be cut off itself.
        episode.messages.append({"role": "assistant", "content": reply.text, **thoughts})
        episode.ended = "tokens" if reply.truncated else "answer"
        return
    calls = list(parsed.calls[: budget.calls_per_turn])
    if len(parsed.calls) > len(calls):
        more = len(parsed.calls) - len(calls)
        reason = f"at most {len(calls)} calls are made in one turn; {more} more were not"
        calls.append(BrokenCall("", reason))
    answers = []
    for call in calls:
        if time.monotonic() >= deadline:
            episode.ended = "time"
            break
        answers.append(_make(call, tools, episode))
    _add_turn(episode, reply.text, parsed.content, thoughts, calls, answers, error_role)
    if not episode.ended and episode.turns >= budget.turns:
        episode.ended = "turns"
    elif not episode.ended and _counted(episode) >= budget.tokens:
        episode.ended = "tokens"


def _counted(episode: Episode) -> int:
    return episode.tokens - episode.free_tokens


def _make(call: ToolCall | BrokenCall, tools: Sequence[Tool], episode: Episode) -> str:
    if isinstance(call, BrokenCall):
        episode.broken_calls += 1
        return call.message
    output = next(tool for tool in tools if tool.name == call.name).call(call.arguments)
    episode.calls += 1
    episode.failed_calls += output.failed
    return output.text


def _add_turn(
    episode: Episode,
    text: str,
    content: str,
    thoughts: dict[str, str],
    calls: Sequence[ToolCall | BrokenCall],
    answers: Sequence[str],
    error_role: str,
) -> None:
    good = [call for call in calls if isinstance(call, ToolCall)]
    if len(good) < len(calls):
        # A template cannot render a broken call, so the turn stands as the model wrote it.
        episode.messages.append({"role": "assistant", "content": text, **thoughts})
        if error_role == "user":
            answers = ["\n".join(answers)]
        episode.messages += [{"role": error_role, "content": answer} for answer in answers]
        return
    # Nine letters and digits: some templates refuse any other form.
    ids = [f"t{episode.turns:03d}c{number:04d}" for number in range(len(good))]
    functions = [{"name": call.name, "arguments": call.arguments} for call in good]
    made = [
        {"id": id_, "type": "function", "function": function}
        for id_, function in zip(ids, functions, strict=True)
    ]
    message = {"role": "assistant", "content": content, **thoughts, "tool_calls": made}
    episode.messages.append(message)
    # After the time is up, fewer answers than calls.
    for id_, call, answer in zip(ids, good, answers, strict=False):
        result = {"role": "tool", "name": call.name, "tool_call_id": id_, "content": answer}
        episode.messages.append(result)
