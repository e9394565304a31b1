"""The data of the guides offline: read from the folder of data sets where it is there, else written here by rules.

What is read needs nothing but the standard library, except pictures (pyarrow, pillow): without these, they are drawn.
"""

import csv
import importlib.util
import io
import json
import random
from pathlib import Path

import torch

ACT_AS = Path(__file__).parents[1] / "data" / "act_as.jsonl"


def prompts(folder):
    """Texts that ask an assistant to play a role."""
    file = folder / "awesome_chatgpt_prompts" / "prompts_2023-01.csv"
    if not file.is_file():
        return [json.loads(line)["prompt"] for line in ACT_AS.read_text(encoding="utf-8").splitlines()]
    with file.open(encoding="utf-8", newline="") as rows:
        return [row["prompt"] for row in csv.DictReader(rows)]


def quotes(folder, count=1000):
    """Short sentences of a general kind, in quotation marks."""
    file = folder / "quotes" / "quotes.json"
    if file.is_file():
        return [f'"{row["quoteText"]}"' for row in json.loads(file.read_text(encoding="utf-8"))[:count]]
    pick = random.Random(0).choice
    nouns = [
        "patience",
        "courage",
        "kindness",
        "silence",
        "hope",
        "luck",
        "time",
        "love",
        "wisdom",
        "work",
        "laughter",
        "doubt",
    ]
    things = [
        "a river",
        "a lamp in the dark",
        "an open door",
        "a seed",
        "bread for the road",
        "a good map",
        "an old friend",
    ]
    ends = ["that nobody can take from you", "which grows when it is shared", "and few know it", "but it asks for care"]
    frames = (
        lambda: f"{pick(nouns).capitalize()} is {pick(things)} {pick(ends)}.",
        lambda: f"There is no {pick(nouns)} without {pick(nouns)}.",
        lambda: f"Who gives {pick(nouns)} will receive {pick(nouns)}, {pick(ends)}.",
        lambda: f"Do not look for {pick(nouns)}: it is like {pick(things)}.",
    )
    return [f'"{pick(frames)()}"' for _ in range(count)]


def tweets(folder):
    """(text, "complaint" or "no complaint") pairs."""
    file = folder / "raft_twitter_complaints" / "train.csv"
    if not file.is_file():
        return written_tweets(200, seed=1)
    with file.open(encoding="utf-8", newline="") as rows:
        return [(row["Tweet text"], row["Label"]) for row in csv.DictReader(rows)]


def written_tweets(count, seed=0):
    """Tweets to and from companies, half of them complaints."""
    pick = random.Random(seed).choice
    firms = ["@AcmeAir", "@BlueBank", "@FoneCo", "@ParcelPost", "@ShopRight", "@CityBus", "@WaterWorks", "@NetFast"]
    things = ["order", "flight", "parcel", "card", "phone", "ticket", "internet", "delivery", "account", "app", "bill"]
    bad = [
        "is late again",
        "never arrived",
        "is broken",
        "does not work",
        "was cancelled",
        "is still down",
        "was charged twice",
    ]
    angry = [
        "Why is this?",
        "Not good enough!",
        "Please fix it.",
        "Terrible service.",
        "I have waited for hours.",
        "Help?",
    ]
    glad = ["Thank you!", "Great service.", "Have a nice day!", "You made my day.", "See you soon.", "Love it."]
    good = ["arrived on time", "works well", "looks great", "is just what I wanted", "is ready", "was a nice surprise"]
    rows = []
    for i in range(count):
        if i % 2:
            said = pick((f"my {pick(things)} {pick(bad)}.", f"the {pick(things)} {pick(bad)}, and so is the app."))
            rows.append((f"{pick(firms)} {said} {pick(angry)}", "complaint"))
        else:
            said = pick((f"my {pick(things)} {pick(good)}.", f"how do I change my {pick(things)}?"))
            rows.append((f"{pick(firms)} {said} {pick(glad)}", "no complaint"))
    return rows


