"""Where each message lies in a conversation that the tokenizer's chat template has rendered.

The conversation is rendered twice: as it is, and with the text of every system, user and tool
message wrapped in private-use characters. What lies outside the wrapped parts is the template's own
text and the assistant's, so nothing a user or a tool wrote can be mistaken for a header.
Assistant messages are never touched, because templates of thinking models rewrite them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, product
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from focusft.data.rows import Message
from focusft.errors import DataError, UserError

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_MARK = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_PROBE_MARKS = ("\ue000", "\ue001", "\ue002", "\ue003")
# Templates of the Qwen3 family treat a user message of this form as a tool result: its ends must
# stay what they are, so the marks go inside.
_TOOL_RESPONSE = ("<tool_response>", "</tool_response>")


@dataclass(frozen=True)
class Turn:
    """Characters `start` to `stop` (excluded) of the rendered text.

    Attributes:
        message: Index of the message; None for the header between two assistant messages.
        is_response: True on assistant turns: from the end of the header to the end of the turn,
            stop token and following newline included.
        content: On context turns the characters of the message itself, without template text.
    """

    start: int
    stop: int
    message: int | None
    is_response: bool = False
    content: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Parts:
    """Fixed texts of a chat template.

    Attributes:
        stop: What ends an assistant turn, e.g. "<|im_end|>" and a newline.
        prompt_tail: End of the generation prompt that headers in the history lack.
        history_tail: End of the header in the history that the generation prompt lacks.
        again: From the end of an assistant message over `stop` to the end of the next header.
    """

    stop: str
    prompt_tail: str
    history_tail: str
    again: str

    def headers(self, prompt: str) -> tuple[str, str]:
        """A text that ends with the generation prompt, and the same with the history's header."""
        return prompt, prompt.removesuffix(self.prompt_tail) + self.history_tail


