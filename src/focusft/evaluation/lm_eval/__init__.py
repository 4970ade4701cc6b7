"""Our benchmarks as tasks of lm-eval (extra `lm-eval`).

lm_eval --model hf --model_args pretrained=MODEL --apply_chat_template \
    --include_path "$(python -m focusft.evaluation.lm_eval)" --tasks focusft_ruler_4096

Generators and scores are those of `focusft eval`; nothing of lm-eval's own ports is used.
"""
