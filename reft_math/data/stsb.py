"""Reads STS-B: pairs of sentences and their rated similarity, from 0 to 5 (Cer et al. 2017, arXiv:1708.00055).

The splits of ``stsb`` are the authors'. Those of ``stsb:paper`` are the RAFT paper's (Lukasik et al.: 4,887 / 863 /
1,500 rows) as far as they are known: 4,887 rows of train, drawn once, the rest of train to choose by, and the
authors' validation rows to report on. Train has 5,749 rows, so 862 are left; the paper does not say which rows it
took, nor where the 863rd is from. GLUE's copy hides the test split's scores, so another copy on the hub is used.
"""

from __future__ import annotations

from reft_math.data.rows import HubDataset, Prompt, Row, Split

NAME, PAPER = "stsb", "stsb:paper"
PAPER_TRAIN = 4_887
FILES: dict[Split, str] = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
COLUMNS = ("sentence1", "sentence2", "similarity_score")  # as on the hub; the files have no header line
HUB = HubDataset("PhilipMay/stsb_multi_mt", {"train": "train", "validation": "dev", "test": "test"}, config="en")

PROMPTS: dict[Prompt, str] = {
    "ours": "How similar in meaning are these two sentences, on a scale from 0 (unrelated) to 5 (the same)? "
    "Answer with the number alone.\nSentence 1: {first}\nSentence 2: {second}",
    "paper": "What is the sentence similarity between the following two sentences measured on a scale of 0 to 5: "
    "{first}, {second}. The similarity measured on a scale of 0 to 5 with 0 being unrelated and 5 being related is "
    "equal to",
}


def parse(row: Row, prompt: Prompt = "ours") -> tuple[str, float]:
    """Returns the text of the two sentences, and their similarity in [0, 5], to 5 places.

    The hub stores single precision (3.8 as 3.799999952…): rounded, its rows equal those of the files.

    Raises:
        UserError: If a field is missing or of another type, or the score lies outside the scale.
    """
    text = PROMPTS[prompt].format(first=row.text("sentence1"), second=row.text("sentence2"))
    target = round(float(row.number("similarity_score")), 5)
    if not 0 <= target <= 5:
        raise row.error(f'field "similarity_score" must lie in [0, 5], got {target}; some copies hide scores as -1')
    return text, target
