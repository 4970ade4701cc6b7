"""Outer PEFT-LoRA through `focusft train`: plain adapters, merged models, quantised bases."""

import io
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

import focusft
from focusft.errors import ConfigError
from focusft.training.config import load_train_config
from focusft.training.run import train
from tests.method.helpers import conversation
from tests.tiny_models import tiny_model, tiny_tokenizer

TOKENS = torch.arange(5, 25)[None]


@pytest.fixture
def base(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    messages = [
        {"role": "user", "content": "Where is the key?"},
        {"role": "assistant", "content": "In the box."},
    ]
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"messages": messages}) for _ in range(4))
    )
    return tmp_path


def config(folder, *more):
    return load_train_config(
        None,
        [
            *("--model_name_or_path", str(folder / "base")),
            *("--train_data", str(folder / "train.jsonl")),
            *("--output_dir", str(folder / "run")),
            *("--max_steps", "2", "--learning_rate", "0.01", "--gradient_accumulation_steps", "1"),
            *("--inner_lr", "0.1", "--inner_rank", "4", "--warmup_steps", "0"),
            *("--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"),
            *more,
        ],
    )


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits


def test_adapters_load_in_peft_and_merged_models_in_transformers(base):
    train(config(base, "--use_peft", "--merge_adapters"), Console(quiet=True))
    assert not (base / "run" / "model.safetensors").exists()
    stock = AutoModelForCausalLM.from_pretrained(base / "base")
    before = logits(stock)
    adapted = logits(PeftModel.from_pretrained(stock, base / "run"))
    merged = logits(AutoModelForCausalLM.from_pretrained(base / "run" / "merged"))
    assert (adapted - before).abs().max() > 1e-3
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    saved = (base / "run" / "adapter_config.json").read_text()
    assert json.loads(saved)["base_model_name_or_path"] == str(base / "base")


@pytest.mark.parametrize(
    ("options", "saved"),
    [([], "run"), (["--use_peft", "--merge_adapters"], "run/merged")],
    ids=["full", "merged"],
)
def test_a_trained_base_model_stops_where_its_chat_template_does(base, options, saved):
    tokenizer = tiny_tokenizer()
    end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base / "base")
    GenerationConfig(eos_token_id=end_of_text).save_pretrained(base / "base")
    console = Console(record=True, file=io.StringIO(), width=200)
    train(config(base, *options), console)
    assert GenerationConfig.from_pretrained(base / saved).eos_token_id == [end_of_text, end_of_turn]
    assert "will end at <|im_end|> too" in console.export_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge_adapters"], "merge_adapters"),
        (["--use_peft", "--lora_r", "0"], "lora_r"),
        (["--use_peft", "--lora_dropout", "1.0"], "lora_dropout"),
        (["--use_peft", "--lora_target_modules", "nowhere"], "lora_target_modules: 'nowhere'"),
        (["--use_peft", "--lora_target_modules", "q_proj,v_prj"], "'v_prj' names no part"),
        (["--use_peft", "--lora_target_modules", "all-linear,lm_head"], "all-linear alone"),
    ],
)
def test_wrong_options_are_one_line(base, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(config(base, *options), Console(quiet=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("lora_alpha", "320"), ("lora_r", "4")])
def test_other_adapters_are_another_run(base, name, value):
    saved = ("--use_peft", "--save_strategy", "steps", "--save_steps", "1")
    train(config(base, *saved), Console(quiet=True))
    with pytest.raises(ConfigError, match=f"was trained with {name.replace('_', ' ')}"):
        train(config(base, *saved, f"--{name}", value), Console(quiet=True))


class Int8Linear(nn.Linear):
    """A frozen linear map whose weights are int8, as a quantisation library would put there."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.scale = linear.weight.detach().abs().max() / 127
        weight = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def test_base_weights_may_be_quantised():
    model = tiny_model("llama")
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    engine = focusft.attach(model, focusft.FocusConfig(inner_lr=0.1, inner_rank=4))
    ids, labels = conversation([(12, 8)])
    model.train()
    model(input_ids=ids[None], labels=labels[None]).loss.backward()
    assert engine.trace.mean_losses[-1] < engine.trace.mean_losses[0]
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_weights_in_float16_are_refused(base):
    model = AutoModelForCausalLM.from_pretrained(base / "base", dtype=torch.float16)
    model.save_pretrained(base / "base")
    with pytest.raises(ConfigError, match=r"dtype: the weights of .* are float16"):
        train(config(base), Console(quiet=True))
