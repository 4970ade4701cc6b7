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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from focusft.data.contexts import (
    AnswerStyle,
    Sentences,
    check_options,
    conversation_row,
    draw_style,
    draw_tokens,
    fill_context,
    joined,
)
from focusft.data.prose import background_sentences
from focusft.data.split import Split
from focusft.data.worlds import ACTORS, World, make_world, world_split
from focusft.errors import ConfigError

TASKS = ("qa1", "qa2", "qa3")

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


def _conversation(
    task: str,
    split: Split,
    world: World,
    sentences: Sentences,
    context_tokens: int,
    count_tokens: Callable[[str], int],
    answer_style: AnswerStyle,
) -> dict[str, Any]:
    prompt = build_prompt(
        task,
        joined(sentences),
        world.question,
        full=context_tokens >= FULL_PROMPT_TOKENS,
        answer_style=answer_style,
    )
    reasons = tuple(world.facts[index].text for index in world.support)
    return conversation_row(
        task,
        split,
        prompt,
        sentences,
        world.support,
        question=world.question,
        answer=world.answer,
        reply=_answer(answer_style, world.answer, world.sentence, reasons),
        count_tokens=count_tokens,
    )


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
