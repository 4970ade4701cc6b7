"""A model that answers questions with a tool, and how well it does.

`run_episodes` lets a model and its tool talk: the model's text is searched for calls, each call is
made (or answered with what is wrong with it), and the results go back until the model answers
without a call or a budget is spent. The transcripts are plain messages that any chat template
takes. `summarise` turns scored episodes into pass@k with intervals, and into the rates that say
why a score is what it is.

Where this differs from the published evaluation (docs/deviations.md): a call that cannot be read
is answered instead of ending the episode, several calls in one turn are all made, and pass@k is
the unbiased estimate.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from focusft.data.multiple_choice import CODE_INTERPRETER, Question
from focusft.data.rows import Message
from focusft.errors import ConfigError
from focusft.evaluation.sandbox import Result, Sandbox, cut_middle, run
from focusft.evaluation.tool_calls import BrokenCall, ToolCall, parse_tool_calls
from focusft.statistics.scores import wilson_interval


@dataclass(frozen=True)
class Reply:
    """What a model wrote in one turn.

    Attributes:
        text: Its text, calls included, with or without special tokens.
        tokens: Number of tokens it generated.
        truncated: It stopped because it had no tokens left.
        thinking: What it thought before the text, where the backend keeps that apart.
    """

    text: str
    tokens: int
    truncated: bool = False
    thinking: str = ""


class Backend(Protocol):
    """A model, wherever it runs."""

    def generate(
        self,
        conversations: Sequence[list[Message]],
        *,
        tools: list[dict[str, Any]] | None,
        max_new_tokens: Sequence[int],
        samples: Sequence[int],
    ) -> list[Reply]:
        """Write the next assistant message of each conversation.

        Args:
            conversations: Messages, each list ending where the assistant is to write.
            tools: JSON schemas for the chat template, or None.
            max_new_tokens: Longest reply to each, in tokens.
            samples: Numbers that keep apart the draws for equal conversations.
        """


@dataclass(frozen=True)
class ToolOutput:
    """What a tool gave back: the text that the model sees, and whether the call failed."""

    text: str
    failed: bool


@dataclass(frozen=True)
class Tool:
    """A tool: its JSON schema for the chat template, and what carries out a call."""

    schema: dict[str, Any]
    call: Callable[[dict[str, Any]], ToolOutput]

    @property
    def name(self) -> str:
        """The name that calls use."""
        return str(self.schema["function"]["name"])


@dataclass(frozen=True)
class Budget:
    """What one episode may use. The defaults are those of the published evaluation.

    Attributes:
        turns: Assistant messages.
        tokens: Generated tokens, over all turns.
        seconds: Wall-clock time; an episode that shares a batch waits for the others in it.
        calls_per_turn: Calls made in one turn; more are answered with an error.
    """

    turns: int = 16
    tokens: int = 20_480
    seconds: float = math.inf
    calls_per_turn: int = 8

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise ConfigError(f"budget {name}: {value} leaves nothing; set it above 0")


@dataclass
class Episode:
    """One conversation from the question to its end.

    Attributes:
        messages: The whole transcript as plain dicts, the question included.
        ended: "answer", or the budget that ran out: "turns", "tokens" or "time".
        turns: Assistant messages.
        tokens: Generated tokens.
        calls: Calls that were made.
        failed_calls: Those of them whose code failed or ran out of time.
        broken_calls: Calls that could not be made.
        seconds: Wall-clock time.
    """

    messages: list[Message]
    ended: str = ""
    turns: int = 0
    tokens: int = 0
    calls: int = 0
    failed_calls: int = 0
    broken_calls: int = 0
    seconds: float = 0.0

    @property
    def answer(self) -> str:
        """The text of the last assistant message; empty if there is none."""
        last = self.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else ""

    @property
    def truncated(self) -> bool:
        """A budget ended it."""
        return self.ended != "answer"


def code_interpreter(
    sandbox: Sandbox | None = None,
    *,
    timeout_s: float = 30,
    memory_mb: int = 2048,
    output_characters: int = 256,
) -> Tool:
    """The published tool: Python code, run without a memory of earlier calls.

    Args:
        sandbox: Where the code runs; bubblewrap by default.
        timeout_s: Seconds of each call.
        memory_mb: Memory of each call in MiB.
        output_characters: Longest output that the model sees; longer ones are cut in the middle.
            256 is what the published evaluation uses.
    """

    def call(arguments: dict[str, Any]) -> ToolOutput:
        result = run(arguments["code"], timeout_s=timeout_s, memory_mb=memory_mb, sandbox=sandbox)
        text = cut_middle(describe(result, timeout_s, memory_mb), output_characters)
        return ToolOutput(text, result.exit_code != 0)

    return Tool(CODE_INTERPRETER, call)


def describe(result: Result, timeout_s: float, memory_mb: int) -> str:
    """A run as the model is told of it."""
    parts = [part for part in (result.stdout.rstrip("\n"), result.stderr.rstrip("\n")) if part]
    reasons = {
        "time": f"the code ran longer than {timeout_s:g} seconds and was stopped",
        "memory": f"the code used more than {memory_mb} MiB of memory and was stopped",
        "files": "the code made too many files and was stopped",
        "output": "the code wrote too much output and was stopped",
    }
    if result.stopped:
        parts.append(f"Error: {reasons[result.stopped]}")
    elif result.exit_code and not result.stderr:
        parts.append(f"Error: exit status {result.exit_code}")
    return "\n".join(parts) or "(no output)"


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
        replies = backend.generate(
            [episode.messages for _, episode, _ in active],
            tools=schemas,
            max_new_tokens=[budget.tokens - episode.tokens for _, episode, _ in active],
            samples=[samples[index] if samples else index for index, _, _ in active],
        )
        going_on = []
        for (index, episode, started), reply in zip(active, replies, strict=True):
            episode.turns += 1
            episode.tokens += reply.tokens
            deadline = started + budget.seconds
            _take_turn(episode, reply, tools, budget, deadline, error_role)
            episode.seconds = time.monotonic() - started
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
    elif not episode.ended and episode.tokens >= budget.tokens:
        episode.ended = "tokens"


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


def evaluate(
    questions: Sequence[Question],
    backend: Backend,
    *,
    prompt: Callable[[Question], list[Message]],
    samples: int = 1,
    done: Container[tuple[str, int]] = (),
    tools: Sequence[Tool] = (),
    budget: Budget | None = None,
    batch_size: int = 8,
    error_role: str = "tool",
) -> Iterator[dict[str, Any]]:
    """Let the model answer each question several times, and score the answers.

    Args:
        questions: The questions.
        backend: The model.
        prompt: Messages that ask a question.
        samples: Answers to each question.
        done: Pairs of question id and sample number to leave out, when a run is resumed.
        tools: As in `run_episodes`, like `budget`, `batch_size` and `error_role`.
        budget: See there.
        batch_size: See there.
        error_role: See there.

    Yields:
        A record for each answer as it ends, ready for JSON: `question`, `sample` (from 0),
        `reference`, what `strict` and `lenient` extraction found, whether that is `right`, the
        fields of the episode, and its `messages`.
    """
    tasks = [
        (question, sample)
        for question in questions
        for sample in range(samples)
        if (question.id, sample) not in done
    ]
    episodes = run_episodes(
        [prompt(question) for question, _ in tasks],
        backend,
        tools=tools,
        budget=budget,
        batch_size=batch_size,
        error_role=error_role,
        samples=[sample for _, sample in tasks],
    )
    for index, episode in episodes:
        question, sample = tasks[index]
        found = {
            "strict": extract_strict(episode.answer),
            "lenient": extract_lenient(episode.answer, question.options),
        }
        yield {
            "question": question.id,
            "sample": sample,
            "reference": question.answer,
            **found,
            "right": {name: letter == question.answer for name, letter in found.items()},
            **asdict(episode),
        }


def extract_strict(text: str) -> str | None:
    r"""What the published evaluation compares: the last `\boxed{..}` of the last 300 characters.

    The content comes back as it is, so `\boxed{\text{B}}` is not the letter B. None if there is
    no closed box.
    """
    return _last_box(text[-300:])


def extract_lenient(text: str, options: Sequence[str]) -> str | None:
    """The option that a reader would say was chosen, as a letter; None if there is none.

    Takes the last box wherever it is, with text commands, brackets or the option's own text in
    it; without a box the last phrase like "the answer is (B)", or a last line that is a letter.

    Args:
        text: The model's last message.
        options: The options as they were shown, for answers that repeat one in words.
    """
    text = text.rsplit("</think>", 1)[-1]
    letters = "".join(chr(ord("A") + number) for number in range(len(options)))
    box = _last_box(text)
    if box is not None:
        return _letter(box, options, letters)
    phrase = rf"(?i:answer|option|choice)(?i:\s+is|\s+would be)?\s*:?[\s*$(\\]*([{letters}])\b"
    found = list(re.finditer(phrase, text))
    if found:
        return found[-1][1]
    lines = text.strip().splitlines()
    return _letter(lines[-1], options, letters) if lines else None


_WRAPPING = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathit|bf|rm)\b\s*\{?")
_LETTER = re.compile(
    r"(?i:the )?(?i:answer|option|choice)?(?i: is)?:?\s*\(?([A-Z])\)?(?:[.):,].*)?"
)


def _letter(text: str, options: Sequence[str], letters: str) -> str | None:
    plain = _plain(text)
    same = [
        letter for letter, option in zip(letters, options, strict=True) if _plain(option) == plain
    ]
    if len(same) == 1:
        return same[0]
    match = _LETTER.fullmatch(plain)
    return match[1] if match and match[1] in letters else None


def _plain(text: str) -> str:
    text = _WRAPPING.sub("", text)
    return " ".join(re.sub(r"[{}$*]|\\[(),;! ]", "", text).split())


def _last_box(text: str) -> str | None:
    """Content of the last box whose braces close."""
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        first = start + len("\\boxed{")
        depth = 1
        for place in range(first, end):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[first:place]
        end = start
    return None


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k answers is right (Chen et al. 2021, arXiv 2107.03374).

    The unbiased estimate 1 - C(n - c, k) / C(n, k).

    Args:
        n: Answers that were sampled.
        c: Right ones among them.
        k: Answers that one may give, at most `n`.

    Raises:
        ValueError: The numbers do not fit together.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its confidence interval, and the number of questions."""

    score: float
    low: float
    high: float
    n: int


