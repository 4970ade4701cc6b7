"""The helpers of the tests give what they promise."""

import pytest
import torch

from tests.tiny_models import FAMILIES, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_small_deterministic_and_not_uniform(family):
    before = torch.random.get_rng_state()
    model = tiny_model(family)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.config.num_hidden_layers == 4
    assert sum(p.numel() for p in model.parameters()) < 100_000
    ids_BS = torch.randint(3, 128, (1, 24))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(ids_BS, output_attentions=True)
        again = tiny_model(family)(ids_BS)
    torch.testing.assert_close(out.logits, again.logits)
    last_row_HS = out.attentions[-1][0, :, -1]
    assert last_row_HS.max() > 2 / 24
    assert not torch.equal(tiny_model(family, seed=1)(ids_BS).logits, out.logits)


def test_overrides_reach_the_config():
    model = tiny_model("llama", dtype=torch.float64, tie_word_embeddings=True, vocab_size=300)
    assert model.dtype == torch.float64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (300, 32)


def test_tokenizer_round_trip_and_template():
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "häĺ 你"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhäĺ 你<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[0] == tokenizer.bos_token_id == 1
    assert len(tokenizer) == 260
