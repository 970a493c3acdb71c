"""The code that the report shows under each picture, as a reader would type it.

A test runs every listing after `SETUP` and compares its result with the picture's numbers.
"""

from __future__ import annotations

__all__ = ["ATTENTION", "HEADS", "LENS", "PATCHING", "READING", "SETUP", "STEERING"]

SETUP = """\
import torch
import interlace as il

torch.set_grad_enabled(False)
model = il.demo_model(attn_implementation="eager")
gpt = model.transformer
clean = "When Mary and John went to the store, John gave a drink to"
corrupted = "When Anna and John went to the store, John gave a drink to"
mary, anna = (model.tokenizer.encode(name)[0] for name in (" Mary", " Anna"))
"""

READING = """\
with model.trace(clean):
    stream = gpt.h[2].input             # a real tensor, now: batch pos d_model
    print(stream.shape)                 # torch.Size([1, 14, 128])
    logits = model.lm_head.output       # batch pos d_vocab

probabilities = logits[0, -1].softmax(-1)
for probability, token in zip(*probabilities.topk(5)):
    print(f"{probability:.3f}", model.tokenizer.decode(token))
"""

PATCHING = """\
readers = [*gpt.h, gpt.ln_f]            # everything that reads the residual stream, in order
with model.trace(clean):
    streams = [reader.input.clone() for reader in readers]

patched = torch.empty(5, 14)
for depth, reader in enumerate(readers):
    for pos in range(14):
        with model.trace(corrupted):
            reader.input[:, pos] = streams[depth][:, pos]
            logits = model.lm_head.output[0, -1]
        patched[depth, pos] = logits[mary] - logits[anna]
"""

HEADS = """\
with model.trace(clean):
    written = [block.attn.c_proj.input.clone() for block in gpt.h]

patched = torch.empty(4, 4)
for layer, block in enumerate(gpt.h):
    for head in range(4):
        part = slice(32 * head, 32 * (head + 1))        # a head owns 32 of the 128 columns
        with model.trace(corrupted):
            block.attn.c_proj.input[..., part] = written[layer][..., part]
            logits = model.lm_head.output[0, -1]
        patched[layer, head] = logits[mary] - logits[anna]
"""

ATTENTION = """\
with model.trace(clean):
    patterns = [block.attn.output[1] for block in gpt.h]     # each: batch head query_pos key_pos

print(patterns[2][0, 2, -1])            # where the last token looks, in layer 2, head 2
"""

LENS = """\
with model.trace(clean):
    logits = [model.lm_head(gpt.ln_f(reader.input)) for reader in [*gpt.h, gpt.ln_f]]

for depth, guess in enumerate(logits):
    probability, token = guess[0, -1].softmax(-1).max(-1)
    print(depth, model.tokenizer.decode(token), f"{probability:.2f}")
"""

STEERING = """\
def mood(word):
    with model.trace(f"One day Mary was {word} at the park."):
        return gpt.h[3].input[0, -1].clone()

direction = mood("happy") - mood("sad")
with model.generate("One day Mary went to the park.", max_new_tokens=40) as tracer:
    for step in tracer.iter[:]:
        gpt.h[3].input[:] += direction

print(model.tokenizer.decode(tracer.result[0]))
"""
