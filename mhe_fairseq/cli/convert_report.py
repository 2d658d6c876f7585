"""What `mhe convert` says of what it wrote."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mhe_fairseq.cli.convert_run import Done
from mhe_fairseq.cli.finetune_line import finetune_line


def report(done: Done, args: argparse.Namespace, output: Path, codes: Path, seconds: float) -> None:
    """Say what was written, what it costs in loss, and how to train it on."""
    book, head = done.codebook, args.head
    shape = "x".join(map(str, book.lengths))
    print(f"{output}: --arch {done.kind.ours}, once --arch {done.kind.arch}; {output.stat().st_size:,} bytes")
    tied = "tied to the embeddings" if done.tied else "not tied"
    groups = "" if head == "softmax" else f" in {shape} slots"
    print(f"  output layer: a {head} head, {done.vocab_size:,} tokens{groups}, rows of tokens {tied}")
    if done.codebook_is_new:
        print(f"  codebook {codes}, fingerprint {book.fingerprint}")
    if done.fitted is not None:
        rows = f"{done.prototypes} row{'s' if done.prototypes > 1 else ''} a group"
        print(
            f"  group head, {rows}: fitted on {done.tokens:,} tokens in {done.seconds:.1f} seconds, "
            f"divergence {done.fitted.divergence:.3f} nats"
        )
    if done.rows is not None:
        print(
            f"  fitted to a {done.kind.head} head on {done.tokens:,} tokens in {done.seconds:.1f} seconds, "
            f"divergence {done.rows.divergence:.3f} nats"
        )
    before, after = done.before, done.after
    print(
        f"  loss on {after.tokens:,} tokens of valid: {before.nats:.3f} nats before, {after.nats:.3f} after "
        f"({after.nats - before.nats:+.3f}); perplexity {before.perplexity:.2f} and {after.perplexity:.2f}"
    )
    print(f"  {seconds:.1f} seconds")
    print("to train it on:")
    codebook = (codes if done.codebook_is_new else args.codebook) if head != "softmax" else None
    line = finetune_line(done.state, done.kind.ours, done.rate, args.data, output, codebook)
    print(f"  {shlex.join(line)}")
