import itertools
import json
import math
import random
import time

import pytest

from focusft.data.multiple_choice import Question
from focusft.errors import ConfigError
from focusft.evaluation.agent import (
    Budget,
    Reply,
    Tool,
    ToolOutput,
    code_interpreter,
    describe,
    evaluate,
    extract_lenient,
    extract_strict,
    pass_at_k,
    pass_at_k_estimate,
    run_episodes,
    summarise,
)
from focusft.evaluation.sandbox import Result, Unprotected
from tests.evaluation.needs_bwrap import bwrap_or_skip
from tests.evaluation.test_tool_calls import TOOL, fuzzed_outputs

ASK = [{"role": "user", "content": "How much is 6 * 7?"}]


class Scripted:
    """A model that says what a function of the conversation says."""

    def __init__(self, speak, tokens=10):
        self.speak = speak
        self.tokens = tokens
        self.asked = []

    def generate(self, conversations, *, tools, max_new_tokens, samples):
        self.asked.append((len(conversations), tools, list(max_new_tokens)))
        replies = [self.speak(messages) for messages in conversations]
        return [r if isinstance(r, Reply) else Reply(r, self.tokens) for r in replies]


def echo(arguments):
    code = arguments["code"]
    return ToolOutput(f"ran {code}", failed="fail" in code)


ECHO = Tool(TOOL, echo)


