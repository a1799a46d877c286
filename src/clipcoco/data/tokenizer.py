"""Texts -> token ids by the `tokenizers` library: byte-level BPE, trained on the training captions, or WordPiece.

A text is brought to NFC and lower case and cut into pre-tokens: runs of letters, digits and underscores, and
runs of other signs. BPE merges bytes inside a pre-token, never across, so each is looked up once. All bytes
are in the vocabulary: there is no unknown token, and any text can be encoded. WordPiece comes with a BERT.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from clipcoco.errors import CheckpointError

PAD, START, END = 0, 1, 2
_SPECIAL = ("<pad>", "<start>", "<end>")
UNKNOWN = "[UNK]"  # of WordPiece
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 characters, one for each byte
_WORD = re.compile(r"\w")
_PRE_TOKEN = re.compile(r"\w+|[^\w\s]+")
# The same in the syntax of `tokenizers`, whose \w and \s are not Python's.
_PRE_TOKEN_PATTERN = r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s\x{1c}-\x{1f}]+"


def _pre_tokens(text: str) -> list[str]:
    if not text.isascii():
        whole = text.encode("utf-8", "replace").decode()  # a lone surrogate becomes a question mark
        # One by one: str.lower() of a whole text writes a final sigma differently, `tokenizers` does not.
        return _PRE_TOKEN.findall("".join(map(str.lower, unicodedata.normalize("NFC", whole))))
    return _PRE_TOKEN.findall(text.lower())


def words_in(texts: Iterable[str]) -> dict[str, None]:
    """Each word of the texts once, in lower case, in their order: runs of letters, digits and underscores."""
    return {token: None for text in texts for token in _pre_tokens(text) if _WORD.match(token)}


def pipeline(bpe: models.BPE) -> tokenizers.Tokenizer:
    """The whole of it inside `tokenizers`: used for training, and equal to `Tokenizer.encode` in its ids."""
    whole = tokenizers.Tokenizer(bpe)
    whole.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    whole.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKEN_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    return whole


class Tokenizer:
    """Texts -> token ids. Made by `train` or `from_plain`; never changes."""

    special: tuple[str, str, str] = _SPECIAL  # the names of PAD, START and END
    _decoder: decoders.Decoder = decoders.ByteLevel()

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
        self._vocab = vocab
        self._merges = merges
        self._pieces = {index: piece for piece, index in vocab.items()}
        self._bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn at most `vocab_size` tokens; fewer when no pair occurs twice any more."""
        learner = pipeline(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(_SPECIAL),
            initial_alphabet=_ALPHABET,
            show_progress=False,
        )
        learner.train_from_iterator(captions, trainer)
        model = json.loads(learner.to_str())["model"]
        return cls(model["vocab"], [(left, right) for left, right in model["merges"]])

    @classmethod
    def from_plain(cls, plain: Any) -> "Tokenizer":
        """The inverse of `to_plain`. Raises CheckpointError for what `to_plain` cannot have written."""
        if not isinstance(plain, dict):
            raise _damaged("it is not a dictionary")
        is_wordpiece = plain.get("model") == "wordpiece"
        vocab, merges = plain.get("vocab"), [] if is_wordpiece else plain.get("merges")
        if not isinstance(vocab, dict) or not isinstance(merges, list):
            raise _damaged("vocab or merges is missing")
        if not all(type(piece) is str and type(index) is int for piece, index in vocab.items()):
            raise _damaged("vocab must map texts to integers")
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise _damaged("the ids are not 0, 1, 2, ...")
        if [vocab.get(piece) for piece in (WordPiece if is_wordpiece else cls).special] != [PAD, START, END]:
            raise _damaged("the special tokens are not in their places")
        if is_wordpiece:
            if UNKNOWN not in vocab:
                raise _damaged(f"{UNKNOWN} is missing in vocab")
            return WordPiece(vocab)
        if not vocab.keys() >= set(_ALPHABET):
            raise _damaged("a byte is missing in vocab")
        for pair in merges:
            if not (isinstance(pair, list | tuple) and [type(part) for part in pair] == [str, str]):
                raise _damaged("a merge is not a pair of texts")
            if not vocab.keys() >= {*pair, "".join(pair)}:
                raise _damaged("a merge is not in vocab")
        return cls(vocab, [(left, right) for left, right in merges])

    def to_plain(self) -> dict[str, Any]:
        """{"vocab": {piece: id}, "merges": [[left, right], ...]}, the ids ascending, the merges by rank."""
        vocab = dict(sorted(self._vocab.items(), key=lambda entry: entry[1]))
        return {"vocab": vocab, "merges": [list(pair) for pair in self._merges]}

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    @cached_property
    def sha256(self) -> str:
        """Of all that decides an id, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_plain()).encode()).hexdigest()

    def encode(self, texts: Sequence[str], context_length: int) -> npt.NDArray[np.int32]:
        """(n, context_length): START, the pieces, END, then PAD. A long text is cut, and keeps END."""
        ids = np.full((len(texts), context_length), PAD, dtype=np.int32)
        for row, found in zip(ids, self._cut(texts), strict=True):
            pieces = [START, *found]
            del pieces[context_length - 1 :]
            pieces.append(END)
            row[: len(pieces)] = pieces
        return ids

    def _cut(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text, without its ends."""
        known: dict[str, list[int]] = {}
        for text in texts:
            ids: list[int] = []
            for pre_token in _pre_tokens(text):
                found = known.get(pre_token)
                if found is None:
                    found = known[pre_token] = self._bpe.encode(pre_token, add_special_tokens=False).ids
                ids += found
            yield ids

    def encode_counted(self, texts: Sequence[str], context_length: int) -> tuple[npt.NDArray[np.int32], int, int]:
        """The same, how many texts were cut, and how many of these are then equal to another text's ids."""
        ids = self.encode(texts, context_length + 1)
        cut = ids[:, -1] != PAD
        ids = np.ascontiguousarray(ids[:, :-1])
        ids[cut, -1] = END
        by_ids: dict[bytes, set[str]] = {}
        for row in np.flatnonzero(cut).tolist():
            by_ids.setdefault(ids[row].tobytes(), set()).add(texts[row])
        equal = sum(len(alike) for alike in by_ids.values() if len(alike) > 1)
        return ids, int(cut.sum()), equal

    def decode(self, ids: Iterable[int]) -> str:
        """The pre-tokens of a row of ids, in lower case, with one space between them."""
        pieces = [self._pieces[int(index)] for index in ids if index not in (PAD, START, END)]
        text: str = self._decoder.decode(pieces)
        return text.removeprefix(" ")

    def whole(self) -> tokenizers.Tokenizer:
        """All of it inside `tokenizers`, without ends, cutting and padding."""
        whole = pipeline(models.BPE(vocab=self._vocab, merges=self._merges))
        whole.decoder = self._decoder
        return whole

    @property
    def last_resort(self) -> set[int]:
        """The ids of pieces that stand for whatever no other can: single bytes."""
        return {index for piece, index in self._vocab.items() if len(piece) == 1}


