"""Items are long enough and never too long, solvable, and the same in every process."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from focusft.data.prose import FORBIDDEN
from focusft.errors import ConfigError, DataError
from focusft.evaluation import babilong, ruler
from focusft.evaluation.babilong import labels_of
from focusft.evaluation.haystack import rng_for
from focusft.evaluation.items import (
    length_label,
    make_items,
    prompt_ids,
    read_items,
    write_items,
)
from focusft.evaluation.worlds import TASKS as BABI_TASKS
from tests.evaluation.interpreter import DROP, GET, GIVE, MOVE, SIDE, answers
from tests.tiny_models import tiny_tokenizer

CELLS = [("babilong", task) for task in BABI_TASKS] + [("ruler", task) for task in ruler.TASKS]


@pytest.fixture(scope="module")
def sets(smollm2):
    """Three items of every task at 512, 1024 and 4096 tokens."""
    return {
        suite: list(make_items(suite, tokenizer=smollm2, lengths=[512, 1024, 4096], samples=3))
        for suite in ("babilong", "ruler")
    }


def cell(sets, suite, task, length=None):
    return [i for i in sets[suite] if i.task == task and length in (None, i.length)]


@pytest.mark.parametrize(("suite", "task"), CELLS)
def test_prompts_fill_their_length_and_never_exceed_it(sets, smollm2, suite, task):
    for item in cell(sets, suite, task):
        rendered = smollm2.apply_chat_template(
            item.messages, tokenize=False, add_generation_prompt=True
        )
        tokens = len(smollm2(rendered + item.answer_prefix, add_special_tokens=False).input_ids)
        assert item.tokens == tokens
        assert tokens + item.max_new_tokens <= item.length
        if item.length >= 1024:
            assert (tokens + item.max_new_tokens) / item.length >= 0.97, item.id
        else:
            assert item.fill >= 0.9, item.id


@pytest.mark.parametrize(("suite", "task"), CELLS)
def test_another_tokenizer_is_filled_as_well(suite, task):
    """Bytes as tokens, and a chat template without a system message."""
    tokenizer = tiny_tokenizer()
    (item,) = make_items(suite, tokenizer=tokenizer, lengths=[10000], samples=1, tasks=[task])
    assert 0.97 <= (item.tokens + item.max_new_tokens) / 10000 <= 1


@pytest.mark.parametrize("length", [4096, 16384])
def test_common_words_use_their_length(smollm2, length):
    for item in make_items("ruler", tokenizer=smollm2, lengths=[length], samples=2, tasks=["cwe"]):
        assert item.tokens + 120 <= length
        assert item.tokens + 120 >= 0.97 * length
        assert item.prompt.count("Below is a numbered list") == 2
        assert item.metadata["counts"]["common_repeats"] == 30


@pytest.mark.parametrize(("suite", "task"), CELLS)
def test_the_right_answer_scores_everything_and_none_nothing(sets, suite, task):
    for item in cell(sets, suite, task):
        if suite == "ruler":
            assert ruler.score(task, item.references, " ".join(item.references)) == 1
            assert ruler.score(task, item.references, "") == 0
            continue
        for strict in (True, False):
            for said, right in ((item.target, True), (f"{item.target}.\n\nThe end.", True)):
                got = babilong.score(task, item.question, item.target, said, strict=strict)
                assert got == right
            assert not babilong.score(task, item.question, item.target, "", strict=strict)


@pytest.mark.parametrize("task", BABI_TASKS)
def test_a_random_answer_scores_by_chance(smollm2, task):
    rng = rng_for("chance", task)
    items = make_items("babilong", tokenizer=smollm2, lengths=[512], samples=60, tasks=[task])
    right = {True: 0, False: 0}
    expected = 0.0
    for item in items:
        for _ in range(20):
            said = rng.choice(labels_of(task))
            for strict in right:
                right[strict] += babilong.score(
                    task, item.question, item.target, said, strict=strict
                )
        expected += 20 / len(labels_of(task))
    for count in right.values():
        # Five standard deviations.
        assert abs(count - expected) < 5 * expected**0.5


def test_a_random_answer_to_ruler_scores_next_to_nothing(sets):
    prompts = sets["ruler"]
    total = 0.0
    for index, item in enumerate(prompts):
        other = prompts[(index + 1) % len(prompts)]
        total += ruler.score(item.task, item.references, " ".join(other.references))
    assert total / len(prompts) < 0.02


@pytest.mark.parametrize("task", BABI_TASKS)
def test_the_facts_stand_in_the_context_and_nothing_else_does(sets, task):
    patterns = (MOVE, GET, DROP, GIVE, SIDE)
    for item in cell(sets, "babilong", task):
        context = re.search(r"<context>\n(.*)\n</context>", item.prompt)[1]
        found = []
        for sentence in re.split(r"(?<=\.) ", context):
            if any(pattern.fullmatch(sentence.rstrip(".")) for pattern in patterns):
                found.append(sentence)
            else:
                assert not any(word in sentence.lower() for word in FORBIDDEN), sentence
        assert found == item.metadata["facts"]
        assert answers(" ".join(found), item.question) == {item.target}
        assert item.prompt.endswith(f"\n</context>\n\nQuestion: {item.question}")


def test_the_same_story_at_every_length(sets):
    short, middle, long = (cell(sets, "babilong", "qa1", length) for length in (512, 1024, 4096))
    assert [i.question for i in short] == [i.question for i in middle] == [i.question for i in long]
    assert len({item.prompt for item in long}) == 3


def test_needles_can_be_found(sets):
    for task, spec in ruler.NEEDLE_TASKS.items():
        for item in cell(sets, "ruler", task):
            pairs = re.findall(r"magic \w+ for (\S+) is: (\S+)\.", item.prompt)
            asked = re.findall(r"[\w-]+", item.prompt.rpartition(" for ")[2].split(" mention")[0])
            found = [value for key, value in pairs if key in asked]
            assert sorted(found) == sorted(item.references)
            assert len(item.references) == spec.num_values * spec.num_queries
            assert len({key for key, _ in pairs}) >= spec.num_keys
            assert item.answer_prefix.startswith(" The special magic ")
            one = len(item.references) == 1
            assert item.answer_prefix.endswith(" is" if one else " are")
            if spec.haystack == "needle" and item.length >= 4096:
                assert len(pairs) > 30
                assert item.metadata["padding"] == 0


def test_chains_can_be_followed(sets):
    for item in cell(sets, "ruler", "vt"):
        text = item.prompt.rpartition("Memorize and track")[2]
        value = re.search(r"assigned the value (\d+) in", text)[1]
        known = {}
        for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
            known[name] = known.get(source, source)
        assert [name for name, is_value in known.items() if is_value == value] == list(
            item.references
        )
        assert [len(name) for name in item.references] == [5] * 5
        assert item.prompt.count("Memorize and track") == 2
        assert item.answer_prefix.endswith(f"the value {value}, they are: ")


def test_common_words_are_the_most_common(sets):
    for item in cell(sets, "ruler", "cwe"):
        listing = item.prompt.rpartition("Memorize the ones")[2].partition("\nQuestion")[0]
        counts = Counter(re.findall(r"\d+\. (\S+)", listing))
        ranked = counts.most_common()
        number = len(item.references)
        assert {word for word, _ in ranked[:number]} == set(item.references)
        repeats = {512: (5, 3, 1), 1024: (10, 6, 1), 4096: (10, 30, 3)}[item.length]
        assert (number, ranked[0][1], ranked[-1][1]) == repeats
        assert item.metadata["reduced"] == (["counts"] if item.length == 512 else [])


def test_frequent_words_are_the_most_frequent(sets):
    for item in cell(sets, "ruler", "fwe"):
        text = re.search(r"frequently appeared coded words\. (.*)\nQuestion", item.prompt)[1]
        ranked = Counter(text.split()).most_common(5)
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(item.references)
        assert ranked[3][1] > ranked[4][1]
        assert item.metadata["vocabulary"] == (item.length - 50) // 50


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_documents_hold_the_answer(sets, task):
    for item in cell(sets, "ruler", task):
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", item.prompt, re.MULTILINE)]
        assert numbers == list(range(1, item.metadata["documents"] + 1))
        assert any(reference in item.prompt for reference in item.references)
        assert item.answer_prefix == " Answer:"


def test_official_token_limits():
    assert babilong.MAX_NEW_TOKENS == 20
    limits = {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
    assert {task: limits.get(task, 128) for task in ruler.TASKS} == ruler.MAX_NEW_TOKENS
    assert len(ruler.TASKS) == 13
    assert sorted(t for row in ruler.CATEGORIES.values() for t in row) == sorted(ruler.TASKS)


def test_the_published_parameters_of_needle_tasks():
    found = {
        name: (t.haystack, t.keys, t.values, t.num_keys, t.num_values, t.num_queries)
        for name, t in ruler.NEEDLE_TASKS.items()
    }
    assert found == {
        "niah_single_1": ("noise", "words", "numbers", 1, 1, 1),
        "niah_single_2": ("essay", "words", "numbers", 1, 1, 1),
        "niah_single_3": ("essay", "words", "uuids", 1, 1, 1),
        "niah_multikey_1": ("essay", "words", "numbers", 4, 1, 1),
        "niah_multikey_2": ("needle", "words", "numbers", 1, 1, 1),
        "niah_multikey_3": ("needle", "uuids", "uuids", 1, 1, 1),
        "niah_multivalue": ("essay", "words", "numbers", 1, 4, 1),
        "niah_multiquery": ("essay", "words", "numbers", 4, 1, 4),
    }


# --- files ---------------------------------------------------------------------------------------

MAKE = """
import sys
from focusft.evaluation.items import make_items, write_items
from focusft.training.models import load_tokenizer
tokenizer = load_tokenizer("smollm2")
for suite in ("ruler", "babilong"):
    items = make_items(suite, tokenizer=tokenizer, lengths=[512, 1100], samples=2, seed=7)
    write_items(items, f"{sys.argv[1]}/{suite}")
