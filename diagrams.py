"""Writes methods/NAME.svg: what of a method is trained, what is frozen, and by which loss.

    python diagrams.py                            all of them, from the tables below

A table has rows of boxes with | between them, arrows, and a sentence. "# ..." begins a next step.

    *name: words     a box that is trained; ~ frozen; = a loss; without a sign: what is given
    A [x] > B        B is computed from A, namely from its x
    A <x> B          so, too, and B's gradient trains A, or what lies before it; x is written there
"""

import math
import re
import textwrap
from html import escape
from pathlib import Path

TABLES = {}
TABLES["ckd"] = """
         | *student                 | =CE: weight 1 − α
pictures | ~teacher: trained before | =L_KD: weight α
pictures > student, pictures > teacher, student <> CE, student <> L_KD, teacher > L_KD
Both losses train the student alone. With α = 0 there is no teacher: ERM.
"""
TABLES["rkd"] = """
         | *student                 | =L_0: CE; if α > 0, L_KD
pictures |                          | =L_D: distances of pairs
         | ~teacher: trained before | =L_A: angles of triplets
pictures > student, pictures > teacher, student <> L_0, student [f] <> L_D, student <> L_A
teacher > L_D, teacher [f'] > L_A
The student copies how the pictures of a batch lie to each other, not where.
"""
TABLES["ctkd"] = """
         | *student                 | =CE: weight 1 − α
pictures | ~teacher: trained before | =L_KD: weight α, with T = τ
         |                          | *θ: τ = T + S · sigmoid(θ)
pictures > student, pictures > teacher, student <> CE, student <> L_KD, teacher > L_KD
θ [τ] <−λ> L_KD
One backward pass: the student goes down L_KD, the temperature up, because of the −λ.
"""
TABLES["kdpp"] = """
# Before the first epoch
all training pictures | ~teacher: trained before | centres c: mean f' of a class
all training pictures > teacher, teacher [f'] > centres c
# Every step
         | ~teacher: trained before |                            | =Eq. (3): CE and r · L_KD
pictures | *student                 | *adapter: if widths differ | =L_ND: weight w
         |                          |                            | centres c: of the true class
pictures > student, pictures > teacher, student <> Eq. (3), teacher > Eq. (3)
student [f] <> adapter, adapter <> L_ND, teacher [f'] > L_ND, centres c > L_ND
The adapter learns with the student and is thrown away in the end.
"""
TABLES["fitnet"] = """
         | *student                 |                     | =L_0: CE; if α > 0, L_KD
pictures |                          | *regressor r: Eq. (4) | =L_hint: weight β
         | ~teacher: trained before |                     |
pictures > student, pictures > teacher, student <> L_0, student [A] <> regressor r
regressor r <> L_hint, teacher [A'] > L_hint
A and A' are maps of a layer in the middle. r learns with the student and is thrown away.
"""
TABLES["at"] = """
         | *student                 | =L_0: CE; if α > 0, L_KD
pictures |                          |
         | ~teacher: trained before | =L_AT: of every stage, β
pictures > student, pictures > teacher, student <> L_0, student [q] <> L_AT
teacher [q'] > L_AT
q and q' say where in the maps of a stage student and teacher are active.
"""
TABLES["mfd"] = """
         | *student                 |                           | =Eq. (3): CE; if α > 0, L_KD
pictures |                          | *linear map: if widths differ | =L_MMD: weight λ/2
         | ~teacher: trained before |                           | groups a: and labels y
pictures > student, pictures > teacher, student <> Eq. (3), student [f] <> linear map
linear map <> L_MMD, teacher [f'] > L_MMD, groups a > L_MMD
Each class and group of the student is pulled to the teacher's features of the class.
"""
TABLES["adversarial_kd"] = """
         | ~teacher: trained before | =Eq. (3): CE and L_KD
pictures | *student                 | groups a
         | *adversary A             | =L_A: Eq. (5)
pictures > student, pictures > teacher, student <> Eq. (3), teacher > Eq. (3)
student [z and y] <−λ g> adversary A, adversary A <> L_A, groups a > L_A
The adversary goes down L_A first. Then the student goes down Eq. (3), and up L_A: −λ reverses.
"""
TABLES["bird"] = """
# I. A copy of the student takes a step towards the gated features
batch    | *copy θ': of the student θ | =L_F: Eq. (4) and (6)
         | ~teacher: trained before   | ~gates sigm(φ): one per feature
batch > copy θ', batch > teacher, copy θ' [h] <> L_F, teacher [h'] > gates sigm(φ)
gates sigm(φ) > L_F
# II. Other pictures show what the gates did to the copy
meta batch | ~copy θ'               | =L_outer: CE + μ R, Eq. (7)
         | *gates φ: by Adam
meta batch > copy θ', copy θ' <> L_outer, gates φ <through stage I> copy θ'
# III. Only then the student itself learns
batch    | *student θ               | =Eq. (8): Eq. (3), γ L_F, μ R
         | ~teacher: trained before | ~gates sigm(φ): the new ones
batch > student θ, batch > teacher, student θ <> Eq. (8), teacher > Eq. (8)
teacher [h'] > gates sigm(φ), gates sigm(φ) > Eq. (8)
All three in every step. The copy is thrown away; of II only the gates stay.
"""
TABLES["groupdro"] = """
pictures | *student | m_g: mean loss of each group | =L: Σ q_g · m_g
groups   |          | *weights q: one per group
pictures > student, student <> m_g, groups > m_g, m_g <> L, m_g > weights q, weights q > L
There is no teacher. q has no gradient: before each step it grows where m is high, Eq. (2).
"""
TABLES["swad"] = """
# Every step
pictures   | *student: at a high rate | =CE
pictures > student, student <> CE
# Every epoch, and the end
           | student w                | W_e: mean w of an epoch   | ~final student: mean of W
validation | v_e: its loss            | s and t: ends of the valley
student w > W_e, W_e > final student, validation > v_e, student w > v_e, v_e > s and t
s and t > final student
There is no teacher. Training is plain; what is tested is the mean of W_s to W_t−1.
"""
TABLES["fairdi"] = """
# Step 0: fair pre-training of the whole student
pictures and groups | *φ: body | *head | =L_FIS: Eq. (6)
pictures and groups > φ, φ <> head, head <> L_FIS
# Step 1: a teacher for each group, on frozen features
pictures of group g | ~φ: of step 0 | *head h_g: begins as step 0's | =CE: Eq. (7)
pictures of group g > φ, φ > head h_g, head h_g <> CE
# Step 2: the student learns from each picture's own teacher
         |               | ~head h_a: of its group a |
pictures | ~φ: of step 0 | *head: begins as step 0's | =Eq. (3): CE and L_KD
pictures > φ, φ > head h_a, φ > head, head h_a > Eq. (3), head <> Eq. (3)
The student is φ and its head, which never see a group. --train-backbone trains φ in step 2, too.
"""
TABLES["fairtune"] = """
# A trial trains the parts that ω frees
pictures | *parts with ω = 1: and the head | =CE
         | ~parts with ω = 0: stay θ₀
pictures > parts with ω = 1, pictures > parts with ω = 0, parts with ω = 1 <> CE
parts with ω = 0 > CE
# Validation judges it, and the next trial is chosen
validation | ~network: of this trial | =L_fair: Eq. (2) | *ω and rate: by Optuna
validation > network, network > L_fair, L_fair > ω and rate
There is no teacher, and no gradient reaches ω. The best ω and rate train once more.
"""

