"""A run: perfect, random and empty answers, figures, and going on after a kill."""

import itertools
import json
import multiprocessing
import random
import re
import time
from pathlib import Path

import pytest

from focusft.errors import ConfigError, DataError
from focusft.evaluation import batching, ruler
from focusft.evaluation.babilong import labels_of
from focusft.evaluation.generation import Completion, LocalGenerator, Prompt, local
from focusft.evaluation.haystack import Draft
from focusft.evaluation.items import ItemSet
from focusft.evaluation.worlds import TASKS as BABI_TASKS
from focusft.statistics.scores import wilson_interval
from tests.evaluation.scripted import Scripted, answers_by, make_once, perfect, run
from tests.tiny_models import tiny_model, tiny_tokenizer

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def sets(smollm2):
    """Every task of both suites, a short length and few samples."""
    return {
        suite: make_once(suite, tokenizer=smollm2, lengths=[512, 1024], samples=samples)
        for suite, samples in (("babilong", 30), ("ruler", 3))
    }


@pytest.mark.parametrize("suite", ["babilong", "ruler"])
def test_a_perfect_answerer_scores_everything_and_an_empty_one_nothing(sets, tmp_path, suite):
    items = sets[suite]
    best = run(items, tmp_path / "best", Scripted(answers_by(items, perfect)))
    worst = run(items, tmp_path / "worst", Scripted(lambda prompt: ""))
    names = ["score", "score_lenient"] if suite == "babilong" else ["score"]
    for task in items.tasks:
        for length in ("512", "1024"):
            good, bad = best["tasks"][task][length], worst["tasks"][task][length]
            assert [good[name] for name in names] == [1.0] * len(names)
            assert [bad[name] for name in names] == [0.0] * len(names)
            assert (good["no_answer"], bad["no_answer"]) == (0, 1)
            assert (good["truncated"], bad["truncated"]) == (0, 1)
            n = items.samples
            assert (good["low"], good["high"]) == wilson_interval(n, n)
            assert (bad["low"], bad["high"]) == wilson_interval(0, n)
    assert best["mean"]["512"]["score"] == 1
    assert worst["mean"]["512"]["score"] == 0


def test_a_random_answerer_scores_by_chance(sets, tmp_path):
    rng = random.Random(5)
    items = sets["babilong"]
    guess = answers_by(items, lambda item: rng.choice(labels_of(item.task)))
    results = run(items, tmp_path, Scripted(guess))
    for task in BABI_TASKS:
        chance = 1 / len(labels_of(task))
        cells = list(results["tasks"][task].values())
        for name in ("score", "score_lenient"):
            right = round(sum(cell[name] * cell["n"] for cell in cells))
            low, high = wilson_interval(right, sum(cell["n"] for cell in cells), 0.999)
            assert low <= chance <= high, task
    # A label that the question names is no answer.
    assert all(cell["no_answer"] < 0.6 for cell in results["tasks"]["qa5"].values())
    assert all(cell["no_answer"] == 0 for cell in results["tasks"]["qa1"].values())


def test_a_random_answerer_of_ruler_scores_next_to_nothing(sets, tmp_path):
    rng = random.Random(5)
    made = list(sets["ruler"])

    def guess(item):
        return perfect(rng.choice([i for i in made if i.task == item.task and i != item]))

    results = run(sets["ruler"], tmp_path, Scripted(answers_by(made, guess)))
    # The same question with more documents or noise around it may come up; words are few in fwe.
    assert results["mean"]["512"]["score"] < 0.1


