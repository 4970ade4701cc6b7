"""Whole runs of the agent suite with scripted models: rates, transcripts, resuming."""

import io
import json
import random
import time
from dataclasses import replace

import pytest
from rich.console import Console

from focusft.data.multiple_choice import CODE_INTERPRETER, Question
from focusft.errors import ConfigError, DataError
from focusft.evaluation.agent import Budget, Tool, ToolOutput
from focusft.evaluation.agent_backend import GeneratorBackend
from focusft.evaluation.agent_run import results_table, run_agent_suite
from focusft.evaluation.agent_transcripts import transcripts
from focusft.evaluation.generation import Completion
from tests.data.small_tokenizer import make_tokenizer

QUESTIONS = [
    Question(f"q{n}", f"Question {n}?", ("1", "2", "3", "4"), "ABCD"[n % 4], "Physics", kind)
    for n, kind in enumerate(["heat", "product"] * 20)
]
TOOL = Tool(CODE_INTERPRETER, lambda arguments: ToolOutput("42", failed=False))
CALL = '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "6 * 7"}}\n</tool_call>'


class Solver:
    """Calls the tool if there is one; then it is right with a probability that depends on that."""

    def __init__(self, with_tool, without_tool, seed=0, stop_after=10**9):
        self.chances = {True: with_tool, False: without_tool}
        self.seed = seed
        self.left = stop_after
        self.written = 0
        self.answers = {q.text: q.answer for q in QUESTIONS}

    def describe(self):
        return {"backend": "scripted", "seed": self.seed}

    def complete(self, prompts):
        for index, prompt in enumerate(prompts):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.written += 1
            yield index, Completion(self.write(prompt), 100, 10, False, 0.1)

    def write(self, prompt):
        has_tool = "code_interpreter" in prompt.messages[0]["content"]
        if has_tool and prompt.messages[-1]["content"].startswith("Solve"):
            return CALL
        asked = next(m["content"] for m in prompt.messages if m["content"].startswith("Solve"))
        right = next(letter for text, letter in self.answers.items() if f"\n{text}\n" in asked)
        draw = random.Random(f"{self.seed} {prompt.sample} {asked}").random()
        wrong = "ABCD"[("ABCD".index(right) + 1) % 4]
        return f"\\boxed{{{right if draw < self.chances[has_tool] else wrong}}}"


def run(out, solver, questions=QUESTIONS, **options):
    tokenizer = make_tokenizer("smollm2")
    options = {
        "modes": ("tools", "no_tools"),
        "samples": 4,
        "budget": Budget(turns=3),
        "batch_size": 7,
        "config": {"samples": 4},
        "versions": {"python": "3"},
        **options,
    }
    backend = GeneratorBackend(solver, tokenizer)
    return run_agent_suite(questions, backend, TOOL, out, Console(file=io.StringIO()), **options)


def episodes(out):
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


@pytest.mark.parametrize(
    "with_tool, without_tool, seed", [(1.0, 0.0, 0), (0.7, 0.3, 1), (0.25, 0.25, 2)]
)
def test_scripted_models_get_their_known_rates(tmp_path, with_tool, without_tool, seed):
    results = run(tmp_path, Solver(with_tool, without_tool, seed))
    for mode, rate in (("tools", with_tool), ("no_tools", without_tool)):
        summary = results["modes"][mode]
        assert list(summary["strict"]) == ["pass@1", "pass@2", "pass@4"]
        for rule in ("strict", "lenient"):
            figures = summary[rule]["pass@1"]
            assert figures["low"] - 1e-9 <= rate <= figures["high"] + 1e-9
            assert figures["n"] == 40
            assert summary[rule]["pass@4"]["score"] >= figures["score"]
        assert summary["rates"]["tool_use"] == (mode == "tools")
        assert summary["rates"]["truncation"] == summary["rates"]["no_answer_strict"] == 0
        assert results["mean"][mode]["score"] == summary["strict"]["pass@1"]["score"]
        assert {row[mode]["n"] for row in results["tasks"].values()} == {20}
    assert list(results["tasks"]) == ["heat", "product"]
    for rule in ("strict", "lenient"):
        difference = results["difference"][rule]
        if (with_tool, without_tool) == (1, 0):
            # Each question gave the same difference.
            assert difference["low"] is None and difference["high"] is None
        else:
            assert difference["low"] <= with_tool - without_tool <= difference["high"]
    assert results == json.loads((tmp_path / "results.json").read_text())
    table = Console(file=io.StringIO(), width=120)
    table.print(results_table(results))
    assert "pass@4 lenient" in table.file.getvalue() and "tools minus no tools" in (
        table.file.getvalue()
    )


