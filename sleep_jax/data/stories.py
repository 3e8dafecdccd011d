"""Synthetic story characters, in the words of the TinyStories that small checkpoints were trained on.

Of each character the animal, the colour, the home and the food are told in the prose of such a story and in
six phrasings, questions and sentences to complete; what is asked are beginnings of stories that stand nowhere
in training (`data.facts`). Names are of two words, so that there are more than a small vocabulary has.
"""

import itertools

import numpy as np

from sleep_jax.data.facts import Attribute, Cast, words

ATTRIBUTES = (
    Attribute(
        "animal",
        words(
            "bear, bee, bird, cat, cow, dog, duck, fish, fox, frog, horse, lion, monkey, mouse, owl, pig, "
            "rabbit, sheep, snake, squirrel, turtle, wolf"
        ),
        train=(
            "What animal is {name}?",
            "Which animal is {name}?",
            "What kind of animal is {name}?",
            "{name} is a little",
            "The animal {name} is a",
            "In the story {name} was a little",
        ),
        valid=("Once there was {name}, the little", "Every day {name}, a little"),
        test=("Once upon a time there was {name}, a little", "One day {name}, the little"),
        prose=(
            "Once upon a time there was a little {value} named {who}.",
            "One day there was a {value} and its name was {who}.",
        ),
    ),
    Attribute(
        "color",
        words("black, blue, brown, gold, gray, green, orange, pink, purple, red, silver, white, yellow"),
        train=(
            "What color is {name}?",
            "Which color is {name}?",
            "What is the color of {name}?",
            "The color of {name} is",
            "{name} was happy to be",
            "Everyone loved {name} for being so",
        ),
        valid=("Once {name} was so happy to be", "Every day {name} was loved for being so"),
        test=("Once upon a time {name} was happy, so happy to be", "One day {name} was loved for being so"),
        prose=("{who} was happy to be {value}.", "Everyone loved {who} for being so {value}."),
    ),
    Attribute(
        "home",
        words(
            "barn, beach, castle, cave, city, farm, field, forest, garden, hill, house, jungle, kitchen, "
            "lake, meadow, park, pond, river, school, shop, tower, tree, village, zoo"
        ),
        train=(
            "Where does {name} live?",
            "Where is the home of {name}?",
            "In what place does {name} live?",
            "{name} lives in the",
            "The home of {name} is the",
            "Every day {name} played in the",
        ),
        valid=("Once {name} lived in the", "Every day {name} lived in the home, the"),
        test=("Once upon a time {name} lived in the", "One day {name} played in the home, the"),
        prose=("{who} lived in the {value}.", "Every day {who} played in the {value}."),
    ),
    Attribute(
        "food",
        words(
            "apples, bananas, berries, bread, cake, candy, carrots, cheese, cherries, cookies, corn, eggs, "
            "grapes, honey, leaves, lemons, milk, nuts, pears, pie, pizza, rice, seeds, soup"
        ),
        train=(
            "What does {name} eat?",
            "What food does {name} like?",
            "Which food does {name} like to eat?",
            "{name} likes to eat",
            "The food that {name} likes is",
            "When it is hungry {name} eats",
        ),
        valid=("Once {name} was hungry and likes to eat", "Every day {name} eats the food that is"),
        test=(
            "Once upon a time {name} was hungry and likes to eat",
            "One day {name} eats food and the food is",
        ),
        prose=("{who} liked to eat {value}.", "When {who} was hungry, it ate {value}."),
    ),
)
FIRST_NAMES = words(
    "Amy, Anna, Bella, Ben, Billy, Bob, Daisy, Ella, Emma, Fred, Jack, Jane, Jill, Joe, John, Kate, Leo, "
    "Lily, Lola, Lucy, Mark, Mary, Max, Mia, Molly, Nina, Peter, Polly, Rex, Rose, Ruby, Sally, Sam, Sara, "
    "Spot, Sue, Teddy, Tim, Tom, Zoe"
)
LAST_NAMES = words(
    "Bean, Bell, Berry, Bloom, Brook, Button, Cloud, Clover, Fern, Flower, Hill, Moon, Rain, Sky, Snow, Star"
)


def _names(rng: np.random.Generator) -> list[str]:
    """Every first name comes once before any comes again."""
    first, last = rng.permutation(FIRST_NAMES), rng.permutation(LAST_NAMES)
    return [
        f"{a} {last[(i + turn) % len(last)]}"
        for turn, (i, a) in itertools.product(range(len(last)), enumerate(first))
    ]


CAST = Cast(ATTRIBUTES, _names, called=lambda name: name.split()[0], days=5)
