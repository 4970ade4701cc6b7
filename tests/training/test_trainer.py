"""The trainer: plain SFT, accumulation, saving and resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Trainer

import focusft
from focusft.data import ConversationCollator, LengthBucketedSampler
from focusft.errors import ConfigError, UnsupportedModelError
from focusft.method.inner_loop import InnerTrace
from focusft.training.config import FocuSFTConfig
from focusft.training.trainer import FocuSFTTrainer
from focusft.training.validation import rank_batches, response_loss
from tests.method.test_gradients import conversation
from tests.tiny_models import tiny_model


def dataset(count=12):
    rows = []
    for index in range(count):
        ids, labels = conversation([(6 + index % 5, 3), (4, 2 + index % 3)], seed=index)
        turns = []
        for position, label in enumerate(labels.tolist()):
            is_response = label != -100
            starts = position == 0 or is_response != (labels[position - 1].item() != -100)
            number = (abs(turns[-1]) if turns else 0) + starts
            turns.append(-number if is_response else number)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "turn_ids": turns})
    return Dataset.from_list(rows)


def trainer(folder, model=None, **options):
    settings = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "inner_lr": 0.1,
        "inner_rank": 4,
        "activation_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return FocuSFTTrainer(
        model=model or tiny_model("llama"),
        args=FocuSFTConfig(**(settings | options)),
        train_dataset=dataset(),
        eval_dataset=dataset(4),
    )


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_a_trainer_that_cannot_be_made_leaves_the_model_as_it_was(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="eval_strategy"):
        FocuSFTTrainer(
            model,
            FocuSFTConfig(output_dir=str(tmp_path), use_cpu=True, eval_strategy="steps"),
            train_dataset=dataset(),
        )
    assert not model._forward_pre_hooks
    focusft.attach(model).detach()


def test_validation_runs_in_the_precision_of_training_before_it_too(tmp_path):
    run = trainer(tmp_path, bf16=True, learning_rate=0.0)
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] == before
    exact = trainer(tmp_path).evaluate()["eval_loss"]
    assert before != exact
    assert before == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_no_inner_step_and_causal_context_is_plain_sft(tmp_path, packing):
    causal = {"num_inner_steps": 0, "context_attention": "causal", "packing": packing}
    ours = trainer(tmp_path / "a", **causal)
    plain = trainer(tmp_path / "b", method="sft", packing=packing)
    ours.train()
    plain.train()
    assert losses(ours) == losses(plain)
    for name, weight in weights(plain).items():
        assert torch.equal(weights(ours)[name], weight), name


def test_attach_without_inner_step_and_causal_context_is_the_stock_model():
    model = tiny_model("llama").train()
    ids, labels = conversation([(6, 3), (4, 2)])
    batch = {"input_ids": ids[None], "labels": labels[None]}
    stock = model(**batch).loss
    stock.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    config = focusft.FocusConfig(num_inner_steps=0, context_attention="causal")
    engine = focusft.attach(model, config)
    loss = model(**batch).loss
    loss.backward()
    engine.detach()
    assert torch.equal(loss, stock)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_plain_sft_follows_the_stock_trainer(tmp_path):
    ours = trainer(
        tmp_path / "a", method="sft", packing=False, train_sampling_strategy="sequential"
    )
    ours.train()
    stock = Trainer(
        model=tiny_model("llama"),
        args=ours.args,
        train_dataset=dataset().remove_columns("turn_ids"),
        data_collator=lambda rows: {
            name: column
            for name, column in ConversationCollator(0)(
                [{**row, "turn_ids": row["labels"]} for row in rows]
            ).items()
            if name != "turn_ids"
        },
    )
    stock.train()
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"method": "sft"}], ids=["focusft", "sft"])
def test_packed_rows_train_like_padded_ones(tmp_path, options):
    runs = [
        trainer(
            tmp_path / str(packing),
            packing=packing,
            train_sampling_strategy="sequential",
            **options,
        )
        for packing in (True, False)
    ]
    shapes = []
    for run in runs:
        batch = next(iter(run.get_train_dataloader()))
        shapes.append(tuple(batch["input_ids"].shape))
        assert ("attention_mask" in batch) and batch["attention_mask"].any()
        run.train()
    (packed_rows, packed_length), (padded_rows, padded_length) = shapes
    assert (packed_rows, padded_rows) == (1, 2)
    assert packed_length < 2 * padded_length
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-4)
    assert losses(runs[0])[0] == pytest.approx(losses(runs[1])[0], rel=1e-5)


def test_padded_batches_hold_examples_of_similar_length(tmp_path):
    rows = Dataset.from_list(list(dataset(12)) * 20)
    padding = {}
    for strategy in ("random", "sequential"):
        run = trainer(tmp_path, packing=False, train_sampling_strategy=strategy)
        run.train_dataset = rows
        masks = [batch["attention_mask"] for batch in run.get_train_dataloader()]
        assert sum(mask.sum() for mask in masks) == sum(map(len, rows["input_ids"]))
        padding[strategy] = sum((mask == 0).sum() for mask in masks)
    assert padding["random"] < 0.2 * padding["sequential"]


def test_the_order_by_length_changes_with_the_epoch_and_the_seed_only():
    lengths = [3 + index % 17 for index in range(100)]

    def order(seed, epoch):
        sampler = LengthBucketedSampler(lengths, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(100))
    assert len({tuple(order(seed, epoch)) for seed in (0, 5) for epoch in (0, 1)}) == 4


def test_accumulation_equals_one_batch(tmp_path):
    whole = trainer(tmp_path / "a", per_device_train_batch_size=4)
    pieces = trainer(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train()
    pieces.train()
    assert losses(pieces)[0] == pytest.approx(losses(whole)[0], rel=1e-6)
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-4)


def test_training_learns_and_logs_the_inner_loop(tmp_path):
    run = trainer(tmp_path, max_steps=30)
    before = run.evaluate()
    run.train()
    after = run.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_loss_bidirectional"] < before["eval_loss_bidirectional"]
    line = next(entry for entry in run.state.log_history if "loss" in entry)
    assert {"inner_loss_0", "inner_loss_1", "inner_loss_2", "inner_steps_raised"} <= set(line)
    assert line["tokens_per_second"] > line["response_tokens_per_second"] > 0


def test_a_line_of_the_log_over_steps_with_different_masks(tmp_path):
    each = trainer(tmp_path / "each", causal_share=0.5)
    each.train()
    both = trainer(tmp_path / "both", causal_share=0.5, logging_steps=2)
    both.train()
    single = [entry for entry in each.state.log_history if "loss" in entry]
    # The loss after the last inner step is that of an outer loop with the mask of the inner one.
    assert ["inner_loss_2" in line for line in single] == [True, False, True, False]
    for number, line in enumerate(entry for entry in both.state.log_history if "loss" in entry):
        first, second = single[2 * number : 2 * number + 2]
        assert line["inner_loss_2"] == pytest.approx(first["inner_loss_2"])
        assert line["inner_loss_1"] == pytest.approx(
            (first["inner_loss_1"] + second["inner_loss_1"]) / 2
        )


def test_validation_is_that_of_the_unadapted_model(tmp_path):
    run = trainer(tmp_path)
    metrics = run.evaluate()
    model = tiny_model("llama")
    batch = ConversationCollator(0)(list(dataset(4)))
    total, count = response_loss(model, batch, "causal")
    assert metrics["eval_loss"] == pytest.approx((total / count).item(), rel=1e-5)
    stock = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    )
    assert metrics["eval_loss"] == pytest.approx(stock.loss.item(), rel=1e-5)


def test_several_validation_sets(tmp_path):
    run = trainer(tmp_path)
    run.eval_dataset = {"four": dataset(4), "two": dataset(2)}
    metrics = run.evaluate()
    for name, rows in run.eval_dataset.items():
        assert metrics[f"eval_{name}_loss"] == run.evaluate(rows)["eval_loss"]


@pytest.mark.parametrize("rows", range(1, 12))
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_validate_on_each_row_once(rows, ranks):
    shares = [rank_batches(rows, 2, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    counted = [row for share in shares for batch, counts in share if counts for row in batch]
    assert sorted(counted) == list(range(rows))


def test_packed_documents_do_not_see_each_other_in_plain_sft():
    model = tiny_model("llama")
    rows = list(dataset(3))
    separate = [response_loss(model, ConversationCollator(0)([row]), "causal") for row in rows]
    packed = {
        name: torch.cat([torch.tensor(row[name]) for row in rows])[None]
        for name in ("input_ids", "labels", "turn_ids")
    }
    packed["position_ids"] = torch.cat([torch.arange(len(row["labels"])) for row in rows])[None]
    packed["attention_mask"] = torch.ones_like(packed["labels"])
    total, count = response_loss(model, packed, "causal")
    assert count == sum(n for _, n in separate)
    assert total.item() == pytest.approx(sum(t.item() for t, _ in separate), rel=1e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_saved_model_is_vanilla(tmp_path, tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    names = set(model.state_dict())
    run = trainer(tmp_path, model=model)
    run.train()
    run.save_model()
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert set(loaded.state_dict()) == names
    ids, _ = conversation([(6, 3)])
    with torch.no_grad():
        ours = run.model.eval()(ids[None]).logits
        assert torch.equal(loaded.eval()(ids[None]).logits, ours)
    assert not list(tmp_path.rglob("*.bin"))
    assert (tmp_path / "focusft_config.yaml").is_file()
    assert "focusft" not in (tmp_path / "config.json").read_text()


def test_a_rising_inner_loss_is_named_with_its_mend(tmp_path, caplog):
    run = trainer(tmp_path, inner_lr=50.0, inner_grad_clip=0.0)
    run.train()
    assert run.inner_steps_raised > 0
    assert "lower inner_lr or set inner_step=backtracking" in caplog.text


KILLED = """
import os
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads({threads})
torch.use_deterministic_algorithms(True)
from tests.training.test_trainer import trainer
run = trainer(Path({folder!r}), max_steps=12, save_strategy="steps", save_steps=2)
original = run.training_step
def slow(*args, **kwargs):
    import time
    time.sleep(0.3)
    return original(*args, **kwargs)
