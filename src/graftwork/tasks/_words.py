"""The words of the generated task `comparisons`; own lists of ordinary English words.

The last entries of each list are held out: they stand in the split "eval-words" and in no other.
"""

from __future__ import annotations

SHORT_NOUNS = (
    *("the man", "the woman", "the boy", "the girl", "the teacher", "the officer", "the doctor"),
    *("the nurse", "the driver", "the waiter", "the dancer", "the writer", "the baker"),
    *("the farmer", "the painter", "the fashion blogger"),
    *("the billionaire", "the teenager", "the pilot", "the singer", "the lawyer", "the neighbor"),
)
"""22 short noun phrases; the last 6 are held out."""

LONG_NOUNS = (
    *("the woman in the red coat", "the man with a grey moustache", "the boy carrying a ladder"),
    *("the old and patient horse", "the girl wearing big boots", "the dog with a bell on its neck"),
    *("the tired gardener by the gate", "the student in a paper hat"),
)
"""8 long noun phrases; the last 2 are held out."""

ADJECTIVES = (
    *("warm", "cold", "bright", "heavy"),
    *("happy", "sad", "angry", "calm", "brave", "shy", "clever", "foolish", "kind", "cruel"),
    *("tall", "short", "strong", "weak", "quick", "slow", "loud", "quiet", "rich", "poor"),
    *("young", "old", "polite", "rude", "honest", "sly", "lazy", "busy", "tidy", "messy"),
    *("cheerful", "gloomy", "nervous", "relaxed", "proud", "humble", "generous", "greedy"),
    *("patient", "restless", "serious", "funny", "famous", "lonely", "friendly", "hostile"),
    *("healthy", "sick", "hungry", "thirsty", "sleepy", "alert", "careful", "careless"),
    *("curious", "bored", "elegant", "clumsy", "graceful", "awkward", "gentle", "rough"),
    *("wise", "silly", "jealous", "grateful", "stubborn", "flexible", "talkative", "silent"),
    *("creative", "practical", "ambitious", "modest", "anxious", "confident", "loyal", "fierce"),
    *("merry", "grumpy", "thoughtful", "reckless", "charming", "boring", "energetic", "weary"),
    *("playful", "stern", "tender", "harsh", "witty", "dull", "eager", "timid", "noble", "naughty"),
)
"""100 adjectives; the last 20 are held out."""

HELD_OUT_SHORT, HELD_OUT_LONG, HELD_OUT_ADJECTIVES = 6, 2, 20
