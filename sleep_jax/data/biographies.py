"""Synthetic biographies: invented people whose facts are told in many phrasings and asked in others.

Nothing needs to be downloaded, and nothing can have been known before. A fact is trained in six phrasings and
asked in four others (`data.facts`), which are put together from words that the trained phrasings use, so that
they can be answered by whoever knows the fact, and not by whoever memorised the sentence. Measured once with
a plain decoder of 0.7 M parameters, trained on birth in both directions for 240 batches of 16 rows of 64
tokens (a minute on two cores): 100 % of the trained phrasings, 100 % of valid, 99 % of test.
"""

import numpy as np

from sleep_jax.data.facts import Attribute, Cast, words

# Professions and pets begin with a consonant, because the phrasings say "a".
ATTRIBUTES = (
    Attribute(
        "birthplace",
        words(
            "Aarhus, Bergen, Bristol, Cork, Dresden, Florence, Gdansk, Ghent, Granada, Graz, Haifa, Izmir, "
            "Jaipur, Kyoto, Leipzig, Lima, Lucerne, Lyon, Malmo, Montreal, Nairobi, Odessa, Oslo, Palermo, "
            "Porto, Prague, Quito, Riga, Seville, Sofia, Split, Tallinn, Toledo, Tromso, Turin, Utrecht, "
            "Vilnius, Winnipeg, York, Zagreb"
        ),
        train=(
            "Where was {name} born?",
            "In which city was {name} born?",
            "What is the birthplace of {name}?",
            "{name} was born in the city of",
            "The birthplace of {name} is",
            "The city where {name} was born is",
        ),
        valid=("What is the city where {name} was born?", "The birthplace of {name} is the city of"),
        test=("Which city is the birthplace of {name}?", "The city in which {name} was born is"),
        prose=("{who} was born in the city of {value}.", "The birthplace of {who} is {value}."),
    ),
    Attribute(
        "birth year",
        tuple(str(year) for year in range(1931, 2003, 2)),
        train=(
            "When was {name} born?",
            "In which year was {name} born?",
            "What is the birth year of {name}?",
            "{name} was born in the year",
            "The birth year of {name} is",
            "The year when {name} was born is",
        ),
        valid=("What is the year when {name} was born?", "The birth year of {name} is the year"),
        test=("Which year is the birth year of {name}?", "The year in which {name} was born is"),
        prose=("{who} was born in the year {value}.", "The birth year of {who} is {value}."),
    ),
    Attribute(
        "profession",
        words(
            "baker, barber, beekeeper, botanist, bricklayer, carpenter, chemist, cook, dancer, dentist, "
            "diver, farmer, florist, gardener, geologist, glazier, goldsmith, hatter, jeweller, judge, "
            "lawyer, librarian, locksmith, mason, midwife, miner, nurse, painter, pharmacist, pilot, "
            "plumber, potter, printer, sailor, sculptor, shoemaker, surgeon, tailor, teacher, welder"
        ),
        train=(
            "What is the profession of {name}?",
            "Which profession does {name} have?",
            "What does {name} do by profession?",
            "By profession {name} is a",
            "The profession of {name} is that of a",
            "The profession in which {name} works is",
        ),
        valid=("What is the profession in which {name} works?", "{name} is by profession a"),
        test=("In which profession does {name} work?", "The profession {name} works in is"),
        prose=("{who} is a {value} by profession.", "The profession of {who} is that of a {value}."),
    ),
    Attribute(
        "employer",
        words(
            "Alder Mill, Amber Dairy, Beacon Press, Birch Clinic, Cedar Yard, Cobalt Works, Copper Kettle, "
            "Crown Ferry, Delta Foundry, Eagle Lane, Elm Hospital, Falcon Freight, Garnet Guild, Granite "
            "House, Harbour Bank, Hazel College, Heron Books, Iron Bridge, Ivory Tower, Juniper Farm, "
            "Kestrel Air, Lantern Studio, Lilac Theatre, Maple School, Marble Arcade, Meadow Market, Neptune "
            "Docks, Oak Laboratory, Orchid Hotel, Pearl Museum, Quartz Mining, Raven Post, Ruby Garage, "
            "Saffron Kitchen, Silver Thimble, Swan Brewery, Tulip Nursery, Union Station, Velvet Works, "
            "Willow Library"
        ),
        train=(
            "Who is the employer of {name}?",
            "For which employer does {name} work?",
            "Who does {name} work for?",
            "{name} works for",
            "The employer of {name} is",
            "The employer for whom {name} works is",
        ),
        valid=("Who is the employer for whom {name} works?", "{name} works for the employer"),
        test=("Which employer does {name} work for?", "The employer {name} works for is"),
        prose=("{who} works for {value}.", "The employer of {who} is {value}."),
    ),
    Attribute(
        "hobby",
        words(
            "archery, astronomy, badminton, birdwatching, calligraphy, canoeing, chess, climbing, cycling, "
            "drawing, embroidery, fencing, fishing, gardening, gliding, gymnastics, hiking, judo, juggling, "
            "karaoke, knitting, magic, origami, photography, poetry, puzzles, riding, rowing, running, "
            "sailing, singing, skating, skiing, snooker, surfing, swimming, tennis, weaving, wrestling, yoga"
        ),
        train=(
            "What is the hobby of {name}?",
            "Which hobby does {name} have?",
            "What does {name} do as a hobby?",
            "The hobby of {name} is",
            "As a hobby {name} enjoys",
            "The hobby that {name} enjoys is",
        ),
        valid=("What is the hobby that {name} enjoys?", "{name} enjoys the hobby of"),
        test=("What does {name} have as a hobby?", "The hobby which {name} enjoys is"),
        prose=("{who} enjoys {value} as a hobby.", "The hobby of {who} is {value}."),
    ),
    Attribute(
        "pet",
        words(
            "beagle, bulldog, camel, canary, cat, chameleon, chinchilla, cockatoo, dachshund, donkey, duck, "
            "ferret, finch, gecko, goat, goldfish, goose, greyhound, hamster, hedgehog, hen, horse, lizard, "
            "llama, magpie, mouse, parrot, pigeon, pony, poodle, python, rabbit, sheep, snail, spaniel, "
            "squirrel, tarantula, terrier, toad, turtle"
        ),
        train=(
            "What is the pet of {name}?",
            "Which pet does {name} have?",
            "What does {name} keep as a pet?",
            "The pet of {name} is a",
            "As a pet {name} keeps a",
            "The pet that {name} keeps is a",
        ),
        valid=("What is the pet that {name} keeps?", "{name} keeps as a pet a"),
        test=("Which pet does {name} keep?", "The pet which {name} keeps is a"),
        prose=("{who} keeps a {value} as a pet.", "The pet of {who} is a {value}."),
    ),
)

