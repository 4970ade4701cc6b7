"""What a BABILong prompt says before the context: per task an instruction, examples, a post-prompt.

The layout is that of BABILong (Kuratov et al. 2024, arXiv 2406.10149), and the post-prompts ask for
the answer in the same form, which its score relies on. Instructions and examples are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

_FACTS_ONLY = (
    "The context below mixes unrelated prose with {facts}. "
    "Answer the question from these facts alone."
)


@dataclass(frozen=True)
class TaskTexts:
    """The fixed texts of one task.

    Attributes:
        facts: What the hidden facts are about.
        rule: How they decide the answer.
        examples: Pairs of a story with its question, and the answer.
        post_prompt: The form that the answer should have.
    """

    facts: str
    rule: str
    examples: tuple[tuple[str, str], ...]
    post_prompt: str


_WORD_ONLY = (
    "Your answer should contain only one word, {what}. Do not write anything else after that."
)
_CARRYING = (
    "A thing that somebody got is carried along to every place that this person goes to, until it "
    "is dropped; then it stays where it was dropped."
)
_LATEST_PLACE = "A person who was in several places is in the latest of them."
_YES_OR_NO = _WORD_ONLY.format(what="yes or no")

TEXTS = {
    "qa1": TaskTexts(
        facts="facts about where people are",
        rule=_LATEST_PLACE,
        examples=(
            (
                "Daniel went to the garden. Mary moved to the office. Where is Daniel?",
                "The most recent location of Daniel is garden.",
            ),
            (
                "Sandra moved to the kitchen. John went to the bedroom. Sandra journeyed to the "
                "hallway. Where is Sandra?",
                "The most recent location of Sandra is hallway.",
            ),
        ),
        post_prompt=(
            "Always return your answer in the following format: The most recent location of "
            "'person' is 'location'. Do not write anything else after that."
        ),
    ),
    "qa2": TaskTexts(
        facts="facts about where people go and what they carry",
        rule=_CARRYING,
        examples=(
            (
                "Mary went to the kitchen. Mary took the milk. John moved to the garden. Mary "
                "travelled to the office. Where is the milk?",
                "The milk is in the office.",
            ),
            (
                "Daniel grabbed the apple there. Sandra went to the hallway. Daniel journeyed to "
                "the bathroom. Where is the apple?",
                "The apple is in the bathroom.",
            ),
        ),
        post_prompt=(
            "Always return your answer in the following format: The 'item' is in 'location'. "
            "Do not write anything else after that."
        ),
    ),
    "qa3": TaskTexts(
        facts="facts about where people go and what they carry",
        rule=_CARRYING,
        examples=(
            (
                "John went to the bedroom. John got the football. John moved to the kitchen. John "
                "went to the garden. Where was the football before the garden?",
                "Before the garden the football was in the kitchen.",
            ),
            (
                "Mary picked up the milk. Mary travelled to the office. Daniel went to the "
                "hallway. Mary moved to the bathroom. Where was the milk before the bathroom?",
                "Before the bathroom the milk was in the office.",
            ),
        ),
        post_prompt=(
            "Always return your answer in the following format: Before the 'location_1' the "
            "'item' was in the 'location_2'. Do not write anything else after that."
        ),
    ),
    "qa4": TaskTexts(
        facts="facts about how places lie to each other",
        rule="If one place is north of another, the other is south of it; so for east and west.",
        examples=(
            (
                "The office is south of the garden. The bathroom is north of the garden. What is "
                "the garden south of?",
                "bathroom",
            ),
            (
                "The kitchen is west of the bedroom. The bedroom is west of the hallway. What is "
                "west of the bedroom?",
                "kitchen",
            ),
        ),
        post_prompt=_WORD_ONLY.format(what="a location"),
    ),
    "qa5": TaskTexts(
        facts="facts about people who take things and give them to each other",
        rule="If something was given several times, the last time counts.",
        examples=(
            (
                "Fred picked up the apple there. Fred gave the apple to Mary. Mary moved to the "
                "bedroom. Who did Fred give the apple to?",
                "Mary",
            ),
            (
                "Bill took the milk there. Bill passed the milk to Jeff. Fred travelled to the "
                "office. What did Bill give to Jeff?",
                "milk",
            ),
            (
                "Jeff got the football there. Jeff handed the football to Bill. Jeff went to the "
                "garden. Who gave the football?",
                "Jeff",
            ),
        ),
        post_prompt=_WORD_ONLY.format(what="a person or a thing"),
    ),
    "qa6": TaskTexts(
        facts="facts about where people are",
        rule=_LATEST_PLACE,
        examples=(
            ("Mary went to the hallway. Mary moved to the office. Is Mary in the office?", "yes"),
            ("John moved to the garden. John went to the kitchen. Is John in the garden?", "no"),
        ),
        post_prompt=_YES_OR_NO,
    ),
    "qa7": TaskTexts(
        facts="facts about what people get, drop and give to each other",
        rule="Count the things that the person has at the end.",
        examples=(
            ("Mary got the milk there. How many objects is Mary carrying?", "one"),
            (
                "John took the apple there. John gave the apple to Mary. How many objects is John "
                "carrying?",
                "none",
            ),
        ),
        post_prompt=_WORD_ONLY.format(what="the number of objects or none"),
    ),
    "qa8": TaskTexts(
        facts="facts about what people get, drop and give to each other",
        rule="Name the things that the person has at the end.",
        examples=(
            ("Mary got the milk there. Mary took the apple. What is Mary carrying?", "milk,apple"),
            ("John took the apple there. John left the apple. What is John carrying?", "nothing"),
        ),
        post_prompt=(
            "Your answer should contain only one or two words: nothing, or an object, or two "
            "objects with a comma between them. Do not write anything else after that."
        ),
    ),
    "qa9": TaskTexts(
        facts="facts about where people are and are not",
        rule=_LATEST_PLACE,
        examples=(
            ("John is not in the office. Mary is in the garden. Is John in the office?", "no"),
            (
                "Sandra went to the kitchen. John is in the hallway. Is Sandra in the kitchen?",
                "yes",
            ),
        ),
        post_prompt=_YES_OR_NO,
    ),
    "qa10": TaskTexts(
        facts="facts about where people are or may be",
        rule="If a person may be in the place that is asked about, the answer is maybe.",
        examples=(
            ("Bill is either in the school or the park. Is Bill in the park?", "maybe"),
            ("Fred is in the bedroom. Julie went to the cinema. Is Fred in the kitchen?", "no"),
            ("Julie moved to the cinema. Bill is in the office. Is Julie in the cinema?", "yes"),
        ),
        post_prompt=_WORD_ONLY.format(what="yes, no or maybe"),
    ),
}


def build_prompt(task: str, context: str, question: str) -> str:
    """The user's turn.

    Args:
        task: qa1 to qa10.
        context: Prose with the facts in it.
        question: The question.
    """
    texts = TEXTS[task]
    instruction = f"{_FACTS_ONLY.format(facts=texts.facts)} {texts.rule}"
    examples = "\n\n".join(
        f"<example>\n{story}\nAnswer: {answer}\n</example>" for story, answer in texts.examples
    )
    return (
        f"{instruction}\n\n{examples}\n\n{texts.post_prompt}\n\n"
        f"<context>\n{context.strip()}\n</context>\n\nQuestion: {question.strip()}"
    )
