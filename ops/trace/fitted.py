"""Every number the synthetic trace is made of, each with what it is and how it was measured.

All were measured on the Mooncake "conversation" trace (FAST'25 release, Apache-2.0): 12,031
requests in 3,537 s. A request *goes on from* the last one that holds the deepest block it shares
with the past; sharing block 0 alone, which every prompt does, does not count. So a request is

    new       shares block 0 only                                      61 % of the requests
    extension shares all full blocks of the prompt it goes on from     32 %
    repeat    shares every block, the partial one too                   1 %
    fork      shares fewer than the other had, at least two             6 %

A *quantile table* lists the values at `PROBABILITIES`; between two of them the generator goes
straight. Numbers that no table shows are said to be calibrated: chosen so that the whole fits.
"""

PROBABILITIES = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    *(0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0),
)

# Arrivals come in batches, one every 3 s (give or take 3 ms): the recorder's clock.
TICK_MS = 3000
# New conversations per tick, a Poisson stream. Calibrated so that all requests together arrive at
# the 3.40 per second of the trace (10.2 a tick, variance 11.2; the drift from 9 to 11 over the hour
# is left out, a longer trace has no place to drift to).
NEW_CONVERSATIONS_PER_TICK = 5.95
# Ticks that pass before the first request is shown. A recording starts in the middle of
# conversations whose earlier turns nobody saw, so hits are rare at first. 40 minutes cover 99.5 %
# of the gaps.
WARM_UP_TICKS = 800

# All prompts start with the same system prompt: it fills block 0 and is never
# alone (shortest prompt: 891 tokens).
SYSTEM_BLOCKS = 1
# The longest prompt seen. What would be longer ends the conversation.
PROMPT_TOKENS_MAX = 126_195
# A prompt needs two full blocks (1,024 tokens) to be recognised as the origin of another one.
BLOCKS_MIN_TO_GO_ON = 2

# Prompt tokens of new conversations, 6,100 of them from second 600 on (before, many that look
# new are not).
NEW_PROMPT_TOKENS = (
    *(891, 894, 895, 897, 904, 935, 1061, 1280, 1600, 2469, 3699, 4398, 5034, 5864, 6978, 8345),
    *(10130, 12455, 15235, 18848, 24940, 29657, 37016, 49741, 63193, 87283, 111129, 126195),
)

# Generated tokens, all 12,031 requests. Independent of the prompt's length (correlation 0.05).
OUTPUT_TOKENS = (
    *(1, 3, 3, 10, 24, 46, 100, 156, 213, 256, 291, 322, 350, 375, 399, 423, 447, 472, 504, 543),
    *(597, 639, 698, 800, 892, 1119, 1568, 2000),
)

# Seconds between a request and the one that goes on from it; 2,375 pairs whose first half is before
# second 1,800, so that the end of the recording cuts off little.
GAP_SECONDS = (
    *(3, 15, 19, 33, 45, 54, 63, 72, 81, 93, 105, 120, 138, 159, 184, 219, 264, 312, 372, 444),
    *(552, 621, 762, 1138, 1472, 1908, 2279, 3030),
)

# Probability that a first turn is followed by another: (prompt tokens from, probability). Seconds
# 600 to 2,400, prompts with BLOCKS_MIN_TO_GO_ON full blocks.
GO_ON_AFTER_FIRST_TURN = (
    (0, 0.469),
    (3072, 0.372),
    (8192, 0.396),
    (16384, 0.394),
    (32768, 0.286),
    (65536, 0.165),
)
# The same for later turns: (turn from, probability). Measured likewise, then calibrated 1.5 % down:
# the recording hides the first turns of older conversations, and old ones go on more often.
GO_ON_AFTER_LATER_TURN = (
    (2, 0.428),
    (3, 0.567),
    (4, 0.643),
    (5, 0.669),
    (7, 0.783),
    (10, 0.867),
)

# Probability that a next turn is a fork, if the prompt it goes on from was none: (tokens of that
# prompt from, probability).
FORK = ((0, 0.007), (3072, 0.041), (8192, 0.189), (16384, 0.226), (32768, 0.120))
# The same if that prompt was a fork itself: programs that send a window over their text go on so.
FORK_AFTER_FORK = 0.692
# Probability that a next turn is a repeat (118 of 4,658).
REPEAT = 0.025

# Extensions: tokens beyond the previous prompt and its output, that is, the user's next message:
# (tokens of the previous prompt from, quantile table). Below zero: not all output was kept.
MESSAGE_TOKENS = (
    (
        0,
        (
            *(-1197, -59, -18, -8, 5, 7, 8, 10, 11, 13, 16, 20, 24, 30, 45, 80, 135, 228, 382, 626),
            *(1935, 3193, 4265, 5925, 8136, 10216, 12995, 31126),
        ),
    ),
    (
        4096,
        (
            *(-447, -67, -60, -14, 0, 6, 8, 11, 13, 18, 24, 31, 47, 80, 160, 328, 693, 2763, 3797),
            *(4485, 6329, 7442, 8674, 11193, 12861, 15199, 19399, 25150),
        ),
    ),
    (
        12288,
        (
            *(-872, -67, -39, -6, 5, 7, 9, 11, 12, 14, 16, 21, 26, 33, 46, 68, 120, 317, 556, 1500),
            *(3906, 5059, 10192, 15959, 21411, 34203, 38259, 91467),
        ),
    ),
    (
        32768,
        (
            *(-55, -11, -6, 4, 7, 8, 10, 12, 13, 17, 19, 22, 25, 29, 37, 56, 131, 327, 458, 629),
            *(780, 1349, 2386, 3780, 7626, 11577, 15083, 19592),
        ),
    ),
)

# Forks, 699 of them: blocks shared, in percent of the full blocks of the other prompt.
FORK_SHARED_PERCENT = (
    *(2, 3, 4, 5, 7, 8, 10, 12, 13, 16, 18, 19, 22, 26, 30, 35, 41, 47, 55, 71, 90, 92, 94, 96, 96),
    *(98, 98, 99),
)
# Forks: length of the new prompt, in tenths of a percent of the other prompt's.
FORK_LENGTH_PERMILLE = (
    *(174, 290, 383, 507, 609, 663, 722, 788, 838, 879, 931, 963, 993, 1012, 1026, 1051, 1075),
    *(1109, 1158, 1257, 1381, 1471, 1681, 2051, 2376, 2827, 2968, 7721),
)