WIDE, HIGH, RIGHT, DOWN, EDGE = 144, 42, 206, 72, 12  # of a box; from box to box; around all
ARROW = re.compile(r"(.+?)(?: \[(.*)\])? (?:>|<(.*)>) (.+)")
SIGNS = {"*": "trained", "~": "frozen", "=": "loss"}
STYLE = """<style>text{font:13px sans-serif;text-anchor:middle;fill:#222}.small{font-size:11px}
.bold{font-weight:bold}.bold,.said{text-anchor:start}.label{font-size:12px;paint-order:stroke;
stroke:#fff;stroke-width:5px}.red{fill:#b2182b}rect{stroke-width:1.5}.given{fill:none}.trained{
fill:#fde7b8;stroke:#c47f00}.frozen{fill:#e3eaf1;stroke:#6f8296;stroke-dasharray:2 2}.loss{fill:
#fff;stroke:#b2182b}path{stroke:#444;stroke-width:1.3;marker-end:url(#on)}.back{stroke:#b2182b;
stroke-width:1.7;stroke-dasharray:5 3;marker-end:url(#back)}marker path{stroke:none;marker-end:none}
</style>"""
for mark, colour in (("on", "#444"), ("back", "#b2182b")):
    STYLE += f'<marker id="{mark}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    STYLE += f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'


def text(x, y, words, kind=""):
    """A line of text; a letter or word behind an underscore is lowered."""
    low = r'<tspan dy="3" font-size="80%">\1</tspan><tspan dy="-3">&#8203;</tspan>'
    words = re.sub(r"_(\w+)", low, escape(words))
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}">{words}</text>'


