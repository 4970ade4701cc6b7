"""A task of lm-eval whose documents are our items and whose scores are ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from focusft.errors import ConfigError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.answers import opens_thinking, split_thinking
from focusft.evaluation.generation import Prompt, render
from focusft.evaluation.items import Item, ItemSet, make_items
from focusft.evaluation.lm_eval.files import metrics
from focusft.evaluation.scoring import score_output

# What --model_args calls a model, or --metadata a tokenizer; the first one there is taken.
_TOKENIZER_KEYS = ("tokenizer", "pretrained", "model")


class BenchmarkTask(Task):
    """One task at one length.

    Prompts are fitted to the length with the tokenizer in lm-eval's `--model_args` (`tokenizer`,
    `pretrained` or `model`), chat template included if lm-eval applies one. `--metadata` takes
    the options of `focusft.evaluation.items.make_items`: samples, seed, prose, squad, hotpotqa,
    babilong_data. The answer may be as long as `--gen_kwargs max_gen_toks=N` says, by default as
    the benchmark has it, and its tokens are kept free.
    """

    VERSION = 1
    OUTPUT_TYPE = "generate_until"

    def __init__(self, config: dict[str, Any]) -> None:
        """Take the settings; the items are made when lm-eval says whether there is a template.

        Args:
            config: A task file of `focusft.evaluation.lm_eval.files`, with model arguments and
                `--metadata` merged into its metadata.
        """
        super().__init__()
        metadata = config["metadata"]
        self._suite: str = metadata["benchmark"]["suite"]
        self._task: str = metadata["benchmark"]["task"]
        default = (
            babilong.MAX_NEW_TOKENS
            if self._suite == "babilong"
            else ruler.MAX_NEW_TOKENS[self._task]
        )
        self._config = TaskConfig(
            task=config["task"],
            num_fewshot=0,
            generation_kwargs={"do_sample": False, "until": [], "max_gen_toks": default},
            metadata=metadata,
        )
        # lm-eval asks how many there are before it says whether there is a chat template.
        self._docs: Iterable[Any] = range(_whole_number(metadata, "samples"))
        self._opens_thinking = False
        # With this option lm-eval takes off the thinking, if it ended.
        self._keeps_thinking = metadata.get("think_end_token") is None

    def download(self, *_: Any) -> None:
        """Nothing is downloaded here."""

    def has_training_docs(self) -> bool:
        """There are none."""
        return False

    def has_validation_docs(self) -> bool:
        """There are none."""
        return False

    def has_test_docs(self) -> bool:
        """The items."""
        return True

    def test_docs(self) -> Iterable[Any]:
        """The items as dictionaries."""
        return self._docs

    def build_all_requests(
        self,
        *,
        apply_chat_template: bool = False,
        system_instruction: str | None = None,
        cache_requests: bool = False,
        **options: Any,
    ) -> None:
        """Make the items and the requests that ask them.

        Requests are not taken from lm-eval's cache, whose key knows neither seed nor corpora.

        Raises:
            ConfigError: An option cannot be used, or the length is too short for the task.
            DataError: A corpus cannot be used.
        """
        if system_instruction:
            raise ConfigError(
                "--system_instruction: prompts are fitted to their length without it; leave it out"
            )
        metadata = self._config.metadata or {}
        tokenizer = _tokenizer_of(metadata)
        template_options = _template_options(metadata)
        self._render = partial(
            render, tokenizer, chat=apply_chat_template, template_options=template_options
        )
        turn = Prompt(({"role": "user", "content": "?"},))
        self._opens_thinking = apply_chat_template and opens_thinking(self._render(turn))
        prose = metadata.get("prose", ())
        items = make_items(
            self._suite,
            tokenizer=tokenizer,
            lengths=[metadata["benchmark"]["length"]],
            samples=_whole_number(metadata, "samples"),
            seed=_whole_number(metadata, "seed"),
            tasks=[self._task],
            chat=apply_chat_template,
            template_options=template_options,
            max_new_tokens=int((self._config.generation_kwargs or {})["max_gen_toks"]),
            prose=[prose] if isinstance(prose, str) else prose,
            squad=metadata.get("squad"),
            hotpotqa=metadata.get("hotpotqa"),
            babilong_data=metadata.get("babilong_data"),
        )
        # For the results file: what the prompts are made of.
        self.set_config("metadata", {"items": items.header}, update=True)
        self._docs = _Documents(items)
        super().build_all_requests(apply_chat_template=apply_chat_template, **options)

    def fewshot_context(
        self,
        doc: dict[str, Any],
        *_: Any,
        apply_chat_template: bool = False,
        chat_template: Callable[..., Any] | None = None,
        **__: Any,
    ) -> Any:
        """The whole prompt: the user's turn in the chat template, then the raw answer prefix.

        lm-eval's `gen_prefix` would make the prefix a message, which some templates strip.

        Raises:
            ConfigError: The backend takes messages only, or its template is not the tokenizer's.
        """
        text: Any = doc["prompt"]
        if apply_chat_template and chat_template is not None:
            text = chat_template([{"role": "user", "content": text}])
        if not isinstance(text, str):
            if doc["answer_prefix"]:
                raise ConfigError(
                    f"--model: {self._suite} {self._task} continues a text, and this backend takes "
                    "messages only; use hf, vllm or local-completions"
                )
            # A server may take the thinking off as well.
            self._keeps_thinking = False
            return text
        text += doc["answer_prefix"]
        message = {"role": "user", "content": doc["prompt"]}
        if text != self._render(Prompt((message,), doc["answer_prefix"])):
            raise ConfigError(
                "--model_args: the model's chat template gives another prompt than that of the "
                "tokenizer which measured it; name the model's own with --metadata tokenizer=.."
            )
        return text

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **options: Any) -> Instance:
        """One request for the whole answer."""
        return Instance(
            request_type=self.OUTPUT_TYPE,
            doc=doc,
            arguments=(ctx, deepcopy(self._config.generation_kwargs)),
            idx=0,
            metadata=options["metadata"],
        )

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """The user's turn."""
        return str(doc["prompt"])

    def doc_to_target(self, doc: dict[str, Any]) -> list[str]:
        """The right answers."""
        return list(doc["references"])

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        """Score one output without its thinking, from 0 to 1."""
        (output,) = results
        is_open = self._opens_thinking and (self._keeps_thinking or "</think>" in output)
        _, answer = split_thinking(output, is_open=is_open)
        score = score_output(Item(**doc), answer)
        found = {"score": score.score, "no_answer": float(score.no_answer)}
        return found if score.lenient is None else found | {"score_lenient": score.lenient}

    def aggregation(self) -> dict[str, Callable[..., float]]:
        """All are averaged over the items."""
        return dict.fromkeys(metrics(self._suite), mean)

    def higher_is_better(self) -> dict[str, bool]:
        """Of scores, not of the rate of outputs that give no answer."""
        return {name: name != "no_answer" for name in metrics(self._suite)}


