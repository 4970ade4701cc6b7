from transformers import GenerationConfig

from focusft.training.stop_tokens import add_stop_ids
from tests.data.small_tokenizer import make_tokenizer
from tests.tiny_models import tiny_model


def test_a_config_that_transformers_would_refuse_is_saved(tmp_path, caplog):
    model, tokenizer = tiny_model("llama"), make_tokenizer("qwen2_5")
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    added = add_stop_ids(model, tokenizer)
    assert added
    model.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert set(added) <= set(saved.eos_token_id)
    assert not saved.do_sample and saved.temperature in (None, 1.0)
    assert "temperature, top_p left out" in caplog.text


def test_a_config_that_samples_stays_as_it_is(tmp_path):
    model, tokenizer = tiny_model("llama"), make_tokenizer("qwen2_5")
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    assert add_stop_ids(model, tokenizer)
    model.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.6, 0.9)
