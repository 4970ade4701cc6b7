"""A model behind any OpenAI-compatible server: vLLM, llama.cpp, `transformers serve`.

Prompts are rendered here and sent to `/completions`, so that they are the same tokens as with a
local model, answer prefix included. A server without that endpoint gets the messages.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from transformers import PreTrainedTokenizerBase
from urllib3.exceptions import ReadTimeoutError
from urllib3.util import Retry

from focusft.errors import ConfigError, UserError
from focusft.evaluation.answers import opens_thinking, split_thinking
from focusft.evaluation.generation import Completion, Message, Prompt, encode, render
from focusft.evaluation.generation.model_facts import special_ids
from focusft.evaluation.sampling import Sampling

Api = Literal["completions", "chat"]

# Seconds before the second try; they double with each one.
BACKOFF_S = 1.0
_TRIES = 6
_RETRIED = (408, 429, 500, 502, 503, 504)
_REFUSED = (400, 422)
_NO_SUCH_ENDPOINT = (404, 405, 501)
# vLLM and SGLang leave special tokens out of the text by default, and with them tags such as
# [TOOL_CALLS], without which no call is found.
_WITH_TAGS = {"skip_special_tokens": False}


@dataclass(frozen=True)
class _Reply:
    """What a server's answer says; None for what it does not count."""

    text: str
    thinking: str
    finish_reason: str | None
    prompt_tokens: int | None
    tokens: int | None