def test_lines_and_figures(sets, tmp_path, smollm2):
    items = make_once(
        "ruler", tokenizer=smollm2, lengths=[512], samples=4, tasks=["niah_multivalue", "vt"]
    )
    made = list(items)

    def some(item):
        number = int(item.id[-1])
        return " ".join(item.references[:number]) if item.task == "vt" else perfect(item)

    results = run(items, tmp_path, Scripted(answers_by(made, some)))
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").open()]
    assert [row["id"] for row in rows] == [item.id for item in made]
    for row, item in zip(rows, made, strict=True):
        assert row["prompt"] == item.prompt
        assert row["output"] == some(item)
        assert row["score"] == ruler.score(item.task, item.references, row["output"])
        assert "seconds" not in row
    cell = results["tasks"]["vt"]["512"]
    assert cell["score"] == pytest.approx((0 + 1 + 2 + 3) / 5 / 4)
    assert 0 < cell["low"] < cell["score"] < cell["high"] < 0.6
    assert cell["no_answer"] == cell["truncated"] == 0.25
    assert cell["n"] == 4
    assert "score_lenient" not in cell
    # The script counts letters, not tokens.
    assert cell["counted_otherwise"] == 4
    letters = [len(row["prompt"]) for row in rows if row["task"] == "vt"]
    assert cell["prompt_tokens"]["most"] == max(letters)
    assert cell["fill"]["least"] == round((min(letters) + 30) / 512, 4)
    assert cell["stand_in"] is False
    assert results["tasks"]["niah_multivalue"]["512"]["stand_in"] is True
    assert results["mean"]["512"]["score"] == pytest.approx((1 + 0.3) / 2)
    assert results["mean"]["512"]["n"] == 8
    assert set(results["categories"]) == {"retrieval", "tracing"}
    assert results["categories"]["tracing"]["512"]["score"] == cell["score"]
    assert results["seconds"] == 4.0
    assert results["config"] == {"seed": 42}
    assert results["generator"] == {"backend": "scripted"}
    assert results["items"]["cells"]["vt"]["512"]["items"] == 4
    assert json.loads((tmp_path / "results.json").read_text()) == results


# --- going on ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(smollm2):
    return make_once("babilong", tokenizer=smollm2, lengths=[512], samples=4, tasks=["qa1", "qa4"])


def same_files(one, other):
    for name in (
        "prompts.jsonl",
        "manifest.json",
        "items.jsonl",
        "results.json",
        "settings.json",
        "batches.json",
    ):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_finished_items_are_not_run_again(few, tmp_path):
    script = answers_by(list(few), perfect)
    whole = Scripted(script)
    run(few, tmp_path / "whole", whole)
    assert len(whole.asked) == 8

    calls = 0

    def breaks(prompt):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return script(prompt)

    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(few, cut, Scripted(breaks))
    assert len((cut / "items.jsonl").read_text().splitlines()) == 4
    assert not (cut / "results.json").exists()
    # Killed while a line was written.
    with (cut / "items.jsonl").open("a") as file:
        file.write('{"id": "babilong/qa1/512/0000", "output": "gar')
    rest = Scripted(script)
    run(few, cut, rest)
    # The batch of items 4, 3 and 2 was cut in two.
    assert rest.asked == [4, 3, 2, 1, 0]
    assert len(lines_of(cut)) == 8
    same_files(tmp_path / "whole", cut)
    again = Scripted(script)
    run(few, cut, again)
    assert again.asked == []
    same_files(tmp_path / "whole", cut)
    # Killed between results.json and the last form of items.jsonl.
    lines = (cut / "items.jsonl").read_text().splitlines(keepends=True)
    (cut / "items.jsonl").write_text("".join(reversed(lines)))
    run(few, cut, again)
    assert again.asked == []
    same_files(tmp_path / "whole", cut)


def test_other_settings_are_refused_by_name(few, smollm2, tmp_path):
    script = Scripted(answers_by(list(few), perfect))
    run(few, tmp_path, script, temperature=0.0)
    with pytest.raises(ConfigError, match=r"^--temperature: .* begun with 0\.0, not 0\.7"):
        run(few, tmp_path, script, temperature=0.7)
    with pytest.raises(ConfigError, match=r"^generator\.backend: .*\"scripted\", not \"other\""):
        run(few, tmp_path, Scripted(perfect, name="other"), temperature=0.0)
    more = make_once("babilong", tokenizer=smollm2, lengths=[512], samples=5, tasks=["qa1", "qa4"])
    with pytest.raises(ConfigError, match=r"^items\.samples: .* begun with 4, not 5"):
        run(more, tmp_path, script, temperature=0.0)


def test_settings_that_failed_at_the_start_can_be_mended(few, smollm2, tmp_path):
    class Short(Scripted):
        def batches(self, prompts):
            raise DataError("too long for the model")

    with pytest.raises(DataError):
        run(few, tmp_path, Short(perfect))
    fewer = make_once("babilong", tokenizer=smollm2, lengths=[512], samples=2, tasks=["qa1"])
    results = run(fewer, tmp_path, Scripted(answers_by(list(few), perfect)))
    assert results["tasks"]["qa1"]["512"]["n"] == 2
    assert results["items"]["samples"] == 2


