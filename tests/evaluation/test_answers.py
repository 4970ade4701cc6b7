import pytest
import torch
from tokenizers import AddedToken

from focusft.errors import ConfigError
from focusft.evaluation.answers import Answer, Limits, ThinkingTags
from focusft.evaluation.generation import LocalGenerator, Prompt, encode
from tests.tiny_models import CHATML, tiny_model, tiny_tokenizer

STOP, START, END, BREAK, SHUT = 2, 10, 11, 12, 13
TAGS = ThinkingTags(START, END, (BREAK, END, SHUT))
THINKING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")


def write(proposals, *, max_new_tokens=3, budget=None, tags=TAGS, is_thinking=False):
    """Propose tokens, the last one again and again, until the answer is done."""
    answer = Answer(
        Limits(frozenset({STOP}), max_new_tokens, tags, budget), is_thinking=is_thinking
    )
    while not answer.is_done:
        answer.take(proposals[min(len(answer.tokens), len(proposals) - 1)])
    return answer


@pytest.mark.parametrize(
    ("settings", "tokens", "thinking_tokens"),
    [
        # Thinking that ends by itself, within the budget and just at its end.
        ({"budget": 5}, [START, 50, END, 60, 61, 62], 3),
        ({"budget": 1}, [START, 50, END, 60, 61, 62], 3),
        # Thinking that is cut off: the forced tokens do not count as the answer's.
        ({"budget": 2}, [START, 50, 50, BREAK, END, SHUT, 50, 50, 50], 6),
        ({"budget": 0}, [START, BREAK, END, SHUT, 50, 50, 50], 4),
        # Opened by the template.
        ({"budget": 2, "is_thinking": True}, [50, 50, BREAK, END, SHUT, 50, 50, 50], 5),
        ({"budget": 0, "is_thinking": True}, [BREAK, END, SHUT, 50, 50, 50], 3),
        ({"budget": 2, "is_thinking": True}, [50, END, 60, STOP], 2),
        # A model that does not think, and one that says so later, answers at once.
        ({"budget": 2}, [60, STOP], 0),
        ({"budget": 2}, [60, START, 61], 0),
        # Without a budget the thinking takes part of the answer's tokens.
        ({}, [START, 50, END], 3),
        ({}, [START, 50, 50], 3),
        ({"is_thinking": True}, [50, END, STOP], 2),
        ({"tags": None}, [START, 50, END], 0),
    ],
)
def test_thinking_and_answer_have_budgets_of_their_own(settings, tokens, thinking_tokens):
    is_forced = BREAK in tokens
    proposals = ([START] if tokens[0] == START else []) + [50] if is_forced else tokens
    answer = write(proposals, **settings)
    assert answer.tokens == tokens
    assert answer.thinking_tokens == thinking_tokens
    assert answer.is_stopped == (tokens[-1] == STOP)
    limits = Limits(frozenset(), 3, settings.get("tags", TAGS), settings.get("budget"))
    assert len(tokens) <= limits.room


def test_a_model_that_stops_while_it_thinks_is_done():
    answer = write([50, STOP], budget=5, is_thinking=True)
    assert (answer.tokens, answer.thinking_tokens, answer.is_stopped) == ([50, STOP], 2, True)


def thinking_tokenizer(template):
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    return tokenizer


def test_a_cut_off_thinker_answers_as_if_it_had_written_the_end_itself():
    tokenizer = thinking_tokenizer(THINKING)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    budgets = {"hi": 7, "where is the milk": 7}
    prompts = [Prompt(({"role": "user", "content": text},), max_new_tokens=9) for text in budgets]
    done = dict(LocalGenerator(model, tokenizer, thinking_budget=7).complete(prompts))
    forced = tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"]
    for index, prompt in enumerate(prompts):
        ids = encode(tokenizer, prompt, chat=True)
        assert tokenizer.decode(ids).endswith("<think>\n")
        parts = []
        for tokens in (7, 9):
            part: list[int] = []
            for _ in range(tokens):
                logits = model(torch.tensor([ids + part]), use_cache=False).logits
                part.append(int(logits[0, -1].argmax()))
            assert 2 not in part
            ids += part + forced
            parts.append(tokenizer.decode(part, skip_special_tokens=True))
        completion = done[index]
        assert completion.thinking == parts[0].strip()
        assert completion.text == parts[1]
        assert completion.thinking_tokens == 7 + len(forced)
        assert completion.tokens == 7 + len(forced) + 9
        assert completion.truncated


def test_a_template_that_closes_the_thinking_gets_an_answer_at_once():
    closed = THINKING.replace("<think>\n", "<think>\n\n</think>\n\n")
    tokenizer = thinking_tokenizer(closed)
    model = tiny_model("llama", vocab_size=len(tokenizer))
    prompt = Prompt(({"role": "user", "content": "hi <think>"},), max_new_tokens=5)
    ((_, completion),) = LocalGenerator(model, tokenizer, thinking_budget=7).complete([prompt])
    assert (completion.tokens, completion.thinking_tokens, completion.thinking) == (5, 0, "")


def saying(model, ids):
    """Make a model say these tokens, whatever it is asked."""
    left = iter(ids)

    def say(module, args, kwargs, output):
        # A generator that is made measures the model with one token.
        if kwargs.get("logits_to_keep") and kwargs["input_ids"].shape[1] == 1:
            output.logits[:, -1, next(left)] += 1e4

    model.register_forward_hook(say, with_kwargs=True)
    return model


@pytest.mark.parametrize(
    ("template", "written", "thinking", "text"),
    [
        (CHATML, "<think>\nIt is 5.\n</think>\n\nNo: 6", "It is 5.", "No: 6"),
        (CHATML, "<think>\nIt is 5", "It is 5", ""),
        (THINKING, "It is 5.</think>\n\n6", "It is 5.", "6"),
        (THINKING, "It is 5", "It is 5", ""),
        (CHATML, "It is <think> 5", "", "It is <think> 5"),
    ],
)
@pytest.mark.parametrize("are_tokens", [True, False])
def test_thinking_is_no_part_of_the_answer(template, written, thinking, text, are_tokens):
    tokenizer = (thinking_tokenizer if are_tokens else tiny_tokenizer)(template)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    model = saying(tiny_model("llama", vocab_size=len(tokenizer)), [*ids, STOP])
    prompt = Prompt(({"role": "user", "content": "hi"},), max_new_tokens=99)
    ((_, completion),) = LocalGenerator(model, tokenizer).complete([prompt])
    assert (completion.thinking, completion.text) == (thinking, text)
    assert bool(completion.thinking_tokens) == bool(thinking)
    assert completion.tokens == len(ids) + 1


def test_a_thinking_budget_needs_a_model_that_thinks():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match="--thinking_budget: the model does not think"):
        LocalGenerator(tiny_model("llama", vocab_size=300), tokenizer, thinking_budget=5)
    with pytest.raises(ConfigError, match="-1 is negative"):
        LocalGenerator(
            tiny_model("llama", vocab_size=300), thinking_tokenizer(THINKING), thinking_budget=-1
        )