class ServerGenerator:
    """A model behind an OpenAI-compatible server.

    The server applies what its model's generation config says beyond temperature and top_p; vLLM
    leaves that out with `--generation-config vllm`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool | None = None,
        template_options: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        concurrency: int = 16,
        timeout_s: float = 600,
        api: Api | None = None,
        key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            base_url: Such as http://127.0.0.1:8000/v1.
            model: The model's name on the server.
            tokenizer: The tokenizer of the same model.
            chat: Whether prompts go through the chat template; if None, where there is one.
            template_options: More arguments of the chat template, such as enable_thinking.
            sampling: How tokens are picked; greedily if None.
            concurrency: Requests that are under way at one time.
            timeout_s: Longest silence of the server, in seconds. It says nothing until an answer
                is finished.
            api: "completions" or "chat"; if None, chat where the server has no completions.
            key_variable: Environment variable that holds the API key, if one is needed.

        Raises:
            ConfigError: An option has no such value.
        """
        if chat and tokenizer.chat_template is None:
            raise ConfigError("--chat: the tokenizer has no chat template; leave the option out")
        if concurrency < 1:
            raise ConfigError(f"--concurrency: {concurrency} is less than 1")
        if timeout_s <= 0:
            raise ConfigError(f"--server_timeout: {timeout_s} is not above 0; give seconds")
        if api is not None and api not in get_args(Api):
            raise ConfigError(f"--api: '{api}' is neither completions nor chat")
        self.base_url = _checked_url(base_url, key_variable)
        self.model = model
        self.tokenizer = tokenizer
        self.chat = tokenizer.chat_template is not None if chat is None else chat
        self.template_options = dict(template_options or {})
        self.sampling = sampling or Sampling()
        self.concurrency = concurrency
        self.api = api
        self._timeout_s = timeout_s
        self._draws = random.Random(self.sampling.seed)
        self._key = os.environ.get(key_variable, "")
        self._session = _session(concurrency, self._key)
        # What the server takes; None until that is known.
        self._sends_ids: bool | None = None
        self._asks_for_tags: bool | None = None
        dropped = special_ids(tokenizer)
        self._dropped = re.compile(
            "|".join(
                re.escape(token.content)
                for id_, token in tokenizer.added_tokens_decoder.items()
                if id_ in dropped
            )
        )

    def describe(self) -> dict[str, Any]:
        """What a results file says of it."""
        return {
            "backend": "server",
            "url": self.base_url,
            "model": self.model,
            "api": self.api or "auto",
            "chat": self.chat,
            "template_options": self.template_options,
            "sampling": asdict(self.sampling),
            "concurrency": self.concurrency,
        }

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Each prompt alone: the server puts together what it likes."""
        return [[index] for index in range(len(prompts))]

    def complete(
        self, prompts: Sequence[Prompt], batches: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Completion]]:
        """Go on from prompts, several at a time.

        Args:
            prompts: What to go on from.
            batches: Those that are to be answered; all if None.

        Yields:
            The index of a prompt and its completion, as they are done.

        Raises:
            UserError: The server cannot be reached, refuses a request, or does not go on from
                what it was sent. What was under way then is yielded first.
        """
        chosen = [
            index
            for batch in (self.batches(prompts) if batches is None else batches)
            for index in batch
        ]
        if not chosen:
            return
        first, *others = chosen
        # The first answer shows what the server can do.
        yield first, self._complete(first, prompts[first])
        executor = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {
                executor.submit(self._complete, index, prompts[index]): index for index in others
            }
            failure: BaseException | None = None
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield futures[future], future.result()
                elif failure is None:
                    failure = error
                    # Nothing more is sent; what is under way was paid for and is kept.
                    for waiting in futures:
                        waiting.cancel()
            if failure is not None:
                raise failure
        finally:
            executor.shutdown(cancel_futures=True)

    def _complete(self, number: int, prompt: Prompt) -> Completion:
        text = render(
            self.tokenizer, prompt, chat=self.chat, template_options=self.template_options
        )
        ids = encode(self.tokenizer, prompt, chat=self.chat, template_options=self.template_options)
        body = {"model": self.model, "max_tokens": prompt.max_new_tokens}
        body |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        if not self.sampling.is_greedy:
            body["seed"] = self._seed(prompt, ids)
        is_open = self.chat and opens_thinking(text.removesuffix(prompt.answer_prefix))
        started = time.perf_counter()
        answer = None
        if self.api != "chat":
            answer = self._from_text(body, text, ids, wants_tags=bool(prompt.tools))
            if answer is None and self.api == "completions":
                raise UserError(f"{self.base_url}: the server has no /completions; use --api chat")
        self.api = "chat" if answer is None else "completions"
        if answer is None:
            answer = self._from_messages(body, prompt)
        seconds = time.perf_counter() - started
        reply = self._read(answer)
        if self.api == "completions" or prompt.answer_prefix:
            self._check_count(number, reply.prompt_tokens, len(ids), prompt)
        written, thinking = reply.text, reply.thinking
        if not thinking:
            # Of a message, a server may have taken the thinking off without a word.
            was_kept = "</think>" in written or reply.finish_reason == "length"
            is_open = is_open and (self.api == "completions" or was_kept)
            thinking, written = split_thinking(written, is_open=is_open)
        if self.api == "completions" and prompt.tools:
            written, thinking = (self._dropped.sub("", text) for text in (written, thinking))
        tokens = reply.tokens
        if tokens is None:
            tokens = self._count(written) + self._count(thinking)
        return Completion(
            text=written,
            prompt_tokens=len(ids) if reply.prompt_tokens is None else reply.prompt_tokens,
            tokens=tokens,
            truncated=reply.finish_reason == "length",
            seconds=seconds,
            thinking=thinking,
            thinking_tokens=self._count(thinking),
        )

    def _from_text(
        self, body: dict[str, Any], text: str, ids: list[int], *, wants_tags: bool
    ) -> requests.Response | None:
        """Answer of /completions; None if the server has no such endpoint."""
        # Some servers take text only, and some no key that OpenAI's API has not. Once a form was
        # taken, a refusal is one of the prompt.
        for_prompt = (True, False) if self._sends_ids is None else (self._sends_ids,)
        for_tags = (True, False) if self._asks_for_tags is None else (self._asks_for_tags,)
        for sends_ids, asks in product(for_prompt, for_tags if wants_tags else (False,)):
            sent = {"prompt": ids if sends_ids else self._without_bos(text)}
            response = self._post("completions", body | sent | (_WITH_TAGS if asks else {}))
            if response.status_code not in _REFUSED:
                break
        self._sends_ids = sends_ids
        if wants_tags:
            self._asks_for_tags = asks
        if response.status_code in _NO_SUCH_ENDPOINT and not _names_model(response, self.model):
            return None
        return response

    def _from_messages(self, body: dict[str, Any], prompt: Prompt) -> requests.Response:
        if not self.chat:
            raise UserError(
                f"{self.base_url}: the server has no /completions, which plain text without a chat "
                "template needs; use another server"
            )
        body["messages"] = [_as_openai(message) for message in prompt.messages]
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if self.template_options:
            body["chat_template_kwargs"] = self.template_options
        if prompt.answer_prefix:
            body["messages"].append({"role": "assistant", "content": prompt.answer_prefix})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        response = self._post("chat/completions", body)
        if prompt.answer_prefix and response.status_code in _REFUSED:
            raise UserError(
                f"{self.base_url}: the server does not go on from an answer prefix "
                f"({prompt.answer_prefix[:40]!r}): {self._one_line(response.text)}; "
                "use a server with /completions"
            )
        return response

    def _post(self, endpoint: str, body: dict[str, Any]) -> requests.Response:
        try:
            return self._session.post(
                f"{self.base_url}/{endpoint}", json=body, timeout=(10, self._timeout_s)
            )
        except requests.exceptions.RequestException as error:
            cause = _cause(error)
            if isinstance(cause, ReadTimeoutError):
                raise UserError(
                    f"{self.base_url}: no answer from the server within {self._timeout_s:g} s; "
                    "raise --server_timeout, or lower --concurrency"
                ) from None
            reason = self._one_line(str(cause))
            raise UserError(
                f"{self.base_url}: no answer from the server after {_TRIES} tries ({reason}); is "
                "it running there?"
            ) from None

    def _read(self, response: requests.Response) -> _Reply:
        if response.status_code != 200:
            raise UserError(
                f"{self.base_url}: the server answered with status {response.status_code}: "
                f"{self._one_line(response.text)}"
            )
        try:
            answer = response.json()
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            text, thinking = (_whole(part) for part in _written(choice))
            return _Reply(
                text,
                thinking,
                choice.get("finish_reason"),
                usage.get("prompt_tokens"),
                usage.get("completion_tokens"),
            )
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"{self.base_url}: not an answer in OpenAI's format: "
                f"{self._one_line(response.text)}; is the URL right?"
            ) from None

    def _check_count(self, number: int, counted: int | None, sent: int, prompt: Prompt) -> None:
        if self.api == "completions" and counted not in (None, sent):
            raise UserError(
                f"{self.base_url}: the server read prompt {number} as {counted} tokens, but it "
                f"has {sent}; give the tokenizer of the served model, and see that the server "
                "does not truncate"
            )
        if self.api == "chat" and counted != sent:
            raise UserError(
                f"{self.base_url}: the server does not go on from an answer prefix "
                f"({prompt.answer_prefix[:40]!r}): it read {counted} tokens instead of {sent}; "
                "use a server with /completions"
            )

    def _without_bos(self, text: str) -> str:
        """The text without the BOS token that a server adds itself."""
        bos = self.tokenizer.bos_token
        adds_bos = self.tokenizer("")["input_ids"] == [self.tokenizer.bos_token_id]
        return text.removeprefix(str(bos)) if adds_bos else text

    def _seed(self, prompt: Prompt, ids: list[int]) -> int:
        if prompt.sample is None:
            return self._draws.randrange(2**31)
        content = f"{self.sampling.seed} {prompt.sample} {ids}"
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big") >> 1

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _one_line(self, text: str) -> str:
        """A server's words, without the key that it may have repeated."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:300]


