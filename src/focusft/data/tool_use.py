r"""Conversations that solve computational multiple-choice questions with a Python tool.

The questions are those of `tool_kinds.py`. The code in a conversation is really run: what the tool
messages hold comes from `run_code`, which the caller connects to a sandbox. A conversation has one
of five styles:

- `direct`: one call, then the answer;
- `repair`: one or two calls fail first and are mended;
- `table`: the call prints a long table, in which one row matters;
- `steps`: a call for each step, up to nine, each with the result of the one before;
- `no_tool`: no tool is offered, and the answer is a guess. It shows a model how to answer where it
  cannot call, so that evaluation without tools measures more than a lost format.

The answer repeats the options as "118.5 is A, 42.0 is B, ..", so that finding the letter of the
result is a lookup, which small models can do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from string import Formatter
from typing import Any, Literal

from focusft.data.multiple_choice import CODE_INTERPRETER, Question, ask
from focusft.data.rows import Message
from focusft.data.split import SPLITS, Split, split_of
from focusft.data.tool_kinds import (
    HELD_OUT_KINDS,
    KINDS,
    Kind,
    Problem,
    draw_problem,
    with_table,
)
from focusft.errors import ConfigError

Style = Literal["direct", "repair", "table", "steps", "no_tool"]

TASK = "tool_use"
# How often a conversation has each style; the rest is direct, or steps for kinds that repeat.
_SHARES: dict[Style, float] = {"repair": 0.13, "table": 0.13, "no_tool": 0.12}
_MAX_DRAWS = 5000


def select_kinds(names: str) -> tuple[Kind, ...]:
    """Kinds by name.

    Args:
        names: `seen`, `held_out`, `all`, or names with commas between them.

    Raises:
        ConfigError: There is no such kind.
    """
    groups = {"seen": KINDS, "held_out": HELD_OUT_KINDS, "all": KINDS + HELD_OUT_KINDS}
    if names in groups:
        return groups[names]
    by_name = {kind.name: kind for kind in groups["all"]}
    for name in names.split(","):
        if name not in by_name:
            known = ", ".join([*groups, *by_name])
            raise ConfigError(f"kinds: {name!r} is none of {known}")
    return tuple(by_name[name] for name in names.split(","))


def make_tool_conversations(
    *,
    kinds: Sequence[Kind] = KINDS,
    split: Split = "train",
    count: int,
    seed: int,
    run_code: Callable[[str], str],
    count_tokens: Callable[[str], int],
    long_output_tokens: int = 160,
) -> Iterator[dict[str, Any]]:
    """Make conversations, all with different questions and as many of each kind as can be.

    Args:
        kinds: Kinds of questions.
        split: Which numbers to use; the two splits share no question, whatever seeds are used.
        count: Number of conversations.
        seed: Seed of the whole set.
        run_code: Runs Python code and returns what the model is to see of its output.
        count_tokens: Number of tokens of a text, without special tokens.
        long_output_tokens: About how long the tables of the style `table` are; 0 for no such
            conversations.

    Yields:
        Rows with `messages`, `tools` (absent in the style `no_tool`), and `meta` with `task`,
        `split`, `kind`, `style`, and the question as `id`, `question`, `options`, `answer` (a
        letter) and `domain`.

    Raises:
        ConfigError: An argument has no such value, there are not so many different questions, or
            the tool cuts the number that a question needs.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: '{split}' is none of {', '.join(SPLITS)}")
    if count < 1:
        raise ConfigError(f"count: {count} is less than 1; ask for at least one conversation")
    if long_output_tokens < 0:
        raise ConfigError(f"long_output_tokens: {long_output_tokens} is less than 0")
    rng = random.Random(f"{TASK}/{split}/{seed}")  # a string seeds the same in every process
    order = [kind for _ in range(-(-count // len(kinds))) for kind in kinds][:count]
    rng.shuffle(order)
    seen: set[str] = set()
    for number, kind in enumerate(order):
        style = _draw_style(kind, rng, long_output_tokens > 0)
        problem = _new_problem(kind, split, seen, rng)
        if style == "table":
            row = f"{problem.numbers[kind.swept[0]]} {problem.value}\n"
            problem = with_table(problem, max(2, long_output_tokens // count_tokens(row)), rng)
        options = [problem.value, *problem.wrong]
        rng.shuffle(options)
        question = Question(
            id=f"{kind.name}-{split}-{seed}-{number}",
            text=problem.text,
            options=tuple(options),
            answer="ABCD"[options.index(problem.value)],
            domain=kind.domain,
            kind=kind.name,
        )
        messages = ask(question, with_tools=style != "no_tool")
        if style != "no_tool":
            messages += _solve(problem, style, run_code, rng)
        messages.append(_answer(question, problem, style))
        yield {
            "messages": messages,
            **({} if style == "no_tool" else {"tools": [CODE_INTERPRETER]}),
            "meta": {
                "task": TASK,
                "split": split,
                "kind": kind.name,
                "style": style,
                "id": question.id,
                "question": question.text,
                "options": options,
                "answer": question.answer,
                "domain": question.domain,
            },
        }


def _draw_style(kind: Kind, rng: random.Random, tables: bool) -> Style:
    rest: Style = "steps" if kind.repeats else "direct"
    place = rng.random()
    for style, share in _SHARES.items():
        if place < share:
            return rest if style == "table" and (kind.repeats or not tables) else style
        place -= share
    return rest


def _new_problem(kind: Kind, split: Split, seen: set[str], rng: random.Random) -> Problem:
    for _ in range(_MAX_DRAWS):
        problem = draw_problem(kind, rng)
        if problem is None or problem.key in seen:
            continue
        if split_of(problem.key) == split:
            seen.add(problem.key)
            return problem
    raise ConfigError(f"count: {kind.name} has too few different questions; ask for fewer")


def _solve(
    problem: Problem, style: Style, run_code: Callable[[str], str], rng: random.Random
) -> list[Message]:
    """The calls and the tool's answers."""
    if problem.table:
        name = problem.kind.swept[0]
        body = problem.kind.expression.format(**{**problem.numbers, name: name})
        first, last = problem.table
        loop = f"for {name} in range({first}, {last} + 1):\n    print({name}, {body})"
        row = f"{problem.numbers[name]} {problem.value}"
        return _turn(problem.kind.thought, loop, run_code, row)
    steps = problem.steps()
    turns = []
    for number, (expression, value) in enumerate(steps, 1):
        thought = problem.kind.thought if number == 1 else ""
        if len(steps) > 1:
            thought = f"{thought} Step {number} of {len(steps)}.".strip()
        if style == "repair" and number == 1:
            for broken_code, repair in rng.sample(_MISTAKES, 2 if rng.random() < 0.2 else 1):
                turns += _turn(thought, broken_code(problem), run_code, "Error")
                thought = repair
        turns += _turn(thought, f"print({expression})", run_code, value)
    return turns


def _without_parenthesis(problem: Problem) -> str:
    return _code(problem)[:-1]


def _with_a_name(problem: Problem) -> str:
    """The first parameter is left as its name, which Python does not know."""
    first = next(name for _, name, _, _ in Formatter().parse(problem.kind.expression) if name)
    return f"print({problem.kind.expression.format(**{**problem.numbers, first: first})})"


def _misspelt(problem: Problem) -> str:
    return _code(problem).replace("print", "prnt")


def _code(problem: Problem) -> str:
    return f"print({problem.kind.expression.format(**problem.numbers)})"


# Code that fails, and what to say of it before the repaired call.
_MISTAKES: tuple[tuple[Callable[[Problem], str], str], ...] = (
    (_without_parenthesis, "I forgot to close a parenthesis."),
    (_with_a_name, "I have to write the number instead of its name."),
    (_misspelt, "I misspelt print."),
)


def _turn(thought: str, code: str, run_code: Callable[[str], str], needed: str) -> list[Message]:
    output = run_code(code)
    if needed not in output:
        raise ConfigError(
            f"the tool's output lacks {needed!r} (it gave {output[-200:]!r} for {code!r}); raise "
            "output_characters if it was cut"
        )
    function = {"name": CODE_INTERPRETER["function"]["name"], "arguments": {"code": code}}
    return [
        {
            "role": "assistant",
            "content": thought,
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "content": output},
    ]


def _answer(question: Question, problem: Problem, style: Style) -> Message:
    letters = zip(question.options, "ABCD", strict=True)
    lines = [", ".join(f"{option} is {letter}" for option, letter in letters) + "."]
    if problem.table and style != "no_tool":
        row = problem.numbers[problem.kind.swept[0]]
        lines.insert(0, f"The row of {row} gives {problem.value}.")
    elif style != "no_tool":
        lines.insert(0, f"The result is {problem.value}.")
    lines.append(f"{problem.value} is {question.answer}: \\boxed{{{question.answer}}}")
    return {"role": "assistant", "content": "\n".join(lines)}
