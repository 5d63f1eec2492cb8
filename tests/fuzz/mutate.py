"""Changes to files, drawn from a seeded generator: of bytes, of words, and of values inside a json or yaml document."""

import copy
import json

WORDS = [
    "", "0", "-1", "1e999", "nan", "NaN", "inf", "null", "true", "é", "\x00", "../x", "/etc/passwd", "a\\b", "[", "]",
    "{", "}", '"', "'", ",", ":", "\n", "\t", "\r", " ", "#", "&a", "*a", "!!python/object/apply:os.system", "${x}",
    "99999999999999999999", "0x10", "1_000", "<", ">", "&lol;", "~", "-", "2026-01-01", "\ufeff",
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 10**20, 2**63, 0.5, -0.0, float("nan"), float("inf"), 1e308, "", "a.jpg", "../x",
    "/etc/passwd", "a\\b.jpg", "é\x00", "7", "cat", [], {}, [1, 2, 3, 4], [[1, 2]], {"id": 1}, "1e5",
]  # fmt: skip


def change_bytes(data, rng):
    """One to four changes: a byte, a removed or repeated stretch, a cut end, a word put in."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.random()
        if kind < 0.35 and at < len(data):
            data[at] = rng.randrange(256) if rng.random() < 0.5 else data[at] ^ (1 << rng.randrange(8))
        elif kind < 0.5:
            del data[at : at + rng.randint(1, 30)]
        elif kind < 0.6:
            data[at:at] = data[at : at + rng.randint(1, 30)]
        elif kind < 0.65:
            del data[at:]
        else:
            data[at : at + rng.choice((0, 1, 5))] = rng.choice(WORDS).encode()
    return bytes(data)


def change_words(text, rng):
    """Replace, drop, double or swap a few words of a text whose words are set apart by blanks, commas or brackets."""
    cut, words = "", []
    for char in text:
        if char in " ,<>\n\t:=":
            words += [cut, char]
            cut = ""
        else:
            cut += char
    words.append(cut)
    for _ in range(rng.randint(1, 3)):
        i, kind = rng.randrange(len(words)), rng.random()
        if kind < 0.5:
            words[i] = rng.choice(WORDS)
        elif kind < 0.65:
            words[i] = ""
        elif kind < 0.8:
            words[i] += words[i]
        else:
            j = rng.randrange(len(words))
            words[i], words[j] = words[j], words[i]
    return "".join(words)


def change_values(document, rng):
    """A copy of a json document with one to three values replaced, removed, doubled or added."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:
            return document
        node, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.6:
            node[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind < 0.75:
            del node[key]
        elif isinstance(node, list):
            node.insert(rng.randrange(len(node) + 1), copy.deepcopy(node[key]))
        else:
            node[rng.choice(["id", "iscrowd", "segmentation", "neg_category_ids", "extra"])] = rng.choice(VALUES)
    return document


def change_json(document, rng):
    """Bytes of a changed json document, by value or by byte."""
    if rng.random() < 0.65:
        return json.dumps(change_values(document, rng)).encode()
    return change_bytes(json.dumps(document).encode(), rng)


def _places(node):
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])
