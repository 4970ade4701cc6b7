import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import torch
from tokenizers import AddedToken

from focusft.errors import ConfigError, DataError, UserError
from focusft.evaluation import server as server_module
from focusft.evaluation.generation import LocalGenerator, Prompt, encode, render
from focusft.evaluation.sampling import Sampling
from focusft.evaluation.server import ServerGenerator
from focusft.evaluation.tool_calls import ToolCall, parse_tool_calls
from focusft.training.models import load_model
from tests.tiny_models import tiny_tokenizer

MODEL = "some/model"
KEY = "sk-very-secret"
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}


class StandIn:
    """A server whose answers a test decides on."""

    def __init__(self):
        self.requests = []
        self.handlers = {}
        self.failures = []
        self._lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint = self.path.removeprefix("/v1/")
                with stand_in._lock:
                    stand_in.requests.append((endpoint, body, dict(self.headers)))
                    failure = stand_in.failures.pop(0) if stand_in.failures else None
                if failure in ("hang up", "stay silent"):
                    time.sleep(0.3 if failure == "stay silent" else 0)
                    self.close_connection = True
                    return
                status, answer = failure or stand_in.handlers.get(endpoint, not_found)(body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def bodies(self, endpoint):
        return [body for name, body, _ in self.requests if name == endpoint]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def not_found(body):
    return 404, {"detail": "Not Found"}


def completion(text, prompt_tokens, *, tokens=5, finish_reason="stop"):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    return 200, {"choices": [{"text": text, "finish_reason": finish_reason}], "usage": usage}


def message(prompt_tokens, *, finish_reason="stop", **fields):
    choice = {"message": {"role": "assistant", **fields}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 5}
    return 200, {"choices": [choice], "usage": usage}


def echo(body):
    """Answers token ids with their number."""
    return completion(f"{len(body['prompt'])} tokens", len(body["prompt"]))


@pytest.fixture
def stand_in():
    stand_in = StandIn()
    yield stand_in
    stand_in.close()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(server_module, "BACKOFF_S", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def ask(text, **settings):
    return Prompt(({"role": "user", "content": text},), **settings)


def generator(stand_in, tokenizer=None, **settings):
    return ServerGenerator(stand_in.url, MODEL, tokenizer or tiny_tokenizer(), **settings)


def complete(generator, *prompts):
    done = dict(generator.complete(prompts))
    assert sorted(done) == list(range(len(prompts)))
    return [done[index] for index in range(len(prompts))]


def test_completions_get_the_very_tokens_of_a_local_model(stand_in):
    stand_in.handlers["completions"] = echo
    tokenizer = tiny_tokenizer()
    prompts = [ask("x" * n, answer_prefix=" A:", max_new_tokens=n + 1) for n in range(9)]
    done = complete(generator(stand_in, tokenizer, concurrency=3), *prompts)
    sent = {body["max_tokens"]: body for body in stand_in.bodies("completions")}
    for prompt, answer in zip(prompts, done, strict=True):
        ids = encode(tokenizer, prompt, chat=True)
        body = sent[prompt.max_new_tokens]
        assert body["prompt"] == ids
        assert (body["model"], body["temperature"]) == (MODEL, 0.0)
        assert "seed" not in body
        assert answer.text == f"{len(ids)} tokens"
        assert (answer.prompt_tokens, answer.tokens, answer.truncated) == (len(ids), 5, False)
        assert answer.seconds > 0


def test_a_server_that_takes_text_gets_text_with_one_bos(stand_in):
    tokenizer = tiny_tokenizer()
    length = len(encode(tokenizer, ask("hi"), chat=True))

    def text_only(body):
        if not isinstance(body["prompt"], str):
            return 400, {"detail": "prompt must be a string."}
        return completion("yes", length)

    stand_in.handlers["completions"] = text_only
    complete(generator(stand_in, tokenizer), ask("hi"), ask("hi"))
    bodies = stand_in.bodies("completions")
    text = render(tokenizer, ask("hi"), chat=True)
    assert [body["prompt"] for body in bodies[1:]] == [text, text]
    # A tokenizer that adds the BOS itself: so will the server.
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert text.startswith("<|im_start|>")
    stand_in.requests.clear()
    complete(generator(stand_in, tokenizer), ask("hi"))
    assert stand_in.bodies("completions")[1]["prompt"] == text.removeprefix("<|im_start|>")


def test_several_requests_are_under_way_at_one_time(stand_in):
    meeting = threading.Barrier(4)

    def together(body):
        if len(body["prompt"]) > 40:
            meeting.wait(timeout=10)
        return echo(body)

    stand_in.handlers["completions"] = together
    prompts = [ask("first"), *(ask("x" * 40) for _ in range(4))]
    complete(generator(stand_in, concurrency=4), *prompts)
    with pytest.raises(ConfigError, match="--concurrency: 0"):
        generator(stand_in, concurrency=0)


def test_messages_go_where_there_are_no_completions(stand_in):
    stand_in.handlers["chat/completions"] = lambda body: message(9, content="yes")
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    )
    template = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}{{ tools }}"
    wanted = Prompt(messages, tools=(TOOL,), max_new_tokens=7)
    options = {"enable_thinking": False}
    served = generator(stand_in, tiny_tokenizer(template), template_options=options)
    first, second = complete(served, wanted, wanted)
    assert first.text == second.text == "yes"
    assert first.prompt_tokens == 9
    assert len(stand_in.bodies("completions")) == 1
    body = stand_in.bodies("chat/completions")[0]
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert body["tools"] == [TOOL]
    assert body["chat_template_kwargs"] == options
    assert body["max_tokens"] == 7
    assert served.describe()["api"] == "chat"


