#!/usr/bin/env python
"""Write a concept dictionary: the negatives of grounding data, and definitions for class names.

    python tools/build_concepts.py --output datasets/concepts.tsv
    python tools/build_concepts.py --detection shapes_coco_train --grounding shapes_phrases_train \\
        --captions shapes_captions_train --min-count 5 --no-definitions --output concepts.tsv

By default the names of Objects365, the phrases of GoldG and the noun phrases of CC3M and CC12M that occur in more than
100 captions, with WordNet's definitions; noun phrases that WordNet lacks are left out. Keep LVIS out: it is the
zero-shot test. The lines of the file are `name<TAB>count<TAB>definition`.
"""

import argparse

from detclipv2 import NounPhrases, WordNetDefinitions, build_dictionary
from detclipv2.definitions import load_wordnet, write_concepts
from polydet.data import prepare_cards
from polydet.data.card import refuse_formats
from polydet.data.readers import READERS
from polydet.engine.command import command
from polydet.engine.labels import WITHOUT_CLASSES


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detection", nargs="*", default=["objects365_v2_train"], metavar="CARD")
    parser.add_argument("--grounding", nargs="*", default=["goldg_flickr_train", "goldg_gqa_train"], metavar="CARD")
    parser.add_argument("--captions", nargs="*", default=["cc3m_train", "cc12m_train"], metavar="CARD")
    parser.add_argument("--min-count", type=int, default=100, help="a noun phrase must be in more captions than this")
    parser.add_argument("--parser", choices=["auto", "spacy", "light"], default="auto", help="of noun phrases")
    parser.add_argument("--no-definitions", action="store_true", help="do without WordNet")
    parser.add_argument("--output", required=True)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Build and write."""
    definitions = None
    if not args.no_definitions:
        load_wordnet()
        definitions = WordNetDefinitions()
    refuse_formats(args.detection, WITHOUT_CLASSES, "--detection takes cards with classes of boxes")
    refuse_formats(args.grounding, set(READERS) - {"grounding"}, "--grounding takes cards of phrases with boxes")
    captions = ("caption_csv", "webdataset")
    refuse_formats(args.captions, set(READERS) - set(captions), "--captions takes cards of images with captions")
    prepare_cards([*args.detection, *args.grounding, *args.captions])
    rows = build_dictionary(
        args.detection, args.grounding, args.captions, args.min_count, NounPhrases(args.parser), definitions
    )
    if not rows:
        raise SystemExit("no concept found: lower --min-count or name more cards")
    write_concepts(args.output, rows)
    print(f"{len(rows)} concepts, {sum(bool(text) for _, _, text in rows)} with a definition, in {args.output}")


if __name__ == "__main__":
    command(lambda: main(parse_args()), also=(RuntimeError,))