def written(code):
    call = {"name": "code_interpreter", "arguments": {"code": code}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def replying(*texts):
    """Says one text after the other in each conversation, then the last one for ever."""

    def speak(messages):
        turn = sum(message["role"] == "assistant" for message in messages)
        return texts[min(turn, len(texts) - 1)]

    return Scripted(speak)


def episode(backend, **options):
    ((index, result),) = run_episodes([ASK], backend, **{"tools": [ECHO], **options})
    assert index == 0
    json.dumps(result.messages)
    return result


def test_a_call_is_made_and_answered():
    backend = replying(f"I compute.\n{written('6 * 7')}<|im_end|>", "It is \\boxed{A}")
    result = episode(backend)
    call = {
        "id": "t001c0000",
        "type": "function",
        "function": {"name": "code_interpreter", "arguments": {"code": "6 * 7"}},
    }
    assert result.messages == [
        *ASK,
        {"role": "assistant", "content": "I compute.", "tool_calls": [call]},
        {
            "role": "tool",
            "name": "code_interpreter",
            "tool_call_id": "t001c0000",
            "content": "ran 6 * 7",
        },
        {"role": "assistant", "content": "It is \\boxed{A}"},
    ]
    assert (result.ended, result.turns, result.tokens) == ("answer", 2, 20)
    assert (result.calls, result.failed_calls, result.broken_calls) == (1, 0, 0)
    assert result.answer == "It is \\boxed{A}" and not result.truncated
    assert backend.asked[0] == (1, [TOOL], [20_480]) and backend.asked[1][2] == [20_470]
    assert ASK == [{"role": "user", "content": "How much is 6 * 7?"}]


def test_thinking_is_kept_where_templates_look_for_it():
    thoughts = iter(["first", "second", "third"])
    texts = iter([written("1"), "<tool_call>{broken</tool_call>", "done"])
    backend = Scripted(lambda messages: Reply(next(texts), 5, thinking=next(thoughts)))
    result = episode(backend)
    said = [m for m in result.messages if m["role"] == "assistant"]
    assert [m["reasoning_content"] for m in said] == ["first", "second", "third"]


def test_several_calls_are_made_in_order():
    result = episode(replying(written("1") + written("fail") + written("3"), "done"))
    assert [m["content"] for m in result.messages if m["role"] == "tool"] == [
        "ran 1",
        "ran fail",
        "ran 3",
    ]
    ids = [call["id"] for call in result.messages[1]["tool_calls"]]
    assert ids == [m["tool_call_id"] for m in result.messages if m["role"] == "tool"]
    assert (result.calls, result.failed_calls) == (3, 1)


@pytest.mark.parametrize("role", ["tool", "user"])
def test_broken_calls_are_answered_with_what_is_wrong(role):
    text = written("1") + "<tool_call>{broken</tool_call>"
    result = episode(replying(text, "sorry"), error_role=role)
    assert result.messages[1] == {"role": "assistant", "content": text}
    answers = result.messages[2:-1]
    assert {message["role"] for message in answers} == {role}
    shown = "\n".join(message["content"] for message in answers)
    assert shown.startswith("ran 1\n") and "not valid JSON" in shown
    assert len(answers) == (1 if role == "user" else 2)
    assert (result.calls, result.broken_calls, result.ended) == (1, 1, "answer")


def test_budget_of_turns():
    backend = replying(written("1"))
    result = episode(backend, budget=Budget(turns=3))
    assert (result.ended, result.turns, result.calls) == ("turns", 3, 3)
    assert result.truncated and result.answer == ""
    assert len(backend.asked) == 3


def test_budget_of_tokens():
    result = episode(replying(written("1")), budget=Budget(tokens=25))
    assert (result.ended, result.tokens, result.turns) == ("tokens", 30, 3)
    cut = Scripted(lambda messages: Reply(written("1"), 25, truncated=True))
    result = episode(cut)
    assert (result.ended, result.calls, len(result.messages)) == ("tokens", 0, 2)


def test_thinking_with_a_budget_of_its_own_is_free():
    replies = iter([Reply(written("1"), 1000, free_tokens=990), Reply("done", 5)])
    result = episode(Scripted(lambda messages: next(replies)), budget=Budget(tokens=25))
    assert (result.ended, result.tokens, result.free_tokens) == ("answer", 1005, 990)


def test_budget_of_time():
    def slow(arguments):
        time.sleep(0.06)
        return ToolOutput("late", failed=False)

    result = episode(
        replying(written("1") * 4), tools=[Tool(TOOL, slow)], budget=Budget(seconds=0.1)
    )
    assert (result.ended, result.calls, result.turns) == ("time", 2, 1)
    assert result.seconds >= 0.1


def test_budget_of_calls_per_turn():
    result = episode(replying(written("1") * 50, "done"), budget=Budget(calls_per_turn=3))
    assert (result.calls, result.broken_calls) == (3, 1)
    assert "at most 3 calls" in result.messages[5]["content"]
    assert "47 more" in result.messages[5]["content"]


def test_budgets_and_options_that_make_no_sense():
    for name in ("turns", "tokens", "seconds", "calls_per_turn"):
        with pytest.raises(ConfigError, match=name):
            Budget(**{name: 0})
    with pytest.raises(ConfigError, match="error_role"):
        episode(replying("x"), error_role="system")
    with pytest.raises(ConfigError, match="batch_size"):
        episode(replying("x"), batch_size=0)


def test_without_tools_one_reply_is_the_answer():
    backend = replying(written("1"))
    result = episode(backend, tools=[])
    assert (result.ended, result.calls, len(result.messages)) == ("answer", 0, 2)
    assert backend.asked[0][1] is None


def test_batches_stay_full():
    """Episodes of unlike lengths: one that ends makes room for the next at once."""
    lengths = [1, 4, 2, 1, 3, 1, 2]

    def speak(messages):
        turn = sum(message["role"] == "assistant" for message in messages)
        wanted = lengths[int(messages[0]["content"])]
        return "done" if turn + 1 == wanted else written("1")

    backend = Scripted(speak)
    conversations = [[{"role": "user", "content": str(n)}] for n in range(len(lengths))]
    results = dict(run_episodes(conversations, backend, tools=[ECHO], batch_size=3))
    assert {index: e.turns for index, e in results.items()} == dict(enumerate(lengths))
    assert max(size for size, _, _ in backend.asked) == 3
    assert sum(size for size, _, _ in backend.asked) == sum(lengths)
    assert len(backend.asked) == 5


def test_the_loop_survives_500_fuzzed_outputs():
    outputs = list(fuzzed_outputs(500, seed=1))

    def speak(messages):
        turn = sum(message["role"] == "assistant" for message in messages)
        first = int(messages[0]["content"])
        return outputs[first] if turn == 0 else outputs[(first * 7 + turn) % 500]

    conversations = [[{"role": "user", "content": str(n)}] for n in range(500)]
    results = dict(
        run_episodes(
            conversations, Scripted(speak), tools=[ECHO], budget=Budget(turns=3), batch_size=50
        )
    )
    assert sorted(results) == list(range(500))
    assert {result.ended for result in results.values()} == {"answer", "turns"}
    assert sum(result.calls for result in results.values()) > 100
    assert sum(result.broken_calls for result in results.values()) > 100
    for number, result in results.items():
        assert result.messages[0]["content"] == str(number)
        json.dumps(result.messages)


def test_code_interpreter_runs_code():
    tool = code_interpreter(Unprotected(code_may_read_and_delete_my_files=True), timeout_s=1)
    assert tool.name == "code_interpreter"
    assert tool.schema["function"]["parameters"]["required"] == ["code"]
    assert tool.call({"code": "6 * 7"}) == ToolOutput("42", failed=False)
    assert tool.call({"code": "x = 1"}) == ToolOutput("(no output)", failed=False)
    failed = tool.call({"code": "print('a')\n1 / 0"})
    assert failed.failed and failed.text.startswith("a\nTraceback")
    assert failed.text.endswith("ZeroDivisionError: division by zero")
    late = tool.call({"code": "while True:\n    pass"})
    assert late == ToolOutput("Error: the code ran longer than 1 seconds and was stopped", True)
    long = tool.call({"code": "print('a' * 500 + 'z' * 500)"})
    assert long.text == "a" * 128 + "\n[... 744 characters cut ...]\n" + "z" * 128


def test_code_interpreter_uses_the_sandbox():
    bwrap_or_skip()
    tool = code_interpreter()
    assert tool.call({"code": "import os\nos.path.exists('/root')"}) == ToolOutput("False", False)


def test_every_end_of_a_run_is_described():
    for stopped in ("time", "memory", "files", "output"):
        text = describe(Result("out\n", "", 137, stopped == "time", stopped), 30, 2048)
        assert text.startswith("out\nError: the code ") and text.endswith("was stopped")
    assert describe(Result("", "", 3, False), 30, 2048) == "Error: exit status 3"


@pytest.mark.parametrize(
    "text, strict, lenient",
    [
        ("so \\boxed{B}", "B", "B"),
        ("\\boxed{A} no, \\boxed{C}.", "C", "C"),
        ("\\boxed{\\text{B}}", "\\text{B}", "B"),
        ("\\boxed{\\textbf{(B)}}", "\\textbf{(B)}", "B"),
        ("\\boxed{\\mathrm B}", "\\mathrm B", "B"),
        ("\\boxed{ B }", " B ", "B"),
        ("\\boxed{(D)}", "(D)", "D"),
        ("\\boxed{B. 2 km}", "B. 2 km", "B"),
        ("\\boxed{\\text{C) 3 km}}", "\\text{C) 3 km}", "C"),
        ("\\boxed{3 km}", "3 km", "C"),
        ("\\boxed{A photon}", "A photon", "D"),
        ("\\boxed{Option B}", "Option B", "B"),
        ("\\boxed{E}", "E", None),
        ("\\boxed{42}", "42", None),
        ("\\boxed{}", "", None),
        ("\\boxed{B", None, None),
        ("\\boxed{B} and \\boxed{C", "B", "B"),
        ("\\boxed{B}" + " " * 400, None, "B"),
        ("The answer is (B).", None, "B"),
        ("**Answer: C**", None, "C"),
        ("the answer is A. Wait, the answer is D.", None, "D"),
        ("I choose option B because", None, "B"),
        ("The answer is Boron", None, None),
        ("thus\n\n(C)", None, "C"),
        ("thus\n**A**\n", None, "A"),
        ("<think>\\boxed{A}</think> The answer is B", "A", "B"),
        ("no idea", None, None),
        ("", None, None),
    ],
)
def test_extraction(text, strict, lenient):
    assert extract_strict(text) == strict
    assert extract_lenient(text, ("1 km", "2 km", "3 km", "A photon")) == lenient


def test_a_letter_is_the_option_that_it_names_even_where_options_are_letters():
    options = ("B", "A", "D", "C")
    assert extract_lenient("\\boxed{B}", options) == "B"
    assert extract_lenient("\\boxed{\\text{C}}", options) == "C"


def test_extraction_takes_any_text():
    options = ("1", "2", "3", "4")
    runs = ("\\boxed{" * 50_000, "{" * 100_000, "(" * 50_000, "the answer is" + "\n" * 100_000)
    for text in (*fuzzed_outputs(500, seed=2), *runs):
        extract_strict(text)
        assert extract_lenient(text, options) in (None, *"ABCD")


def test_pass_at_k_is_the_closed_formula_and_the_count_of_all_draws():
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            solved = sum(min(draw) < c for draw in draws)
            assert pass_at_k(n, c, k) == pytest.approx(solved / len(draws), abs=1e-12)
            product = 1.0
            for i in range(n - c + 1, n + 1):
                product *= 1 - k / i
            assert pass_at_k(n, c, k) == pytest.approx(1 - product, abs=1e-12)
    assert pass_at_k(32, 8, 1) == 0.25
    assert pass_at_k(1000, 1, 1000) == 1.0
    assert pass_at_k(10_000, 1, 10) == pytest.approx(0.001)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_nonsense(n, c, k):
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, c, k)