def pass_at_k_estimate(
    counts: Sequence[tuple[int, int]],
    k: int,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """pass@k over questions, with an interval that says how other questions would change it.

    The interval is the percentile bootstrap over questions. Where every question was always
    solved, or none ever was, a bootstrap has nothing to vary and would claim certainty: there it
    is Wilson's interval of that many questions.

    Args:
        counts: For each question the answers sampled and the right ones among them.
        k: See `pass_at_k`.
        confidence: Coverage.
        resamples: Bootstrap draws.
        seed: Their seed.

    Raises:
        ConfigError: There is no question, or one with fewer than k answers.
    """
    if not counts:
        raise ConfigError("pass@k: there are no answered questions to average over")
    fewest = min(n for n, _ in counts)
    if not 1 <= k <= fewest:
        raise ConfigError(f"pass@{k}: a question has {fewest} answers; set k from 1 to {fewest}")
    values = np.array([pass_at_k(n, c, k) for n, c in counts])
    count, mean = len(values), float(values.mean())
    if mean in (0.0, 1.0):
        return Estimate(mean, *wilson_interval(round(mean * count), count, confidence), count)
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    means = draws @ values / count
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), count)


def summarise(records: Sequence[dict[str, Any]], ks: Sequence[int] = (1,)) -> dict[str, Any]:
    """Scores and rates of a set of answers.

    Args:
        records: As `evaluate` yields them.
        ks: For which k to give pass@k.

    Returns:
        `strict` and `lenient`, each with `pass@k` as {score, low, high, n}; `rates`: `tool_use`
        (answers with a call that was made), `tool_error` (calls that failed or could not be made,
        of all calls), `no_answer` (strict and lenient) and `truncation` (answers that a budget
        ended); `answers`, and the mean `turns` and `tokens`.

    Raises:
        ConfigError: There are no records, or too few for a k.
    """
    summary: dict[str, Any] = {}
    for rule in ("strict", "lenient"):
        by_question: dict[str, list[bool]] = {}
        for record in records:
            by_question.setdefault(record["question"], []).append(record["right"][rule])
        counts = [(len(right), sum(right)) for right in by_question.values()]
        summary[rule] = {f"pass@{k}": asdict(pass_at_k_estimate(counts, k)) for k in ks}
    total = len(records)
    broken = sum(record["broken_calls"] for record in records)
    tried = broken + sum(record["calls"] for record in records)
    failed = broken + sum(record["failed_calls"] for record in records)
    summary["rates"] = {
        "tool_use": sum(record["calls"] > 0 for record in records) / total,
        "tool_error": failed / tried if tried else 0.0,
        "no_answer_strict": sum(record["strict"] is None for record in records) / total,
        "no_answer_lenient": sum(record["lenient"] is None for record in records) / total,
        "truncation": sum(record["ended"] != "answer" for record in records) / total,
    }
    summary["answers"] = total
    summary["mean_turns"] = sum(record["turns"] for record in records) / total
    summary["mean_tokens"] = sum(record["tokens"] for record in records) / total
    return summary
