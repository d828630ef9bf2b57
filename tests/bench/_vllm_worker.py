"""Answer "how long did these requests take vLLM" over pipes; run by the Python of vLLM's own environment.

It imports nothing of this project, which is not installed there. First line in: the
checkpoint, the requests and the settings as JSON. Then every line in is a wish for one timed run, and every line out
its seconds and the lengths of what was read and drawn.
"""

import json
import os
import sys
import time


def main() -> None:
    """Serve until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints must not get between the answers
    settings = json.loads(sys.stdin.readline())

    import numpy as np
    from PIL import Image
    from vllm import LLM, SamplingParams

    llm = LLM(
        settings["model"],
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=settings["samples"] * len(settings["requests"]),
        enable_prefix_caching=True,  # without it every one of n samples would have a prefill of its own
        mm_processor_cache_gb=0,
        enforce_eager=settings["eager"],
        limit_mm_per_prompt={"image": 1},
        seed=0,
    )
    requests = [
        {
            "prompt_token_ids": one["ids"],
            "multi_modal_data": {"image": Image.fromarray(np.array(one["rgb"], dtype=np.uint8))},
        }
        for one in settings["requests"]
    ]
    drawing = SamplingParams(
        n=settings["samples"], max_tokens=settings["tokens"], temperature=1.0, ignore_eos=True, detokenize=False
    )
    print(json.dumps({"ready": True}), file=out, flush=True)
    for _ in sys.stdin:
        if not llm.reset_prefix_cache():  # else this round would find the last one's work done
            raise SystemExit("vLLM kept the last round's prompts: the times cannot be compared.")
        begun, busy = time.perf_counter(), time.process_time()
        done = llm.generate(requests, drawing, use_tqdm=False)
        told = {
            "seconds": time.perf_counter() - begun,
            "busy": time.process_time() - busy,
            "prompt": [len(one.prompt_token_ids) for one in done],
            "drawn": sum(len(sample.token_ids) for one in done for sample in one.outputs),
        }
        print(json.dumps(told), file=out, flush=True)


if __name__ == "__main__":
    main()
