"""What the systems are asked for: the categories of Spec-Bench for text, captions and sentences for media.

Spec-Bench (Xia et al. 2024, arXiv 2401.07851) asks for translation, summarisation, question answering, maths,
retrieval and chat. The prompts here are our own, short, and put as text that a model goes on with, since
the embedded one is no assistant; stories, code and an edit of code are beside them, which is what it knows.
"""

from __future__ import annotations

TEXT: dict[str, tuple[str, ...]] = {
    "story": (
        "Once upon a time there was a miller who had three sons, and the youngest of them",
        "The storm had broken before they reached the harbour, and the old sailor said,",
    ),
    "code": (
        'def mean(values):\n    """Return the arithmetic mean of some numbers."""\n',
        'class Queue:\n    """First in, first out."""\n\n    def __init__(self):\n',
    ),
    "editing": (
        "# Before:\ndef area(width, height):\n    result = width * height\n    return result\n\n"
        "def border(width, height):\n    result = 2 * (width + height)\n    return result\n\n"
        "# After:\ndef area(width, height):\n",
        "# Before:\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n\n"
        "# After:\nclass Point:\n    def __init__(self, x, y):\n",
    ),
    "translation": (
        "English: The cat sits by the window. German: Die Katze sitzt am Fenster.\n"
        "English: The dog runs to the river. German:",
        "French: Bonjour, mon ami. English: Good morning, my friend.\n"
        "French: Le jardin est petit, mais il est beau. English:",
    ),
    "summarisation": (
        "The village lay between two hills. In spring the river rose and took the lower bridge with it, so "
        "that for a month nobody could reach the mill. The children were glad, because there was no school; "
        "the miller was not, because there was no bread. In short,",
        "Every evening the lamplighter went down the long street with his ladder. He knew each house and who "
        "lived in it, and who was ill, and who was away at sea. When the new lamps came he had nothing left "
        "to do, and the street was the poorer for it. In short,",
    ),
    "question answering": (
        "Question: Who lives at the North Pole?\nAnswer: The white bear.\n"
        "Question: What do bees make?\nAnswer:",
        "Question: Which season comes after summer?\nAnswer: Autumn.\n"
        "Question: Where does the sun rise?\nAnswer:",
    ),
    "maths": (
        "Anne has three apples and buys four more. She gives two to her brother. How many are left? "
        "She had three and four, which makes seven;",
        "A train leaves at eight and needs two hours for each hundred miles. The town is three hundred miles "
        "away. It arrives at",
    ),
    "retrieval": (
        "The key to the garden is under the third stone. The key to the barn hangs behind the door. The key "
        "to the cellar was lost in the well. If you look for the key to the barn, remember:",
        "Tom sits in the first row, Mary in the second, and Ben beside the stove. The teacher asked where "
        "Mary sits, and they answered that",
    ),
    "chat": (
        '"Good evening," said the stranger. "Have you a room for the night?"\n\n'
        '"That depends," said the landlady. "How long will you stay?"\n\n"',
        '"What are you reading?" asked Alice.\n\n"A book of the sea," said the boy. "Do you like it?"\n\n"',
    ),
}

IMAGE = (
    "red heart",
    "cat face",
    "rocket",
    "green apple",
    "sun",
    "pizza",
    "blue fish",
    "red car",
    "yellow flower",
    "full moon",
    "house",
    "airplane",
    "orange cat face",
    "purple heart",
    "tree",
    "birthday cake",
)

SPEECH = (
    "The old man went to the sea.",
    "She opened the door and looked out.",
    "It was a cold night in winter.",
    "Nobody knew what had become of him.",
    "The children ran down to the river.",
    "He gave me a long look.",
    "We shall see each other again.",
    "There was no light in the house.",
    "The king had a golden ring.",
    "They walked along the quiet road.",
    "I will tell you a story.",
    "The wind blew from the north.",
    "Her brother came home at last.",
    "You must not forget the key.",
    "The ship sailed in the morning.",
    "A bird sang in the garden.",
)


def prompts(stream: str, categories: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(category, prompt) of a stream; the categories of text take turns.

    >>> prompts("image")[0]
    ('captions', 'red heart')
    """
    if stream == "image":
        return [("captions", one) for one in IMAGE]
    if stream == "speech":
        return [("sentences", one) for one in SPEECH]
    chosen = {name: TEXT[name] for name in categories or TEXT}
    return [(name, texts[n]) for n in range(2) for name, texts in chosen.items()]
