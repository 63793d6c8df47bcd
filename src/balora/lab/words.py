"""The word lists of the synthetic world: names, attributes, things. Order matters to the seed."""

from __future__ import annotations

FEMALE_NAMES = (
    *("Anna", "Clara", "Emma", "Grace", "Helen", "Ida"),
    *("Julia", "Lena", "Maria", "Nora", "Rosa", "Sofia"),
)
MALE_NAMES = (
    *("Adam", "Ben", "David", "Felix", "George", "Hugo"),
    *("Jacob", "Leo", "Max", "Oscar", "Peter", "Tom"),
)
SURNAMES = (
    *("Adler", "Baker", "Carter", "Dale", "Ellis", "Fisher", "Gray", "Hill"),
    *("Irving", "Jones", "Keller", "Lane", "Miller", "Norris", "Owen", "Parker"),
    *("Quinn", "Reed", "Stone", "Turner"),
)

TOWNS = (
    *("Athens", "Berlin", "Cairo", "Dublin", "Geneva", "Lima", "London", "Madrid"),
    *("Milan", "Oslo", "Paris", "Prague", "Rome", "Tokyo", "Vienna", "Warsaw"),
)
PROFESSIONS = (
    *("baker", "builder", "dentist", "doctor", "driver", "farmer", "gardener", "lawyer"),
    *("nurse", "painter", "pilot", "sailor", "singer", "tailor", "teacher", "writer"),
)
PETS = (
    *("bird", "cat", "cow", "dog", "duck", "goat"),
    *("hen", "horse", "mouse", "rabbit", "sheep", "turtle"),
)
HOBBIES = (
    *("chess", "cooking", "dancing", "drawing", "fishing", "football"),
    *("music", "reading", "running", "singing", "swimming", "tennis"),
)

THINGS = (
    *("apple", "ball", "book", "button", "card", "coin", "cup", "egg"),
    *("flower", "hat", "key", "letter", "nut", "pear", "pen", "stone"),
)
PLACES = ("bag", "basket", "box", "drawer", "garden", "room")


def mention(first_name: str) -> dict[str, str]:
    """Return the ways to speak of someone, by the names that templates use for them."""
    subject, other = ("she", "her") if first_name in FEMALE_NAMES else ("he", "him")
    return {"one": first_name, "she": subject, "She": subject.capitalize(), "her": other}


def plural(thing: str, count: int) -> str:
    """Return the word for ``count`` of a thing: 1 apple, 0 or 2 apples."""
    return thing if count == 1 else thing + "s"
