"""Which option an answer chose: the published rule, and what a reader would say."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WRAPPING = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mathit|bf|rm)\b\s*\{?")
_LETTER = re.compile(
    r"(?i:the )?(?i:answer|option|choice)?(?i: is)?:?\s*\(?([A-Z])\)?(?:[.):,].*)?"
)

_WHITE_SPACE = re.compile(r"\s{2,}")


def _shortened(white_space: re.Match[str]) -> str:
    return "\n" if "\n" in white_space[0] else " "


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
    # White space in long runs would take time that grows with its square.
    text = _WHITE_SPACE.sub(_shortened, text.rsplit("</think>", 1)[-1])
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


def _letter(text: str, options: Sequence[str], letters: str) -> str | None:
    plain = _plain(text)
    if len(plain) == 1 and plain in letters:
        # What the prompt asks for, even where an option is a letter itself.
        return plain
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