def finance(folder):
    """(sentence, "positive", "neutral" or "negative") triples of financial news."""
    file = folder / "financial_phrasebank" / "Sentences_AllAgree.txt"
    if file.is_file():
        lines = file.read_text(encoding="latin-1").splitlines()
        return random.Random(0).sample([tuple(line.strip().rsplit("@", 1)) for line in lines], len(lines))
    random_ = random.Random(0)
    pick, number = random_.choice, lambda: f"{random_.randint(1, 99)}.{random_.randint(0, 9)}"
    firms = ["Nordwood", "Helsal", "Kemmer", "Tampo Steel", "Ruukko", "Oulu Paper", "Marela", "Finnbak"]
    items = ["operating profit", "net sales", "earnings per share", "order intake", "turnover", "pretax profit"]
    rows = []
    for i in range(1500):
        firm, item, sum_ = pick(firms), pick(items), f"EUR {number()} mn"
        if i % 3 == 0:
            verb = pick(("rose to", "increased to", "improved to", "grew to", "climbed to"))
            rows.append((f"{firm} 's {item} {verb} {sum_} from a year earlier .", "positive"))
        elif i % 3 == 1:
            verb = pick(("fell to", "decreased to", "dropped to", "declined to", "shrank to"))
            rows.append((f"{firm} 's {item} {verb} {sum_} from a year earlier .", "negative"))
        else:
            verb = pick(("will publish its", "did not disclose its", "reports its", "is to discuss its"))
            rows.append((f"{firm} {verb} {item} of {sum_} on Tuesday .", "neutral"))
    return random_.sample(rows, len(rows))


def paraphrases(folder):
    """((first, second, whether they say the same) to train on, the same held out)."""
    folder = folder / "glue_mrpc"
    if (folder / "train.tsv").is_file():
        return tuple(_mrpc(folder / name) for name in ("train.tsv", "dev.tsv"))
    rows = [row[:3] for row in written_pairs(1400, seed=1)]
    return rows[:1200], rows[1200:]


def _mrpc(file):
    lines = file.read_text(encoding="utf-8-sig").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    return [(c[3], c[4], int(c[0])) for c in cells]


def written_pairs(count, seed=0):
    """Pairs of sentences, one event told in two ways or two events: (first, second, whether they say the same, part).

    part: 0, or which one differs: 1 who did it, 2 what was done, 3 to what.
    """
    random_ = random.Random(seed)
    pick = random_.choice
    who = ["The council", "A court", "The airline", "A farmer", "The museum", "The senator", "A bank", "The coach"]
    did = {"bought": "purchased", "closed": "shut", "praised": "lauded", "sold": "disposed of", "began": "started"}
    what = ["the old bridge", "a new school", "the harbour", "the winter games", "two ferries", "the northern line"]
    when = ["on Monday", "in May", "last week", "this year", "on Friday"]
    rows = []
    for i in range(count):
        subject, verb, thing, day = pick(who), pick(list(did)), pick(what), pick(when)
        other, part = [subject, verb, thing], 0
        if i % 2:
            part = random_.randint(1, 3)
            place = part - 1
            other[place] = pick([x for x in (who, list(did), what)[place] if x != other[place]])
        second = f"{day.capitalize()} , {other[0].lower()} {did[other[1]]} {other[2]} ."
        rows.append((f"{subject} {verb} {thing} {day} .", second, 1 - i % 2, part))
    return rows


def facts(seed=0, count=16):
    """{"capital", "coin"} -> [(question, answer)] about invented countries."""
    random_ = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    word = lambda n: "".join(random_.choice(syllables) for _ in range(n)).capitalize()  # noqa: E731
    countries = list(dict.fromkeys(word(3) for _ in range(2 * count)))[:count]
    answers = {kind: [word(2) for _ in range(10)] for kind in ("capital", "coin")}
    return {
        kind: [(f"The {kind} of {country} is", " " + random_.choice(words)) for country in countries]
        for kind, words in answers.items()
    }


# ---------------------------------------------------------------------------------------------------- pictures

PATTERNS = ("rows", "columns", "checks", "plain")


def insects(folder, size=48):
    """(pictures to train on, pictures held out, names of the classes); a picture is (floats (3, size, size), class)."""
    parts = [_parquet(folder / "hymenoptera" / f"{name}.parquet") for name in ("train", "val")]
    if all(parts):
        names = ("ants", "bees")
        sets = [[(_pixels(row["image"], (size, size)), names.index(row["label"])) for row in part] for part in parts]
        return *sets, names
    drawn = [draw_insect(i % 2, size, seed=i) for i in range(400)]
    return drawn[:300], drawn[300:], ("ant", "bee")


