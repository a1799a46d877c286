"""Any text becomes ids and back; the ids are those of the whole `tokenizers` pipeline, always the same."""

import json
import os
import random
import unicodedata

import numpy as np
import pytest
from tokenizers import models

from clipcoco.data.tokenizer import END, PAD, START, Tokenizer, pipeline
from clipcoco.errors import CheckpointError
from harness import one_line, python

WORDS = ["a", "man", "dog", "cat", "bus", "table", "sits", "on", "the", "under", "two", "large", "plate"]
ODD = [
    "",
    " ",
    "A Dog, isn't it?",
    "caf\u00e9 cafe\u0301 CAF\u00c9",
    "\U0001f34e\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u039f\u0394\u039f\u03a3 \u0130stanbul Stra\u00dfe \ufb01n",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "\u732b\u304c\u3044\u308b\u3002 \u00b2\u00bd\u2163",
    "tab\there\nline\x1cfile\x85next\u00a0wide\u3000end",
    "<pad><start><end> </s>",
    "w" * 10_000,
    "!?" * 5_000,
]


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(sentences(400, 0), 400)


def random_texts(count: int) -> list[str]:
    rng = random.Random(3)
    assigned = [chr(c) for c in range(0x2FFF) if unicodedata.category(chr(c)) != "Cn"]
    # Two libraries may hold two Unicode versions, which order rare combining marks differently.
    usual = [c for c in assigned if unicodedata.combining(c) == 0 or c < "\u0315"]
    return ["".join(rng.choices(usual, k=rng.randint(1, 30))) for _ in range(count)]


def test_a_row_is_start_pieces_end_and_padding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["a dog", "", "a man sits on the table near the small dog"], 8)
    assert ids.shape == (3, 8)
    assert ids.dtype == np.int32
    assert ids[1].tolist() == [START, END] + [PAD] * 6
    assert ids[0, 0] == START
    assert END in ids[0]
    assert ids[2, 7] == END, "a cut caption keeps its end token"
    assert (ids[2, 1:7] > END).all()
    assert (ids < tokenizer.vocab_size).all()


def test_words_of_the_training_captions_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert all((row != PAD).sum() == 3 for row in tokenizer.encode(WORDS, 8))
    assert tokenizer.vocab_size <= 400


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_any_text_is_encoded_without_loss(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode([text], 60_000)
    lowered = "".join(character.lower() for character in unicodedata.normalize("NFC", text))
    assert "".join(tokenizer.decode(ids[0]).split()) == "".join(lowered.split())


def test_a_lone_surrogate_is_a_question_mark(tokenizer: Tokenizer) -> None:
    assert (tokenizer.encode(["dog \udce9"], 16) == tokenizer.encode(["dog ?"], 16)).all()


def test_decoding_reads_as_the_caption(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(["A Man, on the café"], 32)[0]) == "a man , on the café"


def test_ids_equal_those_of_the_whole_pipeline(tokenizer: Tokenizer) -> None:
    plain = tokenizer.to_plain()
    whole = pipeline(models.BPE(vocab=plain["vocab"], merges=[tuple(pair) for pair in plain["merges"]]))
    texts = ODD + random_texts(2_000) + sentences(200, 1)
    expected = [[START, *encoded.ids, END] for encoded in map(whole.encode, texts)]
    rows = tokenizer.encode(texts, max(map(len, expected)))
    assert [row[row != PAD].tolist() for row in rows] == expected


def test_special_tokens_cannot_be_written_in_a_caption(tokenizer: Tokenizer) -> None:
    row = tokenizer.encode(["a <pad> <end> <start> b"], 64)[0]
    assert np.flatnonzero(row == END).tolist() == [np.flatnonzero(row).max()]
    assert (row[1 : int(np.argmax(row == END))] > END).all()


def test_plain_form_survives_json_and_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    plain = tokenizer.to_plain()
    again = Tokenizer.from_plain(json.loads(json.dumps(plain)))
    assert again.to_plain() == plain
    assert (again.encode(ODD, 77) == tokenizer.encode(ODD, 77)).all()


FAULTS = {
    "list": lambda vocab, merges: [vocab, merges],
    "no merges": lambda vocab, merges: {"vocab": vocab},
    "vocab list": lambda vocab, merges: {"vocab": list(vocab), "merges": merges},
    "number as token": lambda vocab, merges: {"vocab": {**vocab, 7: len(vocab)}, "merges": merges},
    "truth as id": lambda vocab, merges: {"vocab": {**vocab, "<start>": True}, "merges": merges},
    "gap": lambda vocab, merges: {"vocab": {**vocab, "new": len(vocab) + 1}, "merges": merges},
    "repeated id": lambda vocab, merges: {"vocab": {**vocab, "new": 5}, "merges": merges},
    "special moved": lambda vocab, merges: {"vocab": {**vocab, "<pad>": END, "<end>": PAD}, "merges": merges},
    "byte missing": lambda vocab, merges: {
        "vocab": {("new" if piece == "z" else piece): index for piece, index in vocab.items()},
        "merges": [pair for pair in merges if "z" not in "".join(pair)],
    },
    "merge unknown": lambda vocab, merges: {"vocab": vocab, "merges": [*merges, ["q", "q"]]},
    "merge of three": lambda vocab, merges: {"vocab": vocab, "merges": [*merges, ["a", "b", "c"]]},
    "merge text": lambda vocab, merges: {"vocab": vocab, "merges": [*merges, "ab"]},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_plain_form_is_refused_in_one_line(tokenizer: Tokenizer, fault: str) -> None:
    with pytest.raises(CheckpointError, match="the tokenizer is damaged") as caught:
        Tokenizer.from_plain(FAULTS[fault](**tokenizer.to_plain()))
    one_line(caught.value)


def test_training_is_the_same_whatever_the_threads_and_the_hash_seed() -> None:
    code = (
        "import sys, json, hashlib; from clipcoco.data.tokenizer import Tokenizer;"
        "plain = Tokenizer.train(json.load(sys.stdin), 380).to_plain();"
        "print(hashlib.sha256(json.dumps(plain).encode()).hexdigest())"
    )
    # Words of equal frequency, so that ties between merges have to be broken.
    texts = json.dumps(["".join(random.Random(n).choices("abcdefgh", k=6)) + " bus" for n in range(300)] * 2)
    found = set()
    for threads, hash_seed in (("1", "0"), ("2", "1"), ("2", "4242")):
        environment = os.environ | {
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": str(threads == "2").lower(),
            "PYTHONHASHSEED": hash_seed,
        }
        found.add(python(code, input=texts, env=environment).stdout)
    assert len(found) == 1


def test_what_is_cut_is_counted_and_what_is_equal_then(tokenizer: Tokenizer) -> None:
    same = "a man sits on the table"
    texts = ["a dog", same, f"{same} under a bus", f"{same} under a bus", f"{same} under a cat", f"{same} on a bus"]
    for context in (4, 9, 10, 40):
        ids, cut, equal = tokenizer.encode_counted(texts, context)
        assert (ids == tokenizer.encode(texts, context)).all()
        assert cut == int((tokenizer.encode(texts, 40)[:, context:] != PAD).any(axis=1).sum())
        assert equal == {4: 4, 9: 2, 10: 2, 40: 0}[context]
