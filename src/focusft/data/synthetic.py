"""BABILong-style training conversations: facts of a small world hidden in background prose.

A world is a story in the manner of bAbI (Weston et al. 2015), from generators of our own: people
move between rooms, pick things up and put them down. Its statements keep their order and are put
into the gaps between the sentences of the Python documentation (`pydoc_data.topics`, in the
standard library), as BABILong (Kuratov et al. 2024) does with books. The held-out split shares
neither background sentences nor worlds with the training split, whatever seeds are used.

The prose differs a little between Python versions; with one version every result depends only on
the arguments.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from focusft.data.prose import FORBIDDEN, background_sentences
from focusft.data.split import SPLITS, Split, hashed_part
from focusft.data.worlds import (
    ACTORS,
    LOCATIONS,
    OBJECTS,
    World,
    make_world,
    world_split,
)
from focusft.errors import ConfigError

__all__ = [
    "ACTORS",
    "FORBIDDEN",
    "FULL_PROMPT_TOKENS",
    "LOCATIONS",
    "OBJECTS",
    "SPLITS",
    "TASKS",
    "AnswerStyle",
    "Split",
    "World",
    "background_sentences",
    "build_prompt",
    "hashed_part",
    "make_conversations",
    "make_world",
    "world_split",
]

AnswerStyle = Literal["short", "sentence", "reasoning", "mixed"]

TASKS = ("qa1", "qa2", "qa3")
# What "mixed" draws from, evenly.
ANSWER_STYLES: tuple[AnswerStyle, ...] = ("short", "sentence", "reasoning")

# From this many context tokens on, the prompt explains the task with examples as BABILong does;
# below, the explanation would outweigh the context.
FULL_PROMPT_TOKENS = 1024

_MAX_DRAWS = 2000


def make_conversations(
    task: str = "qa1",
    *,
    split: Split = "train",
    count: int,
    context_tokens: int,
    seed: int,
    count_tokens: Callable[[str], int],
    answer_style: AnswerStyle = "short",
    min_context_tokens: int | None = None,
) -> list[dict[str, Any]]:
    """Make conversations with one question about facts hidden in background prose.

    Args:
        task: qa1 (where is a person), qa2 (where is an object), or qa3 (where was an object before
            it was in a given place).
        split: which prose and worlds to use; the two splits share none.
        count: number of conversations, all different.
        context_tokens: most tokens between `<context>` and `</context>`; prose fills what the facts
            leave, to the sentence. Prose repeats when the split has less of it than that.
        seed: seed of the whole set.
        count_tokens: number of tokens of a text, without special tokens.
        answer_style: `short` answers with the label alone ("kitchen"), `sentence` with a sentence
            ("Mary is in the kitchen."), `reasoning` with one that gives the facts first ("Mary
            went to the kitchen; so Mary is in the kitchen."), `mixed` with any of these.
        min_context_tokens: draw the size of each context between this and context_tokens; None
            gives all of them context_tokens.

    Returns:
        One row per conversation: `messages` with a user and an assistant turn, and `meta` with
        `task`, `split`, `question`, `answer` (the label), `needles` (the supporting facts),
        `needle_spans` (their [start, end) characters in the user turn), `facts` (all of them) and
        `context_tokens` (the tokens that the context has).

    Raises:
        ConfigError: an argument has no such value, or context_tokens is too small for the facts.
    """
    if task not in TASKS:
        raise ConfigError(f"task: '{task}' is none of {', '.join(TASKS)}")
    check_options(split, answer_style, count, context_tokens, min_context_tokens)
    rng = random.Random(f"{task}/{split}/{seed}")  # a string seeds the same in every process
    prose = background_sentences(split)
    sizes: dict[str, int] = {}

    def size(sentence: str) -> int:
        if sentence not in sizes:
            sizes[sentence] = count_tokens(" " + sentence)
        return sizes[sentence]

    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    draws = 0
    while len(rows) < count:
        draws += 1
        if draws > _MAX_DRAWS:
            raise ConfigError(
                f"context_tokens: {context_tokens} is too small for {count} different {task} "
                f"worlds (found {len(rows)}); raise context_tokens or lower count"
            )
        world = make_world(task, rng)
        key = "\n".join([*(fact.text for fact in world.facts), world.question])
        facts = " ".join(fact.text for fact in world.facts)
        if world_split(world) != split or key in seen or count_tokens(facts) > context_tokens:
            continue
        tokens = draw_tokens(context_tokens, min_context_tokens, rng)
        if min_context_tokens is not None and count_tokens(facts) > tokens:
            continue
        draws = 0
        seen.add(key)
        style = draw_style(answer_style, rng)
        sentences = fill_context(
            [fact.text for fact in world.facts], prose, tokens, rng, size, count_tokens
        )
        rows.append(_conversation(task, split, world, sentences, tokens, count_tokens, style))
    return rows


def check_options(
    split: str, answer_style: str, count: int, context_tokens: int, min_context_tokens: int | None
) -> None:
    """Check what all tasks share.

    Raises:
        ConfigError: An argument has no such value.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: '{split}' is none of {', '.join(SPLITS)}")
    if answer_style not in (*ANSWER_STYLES, "mixed"):
        styles = ", ".join((*ANSWER_STYLES, "mixed"))
        raise ConfigError(f"answer_style: '{answer_style}' is none of {styles}")
    if count < 1:
        raise ConfigError(f"count: {count} is less than 1; ask for at least one conversation")
    if min_context_tokens is not None and not 0 < min_context_tokens <= context_tokens:
        raise ConfigError(
            f"min_context_tokens: {min_context_tokens} is not between 1 and context_tokens, "
            f"{context_tokens}"
        )


def draw_tokens(context_tokens: int, min_context_tokens: int | None, rng: random.Random) -> int:
    """The size of a context."""
    if min_context_tokens is None:
        return context_tokens
    return rng.randint(min_context_tokens, context_tokens)


def draw_style(answer_style: AnswerStyle, rng: random.Random) -> AnswerStyle:
    """The style of an answer."""
    return rng.choice(ANSWER_STYLES) if answer_style == "mixed" else answer_style


def build_prompt(
    task: str, context: str, question: str, *, full: bool, answer_style: AnswerStyle = "short"
) -> str:
    """The user turn in BABILong's layout.

    Args:
        task: qa1, qa2 or qa3.
        context: prose and facts.
        question: the question.
        full: explain the task and show two examples; else one line and no examples.
        answer_style: the style that explanation and examples ask for.
    """
    texts = _PROMPTS[task]
    if not full:
        head = f"{texts.short}\n\n{_POST_PROMPT[answer_style]}"
    else:
        examples = "\n\n".join(
            f"<example>\n{story}\nQuestion: {asked}\n"
            f"Answer: {_answer(answer_style, label, sentence, reasons)}\n</example>"
            for story, asked, label, sentence, reasons in texts.examples
        )
        head = f"{texts.instruction}\n\n{examples}\n\n{_POST_PROMPT[answer_style]}"
    return f"{head}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"


@dataclass(frozen=True)
class _TaskTexts:
    short: str
    instruction: str
    # Story, question, label, sentence, and the statements that it follows from.
    examples: tuple[tuple[str, str, str, str, tuple[str, ...]], ...]


_POST_PROMPT = {
    "short": "Answer with the name of the place only.",
    "sentence": "Answer with one short sentence that names the place.",
    "reasoning": (
        "Answer with one sentence: first the facts that matter, in their order, then the place."
    ),
}
_PROMPTS = {
    "qa1": _TaskTexts(
        short="Find the facts about people in the text and answer the question.",
        instruction=(
            "The text below mixes unrelated prose with facts about where people go. Use only these "
            "facts to answer the question. A person is in the place that they went to last."
        ),
        examples=(
            (
                "Daniel went to the garden. Mary moved to the office.",
                "Where is Daniel?",
                "garden",
                "Daniel is in the garden.",
                ("Daniel went to the garden.",),
            ),
            (
                "Sandra moved to the kitchen. John went to the bedroom. "
                "Sandra journeyed to the hallway.",
                "Where is Sandra?",
                "hallway",
                "Sandra is in the hallway.",
                ("Sandra journeyed to the hallway.",),
            ),
        ),
    ),
    "qa2": _TaskTexts(
        short="Find the facts about people and things in the text and answer the question.",
        instruction=(
            "The text below mixes unrelated prose with facts about where people go and what they "
            "carry. Use only these facts to answer the question. A thing that somebody carries is "
            "where that person is."
        ),
        examples=(
            (
                "Mary went to the kitchen. Mary took the milk. John moved to the garden. "
                "Mary travelled to the office.",
                "Where is the milk?",
                "office",
                "The milk is in the office.",
                ("Mary took the milk.", "Mary travelled to the office."),
            ),
            (
                "Daniel grabbed the apple. Sandra went to the hallway. "
                "Daniel journeyed to the bathroom.",
                "Where is the apple?",
                "bathroom",
                "The apple is in the bathroom.",
                ("Daniel grabbed the apple.", "Daniel journeyed to the bathroom."),
            ),
        ),
    ),
    "qa3": _TaskTexts(
        short="Find the facts about people and things in the text and answer the question.",
        instruction=(
            "The text below mixes unrelated prose with facts about where people go and what they "
            "carry. Use only these facts to answer the question. Follow the thing from place to "
            "place, and name the place where it was just before the one that is asked about."
        ),
        examples=(
            (
                "John went to the bedroom. John got the football. John moved to the kitchen. "
                "John went to the garden.",
                "Where was the football before the garden?",
                "kitchen",
                "The football was in the kitchen before the garden.",
                (
                    "John got the football.",
                    "John moved to the kitchen.",
                    "John went to the garden.",
                ),
            ),
            (
                "Mary picked up the milk. Mary travelled to the office. Daniel went to the "
                "hallway. Mary moved to the bathroom. Mary put down the milk.",
                "Where was the milk before the bathroom?",
                "office",
                "The milk was in the office before the bathroom.",
                (
                    "Mary picked up the milk.",
                    "Mary travelled to the office.",
                    "Mary moved to the bathroom.",
                ),
            ),
        ),
    ),
}


# --- context ------------------------------------------------------------------------------------


def fill_context(
    facts: list[str],
    prose: tuple[str, ...],
    context_tokens: int,
    rng: random.Random,
    size: Callable[[str], int],
    count_tokens: Callable[[str], int],
) -> list[tuple[str, int | None]]:
    """Hide facts in prose.

    Args:
        facts: Sentences that keep their order.
        prose: Sentences of the background.
        context_tokens: Most tokens of the context.
        rng: Source of every choice.
        size: Tokens of a sentence within a text.
        count_tokens: Tokens of a text.

    Returns:
        Sentences of the context in order, each with its index in facts or None.
    """
    used = sum(size(fact) for fact in facts)
    start = rng.randrange(len(prose))
    background: list[str] = []
    while True:
        sentence = prose[(start + len(background)) % len(prose)]
        used += size(sentence)
        if used > context_tokens:
            break
        background.append(sentence)
    # Gaps with replacement, kept in order: two facts may share one, as in BABILong.
    gaps = sorted(rng.randint(0, len(background)) for _ in facts)
    sentences = _interleave(facts, background, gaps)
    # Sizes do not add up exactly for every tokenizer.
    while background and count_tokens(" ".join(text for text, _ in sentences)) > context_tokens:
        background.pop()
        gaps = [min(gap, len(background)) for gap in gaps]
        sentences = _interleave(facts, background, gaps)
    return sentences


def _interleave(
    facts: list[str], background: list[str], gaps: list[int]
) -> list[tuple[str, int | None]]:
    """Put fact i before background sentence gaps[i] (after the last one for gaps[i] == len)."""
    sentences: list[tuple[str, int | None]] = []
    done = 0
    for position, sentence in enumerate([*background, None]):
        upto = bisect_right(gaps, position)
        sentences += [(facts[index], index) for index in range(done, upto)]
        done = upto
        if sentence is not None:
            sentences.append((sentence, None))
    return sentences


def _conversation(
    task: str,
    split: Split,
    world: World,
    sentences: list[tuple[str, int | None]],
    context_tokens: int,
    count_tokens: Callable[[str], int],
    answer_style: AnswerStyle,
) -> dict[str, Any]:
    context = " ".join(text for text, _ in sentences)
    prompt = build_prompt(
        task,
        context,
        world.question,
        full=context_tokens >= FULL_PROMPT_TOKENS,
        answer_style=answer_style,
    )
    spans = needle_spans(prompt, sentences, world.support)
    reasons = tuple(world.facts[index].text for index in world.support)
    answer = _answer(answer_style, world.answer, world.sentence, reasons)
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ],
        "meta": {
            "task": task,
            "split": split,
            "question": world.question,
            "answer": world.answer,
            "needles": [prompt[start:end] for start, end in spans],
            "needle_spans": spans,
            "facts": [fact.text for fact in world.facts],
            "context_tokens": count_tokens(context),
        },
    }


def needle_spans(
    prompt: str, sentences: Sequence[tuple[str, int | None]], support: Sequence[int]
) -> list[list[int]]:
    """Where supporting facts stand in a prompt: [start, end) of each."""
    opening = "<context>\n"
    offset = prompt.rindex(opening) + len(opening)
    starts = [0, *accumulate(len(text) + 1 for text, _ in sentences)]
    return [
        [offset + start, offset + start + len(text)]
        for start, (text, index) in zip(starts, sentences, strict=False)
        if index in support
    ]


def _answer(style: AnswerStyle, label: str, sentence: str, reasons: tuple[str, ...]) -> str:
    if style == "short":
        return label
    if style == "sentence":
        return sentence
    # One sentence: BABILong's score looks at the first one.
    return f"{'; '.join(reason.rstrip('.') for reason in reasons)}; so {_lowered(sentence)}"


def _lowered(sentence: str) -> str:
    """Within a sentence: names of people keep their capital."""
    first = sentence.split(" ", 1)[0]
    return sentence if first in ACTORS else sentence[0].lower() + sentence[1:]