class ChatTemplate:
    """The chat template of a tokenizer with the tools and variables of one conversation.

    Raises:
        UserError: The tokenizer has no chat template, or is a slow one without offsets.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: list[dict[str, Any]] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise UserError(
                f"tokenizer {name}: is a slow one without character offsets; "
                "load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        if not tokenizer.chat_template:
            raise UserError(
                f"tokenizer {name}: has no chat template; take the instruct version of the model, "
                "set tokenizer.chat_template, or use prompt/completion rows of plain text"
            )
        self.tokenizer = tokenizer
        self.source: str = tokenizer.get_chat_template(None, tools)
        self.tools = tools
        self.kwargs = kwargs or {}

    def render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        """Render to text.

        Raises:
            DataError: The template refuses the conversation.
        """
        return str(self._apply(messages, add_generation_prompt, tokenize=False))

    def tokenise(self, messages: list[Message]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids as `apply_chat_template` gives them, and the characters of each token."""
        encoding = self._apply(
            messages,
            False,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        return encoding["input_ids"], encoding["offset_mapping"]

    def parts(self) -> _Parts:
        """Learn the fixed texts of the template (once per template and variables)."""
        kwargs = json.dumps(self.kwargs, sort_keys=True)
        return _learn_parts(self.tokenizer, self.source, kwargs)

    def _apply(self, messages: list[Message], add_generation_prompt: bool, **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=self.tools,  # type: ignore[arg-type]
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                **options,
                **self.kwargs,
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the chat template cannot render this row: {reason}") from error


def locate_turns(template: ChatTemplate, messages: list[Message]) -> tuple[str, list[Turn]]:
    """Render a conversation and find its turns.

    Args:
        template: The chat template.
        messages: A checked conversation.

    Returns:
        The rendered text, and its turns in the order of the text; together they cover all of it.
        The generation prompt belongs to the context turn before the response.

    Raises:
        DataError: The template hides, repeats or rewrites a message, or the turns of consecutive
            assistant messages cannot be told apart.
    """
    text = template.render(messages)
    marked, marks = _mark(messages, text)
    contents = _content_spans(text, template.render(marked), marks, messages)
    finder = _ResponseFinder(template, text, marked, marks)
    in_text_order = sorted(contents, key=lambda index: contents[index])
    turns: list[Turn] = []
    start = 0
    for index, following in zip(in_text_order, [*in_text_order[1:], None], strict=True):
        gap = (contents[index][1], len(text) if following is None else contents[following][0])
        responses = finder.find(index, gap, is_last=following is None)
        stop = responses[0].start if responses else finder.end_of_context(gap)
        turns += [Turn(start, stop, index, content=contents[index]), *responses]
        start = turns[-1].stop
    return text, turns


def _mark(messages: list[Message], text: str) -> tuple[list[Message], dict[str, tuple[int, int]]]:
    """Wrap the context messages; the marks map to (message, 0 for its start or 1 for its end)."""
    used = set(_MARK.findall(text)).union(*(_MARK.findall(m.get("content", "")) for m in messages))
    free = (char for char in map(chr, chain(*_PRIVATE_USE)) if char not in used)
    marked, marks = [], {}
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            before, after = islice(free, 2)
            marks[before], marks[after] = (index, 0), (index, 1)
            message = {**message, "content": _wrap(message["content"], before, after)}
        marked.append(message)
    return marked, marks


def _wrap(content: str, before: str, after: str) -> str:
    opening, closing = _TOOL_RESPONSE
    if content.startswith(opening) and content.endswith(closing):
        inner = content[len(opening) : -len(closing)]
        return opening + before + inner + after + closing
    core = content.strip()
    lead, _, trail = content.partition(core) if core else (content, "", "")
    return lead + before + core + after + trail


def _content_spans(
    text: str, marked_text: str, marks: dict[str, tuple[int, int]], messages: list[Message]
) -> dict[int, tuple[int, int]]:
    found: dict[tuple[int, int], int] = {}
    plain, last = [], 0
    for match in _MARK.finditer(marked_text):
        if match[0] not in marks:
            continue
        mark = marks[match[0]]
        if mark in found:
            raise DataError(f"{_name(messages, mark[0])} appears more than once in the chat text")
        plain.append(marked_text[last : match.start()])
        found[mark] = match.start() - len(found)
        last = match.end()
    plain.append(marked_text[last:])
    for mark in marks.values():
        if mark not in found:
            raise DataError(
                f"{_name(messages, mark[0])} is hidden by the chat template; remove it "
                "or use a template that shows it"
            )
    spans = {index: (found[index, 0], found[index, 1]) for index, end in found if end == 0}
    if (unmarked := "".join(plain)) != text:
        differs = _shared_length(unmarked, text)
        index = max((i for i in spans if spans[i][0] <= differs), default=min(spans))
        raise DataError(
            f"{_name(messages, index)} is rewritten by the chat template, so its place in the text "
            "cannot be known; change the message or the template"
        )
    moving = [index for index in spans if messages[index]["role"] != "system"]
    if moving != sorted(moving):
        raise DataError("the chat template changes the order of the messages; use another template")
    return spans


class _ResponseFinder:
    """Finds the assistant turns that follow a context message."""

    def __init__(
        self,
        template: ChatTemplate,
        text: str,
        marked: list[Message],
        marks: dict[str, tuple[int, int]],
    ) -> None:
        self.template = template
        self.text = text
        self.marked = marked
        self.end_marks = {index: mark for mark, (index, end) in marks.items() if end}
        self.parts = template.parts()
        self.prompts: dict[tuple[str, str], str] = {}

    def end_of_context(self, gap: tuple[int, int]) -> int:
        """Where a context turn ends that another context turn follows."""
        if gap[1] == len(self.text):
            return gap[1]
        stop = self.text.rfind(self.parts.stop, *gap)
        return gap[0] if stop < 0 else stop + len(self.parts.stop)

    def find(self, anchor: int, gap: tuple[int, int], *, is_last: bool) -> list[Turn]:
        """Find the turns of the assistant messages right after message `anchor`.

        Args:
            anchor: Index of a context message.
            gap: From the end of its content to the start of the next context message's.
            is_last: No context message follows.
        """
        group: list[int] = []
        for index in range(anchor + 1, len(self.marked)):
            if self.marked[index]["role"] != "assistant":
                break
            group.append(index)
        if not group:
            return []
        start = self._start(anchor, gap)
        stop = self.text.rfind(self.parts.stop, start, gap[1])
        if stop < 0:
            raise DataError(
                f"{_name(self.marked, group[-1])} does not end with the stop text "
                f"{self.parts.stop!r} of the chat template; use another template"
            )
        stop = gap[1] if is_last else stop + len(self.parts.stop)
        return self._split(group, start, stop)

    def _start(self, anchor: int, gap: tuple[int, int]) -> int:
        content = self.marked[anchor]["content"]
        bare = content.rstrip()
        last = gap[0] + len(content) - len(bare)
        # With its trailing spaces as the template writes them, or without where it treats those of
        # a last message otherwise.
        begins = {content: range(gap[0], gap[0] + 1), bare: range(last, gap[0] - 1, -1)}
        for is_anew, shown in product((False, True), begins):
            headers = self.parts.headers(self._prompt(anchor, shown, is_anew=is_anew))
            for begin, header in product(begins[shown], headers):
                if self.text.startswith(header, begin) and begin + len(header) <= gap[1]:
                    return begin + len(header)
        raise DataError(
            f"{_name(self.marked, anchor + 1)} does not start with the header that the chat "
            "template uses for generation; it is hidden or merged with another message"
        )

    def _prompt(self, anchor: int, content: str, *, is_anew: bool) -> str:
        """What follows a message of this role when the model is to answer it.

        It is rendered once for each role, so that the work stays linear in the turns; anew for
        templates that write more of a message behind its content, such as the id of a call.
        """
        message, mark = self.marked[anchor], self.end_marks[anchor]
        key = (message["role"], content.rpartition(mark)[2])
        if is_anew or key not in self.prompts:
            shown = [*self.marked[:anchor], {**message, "content": content}]
            asked = self.template.render(shown, add_generation_prompt=True)
            self.prompts[key] = asked.rpartition(mark)[2]
        return self.prompts[key]

    def _split(self, group: list[int], start: int, stop: int) -> list[Turn]:
        """Split a stretch at the headers between consecutive assistant messages."""
        if len(group) == 1:
            return [Turn(start, stop, group[0], is_response=True)]
        between = sorted(self.parts.headers(self.parts.again), key=len, reverse=True)
        cuts = list(re.compile("|".join(map(re.escape, between))).finditer(self.text, start, stop))
        if len(cuts) != len(group) - 1:
            raise DataError(
                f"messages {group[0] + 1} to {group[-1] + 1} are all from the assistant and the "
                "chat template does not keep them apart; join them into one message"
            )
        turns = []
        for index, cut in zip(group, cuts, strict=False):
            end = cut.start() + len(self.parts.stop)
            turns.append(Turn(start, end, index, is_response=True))
            turns.append(Turn(end, cut.end(), None))
            start = cut.end()
        return [*turns, Turn(start, stop, group[-1], is_response=True)]


@lru_cache(maxsize=32)
def _learn_parts(tokenizer: PreTrainedTokenizerBase, source: str, kwargs: str) -> _Parts:
    """Learn the fixed texts from short conversations whose messages are one mark each."""
    template = ChatTemplate(tokenizer, None, json.loads(kwargs))
    template.source = source
    user, answer, next_user, last_answer = _PROBE_MARKS
    asked: list[Message] = [{"role": "user", "content": user}]
    answered = [*asked, {"role": "assistant", "content": answer}]
    history = template.render(
        [
            *answered,
            {"role": "user", "content": next_user},
            {"role": "assistant", "content": last_answer},
        ]
    )
    if any(history.count(mark) != 1 for mark in _PROBE_MARKS):
        raise UserError(
            "the chat template does not show every message of a plain conversation once; "
            "use another template"
        )
    after_user = history.partition(user)[2].partition(answer)[0]
    after_answer = history.partition(answer)[2].partition(next_user)[0]
    at_the_end = history.partition(last_answer)[2]
    prompt = template.render(asked, add_generation_prompt=True).partition(user)[2]
    again = template.render(answered, add_generation_prompt=True).partition(answer)[2]
    stop = _common_tokens(tokenizer, after_answer, at_the_end)
    if not stop.strip():
        raise UserError(
            "the chat template ends an assistant message in no fixed way, so there is no stop "
            "token to train on; use another template"
        )
    shared = _shared_length(prompt, after_user)
    return _Parts(stop, prompt[shared:], after_user[shared:], again)


def _common_tokens(tokenizer: PreTrainedTokenizerBase, text: str, other: str) -> str:
    """Common prefix, but no part of a token: "<|user|>" and "<|end|>" share no token."""
    shared = _shared_length(text, other)
    if shared < len(text):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in offsets["offset_mapping"] if end <= shared]
        shared = max(ends, default=0)
    return text[:shared]


def _shared_length(text: str, other: str) -> int:
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))


def _name(messages: list[Message], index: int) -> str:
    return f"message {index + 1} ({messages[index]['role']})"