def draw_pattern(kind, size, seed):
    """A picture filled with one of `PATTERNS` in a dark and a light colour, with noise: (picture, kind)."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    shift, width = torch.randint(0, 12, (2,), generator=rng), int(torch.randint(2, 5, (1,), generator=rng))
    rows, columns = (y + shift[0]) // width % 2 == 0, (x + shift[1]) // width % 2 == 0
    where = (rows, columns, rows == columns, torch.ones_like(rows))[kind]
    dark, light = torch.rand(2, 3, 1, 1, generator=rng) * 0.4 + torch.tensor([0.0, 0.6]).view(2, 1, 1, 1)
    return (torch.where(where, light, dark) + 0.05 * torch.randn(3, size, size, generator=rng)).clamp(0, 1), kind


def draw_insect(kind, size, seed):
    """An insect on leaves: three dark balls in a row (an ant), or one body with stripes (a bee). (picture, kind)."""
    rng = torch.Generator().manual_seed(10_000 + seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cy, cx = (torch.rand(2, generator=rng) * 0.3 + 0.35) * size
    r = size * (0.1 + 0.05 * torch.rand(1, generator=rng))
    leaf = torch.tensor([0.3, 0.55, 0.25]).view(3, 1, 1) + 0.12 * torch.randn(3, size, size, generator=rng)
    dark = (torch.rand(3, 1, 1, generator=rng) * 0.3).expand(3, size, size)
    if kind == 0:
        body = sum(((y - cy) ** 2 + (x - cx - k * 1.6 * r) ** 2 < r**2).int() for k in (-1, 0, 1)) > 0
        return torch.where(body, dark, leaf).clamp(0, 1), kind
    body = ((y - cy) / (1.3 * r)) ** 2 + ((x - cx) / (2.2 * r)) ** 2 < 1
    light = (torch.rand(3, 1, 1, generator=rng) * 0.3 + 0.5).expand(3, size, size)
    stripes = torch.where((x - cx).abs() % (r * 0.8) < r * 0.4, dark, light)
    return torch.where(body, stripes, leaf).clamp(0, 1), kind


SCENE = ("sky", "building", "road", "tree", "car")
STREET = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")


def streets(folder, height=72, width=96):
    """(street scenes to train on, held out, names of the classes); a scene is (floats (3, h, w), classes (h, w))."""
    parts = [_parquet(folder / "camvid_small" / f"{name}.parquet") for name in ("train", "val")]
    if all(parts):
        sets = [[(_pixels(r["image"], (width, height)), _mask(r["mask"], (width, height))) for r in p] for p in parts]
        return *sets, STREET
    drawn = [draw_street(height, width, seed=i) for i in range(200)]
    return drawn[:160], drawn[160:], SCENE


def draw_street(height, width, seed):
    """Sky, houses, a road, trees and a car, as blocks of noisy colour: (picture, classes)."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=rng))  # noqa: E731
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    road = draw(height // 2, height * 3 // 4)
    classes = torch.where(y > road, 2, 0)
    for _ in range(3):
        left, top = draw(0, width - 16), draw(4, height // 2 - 4)
        classes[(x > left) & (x < left + draw(10, 30)) & (y > top) & (y <= road)] = 1
    for _ in range(2):
        cy, cx, r = road - draw(6, 14), draw(0, width), draw(6, 12)
        classes[((y - cy) ** 2 + (x - cx) ** 2 < r**2) & (y <= road)] = 3
    left, top = draw(0, width - 24), draw(road - 2, height - 10)
    classes[(x > left) & (x < left + 22) & (y > top) & (y < top + 9)] = 4
    colours = torch.tensor([[0.6, 0.8, 1.0], [0.6, 0.5, 0.4], [0.4, 0.4, 0.4], [0.2, 0.5, 0.2], [0.4, 0.1, 0.2]])
    light = 0.7 + 0.5 * torch.rand(1, generator=rng)
    picture = colours[classes].permute(2, 0, 1) * light + 0.1 * torch.randn(3, height, width, generator=rng)
    return picture.clamp(0, 1), classes


def _parquet(file):
    """The rows of a parquet file of pictures; none if it, or what reads it, is not there."""
    if not file.is_file() or not all(map(importlib.util.find_spec, ("pyarrow", "PIL", "numpy"))):
        return []
    from pyarrow.parquet import read_table

    return read_table(file).to_pylist()


def _pixels(data, size):
    import numpy
    from PIL import Image

    picture = numpy.array(Image.open(io.BytesIO(data)).convert("RGB").resize(size))
    return torch.from_numpy(picture).permute(2, 0, 1) / 255


def _mask(data, size):
    import numpy
    from PIL import Image

    classes = torch.from_numpy(numpy.array(Image.open(io.BytesIO(data)).resize(size, Image.Resampling.NEAREST))).long()
    return classes.where(classes < len(STREET), 255)  # 255: not labelled, and not counted