@pytest.mark.parametrize(
    "line", ["{}\n", "not json\n", '{"id": "babilong/qa1/512/0099"}\n', "\x00\n"]
)
def test_damaged_lines_are_named(few, tmp_path, line):
    (tmp_path / "items.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"items\.jsonl: line 1 is damaged") as caught:
        run(few, tmp_path, Scripted(perfect))
    assert "\n" not in str(caught.value)


def test_killed_at_any_moment(few, tmp_path):
    """By SIGKILL after random times, until a start gets to the end."""
    script = answers_by(list(few), perfect)

    def start(out):
        process = FORK.Process(target=run, args=(few, out, Scripted(script, pause=0.02)))
        process.start()
        return process

    started = time.perf_counter()
    start(tmp_path / "whole").join()
    whole = time.perf_counter() - started
    rng = random.Random(0)
    kills = 0
    finished = set()
    for round_ in range(12):
        cut = tmp_path / f"cut{round_}"
        while True:
            process = start(cut)
            process.join(rng.random() * 0.8 * whole)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            finished.add(len(lines_of(cut)))
        same_files(tmp_path / "whole", cut)
    assert kills >= 12
    # Kills came before the first item, between items and near the end.
    assert len(finished) >= 4


def lines_of(out: Path) -> list[bytes]:
    file = out / "items.jsonl"
    return re.findall(rb".*\n", file.read_bytes()) if file.exists() else []


# --- with a real generator -----------------------------------------------------------------------


def test_the_batches_of_a_run_are_kept(tmp_path, monkeypatch):
    """Interrupted within a batch, and gone on with where other batches would fit into memory."""
    tokenizer = tiny_tokenizer()

    def draft(task, length, index):
        return Draft(f"Item {index}" + " and so on" * index, references=("x",), tokens=80)

    header = {"suite": "ruler", "tasks": ["vt"], "corpora": {}, "thinking_tokens": 0}
    items = ItemSet("ruler", ("vt",), (128,), 7, header, draft, {"vt": 6})
    model = tiny_model("llama", vocab_size=len(tokenizer))
    sizes = []
    real = local.decode

    def noting(model, encoded, *args, **kwargs):
        sizes.append(len(encoded))
        real(model, encoded, *args, **kwargs)

    monkeypatch.setattr(local, "decode", noting)
    run(items, tmp_path / "whole", LocalGenerator(model, tokenizer))
    assert sizes == [7]

    class Cut(LocalGenerator):
        def complete(self, prompts, batches=None):
            yield from itertools.islice(super().complete(prompts, batches), 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path / "cut", Cut(model, tokenizer))
    kept = lines_of(tmp_path / "cut")
    assert len(kept) == 3
    monkeypatch.setattr(batching, "free_memory", lambda device: 0)
    sizes.clear()
    run(items, tmp_path / "cut", LocalGenerator(model, tokenizer))
    assert sizes == [7]
    for name in ("items.jsonl", "batches.json", "settings.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    sizes.clear()
    run(items, tmp_path / "small", LocalGenerator(model, tokenizer))
    assert sizes == [1] * 7


def test_only_the_batches_that_are_asked_for():
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    generator = LocalGenerator(model, tokenizer, batch_size=2)
    texts = ["a", "bb" * 20, "c" * 9, "d" * 30]
    prompts = [Prompt(({"role": "user", "content": text},), max_new_tokens=4) for text in texts]
    assert generator.batches(prompts) == [[1, 3], [2, 0]]
    everything = {index: done.text for index, done in generator.complete(prompts)}
    some = [(index, done.text) for index, done in generator.complete(prompts, [[2, 0]])]
    assert some == [(2, everything[2]), (0, everything[0])]


def test_thinking_has_room_and_is_saved(smollm2, tmp_path):
    options = {"lengths": [512], "samples": 1, "tasks": ["qa1"], "thinking_tokens": 60}
    items = make_once("babilong", tokenizer=smollm2, **options)
    (item,) = items
    assert item.max_new_tokens == 20 + 60
    assert item.tokens + 80 <= 512

    class Thinks(Scripted):
        def complete(self, prompts, batches=None):
            assert [prompt.max_new_tokens for prompt in prompts] == [20]
            yield 0, Completion(item.target, 400, 30, False, 0.1, thinking="Hm.", thinking_tokens=9)

    results = run(items, tmp_path, Thinks(perfect))
    assert results["tasks"]["qa1"]["512"]["score"] == 1
    assert json.loads((tmp_path / "items.jsonl").read_text())["thinking"] == "Hm."