class _Bearer(requests.auth.AuthBase):
    """Sends a key, or none: without this, requests would take one from a .netrc file."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _session(concurrency: int, key: str) -> requests.Session:
    retry = Retry(
        total=_TRIES - 1,
        backoff_factor=BACKOFF_S,
        backoff_jitter=BACKOFF_S / 2,
        status_forcelist=_RETRIED,
        allowed_methods=["POST"],
        raise_on_status=False,
    )
    session = requests.Session()
    session.auth = _Bearer(key)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency, max_retries=retry))
    return session


def _checked_url(url: str, key_variable: str) -> str:
    problem = f"--server: '{url}' is no URL such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url)
    except ValueError:  # half of the brackets of an IPv6 address
        raise ConfigError(problem) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(problem)
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"--server: the URL of {parts.hostname} must hold no user, password or query; put an "
            f"API key into the environment variable {key_variable}"
        )
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _names_model(response: requests.Response, model: str) -> bool:
    """Whether what is not found is the model, not the endpoint."""
    return model in response.text


def _written(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Text and, where the server keeps it apart, thinking of a choice."""
    if "message" not in choice:
        return choice.get("text") or "", ""
    message = choice["message"]
    text = message.get("content") or ""
    for call in message.get("tool_calls") or []:
        function = call["function"]
        made = json.dumps(
            {"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False
        )
        text += f"\n<tool_call>\n{made}\n</tool_call>"
    return text.lstrip("\n"), message.get("reasoning_content") or message.get("reasoning") or ""


def _whole(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can hold and no tokenizer takes."""
    return text.encode(errors="replace").decode()


def _as_openai(message: Message) -> Message:
    """A message with the arguments of its tool calls as JSON text.

    An answer to a call that could not be made belongs to none: OpenAI's API takes it from the user.
    """
    if message["role"] == "tool" and not message.get("tool_call_id"):
        return {**message, "role": "user"}
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        if not isinstance(function["arguments"], str):
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            function = {**function, "arguments": arguments}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _cause(error: BaseException) -> BaseException:
    """The innermost reason of a connection error."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    reason = vars(error).get("reason")
    return _cause(reason) if isinstance(reason, BaseException) else error
