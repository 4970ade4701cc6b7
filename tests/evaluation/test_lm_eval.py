"""The tasks for lm-eval ask what our own items ask, and score as we do."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

import torch
import yaml
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from focusft.errors import ConfigError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.items import make_items
from focusft.evaluation.lm_eval.__main__ import main
from focusft.evaluation.lm_eval.files import write_task_files
from focusft.evaluation.worlds import TASKS as BABI_TASKS
from tests.tiny_models import CHATML, tiny_model, tiny_tokenizer

CELLS = [("babilong", task) for task in BABI_TASKS] + [("ruler", task) for task in ruler.TASKS]
# Enough bytes for the shortest prompt of every task, cwe's example included.
LENGTH = 10000


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_task_files(folder, [2048, LENGTH])
    return folder


class Scripted(LM):
    """Gives the right answer to every other request, and keeps what it was asked."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.asked = []

    def apply_chat_template(self, messages, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def chat_template(self, chat_template=False):
        return self.tokenizer.chat_template

    @property
    def tokenizer_name(self):
        return "tiny"

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += requests
        return [
            " ".join(request.doc["references"][: 1 + number % 3]) if number % 2 else "nothing"
            for number, request in enumerate(requests)
        ]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def run(lm, tasks, task_files, metadata, **options):
    manager = TaskManager(include_path=str(task_files), include_defaults=False, metadata=metadata)
    return simple_evaluate(
        model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options
    )


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_those_of_our_items(task_files, tokenizer_folder, chat):
    """Every task, cwe with its example: the same bytes, token limits and stops."""
    tokenizer = tiny_tokenizer()
    lm = Scripted(tokenizer)
    metadata = {"pretrained": tokenizer_folder, "samples": 1, "seed": 3}
    names = [f"focusft_{suite}_{task}_{LENGTH}" for suite, task in CELLS]
    run(lm, names, task_files, metadata, apply_chat_template=chat)
    assert len(lm.asked) == len(CELLS)
    for request, (suite, task) in zip(lm.asked, CELLS, strict=True):
        (item,) = make_items(
            suite,
            tokenizer=tokenizer,
            lengths=[LENGTH],
            samples=1,
            seed=3,
            tasks=[task],
            chat=chat,
        )
        text, options = request.args
        opening, closing = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        turn = f"{opening}{item.prompt}{closing}" if chat else item.prompt
        assert text == turn + item.answer_prefix, task
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == item.tokens
        assert 0.97 * LENGTH <= item.tokens + item.max_new_tokens <= LENGTH
        assert options == {
            "do_sample": False,
            "until": [],
            "max_gen_toks": item.max_new_tokens,
        }
        assert request.doc["references"] == item.references
        if task == "cwe":
            assert text.count("Below is a numbered list") == 2


def test_scores_are_ours_on_the_same_outputs(task_files, tokenizer_folder):
    lm = Scripted(tiny_tokenizer())
    metadata = {"pretrained": tokenizer_folder, "samples": 6}
    results = run(
        lm,
        [
            "focusft_babilong_qa1_2048",
            "focusft_ruler_niah_single_1_2048",
            f"focusft_ruler_qa_1_{LENGTH}",
        ],
        task_files,
        metadata,
        apply_chat_template=True,
        log_samples=True,
    )
    for name, samples in results["samples"].items():
        assert len(samples) == 6
        expected = {"score": [], "score_lenient": []}
        for sample in samples:
            doc, (output,) = sample["doc"], sample["filtered_resps"]
            if doc["suite"] == "ruler":
                expected["score"].append(ruler.score(doc["task"], doc["references"], output))
                continue
            for strict, key in ((True, "score"), (False, "score_lenient")):
                expected[key].append(
                    babilong.score(
                        doc["task"], doc["question"], doc["references"][0], output, strict=strict
                    )
                )
        for metric, values in expected.items():
            found = results["results"][name].get(f"{metric},none")
            assert found == (sum(values) / 6 if values else None)
        assert results["results"][name]["score,none"] == 0.5
        # babilong: the output names no place; ruler: it is empty.
        assert results["results"][name]["no_answer,none"] == (0.5 if "babilong" in name else 0)
        assert results["configs"][name]["metadata"]["items"]["samples"] == 6


OPENING = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")


@pytest.mark.parametrize(
    ("template", "written", "is_right", "metadata"),
    [
        (CHATML, "<think>\nGarden? Kitchen?\n</think>\n\n{}", True, {}),
        (CHATML, "<think>\nIt may be {}", False, {}),
        (OPENING, "Garden? Kitchen?\n</think>\n\n{}", True, {}),
        (OPENING, "It may be {}", False, {}),
        # lm-eval has taken off what ended before this.
        (OPENING, "{}", True, {"think_end_token": "</think>"}),
    ],
)
def test_thinking_is_not_scored(
    task_files, tmp_path, template, written, is_right, metadata, monkeypatch
):
    tokenizer = tiny_tokenizer(template)
    tokenizer.save_pretrained(tmp_path)

    def think(self, requests, disable_tqdm=False):
        return [written.format(request.doc["references"][0]) for request in requests]

    monkeypatch.setattr(Scripted, "generate_until", think)
    name = "focusft_babilong_qa1_2048"
    metadata = {"pretrained": str(tmp_path), "samples": 2} | metadata
    results = run(Scripted(tokenizer), [name], task_files, metadata, apply_chat_template=True)
    for metric in ("score", "score_lenient"):
        assert results["results"][name][f"{metric},none"] == float(is_right)


def test_a_server_may_have_taken_off_the_thinking(task_files, tmp_path):
    class Messages(Scripted):
        def apply_chat_template(self, messages, add_generation_prompt=True):
            return messages

        def generate_until(self, requests, disable_tqdm=False):
            answers = [request.doc["references"][0] for request in requests]
            return [answers[0], f"Garden? Kitchen?\n</think>\n\n{answers[1]}"]

    tokenizer = tiny_tokenizer(OPENING)
    tokenizer.save_pretrained(tmp_path)
    name = "focusft_babilong_qa1_2048"
    metadata = {"pretrained": str(tmp_path), "samples": 2}
    options = {"apply_chat_template": True, "log_samples": False}
    results = run(Messages(tokenizer), [name], task_files, metadata, **options)
    assert results["results"][name]["score,none"] == 1


def test_a_group_averages_the_tasks_of_a_length(task_files, tokenizer_folder):
    lm = Scripted(tiny_tokenizer())
    results = run(
        lm,
        [f"focusft_babilong_{LENGTH}"],
        task_files,
        {"pretrained": tokenizer_folder, "samples": 2},
        apply_chat_template=True,
    )
    scores = [
        results["results"][f"focusft_babilong_{t}_{LENGTH}"]["score,none"] for t in BABI_TASKS
    ]
    group = results["results"][f"focusft_babilong_{LENGTH}"]
    assert group["score,none"] == pytest.approx(sum(scores) / 5)
    assert set(group) >= {"score,none", "score_lenient,none"}


def test_limit_takes_the_first_items_and_makes_no_others(task_files, tokenizer_folder):
    lm = Scripted(tiny_tokenizer())
    metadata = {"tokenizer": tokenizer_folder}
    run(lm, ["focusft_babilong_qa1_2048"], task_files, metadata, limit=2)
    ids = [request.doc["id"] for request in lm.asked]
    assert ids == ["babilong/qa1/2048/0000", "babilong/qa1/2048/0001"]


def test_published_data_and_longer_answers(task_files, tokenizer_folder, tmp_path):
    row = {"input": "Mary got the milk.", "question": "How many objects is Mary carrying?"}
    (tmp_path / "qa7_2k.jsonl").write_text(json.dumps(row | {"target": "one"}) + "\n")
    lm = Scripted(tiny_tokenizer())
    metadata = {"tokenizer": tokenizer_folder, "samples": 1, "babilong_data": str(tmp_path)}
    options = {"gen_kwargs": "max_gen_toks=300"}
    run(lm, ["focusft_babilong_qa7_2048"], task_files, metadata, **options)
    text, kwargs = lm.asked[0].args
    assert "<context>\nMary got the milk.\n</context>" in text
    assert kwargs["max_gen_toks"] == 300
    lm = Scripted(tiny_tokenizer())
    metadata = {"tokenizer": tokenizer_folder, "samples": 1}
    run(lm, ["focusft_babilong_qa1_2048"], task_files, metadata, **options)
    assert 2048 * 0.97 - 300 <= lm.asked[0].doc["tokens"] <= 2048 - 300


@pytest.mark.parametrize(
    ("metadata", "options", "said"),
    [
        ({}, {}, "no tokenizer to measure"),
        ({"tokenizer": "/nowhere"}, {}, "cannot be loaded"),
        ({"samples": "many"}, {}, "samples='many' is not a whole number"),
        ({}, {"system_instruction": "Be brief."}, "--system_instruction"),
    ],
)
def test_options_that_cannot_be_used(task_files, tokenizer_folder, metadata, options, said):
    if metadata or options:
        metadata = {"tokenizer": tokenizer_folder} | metadata
    with pytest.raises(ConfigError, match=said) as caught:
        run(
            Scripted(tiny_tokenizer()),
            ["focusft_babilong_qa1_2048"],
            task_files,
            metadata,
            **options,
        )
    assert "\n" not in str(caught.value)


def test_another_chat_template_than_the_measured_one(task_files, tokenizer_folder):
    tokenizer = tiny_tokenizer("{{ messages[0]['content'] }}\nAnswer now: ")
    metadata = {"tokenizer": tokenizer_folder, "samples": 1}
    with pytest.raises(ConfigError, match="gives another prompt"):
        run(
            Scripted(tokenizer),
            ["focusft_babilong_qa1_2048"],
            task_files,
            metadata,
            apply_chat_template=True,
        )


def test_a_backend_of_messages_cannot_continue_an_answer(task_files, tokenizer_folder):
    class Messages(Scripted):
        def apply_chat_template(self, messages, add_generation_prompt=True):
            return messages

    metadata = {"tokenizer": tokenizer_folder, "samples": 1}
    options = {"apply_chat_template": True}
    with pytest.raises(ConfigError, match="takes messages only"):
        run(
            Messages(tiny_tokenizer()),
            ["focusft_ruler_niah_single_1_2048"],
            task_files,
            metadata,
            **options,
        )


def test_every_task_and_length_has_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FOCUSFT_CACHE", str(tmp_path))
    assert main(["--lengths", "0.5k,4096"]) == 0
    folder = tmp_path / "lm_eval"
    assert capsys.readouterr().out == f"{folder}\n"
    lengths = (512, 4096)
    expected = {f"focusft_{suite}_{n}" for suite in ("babilong", "ruler") for n in lengths}
    expected |= {f"focusft_ruler_{task}_{n}" for task in ruler.TASKS for n in lengths}
    expected |= {f"focusft_babilong_{task}_{n}" for task in babilong.DATA_TASKS for n in lengths}
    assert {path.stem for path in folder.iterdir()} == expected
    group = yaml.safe_load((folder / "focusft_babilong_512.yaml").read_text())
    assert group["task"] == [f"focusft_babilong_{task}_512" for task in BABI_TASKS]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "four"], "'four' is no length"),
        (["--lengths", "100"], "too short"),
        (["--out", __file__], "cannot be written"),
    ],
)
def test_task_files_that_cannot_be_written(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.setenv("FOCUSFT_CACHE", str(tmp_path))
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


@pytest.mark.slow
def test_the_command_line_on_a_real_model(task_files, tmp_path):
    """Outputs are those of plain greedy decoding of our prompts, and scores are ours."""
    tokenizer = tiny_tokenizer()
    folder = tmp_path / "model"
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tasks = ["focusft_babilong_qa1_2048", "focusft_ruler_niah_single_1_2048"]
    subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
            *("--model_args", f"pretrained={folder},dtype=float32"),
            *("--include_path", str(task_files), "--tasks", ",".join(tasks)),
            *("--metadata", "samples=3", "--apply_chat_template", "--log_samples"),
            *("--output_path", str(tmp_path / "out"), "--batch_size", "1"),
        ],
        check=True,
    )
    for task, suite in zip(tasks, ("babilong", "ruler"), strict=True):
        (file,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        items = make_items(
            suite,
            tokenizer=tokenizer,
            lengths=[2048],
            samples=3,
            tasks=[task.removeprefix(f"focusft_{suite}_").removesuffix("_2048")],
        )
        for sample, item in zip(samples, items, strict=True):
            text = tokenizer.apply_chat_template(
                item.messages, tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(text + item.answer_prefix, return_tensors="pt").input_ids
            with torch.inference_mode():
                made = model.generate(ids, max_new_tokens=item.max_new_tokens, do_sample=False)
            said = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            assert sample["filtered_resps"] == [said]
            if suite == "ruler":
                assert sample["score"] == ruler.score(item.task, item.references, said)
            else:
                for strict, name in ((True, "score"), (False, "score_lenient")):
                    assert sample[name] == babilong.score(
                        item.task, item.question, item.target, said, strict=strict
                    )
