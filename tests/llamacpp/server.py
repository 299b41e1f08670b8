#!/usr/bin/env python3
"""server.py: `doublep llama -- llama-server` gives the answer that llama-server gives, and it is the plugin that decodes.
Usage: server.py LLAMA-SERVER DOUBLEP. The exit status is 77 where the build of llama.cpp has no llama-server."""

import argparse
import os
import re
import sys

from soak import load_prompts
from llama_server import MODEL, Server


def main():
    options = argparse.Namespace(server=sys.argv[1], doublep=sys.argv[2], model=MODEL, threads=2)
    if not os.path.exists(options.server):
        return 77
    prompt = sorted(load_prompts()[0], key=len)[-1]
    answers = []
    for plugin in (False, True):
        with Server(options, plugin, "-np", "1", "-c", "6144", "-tb", "1") as server:
            answers.append(server.complete(prompt)["content"])
        print(f"{answers[-1]!r}; {server.stats()}")
    steps = re.search(r"(\d+) sparse", server.stats())
    return answers[0] != answers[1] or not steps or int(steps[1]) == 0


if __name__ == "__main__":
    sys.exit(main())
