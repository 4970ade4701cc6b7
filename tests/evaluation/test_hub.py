"""Corpora by hub id give what the published files give; no hub is reached here."""

import json

import datasets
import pytest

from focusft.errors import DataError
from focusft.evaluation.haystack import read_prose
from focusft.evaluation.items import make_items
from focusft.evaluation.ruler_questions import read_hotpotqa, read_squad
from tests.tiny_models import tiny_tokenizer

STORIES = [
    {"input": f"Prose. Mary went to the {place}.", "question": "Where is Mary? ", "target": place}
    for place in ("office", "garden")
]
SQUAD = [
    {
        "id": f"{article}{paragraph}{question}",
        "title": f"Title {article}",
        "context": f"Town {article}{paragraph} lies here.",
        "question": f"What lies here {article}{paragraph}{question}?",
        "answers": {
            "text": [f"Town {article}{paragraph}"] * question,
            "answer_start": [0] * question,
        },
    }
    for article in range(2)
    for paragraph in range(3)
    for question in range(3)
]
HOTPOTQA = [
    {
        "id": str(row),
        "question": f"Which {row}?",
        "answer": f"{row}3",
        "context": {
            "title": [f"T{row}{p}" for p in range(10)],
            "sentences": [[f"Fact {row}{p} is here.", " More of it."] for p in range(10)],
        },
        "supporting_facts": {"title": [f"T{row}3", f"T{row}7"], "sent_id": [0, 1]},
    }
    for row in range(3)
]
ESSAYS = [
    {"title": "One", "text": "The lamp stood. It was lit."},
    {"title": "Two", "text": "A boat."},
]


@pytest.fixture
def asked(monkeypatch):
    """Puts the sets above on a hub, and lists what it is asked for."""
    asked = []
    rows = {
        "RMT-team/babilong": STORIES,
        "rajpurkar/squad_v2": SQUAD,
        "hotpotqa/hotpot_qa": HOTPOTQA,
        "org/essays": ESSAYS,
        "org/other": [{"a": 1}],
    }

    def load(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_babilong(asked, tmp_path):
    def items(source):
        return make_items(
            "babilong",
            tokenizer=tiny_tokenizer(),
            lengths=[4096, 131072],
            samples=2,
            tasks=["qa1", "qa2"],
            babilong_data=source,
        )

    of_hub = items("RMT-team/babilong")
    assert asked == [
        ("RMT-team/babilong", length, task) for task in ("qa1", "qa2") for length in ("4k", "128k")
    ]
    for task in ("qa1", "qa2"):
        for length in ("4k", "128k"):
            (tmp_path / f"{task}_{length}.json").write_text(json.dumps(STORIES))
    of_files = items(tmp_path)
    assert list(of_hub) == list(of_files)
    assert [item.target for item in of_hub][:2] == ["office", "garden"]
    entry = of_hub.header["corpora"]["qa2_128k"]
    assert entry["source"] == "RMT-team/babilong:128k:qa2"
    assert len(entry["sha256"]) == 64 and entry["stand_in"] is False
    assert of_files.header["corpora"]["qa2_128k"]["source"] == "qa2_128k.json"


def test_squad(asked, tmp_path):
    articles = []
    for article in range(2):
        paragraphs = []
        for paragraph in range(3):
            rows = [r for r in SQUAD if r["id"].startswith(f"{article}{paragraph}")]
            qas = [
                {
                    "question": row["question"],
                    "answers": [{"text": text} for text in row["answers"]["text"]],
                    "is_impossible": not row["answers"]["text"],
                }
                for row in rows
            ]
            paragraphs.append({"context": rows[0]["context"], "qas": qas})
        articles.append({"title": f"Title {article}", "paragraphs": paragraphs})
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    of_file = read_squad(tmp_path / "squad.json")
    of_hub = read_squad("rajpurkar/squad_v2")
    assert (of_hub.documents, of_hub.questions) == (of_file.documents, of_file.questions)
    assert of_hub.digest() == of_file.digest()
    assert len(of_hub.questions) == 12  # a third has no answer
    assert (of_hub.source, of_file.source) == ("rajpurkar/squad_v2", "squad.json")
    read_squad("rajpurkar/squad_v2:train")
    assert asked == [("rajpurkar/squad_v2", None, split) for split in ("validation", "train")]


def test_hotpotqa(asked, tmp_path):
    rows = [
        {
            "question": row["question"],
            "answer": row["answer"],
            "context": list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
            "supporting_facts": [[f"T{row['id']}3", 0], [f"T{row['id']}7", 1]],
        }
        for row in HOTPOTQA
    ]
    (tmp_path / "hotpot.json").write_text(json.dumps(rows))
    of_file = read_hotpotqa(tmp_path / "hotpot.json")
    of_hub = read_hotpotqa("hotpotqa/hotpot_qa")
    assert (of_hub.documents, of_hub.questions) == (of_file.documents, of_file.questions)
    assert of_hub.questions[0].gold and of_hub.questions[0].near
    assert asked == [("hotpotqa/hotpot_qa", "distractor", "validation")]


def test_prose(asked, tmp_path):
    (tmp_path / "more.txt").write_text("A third text.")
    prose = read_prose(["org/essays:test[:2]", tmp_path / "more.txt"])
    assert prose.sentences == ("The lamp stood.", "It was lit.", "A boat.", "A third text.")
    assert prose.source == "org/essays:test[:2], more.txt"
    assert prose.stand_in is False
    read_prose(["org/essays"])
    assert asked == [("org/essays", None, split) for split in ("test[:2]", "train")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prose": ["org/other"]}, "org/other: not every row has a text"),
        ({"squad": "org/other"}, "not in SQuAD's schema"),
        ({"hotpotqa": "org/other"}, "not in HotpotQA's schema"),
    ],
)
def test_sets_with_other_columns(asked, options, said):
    with pytest.raises(DataError, match=said) as caught:
        make_items("ruler", tokenizer=tiny_tokenizer(), lengths=[4096], samples=1, **options)
    assert "\n" not in str(caught.value)


def test_babilong_with_other_columns(asked):
    with pytest.raises(DataError, match="org/other:4k:qa1: row 1 has not the texts"):
        make_items(
            "babilong",
            tokenizer=tiny_tokenizer(),
            lengths=[4096],
            samples=1,
            tasks=["qa1"],
            babilong_data="org/other",
        )


@pytest.mark.parametrize(
    ("suite", "options"),
    [
        ("babilong", {"babilong_data": "RMT-team/babilong"}),
        ("babilong", {"prose": ["org/books"]}),
        ("ruler", {"prose": ["org/essays"]}),
        ("ruler", {"squad": "rajpurkar/squad_v2"}),
        ("ruler", {"hotpotqa": "hotpotqa/hotpot_qa"}),
    ],
)
def test_a_hub_out_of_reach_is_one_line(suite, options):
    """The real client, offline as all tests are (HF_HUB_OFFLINE)."""
    with pytest.raises(DataError, match=r"\w+/\w+ is neither a file here nor a data set") as caught:
        make_items(suite, tokenizer=tiny_tokenizer(), lengths=[4096], samples=1, **options)
    assert "\n" not in str(caught.value) and "check the name" in str(caught.value)


def test_corpora_of_other_tasks_are_not_read(tmp_path):
    options = {"squad": tmp_path / "missing.json", "hotpotqa": tmp_path / "missing.json"}
    items = make_items(
        "ruler", tokenizer=tiny_tokenizer(), lengths=[4096], samples=1, tasks=["vt"], **options
    )
    assert items.header["corpora"] == {}