def test_calls_that_the_server_has_parsed_are_text_again(stand_in):
    calls = [
        {"id": "1", "function": {"name": "add", "arguments": json.dumps({"a": a})}} for a in (1, 2)
    ]
    stand_in.handlers["chat/completions"] = lambda body: message(
        9, content=None, tool_calls=calls, reasoning_content="hm", finish_reason="tool_calls"
    )
    (answer,) = complete(generator(stand_in, api="chat"), ask("hi"))
    assert answer.thinking == "hm"
    assert not answer.truncated
    assert parse_tool_calls(answer.text, [TOOL]).calls == (
        ToolCall("add", {"a": 1}),
        ToolCall("add", {"a": 2}),
    )


def test_an_answer_prefix_is_continued_by_a_chat_server_that_can(stand_in):
    tokenizer = tiny_tokenizer()
    prompt = ask("hi", answer_prefix="A:")
    length = len(encode(tokenizer, prompt, chat=True))
    stand_in.handlers["chat/completions"] = lambda body: message(length, content=" 1")
    (answer,) = complete(generator(stand_in, tokenizer), prompt)
    assert answer.text == " 1"
    (body,) = stand_in.bodies("chat/completions")
    assert body["messages"][-1] == {"role": "assistant", "content": "A:"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    "handler",
    [
        lambda body: (422, {"detail": "Unexpected fields in the request"}),
        # Answers the prefix in a turn of its own.
        lambda body: message(4711, content="What?"),
        # Does not say what it read.
        lambda body: (200, {"choices": [{"message": {"content": "What?"}}]}),
    ],
)
def test_an_answer_prefix_that_is_not_continued_is_one_error(stand_in, handler):
    stand_in.handlers["chat/completions"] = handler
    with pytest.raises(UserError, match=r"does not go on from an answer prefix \('A:'\)"):
        complete(generator(stand_in), ask("hi", answer_prefix="A:"))


def test_a_server_that_reads_other_tokens_is_an_error(stand_in):
    stand_in.handlers["completions"] = lambda body: completion("x", 3)
    with pytest.raises(UserError, match="read prompt 0 as 3 tokens, but it has"):
        complete(generator(stand_in), ask("hi"))


@pytest.mark.parametrize("failure", [(429, {}), (500, {}), (503, {}), "hang up"])
def test_passing_failures_are_tried_again(stand_in, failure):
    stand_in.handlers["completions"] = echo
    stand_in.failures = [failure] * 3
    complete(generator(stand_in), ask("hi"))
    assert len(stand_in.requests) == 4