class WordPiece(Tokenizer):
    """BERT's, in lower case and without accents, with its ids in another order: PAD, START and END where ours are.

    A text that spells a special token stays text. What is not in the vocabulary is UNKNOWN.
    """

    special = ("[PAD]", "[CLS]", "[SEP]")
    _decoder = decoders.WordPiece(cleanup=False)

    def __init__(self, vocab: dict[str, int]) -> None:
        self._vocab = vocab
        self._pieces = {index: piece for piece, index in vocab.items()}
        self._whole = self.whole()

    @classmethod
    def reordered(cls, vocab: dict[str, int]) -> tuple["WordPiece", list[int]]:
        """Of BERT's vocabulary, and which of its ids stands at each of ours."""
        pieces = sorted(vocab, key=vocab.__getitem__)
        for index, piece in enumerate(cls.special):
            other = pieces.index(piece)
            pieces[index], pieces[other] = pieces[other], pieces[index]
        return cls({piece: index for index, piece in enumerate(pieces)}), [vocab[piece] for piece in pieces]

    def to_plain(self) -> dict[str, Any]:
        """{"model": "wordpiece", "vocab": {piece: id}}, the ids ascending."""
        return {"model": "wordpiece", "vocab": dict(sorted(self._vocab.items(), key=lambda entry: entry[1]))}

    def _cut(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for text in texts:  # a lone surrogate becomes a question mark
            yield self._whole.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids

    def whole(self) -> tokenizers.Tokenizer:
        whole = tokenizers.Tokenizer(models.WordPiece(self._vocab, unk_token=UNKNOWN, max_input_chars_per_word=100))
        whole.normalizer = normalizers.BertNormalizer(lowercase=True)
        whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        whole.decoder = self._decoder
        return whole

    @property
    def last_resort(self) -> set[int]:
        return {self._vocab[UNKNOWN]}


def distinct_by_length(tokens: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Each row of `tokens` once, the shorter captions first, and where each row went to: batches then pad little."""
    distinct, inverse = np.unique(tokens, axis=0, return_inverse=True)
    order = (distinct != PAD).sum(axis=1).argsort(kind="stable")
    return distinct[order], order.argsort()[inverse.reshape(-1)]


def new_rows(
    tokens: npt.NDArray[np.integer] | None, known: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """The rows of `tokens` that are not in `known`, each once, the shorter first; and of each row of `tokens` the place
    among the known and the new ones. Both are of one vocabulary."""
    if tokens is None or not len(tokens):
        return known[:0], np.empty(0, dtype=np.int64)
    seen = {row.tobytes(): place for place, row in enumerate(known)}
    distinct, inverse = distinct_by_length(tokens.astype(known.dtype))
    places = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in distinct], dtype=np.int64)
    return distinct[places >= len(known)], places[inverse]


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(f"the tokenizer is damaged: {why} (checkpoint, key tokenizer). Use another checkpoint")
