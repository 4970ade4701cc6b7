"""One benchmark item, and a set of them that is made while it is iterated over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from focusft.errors import ConfigError
from focusft.evaluation.generation import Prompt, encode
from focusft.evaluation.haystack import DoesNotFitError, Draft


@dataclass(frozen=True)
class Item:
    """One prompt with everything its score needs.

    Attributes:
        id: Unique in the set, such as "ruler/vt/4096/0007".
        suite: babilong or ruler.
        task: Such as qa1 or niah_single_1.
        length: Most tokens of prompt and answer together; for published BABILong data the length
            in its name.
        prompt: The user's turn, before the chat template.
        answer_prefix: Raw text after the chat template that the answer goes on from.
        references: The right answers, as the suite's score takes them.
        max_new_tokens: Tokens kept for the answer, thinking included.
        tokens: Tokens of the whole prompt as `prompt_ids` gives them.
        fill: Part of the length that prompt and answer take.
        question: The question alone, where the suite's score needs it.
        metadata: What else is known of the item.
    """

    id: str
    suite: str
    task: str
    length: int
    prompt: str
    answer_prefix: str
    references: tuple[str, ...]
    max_new_tokens: int
    tokens: int
    fill: float
    question: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The only reference."""
        (target,) = self.references
        return target

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a conversation."""
        return [{"role": "user", "content": self.prompt}]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    answer_prefix: str = "",
    *,
    chat: bool,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Tokens of a whole prompt, with one BOS where the model has one.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The user's turn.
        answer_prefix: Raw text after the chat template.
        chat: Whether the chat template wraps the prompt.
        template_options: More arguments of the chat template, such as enable_thinking.
    """
    return encode(
        tokenizer,
        Prompt(({"role": "user", "content": prompt},), answer_prefix),
        chat=chat,
        template_options=template_options,
    )


@dataclass(frozen=True)
class ItemSet:
    """Items that are made while they are iterated over, task after task and length after length.

    Attributes:
        suite: babilong or ruler.
        tasks: Tasks of the suite.
        lengths: Lengths in tokens.
        samples: Items per task and length.
        header: What the manifest says before the items are made.
        draft: Makes one item's draft from task, length and index.
        max_new_tokens: Tokens kept for the answer, thinking included, per task.
        published: Whether the items are published data, which is not fitted to a length.
    """

    suite: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int
    header: dict[str, Any]
    draft: Callable[[str, int, int], Draft]
    max_new_tokens: dict[str, int]
    published: bool = False

    def __len__(self) -> int:
        return len(self.tasks) * len(self.lengths) * self.samples

    def __iter__(self) -> Iterator[Item]:
        for task in self.tasks:
            for length in self.lengths:
                for index in range(self.samples):
                    yield self._make(task, length, index)

    def _make(self, task: str, length: int, index: int) -> Item:
        kept = self.max_new_tokens[task]
        try:
            draft = self.draft(task, length, index)
        except DoesNotFitError as error:
            raise ConfigError(
                f"--lengths: {length} is too short for {self.suite} {task}, whose smallest prompt "
                f"has {error.tokens} tokens and {kept} more for the answer; "
                "use a greater length, or leave the task out of --tasks"
            ) from error
        if not self.published and draft.tokens + kept > length:
            raise AssertionError(f"{task}: {draft.tokens} + {kept} tokens exceed {length}")
        return Item(
            id=f"{self.suite}/{task}/{length}/{index:04d}",
            suite=self.suite,
            task=task,
            length=length,
            prompt=draft.prompt,
            answer_prefix=draft.answer_prefix,
            references=draft.references,
            max_new_tokens=kept,
            tokens=draft.tokens,
            fill=round((draft.tokens + kept) / length, 4),
            question=draft.question,
            metadata=draft.metadata,
        )