def test_the_wait_between_tries_doubles(monkeypatch):
    monkeypatch.setattr(server_module, "BACKOFF_S", 1.0)
    session = server_module._session(1, "")
    retry = session.get_adapter("http://x").max_retries
    assert retry.respect_retry_after_header
    waits = []
    for _ in range(4):
        retry = retry.increment("POST", "/", error=requests.urllib3.exceptions.ProtocolError("x"))
        waits.append(retry.get_backoff_time())
    assert all(wait >= 2**n - 0.001 and wait <= 2**n + 0.5 for n, wait in enumerate(waits[1:], 1))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((400, {"error": "too long\nby far"}), 'status 400: {"error": "too long\\nby far"}'),
        ((503, {"error": "busy"}), "status 503"),
        ((404, {"error": f"The model `{MODEL}` does not exist."}), "status 404.*does not exist"),
        ((200, b"<html>\nhello</html>"), "not an answer in OpenAI's format: <html> hello</html>"),
        ((200, {"choices": []}), "not an answer in OpenAI's format"),
        ((200, {"choices": [None]}), 'not an answer in OpenAI\'s format: {"choices": [null]}'),
        ((200, {"choices": [{"message": None}]}), 'format: {"choices": [{"message": null}]}'),
        ((200, {"choices": [{"message": {"content": 7}}]}), "not an answer in OpenAI's format"),
    ],
)
def test_lasting_failures_are_one_line(stand_in, failure, message):
    stand_in.handlers["completions"] = lambda body: failure
    with pytest.raises(UserError) as caught:
        complete(generator(stand_in), ask("hi"))
    text = str(caught.value)
    assert "\n" not in text
    assert stand_in.url in text
    import re

    assert re.search(message, text) or message in text
    assert not stand_in.bodies("chat/completions")


def test_an_error_in_the_middle_ends_the_run(stand_in):
    def fails_later(body):
        return echo(body) if len(body["prompt"]) < 60 else (400, {"error": "too long"})

    stand_in.handlers["completions"] = fails_later
    done = generator(stand_in).complete([ask("hi"), ask("x" * 60), *[ask("hi")] * 5])
    with pytest.raises(UserError, match="too long"):
        list(done)


def test_an_error_in_the_middle_keeps_what_is_under_way(stand_in):
    is_under_way = threading.Event()

    def fails_once(body):
        if len(body["prompt"]) > 110:
            is_under_way.wait(timeout=10)
            return 400, {"error": "too long"}
        if len(body["prompt"]) > 60:
            is_under_way.set()
            time.sleep(0.3)
        elif is_under_way.is_set():
            time.sleep(0.05)
        return echo(body)

    stand_in.handlers["completions"] = fails_once
    prompts = [ask("hi"), ask("x" * 100), ask("x" * 50), *[ask("hi")] * 30]
    done = {}
    with pytest.raises(UserError, match="too long"):
        for index, answer in generator(stand_in, concurrency=2).complete(prompts):
            done[index] = answer.text
    assert done[2] == f"{len(encode(tiny_tokenizer(), prompts[2], chat=True))} tokens"
    # Every answer was kept, and no new request was sent.
    assert len(done) == len(stand_in.requests) - 1 < 20


