"""Published results on DUS, as data.

Luxembourg, Permuter and Nachmani, "Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models", ICML 2026 (arXiv
2506.19037): accuracy of the self-confidence planner and of DUS at the same number of denoiser calls, per cent.
"""

BLOCKS = (8, 16, 32, 64)
"""Block sizes of Table 1."""
ONE_PER_CALL = {"llada-base": 72.63, "llada-instruct": 80.29, "dream-instruct": 77.10}
"""GSM8K, one token a call."""
TABLE_1: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    ("gsm8k", "llada-base"): ((59.29, 63.08), (51.23, 59.51), (29.04, 49.36), (8.04, 35.18)),
    ("gsm8k", "llada-instruct"): ((69.22, 73.24), (61.41, 70.66), (38.74, 65.73), (18.73, 57.09)),
    ("gsm8k", "dream-instruct"): ((61.64, 65.28), (53.22, 56.63), (27.60, 44.66), (17.89, 32.07)),
    ("math500", "llada-base"): ((16.6, 21.4), (11.2, 19.2), (6.0, 13.6), (2.6, 10.2)),
    ("math500", "llada-instruct"): ((21.4, 23.8), (15.4, 22.8), (10.8, 19.2), (8.0, 14.8)),
    ("math500", "dream-instruct"): ((22.4, 27.0), (15.4, 19.8), (7.2, 13.2), (4.0, 11.6)),
    ("humaneval", "llada-base"): ((15.85, 25.61), (12.8, 19.51), (4.88, 14.02), (4.88, 6.71)),
    ("humaneval", "llada-instruct"): ((21.95, 28.05), (14.02, 23.17), (9.76, 10.37), (10.98, 11.59)),
    ("humaneval", "dream-instruct"): ((8.54, 14.63), (5.49, 11.59), (6.71, 6.71), (6.10, 9.15)),
    ("humaneval", "diffucoder-base"): ((17.07, 28.66), (6.71, 38.41), (2.44, 21.95), (0.61, 6.10)),
    ("humaneval", "diffucoder-instruct"): ((7.93, 22.56), (14.02, 20.12), (13.41, 12.80), (11.59, 8.54)),
    ("mbpp", "llada-base"): ((19.8, 30.4), (12.8, 31.6), (8.2, 22.6), (3.4, 14.4)),
    ("mbpp", "llada-instruct"): ((25.4, 33.6), (17.6, 31.8), (14.0, 23.2), (11.4, 18.6)),
    ("mbpp", "dream-instruct"): ((32.8, 45.0), (23.8, 40.8), (16.4, 26.6), (11.8, 22.2)),
    ("mbpp", "diffucoder-base"): ((29.2, 48.6), (17.4, 43.0), (10.2, 27.4), (3.4, 17.2)),
    ("mbpp", "diffucoder-instruct"): ((31.8, 46.4), (25.6, 43.6), (21.0, 26.6), (13.0, 18.2)),
}
"""Confidence and DUS by task, model and block size."""
ABLATION: dict[tuple[str, int], tuple[float, float, float, float, float]] = {
    ("llada-base", 16): (55.00, 49.33, 24.67, 43.67, 61.33),
    ("llada-base", 32): (30.67, 25.00, 10.00, 39.00, 48.33),
    ("llada-instruct", 16): (62.33, 47.67, 40.00, 61.33, 71.67),
    ("llada-instruct", 32): (39.67, 23.67, 23.33, 53.67, 66.67),
}
"""GSM8K, 300 samples: confidence with fixed and rising counts, random with fixed and rising counts, DUS."""
