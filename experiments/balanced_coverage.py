"""Coverage of the interval of the balanced loss, and how often it would wrongly show a loss below the limit.

For each case (images per class, and per class the probabilities that only FP32 and only INT8 is correct) the script
draws 1,000 sets of test images with a fixed seed and computes `kdedge.benchmarks.balanced.balanced_loss` for each. It
needs no data. Takes about 20 s.

    python experiments/balanced_coverage.py

Prints a Markdown table in percent: coverage of the true loss (nominal 95), and the share of sets in which the upper end
is below the true loss (nominal at most 2.5). At a limit equal to the true loss, those would pass wrongly.
"""

import numpy as np

from kdedge.benchmarks.balanced import balanced_loss

SETS = 1000
CASES = {
    "10 classes of 1,000; 1 % / 1 %": ([1000] * 10, [0.01] * 10, 0.01),
    "10 classes of 100; 0.5 % / 0.2 %": ([100] * 10, [0.005] * 10, 0.002),
    "100 classes of 10; 1 % / 1 %": ([10] * 100, [0.01] * 100, 0.01),
    "2,000, 500, 50, 20; 1 % / 0.5 %": ([2000, 500, 50, 20], [0.01] * 4, 0.005),
    "2,000, 500, 50, 20; 1, 1, 5, 5 % / 0.5 %": ([2000, 500, 50, 20], [0.01, 0.01, 0.05, 0.05], 0.005),
}


def coverage(sizes: list[int], lost: list[float], gained: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the shares of sets whose interval covers the true loss, and whose upper end is below it."""
    labels, shares = np.repeat(np.arange(len(sizes)), sizes), np.array(lost)
    true = float(np.mean(shares - gained))
    covered = below = 0
    for _ in range(SETS):
        draw = rng.random(len(labels))
        only_fp32 = draw < shares[labels]
        only_int8 = ~only_fp32 & (draw < shares[labels] + gained)
        _, lower, upper = balanced_loss(~only_int8, ~only_fp32, labels)
        covered += lower <= true <= upper
        below += upper < true
    return covered / SETS, below / SETS


def main() -> None:
    """Compute all cases and print the table."""
    print("| images per class; only FP32 / only INT8 correct | coverage | upper end below the true loss |")
    print("| --- | ---: | ---: |")
    for name, case in CASES.items():
        covered, below = coverage(*case, np.random.default_rng(0))
        print(f"| {name} | {100 * covered:.1f} | {100 * below:.1f} |", flush=True)


if __name__ == "__main__":
    main()