def test_pass_at_k_is_unbiased():
    rng = random.Random(0)
    draws = [sum(rng.random() < 0.3 for _ in range(8)) for _ in range(20_000)]
    mean = sum(pass_at_k(8, c, 4) for c in draws) / len(draws)
    assert mean == pytest.approx(1 - 0.7**4, abs=0.01)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(1)
    covered = 0
    for trial in range(200):
        rates = [rng.betavariate(1, 1) for _ in range(60)]
        counts = [(4, sum(rng.random() < rate for _ in range(4))) for rate in rates]
        estimate = pass_at_k_estimate(counts, 1, resamples=500, seed=trial)
        assert estimate.low <= estimate.score <= estimate.high and estimate.n == 60
        covered += estimate.low <= 0.5 <= estimate.high
    assert 180 <= covered <= 200


def test_interval_is_never_certain():
    half = pass_at_k_estimate([(2, 1)] * 20, 1)
    assert half.low < half.score == 0.5 < half.high
    always = pass_at_k_estimate([(4, 4)] * 20, 1)
    never = pass_at_k_estimate([(4, 0)] * 20, 2)
    assert (always.score, always.high) == (1.0, 1.0) and 0.8 < always.low < 0.9
    assert (never.score, never.low) == (0.0, 0.0) and 0.1 < never.high < 0.2
    for counts, k in (([], 1), ([(4, 1), (2, 1)], 3), ([(4, 1)], 0)):
        with pytest.raises(ConfigError, match="pass@"):
            pass_at_k_estimate(counts, k)