def test_a_server_that_takes_too_long_is_one_line_that_names_the_option(stand_in):
    stand_in.failures = ["stay silent"] * 6
    with pytest.raises(UserError, match=r"within 0\.05 s; raise --server_timeout") as caught:
        complete(generator(stand_in, timeout_s=0.05), ask("hi"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--server_timeout: 0 is not above 0"):
        generator(stand_in, timeout_s=0)


def tools_tokenizer():
    """Like Mistral's: the tag before a call is a special token."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}"
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    return tokenizer


def calls_like_vllm(body):
    text = '[TOOL_CALLS]add{"a": 1}<|im_end|>'
    if body.get("skip_special_tokens", True):
        text = 'add{"a": 1}'
    return completion(text, len(body["prompt"]))


def test_tags_of_calls_that_are_special_tokens_are_kept(stand_in):
    stand_in.handlers["completions"] = calls_like_vllm
    with_tool, without = ask("hi", tools=(TOOL,)), ask("hi")
    done = complete(generator(stand_in, tools_tokenizer()), with_tool, without)
    # As a local model gives it: with the tag, without the token that ends the answer.
    assert done[0].text == '[TOOL_CALLS]add{"a": 1}'
    assert parse_tool_calls(done[0].text, [TOOL]).calls == (ToolCall("add", {"a": 1}),)
    assert done[1].text == 'add{"a": 1}'
    assert ["skip_special_tokens" in b for b in stand_in.bodies("completions")] == [True, False]


@pytest.mark.parametrize("takes_ids", [True, False])
def test_a_server_that_knows_no_special_tokens_is_asked_without(stand_in, takes_ids):
    tokenizer = tools_tokenizer()
    prompt = ask("hi", tools=(TOOL,))
    length = len(encode(tokenizer, prompt, chat=True))

    def strict(body):
        if "skip_special_tokens" in body or isinstance(body["prompt"], str) == takes_ids:
            return 400, {"error": "Unrecognized request argument"}
        return completion("yes", length)

    stand_in.handlers["completions"] = strict
    done = complete(generator(stand_in, tokenizer), *[prompt] * 3)
    assert [answer.text for answer in done] == ["yes"] * 3
    # Only the first prompt is asked in several ways.
    assert len(stand_in.requests) == (4 if takes_ids else 6)


def test_counts_that_are_null_are_counted_here(stand_in):
    usage = {"prompt_tokens": None, "completion_tokens": None}
    stand_in.handlers["completions"] = lambda body: (
        200,
        {"choices": [{"text": "yes"}], "usage": usage},
    )
    (answer,) = complete(generator(stand_in), ask("hi"))
    length = len(encode(tiny_tokenizer(), ask("hi"), chat=True))
    assert (answer.prompt_tokens, answer.tokens) == (length, 3)


def test_a_server_that_is_not_there_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ServerGenerator(f"http://127.0.0.1:{port}", MODEL, tiny_tokenizer())
    with pytest.raises(UserError, match=r"no answer .* refused.*is it running there") as caught:
        complete(served, ask("hi"))
    assert "\n" not in str(caught.value)


def test_the_key_is_sent_and_shown_nowhere(stand_in, monkeypatch, caplog, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    stand_in.handlers["completions"] = echo
    served = generator(stand_in)
    complete(served, ask("hi"))
    assert stand_in.requests[0][2]["Authorization"] == f"Bearer {KEY}"
    stand_in.handlers["completions"] = lambda body: (401, {"error": f"{KEY} is not known"})
    with pytest.raises(UserError, match=r"\*\*\* is not known") as caught:
        complete(served, ask("hi"))
    shown = [str(caught.value), json.dumps(served.describe()), caplog.text, *capsys.readouterr()]
    assert KEY not in "".join(shown)


def test_without_a_key_none_is_sent(stand_in, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(netrc))
    stand_in.handlers["completions"] = echo
    complete(generator(stand_in), ask("hi"))
    assert "Authorization" not in stand_in.requests[0][2]
    monkeypatch.setenv("OTHER_KEY", KEY)
    complete(generator(stand_in, key_variable="OTHER_KEY"), ask("hi"))
    assert stand_in.requests[1][2]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "is no URL"),
        ("ftp://host/v1", "is no URL"),
        ("http://[::1:8000/v1", "is no URL"),
        (f"http://me:{KEY}@host/v1", "OPENAI_API_KEY"),
        (f"http://host/v1?key={KEY}", "OPENAI_API_KEY"),
    ],
)
def test_urls_are_checked(url, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ServerGenerator(url, MODEL, tiny_tokenizer())
    assert KEY not in str(caught.value)


def test_the_usual_path_is_added_where_there_is_none():
    urls = ("http://host:1", "http://host:1/", "http://host:1/v1/", "http://host:1/api/v2")
    found = [ServerGenerator(url, MODEL, tiny_tokenizer()).base_url for url in urls]
    assert found == ["http://host:1/v1"] * 3 + ["http://host:1/api/v2"]


def test_samples_have_seeds_of_their_own(stand_in):
    stand_in.handlers["completions"] = echo
    sampling = Sampling(temperature=0.7, top_p=0.9, seed=3)
    prompts = [ask(text, sample=number) for text in ("hi", "hello") for number in range(3)]
    for _ in range(2):
        complete(generator(stand_in, sampling=sampling), *prompts)
    bodies = stand_in.bodies("completions")
    seeds = sorted(body["seed"] for body in bodies)
    assert len(set(seeds)) == 6
    assert seeds[::2] == seeds[1::2]
    assert {(body["temperature"], body["top_p"]) for body in bodies} == {(0.7, 0.9)}
    stand_in.requests.clear()
    complete(generator(stand_in, sampling=sampling), ask("hi"), ask("hi"))
    assert len({body["seed"] for body in stand_in.bodies("completions")}) == 2


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, ("hm", "yes")),
        ("hm\n</think>\n\nyes", True, ("hm", "yes")),
        ("hm and", True, ("hm and", "")),
        ("say </think>", False, ("", "say </think>")),
    ],
)
def test_thinking_is_kept_apart(stand_in, text, is_open, expected):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}" + "<think>\n" * is_open
    stand_in.handlers["completions"] = lambda body: completion(
        text, len(body["prompt"]), finish_reason="length"
    )
    (answer,) = complete(generator(stand_in, tiny_tokenizer(template)), ask("hi"))
    assert (answer.thinking, answer.text) == expected
    assert answer.truncated
    assert answer.thinking_tokens == len(expected[0])


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        ("yes", "stop", ("", "yes")),
        ("hm\n</think>\n\nyes", "stop", ("hm", "yes")),
        ("hm and", "length", ("hm and", "")),
    ],
)
def test_a_server_may_take_the_thinking_off_a_message(stand_in, text, finish_reason, expected):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    stand_in.handlers["chat/completions"] = lambda body: message(
        9, content=text, finish_reason=finish_reason
    )
    (answer,) = complete(generator(stand_in, tiny_tokenizer(template), api="chat"), ask("hi"))
    assert (answer.thinking, answer.text) == expected


def test_what_answers_no_call_comes_from_the_user(stand_in):
    stand_in.handlers["chat/completions"] = lambda body: message(9, content="yes")
    call = {"id": "t001c0000", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "<tool_call>broken"},
        {"role": "tool", "content": "not valid JSON"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "t001c0000"},
    )
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    complete(generator(stand_in, tiny_tokenizer(template), api="chat"), Prompt(turns))
    (body,) = stand_in.bodies("chat/completions")
    roles = [sent["role"] for sent in body["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "tool"]


def test_a_base_model_needs_completions(stand_in):
    served = generator(stand_in, tiny_tokenizer(chat_template=None))
    stand_in.handlers["chat/completions"] = lambda body: message(9, content="yes")
    with pytest.raises(UserError, match="plain text without a chat template needs"):
        complete(served, ask("hi"))
    with pytest.raises(UserError, match="no /completions; use --api chat"):
        complete(generator(stand_in, api="completions"), ask("hi"))
    with pytest.raises(ConfigError, match="--api: 'rest'"):
        generator(stand_in, api="rest")
    with pytest.raises(ConfigError, match="no chat template"):
        generator(stand_in, tiny_tokenizer(chat_template=None), chat=True)
    two = Prompt(({"role": "user", "content": "a"}, {"role": "user", "content": "b"}))
    with pytest.raises(DataError, match="needs a chat template"):
        complete(served, two)
    assert list(served.complete([])) == []


@pytest.fixture(scope="module")
def served_smollm2(smollm2, tmp_path_factory):
    """`transformers serve` with SmolLM2 on the loopback address: its URL and model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("smollm2")
    model = load_model("smollm2", dtype="float32").eval()
    model.save_pretrained(folder)
    smollm2.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)),
        *("--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"),
    ]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(folder), model
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


