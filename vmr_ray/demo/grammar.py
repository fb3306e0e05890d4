"""The words of the generated world, its sentences, and the combinations that training never sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = {
    "ball": ("ball", "sphere"),
    "box": ("box", "cube"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "flower": ("flower", "blossom"),
    "arrow": ("arrow",),
}
# The RGB colours of the thing and of the pattern on it.
COLOURS = {
    "red": ((214, 30, 36), (248, 172, 174)),
    "yellow": ((246, 208, 20), (255, 244, 180)),
    "green": ((28, 160, 60), (170, 222, 184)),
    "blue": ((28, 80, 214), (168, 188, 242)),
    "pink": ((255, 105, 180), (255, 205, 230)),
    "white": ((245, 245, 245), (175, 175, 175)),
}
# The adjective, and the noun that follows "with".
TEXTURES = {
    "plain": ("plain", "no pattern"),
    "stripes": ("striped", "stripes"),
    "dots": ("dotted", "dots"),
    "checks": ("checked", "checks"),
}
# The third person (plural for "swap", which takes two things), and the -ing form.
ACTIONS = {
    "enter": (
        ("enters the scene", "entering the scene"),
        ("slides into view", "sliding into view"),
        ("comes in from the side", "coming in from the side"),
        ("moves into the picture", "moving into the picture"),
    ),
    "leave": (
        ("leaves the scene", "leaving the scene"),
        ("slides out of view", "sliding out of view"),
        ("goes away to the side", "going away to the side"),
        ("moves out of the picture", "moving out of the picture"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("turns around and around", "turning around and around"),
        ("spins in place", "spinning in place"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("swells", "swelling"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes tiny", "becoming tiny"),
        ("dwindles", "dwindling"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("jumps up and down", "jumping up and down"),
        ("hops", "hopping"),
        ("bounces on the spot", "bouncing on the spot"),
    ),
    "swap": (
        ("swap places", "swapping places"),
        ("trade places", "trading places"),
        ("exchange positions", "exchanging positions"),
        ("switch sides", "switching sides"),
    ),
}


@dataclass(frozen=True)
class Thing:
    """One object, by its keys in KINDS, COLOURS and TEXTURES."""

    kind: str
    colour: str
    texture: str


@dataclass(frozen=True)
class Event:
    """What the actors do in the half-open span `[start, end)` seconds; only "swap" has two actors."""

    action: str
    actors: tuple[Thing, ...]
    start: float
    end: float


def held_out(kind: str, colour: str, action: str) -> bool:
    """Whether only the test videos show this triple.

    That is so for a quarter of the triples, chosen like the cells of a Latin square. Training sees every
    kind, colour and action, and every pair of them, but none of these triples.
    """
    place = list(KINDS).index(kind) + list(COLOURS).index(colour) + list(ACTIONS).index(action)
    return place % 4 == 0


def queries(event: Event, rng: np.random.Generator) -> list[str]:
    """Two to four different sentences that describe `event`; each names kind, colour and action."""
    forms = ACTIONS[event.action]
    count = int(rng.integers(2, 5))
    return [_sentence(event.actors, *forms[i], rng) for i in rng.permutation(len(forms))[:count]]


def _sentence(actors: tuple[Thing, ...], verb: str, doing: str, rng: np.random.Generator) -> str:
    names = [_name(actor, rng) for actor in rng.permutation(np.array(actors, dtype=object))]
    subject = " and ".join(names)
    be = "is" if len(names) == 1 else "are"
    return str(
        rng.choice(
            [
                f"{subject} {verb}",
                f"{subject} {be} {doing}",
                f"we see {subject} {doing}",
                f"the moment when {subject} {verb}",
            ]
        )
    )


def _name(thing: Thing, rng: np.random.Generator) -> str:
    kind = rng.choice(KINDS[thing.kind])
    adjective, pattern = TEXTURES[thing.texture]
    name = rng.choice(
        [
            f"{thing.colour} {kind}",
            f"{thing.colour} {adjective} {kind}",
            f"{kind} that is {thing.colour}",
            f"{thing.colour} {kind} with {pattern}",
        ]
    )
    return f"{rng.choice(['the', 'an' if name[0] in 'aeiou' else 'a'])} {name}"