def box(x, y, cell):
    """A cell of a table as a rectangle around its name and, below that, its words."""
    kind, (name, _, words) = SIGNS.get(cell[0], "given"), cell.lstrip("*~=").partition(": ")
    size = f'width="{WIDE}" height="{HIGH}" rx="{16 if kind == "loss" else 2}"'
    drawn = f'<rect x="{x}" y="{y}" {size} class="{kind}"/>'
    drawn += text(x + WIDE / 2, y + (19 if words else 26), name)
    return drawn + (text(x + WIDE / 2, y + 34, words, "small") if words else "")


def route(a, b, boxes):
    """A straight line from the box at a to the one at b, ((x, y), (x, y)), through no box."""
    side, way = ((q > p) - (q < p) for p, q in zip(a, b))
    beside = [(x + WIDE / 2 * (1 + s), y + HIGH / 2) for (x, y), s in ((a, side), (b, -side))]
    below = [(x + WIDE / 2, y + HIGH / 2 * (1 + s)) for (x, y), s in ((a, way), (b, -way))]
    for start, end in ((beside, beside), (beside, below), (below, beside), (below, below)):
        (x1, y1), (x2, y2) = start[0], end[1]
        points = [(x1 + (x2 - x1) * t / 50, y1 + (y2 - y1) * t / 50) for t in range(2, 49)]
        if not any(0 < px - x < WIDE and 0 < py - y < HIGH for px, py in points for x, y in boxes):
            return (x1, y1), (x2, y2)
    raise ValueError("no straight line leads from box to box: move one of them")


def arrow(ends, given, back):
    """An arrow along a line, with its label; `back` a text: beside it the gradient's."""
    (x1, y1), (x2, y2) = ends
    apart = 3.5 / math.hypot(x2 - x1, y2 - y1) * (back is not None)
    dx, dy = apart * (y2 - y1), apart * (x1 - x2)
    drawn = f'<path d="M{x1 + dx:.0f} {y1 + dy:.0f}L{x2 + dx:.0f} {y2 + dy:.0f}"/>'
    if back is not None:
        line = f"M{x2 - dx:.0f} {y2 - dy:.0f}L{x1 - dx:.0f} {y1 - dy:.0f}"
        drawn += f'<path class="back" d="{line}"/>'
    upright, labels = x1 == x2, ((given, "label", 0.35, -62), (back, "label red", 0.5, 8))
    for words, kind, part, aside in labels:
        if words and upright:
            drawn += text(x1 + aside, (y1 + y2) / 2 + 4, words, kind + " said")
        elif words:
            drawn += text(x1 + part * (x2 - x1), y1 + part * (y2 - y1) + 4, words, kind)
    return drawn


def draw(table):
    """A table as SVG."""
    y, wide, drawn, boxes = EDGE, 0, [], {}
    *lines, sentence = table.strip().split("\n")
    for line in lines:
        if line.startswith("# "):
            drawn.append(text(EDGE, y + 10, line[2:], "bold"))
            y, boxes = y + 24, {}
        elif "|" in line:
            for column, cell in enumerate(map(str.strip, line.split("|"))):
                if cell:
                    name = cell.lstrip("*~=").partition(": ")[0]
                    boxes[name] = EDGE + column * RIGHT, y
                    drawn.append(box(*boxes[name], cell))
                    wide = max(wide, boxes[name][0] + WIDE + EDGE)
            y += DOWN
        else:
            for a, given, back, b in (ARROW.fullmatch(one).groups() for one in line.split(", ")):
                drawn.append(arrow(route(boxes[a], boxes[b], boxes.values()), given, back))
    for line in textwrap.wrap(sentence, wide // 6):
        drawn.append(text(EDGE, y + 6, line, "said"))
        y += 18
    for n, kind in enumerate(SIGNS.values()):
        drawn.append(f'<rect x="{EDGE + 74 * n}" y="{y}" width="14" height="14" class="{kind}"/>')
        drawn.append(text(EDGE + 74 * n + 19, y + 11, kind, "said small"))
    drawn.append(text(EDGE + 220, y + 11, "→ computed", "said small"))
    drawn.append(text(EDGE + 294, y + 11, "⇢ gradient", "said small red"))
    size = f'width="{wide}" height="{y + 24}" viewBox="0 0 {wide} {y + 24}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}<rect width="100%" '
    return "\n".join([start + 'height="100%" fill="#fff"/>', *drawn, "</svg>", ""])


if __name__ == "__main__":
    for name, table in TABLES.items():
        path = Path(__file__).resolve().parent / "methods" / f"{name}.svg"
        path.write_text(draw(table), "utf-8")
        print(f"wrote {path.name}")
