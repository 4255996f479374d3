"""How questions are asked. `{medium}` is picture or video; `{subject}` and the other fields come from the scene."""

PHRASES: dict[str, tuple[str, ...]] = {
    "count": (
        "How many {plural} are there?",
        "How many {plural} are in the {medium}?",
        "How many {plural} do you see?",
        "What is the number of {plural}?",
        "Count the {plural}.",
    ),
    "colour": (
        "What colour is the {subject}?",
        "What color is the {subject}?",
        "Which colour does the {subject} have?",
        "What is the colour of the {subject}?",
    ),
    "shape": (
        "Which shape is {subject}?",
        "What shape is {subject}?",
        "What is the {subject} shape?",
        "What shape is the {subject} object?",
    ),
    "direction": (
        "Which way does the {subject} move?",
        "Which way is the {subject} moving?",
        "Which direction does the {subject} move?",
        "In which direction does the {subject} go?",
        "Where does the {subject} go?",
    ),
    "order-last": (
        "Which shape appears last?",
        "What appears last?",
        "Which shape comes last?",
        "What is the last shape to appear?",
    ),
    "order-first": (
        "Which shape appears first?",
        "What appears first?",
        "Which shape comes first?",
        "What is the first shape to appear?",
    ),
    "presence": (
        "Is there {subject}?",
        "Is there {subject} in the {medium}?",
        "Do you see {subject}?",
        "Does the {medium} show {subject}?",
    ),
    "describe": (
        "Describe the {medium}.",
        "Describe this {medium}.",
        "What do you see?",
        "What does the {medium} show?",
        "What is in the {medium}?",
    ),
}
"""Phrasings by family; `order` has one set for each end of the clip."""

HAPPENS: tuple[str, ...] = ("What happens in the video?", "Describe what happens.")
"""Further ways to ask for a description, of videos only."""
