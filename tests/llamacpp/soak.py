#!/usr/bin/env python3
"""soak.py: llama-server with the plugin for some minutes: four slots in one cache, prompts of 512 to 4K tokens and of 32K, beginnings
that are there already, slots restored from files, requests that are cancelled. Every answer must be the one that the
server gives without the plugin, every request must be served, and memory must not grow from minute 2 on. The prompts are
those of tests/data, and shorter ones made of them. Needs what `tools/llama-demo --build` builds."""

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "..", "tools", "lib"))
from llama_server import ROOT, Server, add_options  # noqa: E402

SLOTS = 4
LENGTHS = 512, 1024, 2048, 4096


def shortened(case, tokens):
    """A prompt with the case's answer in it and of its other lines so many as fit."""
    numbers = case["answer"].strip(" .").split(", ")
    lines = case["context"].split("\n")
    answers = [line for line in lines if any(number in line for number in numbers)]
    room = len(case["context"]) * tokens / case["n_context_tokens"]
    others = []
    for line in lines:
        if line not in answers and (room := room - len(line) - 1) > 0:
            others.append(line)
    for i, line in enumerate(answers):
        others.insert((i + 1) * len(others) // (len(answers) + 1), line)
    return "\n".join(others) + case["question"]


def load_prompts():
    with gzip.open(os.path.join(ROOT, "tests", "data", "ruler_32k.jsonl.gz"), "rt") as f:
        cases = [json.loads(line) for line in f]
    # of id 1: two texts do not begin in the same way then
    short = [shortened(case, tokens) for case in cases if case["id"] == 1 for tokens in LENGTHS]
    long = [(f"{case['ctx']}-{case['task']}-{case['id']}", case["context"] + case["question"])
            for case in cases if case["id"] == 0 and case["task"] == "single_2"]
    return short, long


class Soak:
    def __init__(self, server, expected, long):
        self.server = server
        self.expected = expected  # prompt: text
        self.short = [prompt for prompt in expected if prompt not in dict(long).values()]
        self.long = long
        self.lock = threading.Lock()
        self.count = {"answers": 0, "cancelled": 0, "restored": 0, "differ": 0, "errors": 0}
        self.reused = 0

    def add(self, what, n=1):
        with self.lock:
            self.count[what] += n

    def compare(self, prompt, completion):
        self.add("answers")
        with self.lock:
            self.reused += completion["timings"].get("cache_n", 0)
        if completion["content"] != self.expected[prompt]:
            self.add("differ")
            print(f"DIFFERS: {completion['content']!r}, not {self.expected[prompt]!r}: ...{prompt[-120:]!r}", flush=True)

    def client(self, slot, until):
        """One request after the other; each client has a slot."""
        rng = random.Random(slot)
        while time.monotonic() < until:
            try:
                self.one_request(rng, slot)
            except Exception as error:  # whatever it is, it is the server's fault
                self.add("errors")
                print(f"ERROR: {error!r}", flush=True)
                if self.server.process.poll() is not None:
                    return
                time.sleep(1)

    def one_request(self, rng, slot):
        what = rng.random()
        prompt = rng.choice(self.short)
        if what < 0.1 and self.long:
            name, prompt = rng.choice(self.long)
            self.server.slot(slot, "restore", name)
            self.add("restored")
            self.compare(prompt, self.server.complete(prompt, id_slot=slot))
        elif what < 0.3:
            try:
                self.server.complete(prompt, id_slot=slot, timeout=rng.uniform(0.05, 3))
            except OSError:  # the connection was closed
                self.add("cancelled")
            # llama-server by itself goes on from what a cancelled prompt left behind, and answers wrongly.
            self.server.slot(slot, "erase")
        else:
            self.compare(prompt, self.server.complete(prompt, id_slot=slot))
            if what > 0.8:  # once more: its beginning is in the cache
                self.compare(prompt, self.server.complete(prompt, id_slot=slot))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--slots", help="a folder to keep saved slots in; prompts whose slots are there are not read again")
    options = parser.parse_args()
    short, long = load_prompts()

    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.realpath(options.slots or temporary)
        os.makedirs(folder, exist_ok=True)
        arguments = ("-np", str(SLOTS), "--kv-unified", "-c", "98304", "--slot-save-path", folder, "--cache-ram", "256",
                     "--no-cache-idle-slots")
        expected = {}
        with Server(options, False, *arguments) as server:
            for prompt in short:
                expected[prompt] = server.complete(prompt, id_slot=0)["content"]
            for name, prompt in long:
                if os.path.exists(os.path.join(folder, name)):
                    server.slot(0, "restore", name)
                else:
                    server.complete(prompt, id_slot=0, n_predict=0)
                    server.slot(0, "save", name)
                expected[prompt] = server.complete(prompt, id_slot=0)["content"]
        print(f"{len(expected)} prompts, {len(set(expected.values()))} different answers", flush=True)

        with Server(options, True, *arguments) as server:
            soak = Soak(server, expected, long)
            start = time.monotonic()
            until = start + 60 * options.minutes
            clients = [threading.Thread(target=soak.client, args=(slot, until)) for slot in range(SLOTS)]
            for client in clients:
                client.start()
            memory = []
            while any(client.is_alive() for client in clients) and server.process.poll() is None:
                memory.append((time.monotonic() - start, server.resident()))
                if len(memory) % 6 == 1:
                    print(f"{memory[-1][0]:4.0f} s: {memory[-1][1]:.0f} MB, {soak.count}", flush=True)
                time.sleep(10)
            for client in clients:
                client.join()
            ended = server.process.poll() is not None
        print(server.stats())
    early = max([mb for t, mb in memory if t <= 120] or [0])
    late = max([mb for t, mb in memory if t > 60 * options.minutes - 120] or [0])
    print(f"{soak.count}; {soak.reused} tokens found in the cache; largest in the first two minutes {early:.0f} MB, in the "
          f"last two {late:.0f} MB")
    return ended or soak.count["differ"] or soak.count["errors"] or late > 1.15 * early


if __name__ == "__main__":
    sys.exit(bool(main()))