QUESTIONS = [
    Question(f"q{n}", f"question {n}", ("1", "2", "3", "4"), "ABCD"[n % 4]) for n in range(50)
]


def prompt(question):
    return [{"role": "user", "content": question.id}]


def solving(chance, seed=0):
    """Uses the tool once, then gives the right letter with a known probability."""
    rng = random.Random(seed)
    answers = {question.id: question.answer for question in QUESTIONS}

    def speak(messages):
        if messages[-1]["role"] == "user":
            return written("6 * 7")
        right = answers[messages[0]["content"]]
        letter = right if rng.random() < chance else "ABCD"[("ABCD".index(right) + 1) % 4]
        return f"\\boxed{{{letter}}}"

    return Scripted(speak)


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.7, 1.0])
def test_scripted_models_get_their_known_rates(chance):
    """Over 20 runs, so that neither a lucky nor an unlucky seed decides."""
    runs = []
    for seed in range(20):
        model = solving(chance, seed)
        options = {"samples": 8, "tools": [ECHO], "batch_size": 64}
        records = list(evaluate(QUESTIONS, model, prompt=prompt, **options))
        assert len(records) == 400
        runs.append(summarise(json.loads(json.dumps(records)), ks=(1, 4, 8)))
    for rule, k in itertools.product(("strict", "lenient"), (1, 4, 8)):
        truth = 1 - (1 - chance) ** k
        estimates = [summary[rule][f"pass@{k}"] for summary in runs]
        mean = sum(estimate["score"] for estimate in estimates) / len(runs)
        assert mean == pytest.approx(truth, abs=0.02)
        # 95% intervals: 19 of 20 are expected; fewer than 16 happen once in 400 times.
        inside = sum(e["low"] <= truth <= e["high"] for e in estimates)
        assert inside >= (20 if chance in (0.0, 1.0) else 16)
        assert {estimate["n"] for estimate in estimates} == {50}
    for summary in runs:
        assert summary["rates"] == {
            "tool_use": 1.0,
            "tool_error": 0.0,
            "no_answer_strict": 0.0,
            "no_answer_lenient": 0.0,
            "truncation": 0.0,
        }
        assert (summary["answers"], summary["mean_turns"], summary["mean_tokens"]) == (400, 2, 20)


def test_rates_say_what_went_wrong():
    texts = {
        "q0": ["\\boxed{A}"],
        "q1": [written("fail"), "\\boxed{\\text{B}}"],
        "q2": ["<tool_call>{", "I do not know"],
        "q3": [written("1")],
    }

    def speak(messages):
        turn = sum(message["role"] == "assistant" for message in messages)
        said = texts[messages[0]["content"]]
        return said[min(turn, len(said) - 1)]

    backend = Scripted(speak)
    records = list(
        evaluate(QUESTIONS[:4], backend, prompt=prompt, tools=[ECHO], budget=Budget(turns=2))
    )
    summary = summarise(records)
    assert summary["rates"] == {
        "tool_use": 0.5,
        # One failed and one broken call, beside two good ones.
        "tool_error": 2 / 4,
        "no_answer_strict": 0.5,
        "no_answer_lenient": 0.5,
        "truncation": 0.25,
    }
    assert summary["strict"]["pass@1"]["score"] == 0.25
    assert summary["lenient"]["pass@1"]["score"] == 0.5
    with pytest.raises(ConfigError, match="no answered questions"):
        summarise([])


def test_a_resumed_run_leaves_out_what_is_done():
    whole = list(evaluate(QUESTIONS[:3], solving(1.0), prompt=prompt, samples=2, tools=[ECHO]))
    done = {(r["question"], r["sample"]) for r in whole[:4]}
    rest = list(
        evaluate(QUESTIONS[:3], solving(1.0), prompt=prompt, samples=2, tools=[ECHO], done=done)
    )
    pairs = {(r["question"], r["sample"]) for r in rest}
    assert pairs == {(f"q{n}", s) for n in range(3) for s in range(2)} - done
    assert math.isclose(summarise(whole[:4] + rest)["strict"]["pass@1"]["score"], 1.0)