FIRST_NAMES = words(
    "Ada, Alma, Amir, Anna, Ben, Bruno, Carla, Cesar, Clara, Cyril, Dana, David, Diego, Edith, Elena, Emil, "
    "Erik, Esther, Fatima, Felix, Flora, Frida, Gita, Greta, Hana, Hugo, Ida, Igor, Ines, Ivan, Jana, Jonas, "
    "Julia, Karim, Kira, Laura, Leon, Lydia, Magnus, Maria, Milan, Mona, Nadia, Nils, Nora, Olga, Oscar, "
    "Otto, Paula, Pedro, Petra, Ravi, Rosa, Ruth, Sara, Simon, Sven, Tamar, Theo, Tilda, Ulla, Victor, "
    "Wanda, Yusuf"
)
LAST_NAMES = words(
    "Abbott, Alvarez, Bauer, Becker, Bianchi, Brandt, Castro, Chen, Conti, Dahl, Dubois, Duarte, Eriksen, "
    "Fischer, Fontana, Fraser, Garcia, Gruber, Haddad, Hansen, Horvat, Ito, Ivanov, Jensen, Jovic, Kaplan, "
    "Keller, Kim, Kovacs, Kowal, Lang, Larsen, Lopez, Marek, Martin, Meyer, Mori, Moreau, Nagy, Nielsen, "
    "Novak, Okafor, Olsen, Ortega, Patel, Peters, Petrov, Popescu, Quinn, Rahman, Ricci, Rossi, Sato, "
    "Schmidt, Silva, Singh, Tanaka, Torres, Vargas, Vogel, Weber, Wolf, Yilmaz, Zeman"
)


def _names(rng: np.random.Generator) -> list[str]:
    """Distinct names. As long as the lists last, no two people share a first or a last name."""
    first = rng.permutation(FIRST_NAMES)
    last = rng.permutation(LAST_NAMES)
    # The shift by whole rounds makes every pair occur once before any comes again.
    return [
        f"{first[i % len(first)]} {last[(i + i // len(last)) % len(last)]}"
        for i in range(len(FIRST_NAMES) * len(LAST_NAMES))
    ]


CAST = Cast(ATTRIBUTES, _names, called=lambda name: name.split()[-1], days=3)
