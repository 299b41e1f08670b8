"""PyTorch's scaled_dot_product_attention for one decoded token, measured as `doublep bench` measures ours: layers in
turn, the caches flushed in between. Prints one JSON object per form, a line each.

    torch_attention.py QUERY_HEADS KV_HEADS DIM TOKENS THREADS STEPS
"""
import json
import sys
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

LAYERS = 2


def measure(name, heads, kv_heads, dim, tokens, steps, dtype, as_rows):
    group = heads // kv_heads
    keys = [torch.randn(1, kv_heads, tokens, dim).to(dtype) for _ in range(LAYERS)]
    values = [torch.randn(1, kv_heads, tokens, dim).to(dtype) for _ in range(LAYERS)]
    flush = torch.ones(24 << 20)
    times = []
    for step in range(-LAYERS, steps):  # the first are for warming up
        # As rows: the query heads of a KV head are the rows of one matrix, so that its keys are read once.
        shape = (1, kv_heads, group, dim) if as_rows else (1, heads, 1, dim)
        query = torch.randn(shape).to(dtype)
        key, value = keys[step % LAYERS], values[step % LAYERS]
        flush.sum()
        start = time.perf_counter()
        scaled_dot_product_attention(query, key, value, enable_gqa=not as_rows)
        if step >= 0:
            times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    size = 2 * tokens * kv_heads * dim * keys[0].element_size()
    median = times[len(times) // 2]
    print(json.dumps({"name": name, "version": torch.__version__, "ms_median": median,
                      "ms_p10": times[len(times) // 10], "ms_p90": times[len(times) * 9 // 10], "bytes": size,
                      "gbps": size / median * 1e-6}), flush=True)


def main():
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    heads, kv_heads, dim, tokens, threads, steps = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        measure("PyTorch bf16, query heads as rows", heads, kv_heads, dim, tokens, steps, torch.bfloat16, True)
        measure("PyTorch f32, query heads as rows", heads, kv_heads, dim, tokens, steps, torch.float32, True)
        measure("PyTorch bf16, enable_gqa", heads, kv_heads, dim, tokens, steps, torch.bfloat16, False)


main()