class _Documents:
    """Items as dictionaries, made when they are first asked for: `--limit` makes only some."""

    def __init__(self, items: ItemSet) -> None:
        self._number = len(items)
        self._rest = iter(items)
        self._made: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self._number):
            if index == len(self._made):
                self._made.append(asdict(next(self._rest)))
            yield self._made[index]


def _template_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """More arguments of the chat template, as lm-eval's hf backend takes them from its own."""
    options = dict(metadata.get("chat_template_args") or {})
    if metadata.get("enable_thinking") is not None:
        options["enable_thinking"] = metadata["enable_thinking"]
    return options


def _tokenizer_of(metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    for key in _TOKENIZER_KEYS:
        if isinstance(name := metadata.get(key), str) and name:
            return _load_tokenizer(
                name, metadata.get("revision", "main"), metadata.get("subfolder", "")
            )
    raise ConfigError(
        "--metadata: no tokenizer to measure the prompts with; "
        "add tokenizer=FOLDER, or pretrained=FOLDER to --model_args"
    )


@lru_cache(maxsize=2)
def _load_tokenizer(name: str, revision: str, subfolder: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, subfolder=subfolder, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--metadata: the tokenizer {name} cannot be loaded ({reason}); check its name"
        ) from error
    return tokenizer


def _whole_number(metadata: Mapping[str, Any], name: str) -> int:
    value = metadata[name]
    if not isinstance(value, int):
        raise ConfigError(f"--metadata: {name}={value!r} is not a whole number")
    return value