@pytest.mark.slow
def test_transformers_serve_writes_what_the_local_model_writes(served_smollm2, smollm2):
    url, name, model = served_smollm2
    prompts = [
        ask("Say hello to Mary.", max_new_tokens=12),
        ask("What is the capital of France?", answer_prefix="The capital", max_new_tokens=10),
        Prompt(
            (
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "What colour is the sky?"},
            ),
            max_new_tokens=8,
        ),
    ]
    with torch.inference_mode():
        local = dict(LocalGenerator(model, smollm2).complete(prompts))
    served = ServerGenerator(url, name, smollm2, concurrency=2)
    for index, answer in served.complete(prompts):
        assert answer.text == local[index].text
        assert answer.prompt_tokens == local[index].prompt_tokens
        assert answer.tokens == local[index].tokens
        assert answer.truncated == local[index].truncated
    assert served.describe()["api"] == "completions"
    by_message = ServerGenerator(url, name, smollm2, api="chat")
    (answer,) = complete(by_message, prompts[0])
    assert answer.text == local[0].text
    with pytest.raises(UserError, match="does not go on from an answer prefix"):
        complete(by_message, prompts[1])
    with pytest.raises(UserError, match="pinned"):
        complete(ServerGenerator(url, "another/model", smollm2), prompts[0])


def test_half_a_surrogate_pair_is_no_traceback(stand_in):
    stand_in.handlers["completions"] = lambda body: completion("yes \ud83d", len(body["prompt"]))
    (answer,) = complete(generator(stand_in), ask("a"))
    assert answer.text == "yes ?"
