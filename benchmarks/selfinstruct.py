"""How fast new instructions are compared with those there are: Inlay's pool and what Alpaca's script does.

    python benchmarks/selfinstruct.py [--known 10000] [--new 200] [--reference 3]

`--known` random instructions of English-like words are known; the rate is new instructions per second, each compared
with all of them (ROUGE-L F, the ten closest, the mean). The reference fills a table per pair in Python, as the
rouge-score package does: the package itself where it is installed, else the same measure written here. Both sides
tokenise the new instruction; known ones are tokenised beforehand. One process each: Alpaca's script starts 16 anew for
each instruction, which took longer than one where it was measured. Every score must be equal, or the script fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import time
from collections.abc import Callable

import numpy as np

from inlay.selfinstruct.similarity import Pool, rouge_tokens


def instructions(n: int, seed: int) -> list[str]:
    """Texts of 4 to 30 words, drawn as words are: the k-th word with weight 1/k."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    weights = [1 / k for k in range(1, len(words) + 1)]
    return [" ".join(rng.choices(words, weights, k=min(30, 4 + int(rng.expovariate(1 / 9))))) for _ in range(n)]


def fmeasure(a: list[str], b: list[str]) -> float:
    """F of the longest common subsequence, from a table of all prefixes."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    common = table[-1][-1]
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def reference() -> tuple[str, Callable[[str], list[str]], Callable[[list[str], list[str]], float]]:
    """(its name, how it tokenises, its F)."""
    if importlib.util.find_spec("rouge_score") is None:
        return "a table in Python", rouge_tokens, fmeasure
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    return "rouge-score", scorer._tokenizer.tokenize, lambda a, b: rouge_scorer._score_lcs(a, b).fmeasure


def rate(score: Callable[[str], object], texts: list[str]) -> tuple[float, list[object]]:
    """Texts per second, and what was found."""
    begun = time.perf_counter()
    found = [score(text) for text in texts]
    return len(texts) / (time.perf_counter() - begun), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--known", type=int, default=10_000)
    parser.add_argument("--new", type=int, default=200, help="instructions that Inlay compares")
    parser.add_argument("--reference", type=int, default=3, help="instructions that the reference compares")
    args = parser.parse_args()
    known, new = instructions(args.known, 0), instructions(max(args.new, args.reference), 1)

    name, tokens, measure = reference()
    known_tokens = [tokens(text) for text in known]

    def slowly(text: str) -> np.ndarray:
        scores = np.array([measure(tokens(text), other) for other in known_tokens])
        _ = np.argsort(scores)[-10:], scores.mean()
        return scores

    pool = Pool(rouge_tokens, known)

    def quickly(text: str) -> np.ndarray:
        scores = pool.scores(text)
        _ = pool.closest(scores), scores.mean()
        return scores

    slow, expected = rate(slowly, new[: args.reference])
    fast, found = rate(quickly, new[: args.new])
    for a, b in zip(expected, found, strict=False):
        np.testing.assert_array_equal(a, b)
    print(f"{args.known} known instructions; scores of {args.reference} new ones equal to the last bit")
    print(f"{name:<20} {slow:>10.2f} instructions/s   {1000 / slow:>9.1f} ms each")
    print(f"{'inlay':<20} {fast:>10.2f} instructions/s   {1000 / fast:>9.1f} ms each")
    print(f"{'ratio':<20} {fast / slow:>10.0f}")


if __name__ == "__main__":
    main()
