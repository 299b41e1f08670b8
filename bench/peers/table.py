"""Puts the peers' figures beside ours: a table with ratios, and the array "peers" in our JSON.

    table.py DECODE.json PEERS.jsonl
"""
import json
import sys


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        ours = json.load(file)
    with open(sys.argv[2], encoding="utf-8") as file:
        peers = [json.loads(line) for line in file if line.strip()]
    own = {method["name"]: method for method in ours["methods"]}
    names = [name for name in ("dense", "double-p") if name in own]
    print(f"{'one layer, ' + str(ours['context']) + ' tokens':36} {'median ms':>10} {'GB/s':>8}",
          *(f"{'x ' + name:>12}" for name in names))
    for entry in [own[name] for name in names] + peers:
        ratios = {name: entry["ms_median"] / own[name]["ms_median"] for name in names}
        if entry in peers:
            entry["times_our"] = ratios
        print(f"{entry['name']:36} {entry['ms_median']:10.3f} {entry['gbps']:8.2f}",
              *(f"{ratios[name]:12.2f}" for name in names))
    ours["peers"] = peers
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(ours, file, indent=2)
        file.write("\n")


main()
