"""A WordNet of a few nouns, in WordNet's own file formats."""

_SENSES = [
    (["dog", "domestic_dog"], "a member of the genus Canis"),
    (["street_light"], "a lamp supported on a lamppost"),
    (["cat"], "feline mammal usually having thick soft fur"),
]
_FILES = ("cntlist.rev", "index.sense", "index.adj", "index.adv", "index.verb", "data.adj", "data.adv", "data.verb")
_EXCEPTIONS = ("noun.exc", "verb.exc", "adj.exc", "adv.exc")


def write_wordnet(root):
    """Write `corpora/wordnet` under `root`."""
    folder = root / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for name in (*_FILES, *_EXCEPTIONS):
        (folder / name).write_text("")
    (folder / "lexnames").write_text("".join(f"{i:02d}\tnoun.{i}\t1\n" for i in range(46)))
    (folder / "data.adj").write_text("  1 licence\n")
    data, index = "  1 licence\n", {}
    for lemmas, gloss in _SENSES:
        offset = len(data)
        words = " ".join(f"{lemma} 0" for lemma in lemmas)
        data += f"{offset:08d} 05 n {len(lemmas):02x} {words} 000 | {gloss}  \n"
        for lemma in lemmas:
            index[lemma] = offset
    (folder / "data.noun").write_text(data)
    lines = [f"{lemma} n 1 0 1 0 {offset:08d}  \n" for lemma, offset in sorted(index.items())]
    (folder / "index.noun").write_text("  1 licence\n" + "".join(lines))
