"""Lines per second of the scorer rules' recognisers on one core, and on lines without numbers.

    python benchmarks/recognisers.py
    python benchmarks/recognisers.py --text FILE

Reads the labelled test sentences, in which every second line has something private, the same lines
without digits, `@` and `:`, which are let go at once, and, if given, the lines of a file. The best
of five rounds; time is that of the process, so that other processes matter less.
"""

import argparse
import json
import re
import statistics
import time

from swingdistill.recognisers.find import find
from swingdistill.recognisers.labelled import labelled


def seconds(lines: list[str]) -> float:
    """Of the fastest of five rounds."""
    find("call 555-0123")  # reads the formats of all countries
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for line in lines:
            find(line)
        rounds.append(time.process_time() - start)
    return min(rounds)


def main():
    """Prints one JSON object per kind of line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", metavar="FILE", help="text, a line each")
    given = parser.parse_args()
    private = [example.text for example in labelled(each=20)]
    texts = {"labelled": private, "nothing": [re.sub(r"[\d@:=]", "x", line) for line in private]}
    if given.text:
        with open(given.text, encoding="utf-8") as file:
            texts["file"] = [line for line in file if line.strip()]
    speeds = {name: len(lines) / seconds(lines) for name, lines in texts.items()}
    for name, lines in texts.items():
        found = {
            "lines": name,
            "characters": round(statistics.mean(map(len, lines)), 1),
            "lines_per_second": round(speeds[name]),
            "times_as_fast_as_labelled": round(speeds[name] / speeds["labelled"], 2),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
