"""llama-server as a child process: starting it with or without the plugin, requests, what it logs."""

import json
import os
import re
import socket
import subprocess
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = os.path.join(ROOT, "tests", "data", "needle-12m.q8_0.gguf")
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def add_options(parser):
    parser.add_argument("--server", default=os.path.join(ROOT, "llama", "build", "bin", "llama-server"))
    parser.add_argument("--doublep", default=os.path.join(ROOT, "build-llama", "tools", "doublep"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--threads", type=int, default=os.cpu_count())


class Server:
    """A context manager; arguments are llama-server's."""

    def __init__(self, options, plugin, *arguments):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [options.server, "-m", options.model, "-t", str(options.threads), "--port", str(self.port), *arguments]
        if plugin:
            command = [options.doublep, "llama", "--", *command]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log,
                                        env={**os.environ, "DOUBLEP_STATS": "1"})

    def __enter__(self):
        for _ in range(600):
            try:
                self.request("/health", timeout=5)
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.__exit__()
        raise SystemExit("llama-server did not start:\n" + self.text()[-2000:])

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def request(self, path, data=None, timeout=3600):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}",
                                         json.dumps(data).encode() if data is not None else None,
                                         {"Content-Type": "application/json"})
        with _opener.open(request, timeout=timeout) as reply:
            return json.load(reply)

    def complete(self, prompt, timeout=3600, **more):
        """Greedy; the two most likely tokens of every place come along."""
        return self.request("/completion", {"prompt": prompt, "n_predict": 48, "temperature": 0, "stop": ["\n"],
                                            "n_probs": 2, **more}, timeout)

    def complete_at_once(self, prompts):
        """One request per slot, all of them sent together."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda i: self.complete(prompts[i], id_slot=i), range(len(prompts))))

    def slot(self, slot, action, name=""):
        return self.request(f"/slots/{slot}?action={action}", {"filename": name})

    def resident(self):
        """Megabytes of memory."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    def text(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stats(self):
        """The plugin's line for the context that served, once the server has ended."""
        return (re.findall(r"^doublep: attention nodes: .*", self.text(), re.M) or ["the plugin counted nothing"])[-1]


def difference(expected, got):
    """None where two completions have the same text, else what is known of the first token that differs."""
    if expected["content"] == got["content"]:
        return None
    for i, (a, b) in enumerate(zip(expected["completion_probabilities"], got["completion_probabilities"])):
        if a["id"] == b["id"]:
            continue
        first, second = a["top_logprobs"][:2]
        return (f"token {i}: {a['token']!r}, not {b['token']!r}; ahead of {second['token']!r} by "
                f"{first['logprob'] - second['logprob']:.3f} without the plugin")
    return "one is longer"
