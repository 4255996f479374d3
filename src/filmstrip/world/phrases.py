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
    "size-pair": (
        "Which is {more}, the {subject} or the {other}?",
        "Which one is {more}: the {subject} or the {other}?",
        "The {subject} or the {other}: which is {more}?",
    ),
    "size-most": (
        "Which shape is the {most}?",
        "What is the {most} shape?",
        "Which is the {most} shape in the {medium}?",
    ),
    "position-pair": (
        "Is the {subject} {relation} the {other}?",
        "Do you see the {subject} {relation} the {other}?",
        "Does the {medium} show the {subject} {relation} the {other}?",
    ),
    "position-most": (
        "Which shape is the {most}?",
        "What is the {most} shape?",
        "Which is the {most} shape in the {medium}?",
    ),
    "speed": (
        "Which shape moves {more}?",
        "Which shape is {more}?",
        "What moves {more}?",
        "Which one goes {more}?",
    ),
    "speed-pair": (
        "Which moves {more}, the {subject} or the {other}?",
        "Which is {more}, the {subject} or the {other}?",
    ),
    "stillness": (
        "Which shape stays still?",
        "Which shape does not move?",
        "What stays still?",
        "Which one does not move?",
    ),
    "departure-first": (
        "Which shape disappears first?",
        "What disappears first?",
        "Which shape leaves first?",
        "What is the first shape to disappear?",
    ),
    "departure-last": (
        "Which shape disappears last?",
        "Which shape leaves last?",
        "What remains at the end?",
        "What is the last shape to be seen?",
    ),
    "recolour-to": (
        "What colour does the {subject} turn?",
        "What colour does the {subject} become?",
        "What colour is the {subject} at the end?",
        "To which colour does the {subject} change?",
    ),
    "recolour-from": (
        "What colour is the {subject} at first?",
        "What colour is the {subject} at the start?",
        "From which colour does the {subject} change?",
        "What colour is the {subject} before it changes?",
    ),
    "recolour-both": (
        "How does the colour of the {subject} change?",
        "How does the {subject} change colour?",
        "From which colour to which does the {subject} change?",
    ),
    "events-after": (
        "What happens after the {event}?",
        "What happens right after the {event}?",
        "What comes after the {event}?",
    ),
    "events-before": (
        "What happens before the {event}?",
        "What happens right before the {event}?",
        "What comes before the {event}?",
    ),
    "events-first": ("What happens first?", "Which event comes first?", "What is the first thing that happens?"),
    "events-last": ("What happens last?", "Which event comes last?", "What is the last thing that happens?"),
    "events-pair": (
        "Does the {action} before or after the {event}?",
        "Before or after the {event}: when does the {action}?",
        "Does the {action} before the {event} or after it?",
    ),
    "bounces": (
        "How many times does the {subject} bounce?",
        "How often does the {subject} bounce?",
        "Count the bounces of the {subject}.",
        "How many bounces does the {subject} make?",
    ),
    "camera": (
        "What does the camera do?",
        "How does the camera move?",
        "What is the camera doing?",
        "Describe the movement of the camera.",
    ),
    "camera-before": (
        "What does the camera do before the cut?",
        "How does the camera move before the cut?",
        "What does the camera do at first?",
    ),
    "camera-after": (
        "What does the camera do after the cut?",
        "How does the camera move after the cut?",
        "What does the camera do at the end?",
    ),
    "camera-pair": ("Does the camera {action}?", "Do you see the camera {action}?", "The camera: does it {action}?"),
    "cut": ("Is there a cut?", "Is there a cut in the video?", "Does the scene change?", "Do you see a cut?"),
    "cut-half": (
        "Is the cut in the first half or in the second half?",
        "In which half of the video is the cut?",
        "When is the cut, in the first half or the second half?",
    ),
}
"""Phrasings by kind of question; a family has several kinds where what is asked differs, as at each end of a clip."""

HAPPENS: tuple[str, ...] = ("What happens in the video?", "Describe what happens.")
"""Further ways to ask for a description, of videos only."""