def test_kinds_of_questions_are_no_markup(tmp_path):
    kinds = ("logic [/easy]", "[red]")
    questions = [replace(QUESTIONS[n], kind=kind) for n, kind in enumerate(kinds)]
    results = run(tmp_path, Solver(1, 1), questions, samples=1)
    table = Console(file=io.StringIO(), width=120)
    table.print(results_table(results))
    assert all(f"pass@1 {kind} " in table.file.getvalue() for kind in kinds)


def test_every_transcript_is_saved_in_order(tmp_path):
    run(tmp_path, Solver(0.5, 0.5), samples=2)
    saved = episodes(tmp_path)
    assert [(e["mode"], e["question"], e["sample"]) for e in saved] == [
        (mode, f"q{n}", sample)
        for mode in ("tools", "no_tools")
        for n in range(40)
        for sample in range(2)
    ]
    roles = [[message["role"] for message in e["messages"]] for e in saved]
    assert roles[0] == ["user", "assistant", "tool", "assistant"]
    assert roles[-1] == ["user", "assistant"]
    assert saved[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"code": "6 * 7"}


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = run(whole, Solver(0.6, 0.2))
    with pytest.raises(KeyboardInterrupt):
        run(killed, Solver(0.6, 0.2, stop_after=200))
    file = killed / "episodes.jsonl"
    finished = len(file.read_text().splitlines())
    assert 50 < finished < 200
    with file.open("a") as lines:
        lines.write('{"mode": "tools", "question": "q3\ud800'.encode(errors="replace").decode())
    solver = Solver(0.6, 0.2)
    results = run(killed, solver)
    assert solver.written < 40 * 4 * 3 - finished
    assert episodes(killed) == episodes(whole)
    assert {**results, "seconds": 0} == {**uninterrupted, "seconds": 0}
    again = Solver(0.6, 0.2)
    # What is only shown again was not made with the versions of this start.
    shown = run(killed, again, versions={"python": "4"})
    assert {**shown, "seconds": 0} == {**results, "seconds": 0}
    assert again.written == 0
    # An answer that is to be given again makes the run unfinished.
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(KeyboardInterrupt):
        run(killed, Solver(0.6, 0.2, stop_after=0))
    assert not (killed / "results.json").exists()
    assert run(killed, Solver(0.6, 0.2), versions={"python": "4"})["versions"] == {"python": "4"}


def test_seconds_are_those_that_the_run_took(tmp_path):
    class Slow(Solver):
        def complete(self, prompts):
            time.sleep(0.02)
            yield from super().complete(prompts)

    started = time.monotonic()
    results = run(tmp_path, Slow(1, 1), samples=1, modes=("tools",))
    # 40 conversations of two turns, seven at a time, wait together.
    assert 0.2 < results["seconds"] < time.monotonic() - started


def test_a_run_does_not_go_on_with_other_settings(tmp_path):
    run(tmp_path, Solver(1, 1), samples=1, modes=("tools",), config={"top_p": 0.6})
    with pytest.raises(ConfigError, match="--top_p"):
        run(tmp_path, Solver(1, 1), samples=1, modes=("tools",), config={"top_p": 1.0})
    with pytest.raises(ConfigError, match=r"questions\.n"):
        run(tmp_path, Solver(1, 1), QUESTIONS[:9], config={"top_p": 0.6})


def test_a_damaged_line_is_named(tmp_path):
    run(tmp_path, Solver(1, 1), samples=1)
    file = tmp_path / "episodes.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:4], "{broken\n", *lines[5:]]))
    with pytest.raises(DataError, match=r"episodes.jsonl: line 5 is damaged"):
        run(tmp_path, Solver(1, 1), samples=1)


def test_transcripts_show_right_and_wrong_answers(tmp_path):
    run(tmp_path, Solver(0.5, 0.5), samples=1)
    text = (tmp_path / "transcripts.md").read_text()
    saved = episodes(tmp_path)
    for mode in ("tools", "no_tools"):
        right = sum(e["right"]["strict"] for e in saved if e["mode"] == mode)
        assert f"## {mode}: right ({right})" in text
        assert f"## {mode}: wrong ({40 - right})" in text
    assert text.count("\n### ") == 4 * 3
    assert "[code_interpreter]\n6 * 7" in text and "**tool**\n```\n42\n```" in text


def test_transcripts_cannot_be_broken_by_backticks():
    episode = {
        "mode": "tools", "kind": "k", "question": "q", "sample": 0, "strict": None,
        "reference": "A", "ended": "answer", "right": {"strict": False},
        "messages": [{"role": "user", "content": "a\n`````\nb"}],
    }  # fmt: skip
    assert "``````\na\n`````\nb\n``````" in transcripts([episode])
