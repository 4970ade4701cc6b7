"""The agent suite and its data from the command line, with a tiny random model."""

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from focusft.cli import main
from focusft.evaluation.gpqa import load_gpqa
from tests.evaluation.needs_bwrap import bwrap_or_skip
from tests.evaluation.test_gpqa import ROWS
from tests.tiny_models import tiny_model, tiny_tokenizer

CONSENT = ["--sandbox", "unprotected", "--code_may_read_and_delete_my_files"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gpqa_file(tmp_path):
    """In GPQA's form, but made for the test."""
    path = tmp_path / "gpqa.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS[:3])
    return path


def evaluate(model, questions, out, *more):
    paths = ["--questions", str(questions), "--out", str(out)]
    return main(["eval", str(model), "--suite", "agent", *paths, "--max_new_tokens", "8", *more])


def test_a_gpqa_file_with_and_without_tools(model, gpqa_file, tmp_path, capsys):
    bwrap_or_skip()
    out = tmp_path / "out"
    assert evaluate(model, gpqa_file, out, "--both", "--samples", "2") == 0
    said = capsys.readouterr().out
    assert "pass@2 strict" in said and "tools minus no tools" in said
    results = json.loads((out / "results.json").read_text())
    assert results["suite"] == "agent"
    assert set(results["tasks"]) == {"Physics", "Chemistry", "Biology"}
    assert set(results["modes"]) == {"tools", "no_tools"}
    assert results["modes"]["tools"]["strict"]["pass@2"]["n"] == 3
    assert results["modes"]["tools"]["answers"] == 6
    assert [len(scores) for scores in results["scores"].values()] == [3, 3]
    assert results["mean"]["tools"]["score"] == sum(results["scores"]["tools"].values()) / 3
    config = results["config"]
    assert (config["temperature"], config["top_p"], config["samples"]) == (1.0, 0.6, 2)
    assert "squad" not in config and config["sandbox"] == "bubblewrap"
    lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(line["messages"][0]["content"].startswith("Solve") for line in lines)
    # The finished run is only shown again; other settings are another run.
    before = (out / "episodes.jsonl").read_bytes()
    assert evaluate(model, gpqa_file, out, "--both", "--samples", "2") == 0
    assert (out / "episodes.jsonl").read_bytes() == before
    assert evaluate(model, gpqa_file, out, "--both", "--samples", "3") == 2
    assert "--samples" in capsys.readouterr().err


def write_run(folder, right, *, kinds=None, suite="agent", **config):
    """A finished run: `right` has the answers of each question by mode."""
    folder.mkdir()
    count = len(next(iter(right.values())))
    kinds = kinds or ["heat"] * count
    results = {
        "suite": suite,
        "modes": {mode: {} for mode in right},
        "config": {"prefill": "causal", "max_new_tokens": 8} | config,
        "questions": {"n": count, "sha256": "of the questions"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    with (folder / "episodes.jsonl").open("w") as lines:
        for mode, questions in right.items():
            for number, answers in enumerate(questions):
                for sample, found in enumerate(answers):
                    row = {
                        "mode": mode,
                        "kind": kinds[number],
                        "question": f"q{number}",
                        "sample": sample,
                        "right": {"strict": found > 1, "lenient": found > 0},
                    }
                    lines.write(json.dumps(row) + "\n")


def test_two_runs_are_compared_question_by_question(tmp_path, capsys):
    # 2 is right by both rules, 1 by the lenient one, 0 by none.
    kinds = ["[heat]", "[heat]", "dilution", "dilution"]
    one = {"tools": [[2, 2], [2, 0], [2, 2], [1, 1]], "no_tools": [[0, 0]] * 4}
    other = {"tools": [[0], [2], [2], [0]], "no_tools": [[0]] * 4}
    write_run(tmp_path / "run", one, kinds=kinds, prefill="bidirectional", model="a")
    write_run(tmp_path / "base", other, kinds=kinds, model="b")
    compare = ["eval", "--out", str(tmp_path / "run"), "--compare", str(tmp_path / "base")]
    assert main(compare) == 0
    said = capsys.readouterr().out
    assert "tools, strict" in said and "no tools, [heat]" in said
    assert "--prefill: bidirectional, baseline causal" in said and "--model" not in said
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    strict, lenient = (found["modes"]["tools"][rule] for rule in ("strict", "lenient"))
    assert (strict["score"], strict["baseline"], strict["difference"]) == (0.625, 0.5, 0.125)
    assert (strict["relative"], strict["n"], strict["better"], strict["worse"]) == (0.25, 4, 1, 1)
    assert strict["low"] < 0 < strict["high"]
    assert (lenient["score"], lenient["difference"]) == (0.875, 0.375)
    assert found["tasks"]["[heat]"]["tools"]["difference"] == 0.25
    assert found["tasks"]["dilution"]["tools"]["low"] is None
    assert found["modes"]["no_tools"]["strict"]["relative"] is None
    assert found["settings"] == {"prefill": ["bidirectional", "causal"]}


def test_runs_that_cannot_be_compared(model, gpqa_file, tmp_path, capsys):
    write_run(tmp_path / "run", {"tools": [[2]]})
    write_run(tmp_path / "without", {"no_tools": [[2]]})
    write_run(tmp_path / "longer", {"tools": [[2], [0]]})
    write_run(tmp_path / "ruler", {"tools": [[2]]}, suite="ruler")

    def problem(baseline, *arguments):
        if not arguments:
            arguments = ("eval", "--out", str(tmp_path / "run"))
        assert main([*arguments, "--compare", str(tmp_path / baseline)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    assert "has no tools only, and this run has not; run both with --both" in problem("without")
    assert "has not the questions of this run (2 there, 1 here)" in problem("longer")
    assert "is of --suite ruler and" in problem("ruler")
    # Before the model is asked anything.
    asked = ("eval", str(model), "--suite", "agent", "--questions", str(gpqa_file), "--no_tools")
    out = ("--out", str(tmp_path / "new"))
    assert "(1 there, 3 here)" in problem("run", *asked, *out)
    assert "--compare: " + str(tmp_path / "ruler") in problem("ruler", *asked, *out)
    assert not (tmp_path / "new").exists()
    # A line that was deleted for its question to be asked again.
    write_run(tmp_path / "shorter", {"tools": [[2], [0]]})
    (line, _) = (tmp_path / "shorter" / "episodes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "shorter" / "episodes.jsonl").write_text(line)
    of_longer = ("eval", "--out", str(tmp_path / "longer"))
    assert "episodes.jsonl: 1 of 2 questions are answered" in problem("shorter", *of_longer)
    (tmp_path / "longer" / "episodes.jsonl").write_text("{}\n")
    assert "episodes.jsonl: cannot be read" in problem("longer", *of_longer)


class Server(BaseHTTPRequestHandler):
    """Calls the tool when it is asked a question, and answers A when it has the result."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = tiny_tokenizer().decode(body["prompt"])
        text = "\\boxed{A}"
        if "You can call tools" in asked and "<tool_response>\n42" not in asked:
            call = {"name": "code_interpreter", "arguments": {"code": "6 * 7"}}
            text = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 5}
        choice = {"text": text, "finish_reason": "stop"}
        answer = json.dumps({"choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


def test_a_model_behind_a_server(model, gpqa_file, tmp_path, capsys):
    # Brackets are no markup.
    out = tmp_path / "[lr=1e-4][" / "y]"
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        there = ["--server", url, "--server_model", "served", "--both", *CONSENT]
        assert evaluate(model, gpqa_file, out, *there) == 0
        server.shutdown()
    assert f"transcripts: {out}\n" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["generator"]["backend"] == "server"
    assert results["modes"]["tools"]["rates"]["tool_use"] == 1
    assert results["modes"]["no_tools"]["rates"]["tool_use"] == 0
    right = sum(q.answer == "A" for q in load_gpqa(gpqa_file, seed=42)) / 3
    assert results["mean"]["tools"]["score"] == results["mean"]["no_tools"]["score"] == right
    # The run goes on with the same model at another address, asked in another way.
    there[1] = "http://127.0.0.1:9"
    other_way = ["--concurrency", "2", "--api", "completions", "--server_timeout", "9"]
    assert evaluate(model, gpqa_file, out, *there, *other_way) == 0
    assert json.loads((out / "results.json").read_text())["generator"]["concurrency"] == 2
    capsys.readouterr()
    there[3] = "another"
    assert evaluate(model, gpqa_file, out, *there) == 2
    assert "--server_model: the run in" in capsys.readouterr().err


def test_a_context_above_the_positions_of_the_model(gpqa_file, tmp_path, capsys):
    folder = tmp_path / "model"
    tokenizer = tiny_tokenizer()
    short = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=64)
    short.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    assert evaluate(folder, gpqa_file, out, "--no_tools", "--max_context", "9000") == 0
    said = capsys.readouterr().out
    assert said.count("--max_context: 9000 is more than the model's 64 positions") == 1
    mode = json.loads((out / "results.json").read_text())["modes"]["no_tools"]
    assert mode["rates"]["truncation"] == 1


def test_made_conversations_are_questions_and_training_data(model, tmp_path, capsys):
    questions = tmp_path / "tools.jsonl"
    make = ["data", "make", "--task", "tools", "--out", str(questions), "--count", "8",
            "--split", "held_out", "--model", str(model), *CONSENT]  # fmt: skip
    assert main([*make, "--kinds", "heat,product"]) == 0
    assert "8 conversations" in capsys.readouterr().out
    assert main(["data", "check", str(questions), "--model", str(model)]) == 0
    assert "tools as plain text" in capsys.readouterr().out
    out = tmp_path / "out"
    more = ["--tasks", "heat", "--temperature", "0", *CONSENT]
    assert evaluate(model, questions, out, *more) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results["tasks"]) == ["heat"] and results["questions"]["n"] == 4
    assert list(results["modes"]) == ["tools"] and "difference" not in results
    assert evaluate(model, questions, tmp_path / "none", "--no_tools", "--tasks", "heat") == 0
    assert set(json.loads((tmp_path / "none/results.json").read_text())["modes"]) == {"no_tools"}


@pytest.mark.parametrize(
    "name, more, problem",
    [
        ("none.csv", (), "none.csv: cannot be read"),
        ("columns.csv", (), "lacks the columns 'Correct Answer'"),
        ("none.jsonl", (), "none.jsonl: cannot be read"),
        ("gpqa.csv", ("--tasks", "History"), "--tasks: 'History' is none of Biology"),
        ("gpqa.csv", ("--samples", "0"), "--samples: 0 is less than 1"),
        ("gpqa.csv", ("--turns", "0", *CONSENT), "budget turns: 0"),
        ("gpqa.csv", ("--max_context", "0", *CONSENT), "--max_context: no room is left"),
        ("gpqa.csv", ("--no-chat",), "--no-chat: the tool loop needs"),
        ("gpqa.csv", ("--compare", "nowhere"), "--compare: nowhere: no finished run"),
        ("gpqa.csv", ("--sandbox", "chroot"), "--sandbox: 'chroot' is none of"),
        ("gpqa.csv", ("--sandbox", "unprotected"), "read and delete your files"),
        ("gpqa.csv", ("--sandbox", "http://127.0.0.1:9"), "no SandboxFusion server answers"),
        ("gpqa.csv", ("--output_characters", "0"), "--output_characters: 0 is less than 1"),
    ],
)
def test_mistakes_are_one_line(model, gpqa_file, tmp_path, capsys, name, more, problem):
    (tmp_path / "columns.csv").write_text("Question,High-level domain\nx,y\n")
    assert evaluate(model, tmp_path / name, tmp_path / "out", *more) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("focusft: error: ") and problem in line
    assert not (tmp_path / "out").exists()


def test_questions_are_needed(model, tmp_path, capsys):
    assert main(["eval", str(model), "--suite", "agent", "--out", str(tmp_path)]) == 2
    assert "--questions: none is given" in capsys.readouterr().err