"""


def test_the_same_bytes_in_every_process(smollm2, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", MAKE, str(tmp_path / "there")],
        env=os.environ | {"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for suite in ("babilong", "ruler"):
        items = make_items(suite, tokenizer=smollm2, lengths=[512, 1100], samples=2, seed=7)
        write_items(items, tmp_path / "here" / suite)
        for name in ("prompts.jsonl", "manifest.json"):
            there = (tmp_path / "there" / suite / name).read_bytes()
            assert (tmp_path / "here" / suite / name).read_bytes() == there
    other = make_items("ruler", tokenizer=smollm2, lengths=[512], samples=1, seed=8, tasks=["vt"])
    same = make_items("ruler", tokenizer=smollm2, lengths=[512], samples=1, seed=7, tasks=["vt"])
    assert next(iter(other)).prompt != next(iter(same)).prompt


def test_items_are_read_as_written(smollm2, tmp_path):
    items = make_items(
        "ruler", tokenizer=smollm2, lengths=[512], samples=2, tasks=["vt", "niah_single_2"]
    )
    manifest = write_items(items, tmp_path)
    read, read_manifest = read_items(tmp_path)
    assert read == list(items)
    assert read_manifest == json.loads(json.dumps(manifest))
    assert len(items) == len(read) == 4
    assert manifest["stand_in"] is True
    assert set(manifest["corpora"]) == {"essays", "words"}
    assert manifest["corpora"]["essays"]["tasks"] == ["niah_single_2"]
    vt = manifest["cells"]["vt"]["512"]
    tokens = [item.tokens for item in read if item.task == "vt"]
    assert vt["items"] == 2
    assert (vt["prompt_tokens"]["least"], vt["prompt_tokens"]["most"]) == (min(tokens), max(tokens))
    assert vt["fill"]["least"] >= 0.9
    assert vt["reduced"] == ["example_without_noise"]
    assert len(manifest["tokenizer_sha256"]) == 64

    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="make them again"):
        read_items(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DataError, match="no complete set"):
        read_items(tmp_path)


def test_base_models_get_the_bare_prompt(smollm2):
    (item,) = make_items(
        "ruler", tokenizer=smollm2, lengths=[512], samples=1, tasks=["cwe"], chat=False
    )
    ids = prompt_ids(smollm2, item.prompt, item.answer_prefix, chat=False)
    assert ids == smollm2(item.prompt + item.answer_prefix).input_ids
    assert item.tokens == len(ids)


def test_room_for_thinking(smollm2):
    (item,) = make_items(
        "babilong", tokenizer=smollm2, lengths=[1024], samples=1, tasks=["qa1"], max_new_tokens=400
    )
    assert item.max_new_tokens == 400
    assert 0.97 * 1024 <= item.tokens + 400 <= 1024


# --- the user's files ----------------------------------------------------------------------------


@pytest.fixture
def squad(tmp_path):
    articles = []
    for a in range(4):
        paragraphs = []
        for p in range(3):
            words = " ".join(f"word{a}{p}{n}" for n in range(20))
            answers = [{"text": f"town {a}{p}"}, {"text": f"the town {a}{p}"}]
            qas = [
                {"question": f"Where is {a}{p}?", "answers": answers, "is_impossible": False},
                {"question": "Nowhere?", "answers": [], "is_impossible": True},
            ]
            paragraphs.append({"context": f"It is in the town {a}{p}. {words}.", "qas": qas})
        articles.append({"title": f"t{a}", "paragraphs": paragraphs})
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles}))
    return path


@pytest.fixture
def hotpotqa(tmp_path):
    rows = []
    for r in range(5):
        context = [[f"T{r}{p}", [f"Fact {r}{p} is here.", " More of it."]] for p in range(10)]
        rows.append(
            {
                "question": f"Which {r}?",
                "answer": f"{r}3",
                "context": context,
                "supporting_facts": [[f"T{r}3", 0], [f"T{r}7", 1]],
            }
        )
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(rows))
    return path


def test_questions_from_files(smollm2, squad, hotpotqa, tmp_path):
    items = make_items(
        "ruler",
        tokenizer=smollm2,
        lengths=[1024, 2048],
        samples=5,
        tasks=["qa_1", "qa_2"],
        squad=squad,
        hotpotqa=hotpotqa,
    )
    made = list(items)
    assert items.header["stand_in"] is False
    for item in made:
        assert item.tokens + 32 <= item.length
        assert item.fill >= 0.97
        if item.task == "qa_1":
            name = re.search(r"Where is (\d+)\?", item.question)[1]
            assert item.references == (f"town {name}", f"the town {name}")
            assert f"It is in the town {name}. word{name}0 " in item.prompt
        else:
            row = re.search(r"\d", item.question)[0]
            for paragraph in range(10):
                name = f"{row}{paragraph}"
                assert f":\nT{name}\nFact {name} is here. More of it." in item.prompt
    assert len({item.question for item in made}) == 10
    with pytest.raises(ConfigError, match="--samples: 13 are more than the 12"):
        next(
            iter(
                make_items(
                    "ruler",
                    tokenizer=smollm2,
                    lengths=[1024],
                    samples=13,
                    tasks=["qa_1"],
                    squad=squad,
                )
            )
        )


@pytest.mark.parametrize("option", ["squad", "hotpotqa"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "check the path"),
        ("{", "not JSON"),
        ('{"rows": 1}', "schema"),
        ('[{"question": "?"}]', "schema"),
        ("7", "schema"),
    ],
)
def test_question_files_that_cannot_be_used(smollm2, tmp_path, option, content, said):
    if content is not None:
        (tmp_path / "file.json").write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        make_items(
            "ruler",
            tokenizer=smollm2,
            lengths=[512],
            samples=1,
            **{option: tmp_path / "file.json"},
        )
    assert "\n" not in str(caught.value)


def test_essays_from_files(smollm2, tmp_path):
    (tmp_path / "essays.txt").write_text("The lamp stood on the pier. Nobody had lit it. " * 5)
    items = make_items(
        "ruler",
        tokenizer=smollm2,
        lengths=[1024],
        samples=1,
        tasks=["niah_single_2"],
        prose=[tmp_path / "essays.txt"],
    )
    (item,) = items
    assert items.header["corpora"]["essays"]["stand_in"] is False
    assert "\nThe lamp stood on the pier. Nobody had lit it. The lamp" in item.prompt
    assert item.fill >= 0.97


ROWS = [
    {"input": f"Prose. Mary went to the {p}.", "question": "Where is Mary? ", "target": p}
    for p in ("office", "garden")
]


@pytest.mark.parametrize("name", ["qa1_4k.jsonl", "data/qa1/4k.json", "4k/qa1-00000.parquet"])
def test_published_data_takes_the_same_path(smollm2, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    items = make_items(
        "babilong",
        tokenizer=smollm2,
        lengths=[4096],
        samples=2,
        tasks=["qa1"],
        babilong_data=tmp_path,
    )
    manifest = write_items(items, tmp_path / "out")
    read, _ = read_items(tmp_path / "out")
    assert [item.target for item in read] == ["office", "garden"]
    assert "<context>\nProse. Mary went to the office.\n</context>" in read[0].prompt
    assert read[0].question == "Where is Mary?"
    assert manifest["stand_in"] is False
    assert manifest["cells"]["qa1"]["4096"]["prompt_tokens"]["least"] > 100


@pytest.mark.parametrize("lengths", [[512], [1536], [4096, 4000]])
def test_published_data_has_whole_thousands(smollm2, tmp_path, lengths):
    with pytest.raises(ConfigError, match="--lengths"):
        make_items(
            "babilong",
            tokenizer=smollm2,
            lengths=lengths,
            samples=1,
            tasks=["qa1"],
            babilong_data=tmp_path,
        )


def test_tasks_that_only_the_published_data_has(smollm2, tmp_path):
    (tmp_path / "qa7_1k.jsonl").write_text(
        '{"input": "Mary got the milk.", "question": "How many objects is Mary carrying?", '
        '"target": "one"}\n'
    )
    options = {"tokenizer": smollm2, "lengths": [1024], "samples": 1, "tasks": ["qa7"]}
    (item,) = make_items("babilong", babilong_data=tmp_path, **options)
    assert babilong.score("qa7", item.question, item.target, "One.")
    with pytest.raises(ConfigError, match="--tasks: 'qa7'"):
        make_items("babilong", **options)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no file names both"),
        ({"qa1_4k.jsonl": "{}\n"}, "row 1 has not the texts"),
        ({"qa1_4k.jsonl": ""}, "no rows"),
        ({"qa1_4k.json": "[{]"}, "cannot be read"),
        ({"qa1_4k.parquet": "x"}, "cannot be read"),
        ({"qa1_4k.json": "[]", "qa1-4k.json": "[]"}, "2 files name"),
    ],
)
def test_published_data_that_cannot_be_used(smollm2, tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        make_items(
            "babilong",
            tokenizer=smollm2,
            lengths=[4096],
            samples=1,
            tasks=["qa1"],
            babilong_data=tmp_path,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"suite": "longbench"}, "--suite: 'longbench'"),
        ({"tasks": ["qa11"]}, "--tasks: 'qa11'"),
        ({"lengths": [100]}, "--lengths: 100 is too short"),
        ({"lengths": []}, "--lengths: none"),
        ({"samples": 0}, "--samples: 0"),
        ({"max_new_tokens": 0}, "--max_new_tokens: 0"),
    ],
)
def test_options_that_make_no_sense(smollm2, options, said):
    given = {"suite": "babilong", "lengths": [512], "samples": 1, "tokenizer": smollm2}
    with pytest.raises(ConfigError, match=said):
        make_items(**given | options)


@pytest.mark.parametrize(("suite", "task"), CELLS)
def test_lengths_that_are_too_short_are_named(suite, task):
    """A byte-level tokenizer needs four times as many tokens, and half is kept for the answer."""
    items = make_items(
        suite,
        tokenizer=tiny_tokenizer(),
        lengths=[512],
        samples=1,
        tasks=[task],
        max_new_tokens=256,
    )
    with pytest.raises(ConfigError, match=f"--lengths: 512 is too short for {suite} {task}"):
        list(items)


def test_lengths_are_named_as_in_the_published_data():
    named = {4096: "4k", 4000: "4k", 131072: "128k", 128000: "128k", 1048576: "1M", 10**6: "1M"}
    assert {length: length_label(length) for length in named} == named


@pytest.mark.parametrize("task", ["qa3", "niah_single_1"])
def test_a_long_item(smollm2, task):
    suite = "ruler" if task.startswith("niah") else "babilong"
    (item,) = make_items(suite, tokenizer=smollm2, lengths=[131072], samples=1, tasks=[task])
    assert 0.99 <= item.fill <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "task"), [("babilong", "qa5"), ("ruler", "niah_multikey_3"), ("ruler", "cwe")]
)
def test_a_million_tokens(smollm2, suite, task):
    (item,) = make_items(suite, tokenizer=smollm2, lengths=[1 << 20], samples=1, tasks=[task])
    assert 0.99 <= item.fill <= 1