run.training_step = slow
run.train()
"""


def test_kill_and_resume_gives_the_same_losses(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=12)
    whole.train()
    folder = tmp_path / "killed"
    root = os.getcwd()
    # With another number of threads, some CPUs round otherwise.
    threads = torch.get_num_threads()
    code = KILLED.format(root=root, folder=str(folder), threads=threads)
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while not (folder / "checkpoint-4" / "trainer_state.json").is_file():
            assert process.poll() is None, "the run ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    checkpoint = folder / "checkpoint-4"
    done = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    resumed = trainer(folder, max_steps=12)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert done == 4
    assert losses(resumed) == losses(whole)
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight), name


def test_first_tokens_of_packed_documents_are_counted_as_they_are_trained(tmp_path):
    rows = Dataset.from_list(
        [
            {"input_ids": [5 + i, 9, 11 + i], "labels": [5 + i, 9, 11 + i], "turn_ids": [-1] * 3}
            for i in range(4)
        ]
    )
    found = []
    for packing in (True, False):
        run = trainer(
            tmp_path / str(packing),
            packing=packing,
            max_steps=1,
            per_device_train_batch_size=4,
            probe_steps=0,
        )
        run.train_dataset = rows
        run.train()
        found.append(losses(run)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_plain_list_of_rows_trains_padded_too(tmp_path):
    run = trainer(tmp_path, packing=False, max_steps=1)
    run.train_dataset = list(dataset())
    run.train()
    assert len(losses(run)) == 1


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("options", [{}, {"method": "sft"}], ids=["focusft", "sft"])
def test_predict_is_that_of_the_stock_model(tmp_path, options, packing):
    run = trainer(tmp_path, packing=packing, max_steps=1, **options)
    run.train()
    watched = run.inner_steps_watched
    with torch.no_grad():
        batch = replace(run.data_collator, packing=False)(list(dataset(2)))
        expected = run.model.eval()(
            **{name: value for name, value in batch.items() if name != "turn_ids"}
        ).loss
    output = run.predict(dataset(2))
    assert output.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert run.inner_steps_watched == watched


def test_a_window_of_attention_is_validated_causally_alone(tmp_path, caplog):
    model = tiny_model("mistral", sliding_window=4)
    run = trainer(tmp_path, model, method="sft", packing=False, probe_steps=0)
    metrics = run.evaluate()
    assert "no loss with bidirectional context" in caplog.text
    assert "eval_loss" in metrics and "eval_loss_bidirectional" not in metrics
    row = {name: torch.tensor([values]) for name, values in dataset(1)[0].items()}
    row["position_ids"] = torch.cat([torch.arange(4), torch.arange(row["labels"].shape[1] - 4)])[
        None
    ]
    with pytest.raises(UnsupportedModelError, match="packed rows"):
        response_loss(model, row, "causal")


@pytest.mark.parametrize(
    "name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"]
)
def test_functions_that_would_never_be_called_are_refused(tmp_path, name):
    args = trainer(tmp_path).args
    with pytest.raises(ConfigError, match=name):
        FocuSFTTrainer(model=tiny_model("llama"), args=args, **{name: print})


def test_the_step_size_is_that_of_documents_with_a_target(tmp_path):
    run = trainer(tmp_path)
    step, none = torch.tensor([0.5, 8.0]), torch.tensor([1.0, 1.0])
    run._window.traces.append(
        InnerTrace((none, none), (step,), (none,), torch.tensor([True, False]))
    )
    assert run._window_metrics()["inner_step_size"] == 0.5
