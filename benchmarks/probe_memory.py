"""Peak memory of an attention probe beside that of a plain forward, each in its own process.

python -m benchmarks.probe_memory --json out.json

The peak is that of the whole process: interpreter, model and activations. The plain forward is the
stock model's on the same tokens, with logits of the last position only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from focusft.analysis.dilution import measure_documents, probing
from focusft.training.models import load_model
from focusft.training.provenance import versions, write_json

VARIANTS = ("forward", "probe_causal", "probe_bidirectional")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--response", type=int, default=512, help="response tokens, all measured")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    peak_gb = {}
    for variant in VARIANTS:
        arguments = [f"--{name}={vars(options)[name]}" for name in ("model", "length", "response")]
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.probe_memory", f"--variant={variant}", *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        peak_gb[variant] = json.loads(finished.stdout.splitlines()[-1])
        print(f"{variant}: {peak_gb[variant]:.2f} GB", flush=True)
    ratios = {name: peak_gb[name] / peak_gb["forward"] for name in VARIANTS[1:]}
    print(", ".join(f"{name} / forward: {ratio:.3f}" for name, ratio in ratios.items()))
    if options.json:
        settings = {name: vars(options)[name] for name in ("model", "length", "response")}
        write_json(
            options.json,
            {"ratios": ratios, "peak_gb": peak_gb, "settings": settings, "versions": versions()},
        )


def measure(options: argparse.Namespace) -> float:
    """Run one variant in this process and return its peak in GB."""
    model = load_model(options.model, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.config.vocab_size, (1, options.length), generator=generator)
    if options.variant == "forward":
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
    else:
        labels = input_ids.clone()
        labels[:, : options.length - options.response] = -100
        with probing(model) as probed:
            mask = "causal" if options.variant == "probe_causal" else "bidirectional"
            measure_documents(probed, {"input_ids": input_ids, "labels": labels}, mask)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    main()
