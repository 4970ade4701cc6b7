"""Kinds of computational multiple-choice questions over physics, chemistry, biology and maths.

A kind is a sentence and a Python expression over the same parameters. The wrong options come from
expressions too, those of typical mistakes. Kinds of `HELD_OUT_KINDS` are for evaluation only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Kind:
    """One kind of question.

    Attributes:
        name: Its name in the results.
        domain: Its subject.
        texts: Wordings of the question.
        thought: What to think before the calculation.
        expression: Python for the answer.
        mistakes: Python for what typical mistakes give.
        ranges: Smallest and largest value of each parameter.
        swept: The parameter that a table runs over, and what the question calls it.
        repeats: The expression is applied to its own result `x` this many times, at least and at
            most; the parameter `n` of the texts. None: it is applied once.
    """

    name: str
    domain: str
    texts: tuple[str, ...]
    thought: str
    expression: str
    mistakes: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    swept: tuple[str, str] = ("", "")
    repeats: tuple[int, int] | None = None


KINDS = (
    Kind(
        name="kinetic_energy",
        domain="Physics",
        texts=(
            "A cart of {m} kg moves at {v} m/s. What is its kinetic energy in joules?",
            "What is the kinetic energy, in joules, of {m} kg at a speed of {v} m/s?",
        ),
        thought="The kinetic energy is 0.5 * m * v**2.",
        expression="0.5 * {m} * {v}**2",
        mistakes=("1.0 * {m} * {v}**2", "0.5 * {m} * {v}", "0.5 * {m}**2 * {v}"),
        ranges={"m": (11, 99), "v": (11, 59)},
        swept=("v", "speed"),
    ),
    Kind(
        name="radioactive_decay",
        domain="Physics",
        texts=(
            "A sample of {n} g has a half-life of {h} hours. How many grams remain after {t} "
            "hours?",
            "How many of {n} g with a half-life of {h} hours are left after {t} hours?",
        ),
        thought="What remains is n * 0.5 ** (t / h).",
        expression="round({n} * 0.5 ** ({t} / {h}), 2)",
        mistakes=(
            "round({n} * (1 - 0.5 ** ({t} / {h})), 2)",
            "round({n} * 0.5 ** ({h} / {t}), 2)",
            "round({n} * 2.718 ** (-{t} / {h}), 2)",
        ),
        ranges={"n": (210, 990), "h": (6, 25), "t": (7, 60)},
        swept=("t", "time"),
    ),
    Kind(
        name="electric_power",
        domain="Physics",
        texts=(
            "A voltage of {u} V lies across a resistor of {r} ohms. What power in watts does it "
            "take?",
            "What power in watts does a voltage of {u} V give a heater of {r} ohms?",
        ),
        thought="The power is u**2 / r.",
        expression="round({u}**2 / {r}, 2)",
        mistakes=("round({u} / {r}, 2)", "{u} * {r}", "round({u}**2 / {r} / 2, 2)"),
        ranges={"u": (12, 240), "r": (13, 97)},
        swept=("u", "voltage"),
    ),
    Kind(
        name="gas_pressure",
        domain="Chemistry",
        texts=(
            "What is the pressure in kPa of {n} mol of an ideal gas at {t} K in {v} litres?",
            "An ideal gas of {n} mol fills {v} litres at {t} K. What is its pressure in kPa?",
        ),
        thought="The pressure is n * 8.314 * t / v.",
        expression="round({n} * 8.314 * {t} / {v}, 1)",
        mistakes=(
            "round({n} * 8.314 * ({t} - 273) / {v}, 1)",
            "round({n} * 8.314 * {v} / {t}, 1)",
            "round({n} * 0.082 * {t} / {v}, 1)",
        ),
        ranges={"n": (2, 29), "t": (290, 480), "v": (11, 95)},
        swept=("t", "temperature"),
    ),
    Kind(
        name="dilution",
        domain="Chemistry",
        texts=(
            "{v} mL of a solution of {c} mmol/L are diluted to {w} mL. What is the new "
            "concentration in mmol/L?",
            "If {v} mL of a solution of {c} mmol/L become {w} mL, how many mmol/L are left?",
        ),
        thought="The new concentration is c * v / w.",
        expression="round({c} * {v} / {w}, 2)",
        mistakes=(
            "round({c} * {w} / {v}, 2)",
            "round({c} * {v} / ({v} + {w}), 2)",
            "round({c} / {w}, 2)",
        ),
        ranges={"c": (110, 990), "v": (11, 95), "w": (110, 950)},
        swept=("w", "final volume"),
    ),
    Kind(
        name="bacterial_growth",
        domain="Biology",
        texts=(
            "A culture of {n} bacteria doubles every {d} minutes. How many are there after {t} "
            "minutes?",
            "How many do {n} bacteria that double every {d} minutes become in {t} minutes?",
        ),
        thought="Their number is n * 2 ** (t / d).",
        expression="round({n} * 2 ** ({t} / {d}))",
        mistakes=(
            "round({n} * 2 ** ({d} / {t}))",
            "round({n} * 2 * {t} / {d})",
            "round({n} * 2.718 ** ({t} / {d}))",
        ),
        ranges={"n": (110, 990), "d": (18, 45), "t": (50, 150)},
        swept=("t", "time"),
    ),
    Kind(
        name="heterozygotes",
        domain="Biology",
        texts=(
            "In a population of {n} in Hardy-Weinberg equilibrium an allele has the frequency "
            "0.{q}. How many heterozygotes are expected?",
            "How many of {n} individuals are expected to be heterozygous by Hardy and Weinberg if "
            "an allele has the frequency 0.{q}?",
        ),
        thought="The heterozygotes are 2 * q * (1 - q) * n.",
        expression="round(2 * 0.{q} * (1 - 0.{q}) * {n})",
        mistakes=(
            "round(0.{q} * (1 - 0.{q}) * {n})",
            "round(0.{q} ** 2 * {n})",
            "round((1 - 0.{q}) ** 2 * {n})",
        ),
        ranges={"n": (1100, 9900), "q": (11, 48)},
        swept=("n", "size of the population"),
    ),
    Kind(
        name="modular_power",
        domain="Mathematics",
        texts=(
            "What is the remainder of {a}**{b} divided by {m}?",
            "Which number from 0 to {m} - 1 is congruent to {a}**{b} modulo {m}?",
        ),
        thought="The remainder is pow(a, b, m).",
        expression="pow({a}, {b}, {m})",
        mistakes=("{a} * {b} % {m}", "pow({b}, {a}, {m})", "pow({a}, {b} - 1, {m})"),
        ranges={"a": (11, 99), "b": (11, 99), "m": (211, 997)},
        swept=("b", "exponent"),
    ),
    Kind(
        name="sum_of_squares",
        domain="Mathematics",
        texts=(
            "What is the sum of the squares of the whole numbers from {a} to {b}?",
            "Add up the squares of all whole numbers from {a} to {b}. What is the sum?",
        ),
        thought="The sum runs over range(a, b + 1).",
        expression="sum(k**2 for k in range({a}, {b} + 1))",
        mistakes=(
            "sum(k**2 for k in range({a}, {b}))",
            "sum(range({a}, {b} + 1))",
            "{b}**2 - {a}**2",
        ),
        ranges={"a": (11, 40), "b": (45, 99)},
        swept=("b", "last number"),
    ),
    Kind(
        name="product",
        domain="Mathematics",
        texts=("What is {a} * {b} + {c}?", "Multiply {a} by {b} and add {c}. What do you get?"),
        thought="This is one product and one sum.",
        expression="{a} * {b} + {c}",
        mistakes=("{a} * ({b} + {c})", "{a} * {b} - {c}", "{a} + {b} * {c}"),
        ranges={"a": (110, 990), "b": (110, 990), "c": (1100, 9900)},
        swept=("a", "first factor"),
    ),
    Kind(
        name="remainder_sequence",
        domain="Mathematics",
        texts=(
            "A sequence starts at {x}. Each step multiplies by {a}, adds {c} and takes the "
            "remainder by {m}. What is it after {n} steps?",
        ),
        thought="I apply (a * x + c) % m step by step.",
        expression="({a} * {x} + {c}) % {m}",
        mistakes=("{a} * {x} % {m}", "({a} * ({x} + {c})) % {m}"),
        ranges={"x": (101, 499), "a": (11, 99), "c": (11, 99), "m": (503, 997)},
        repeats=(2, 9),
    ),
    Kind(
        name="fish_stock",
        domain="Biology",
        texts=(
            "A lake holds {x} fish. Every year the stock grows by {g} percent, rounded to whole "
            "fish, and then {h} are caught. How many are there after {n} years?",
        ),
        thought="I apply round(x * (1 + g / 100)) - h year by year.",
        expression="round({x} * 1.{g}) - {h}",
        mistakes=("round({x} * 1.{g})", "round(({x} - {h}) * 1.{g})"),
        ranges={"x": (2100, 9900), "g": (15, 45), "h": (110, 290)},
        repeats=(2, 9),
    ),
)

HELD_OUT_KINDS = (
    Kind(
        name="centripetal_force",
        domain="Physics",
        texts=(
            "A mass of {m} kg moves at {v} m/s on a circle of {r} m radius. What is the "
            "centripetal force in newtons?",
        ),
        thought="The force is m * v**2 / r.",
        expression="round({m} * {v}**2 / {r}, 1)",
        mistakes=(
            "round({m} * {v} / {r}, 1)",
            "round({m} * {v}**2 / {r} / 2, 1)",
            "round({m} * {v}**2 / {r}**2, 1)",
        ),
        ranges={"m": (11, 99), "v": (11, 59), "r": (12, 97)},
        swept=("v", "speed"),
    ),
    Kind(
        name="heat",
        domain="Chemistry",
        texts=("How many joules warm {m} g of water by {d} K, at 4.18 J per gram and kelvin?",),
        thought="The heat is m * 4.18 * d.",
        expression="round({m} * 4.18 * {d}, 1)",
        mistakes=(
            "round({m} * 4.18 / {d}, 1)",
            "round({m} * {d}, 1)",
            "round({m} * {d} / 4.18, 1)",
        ),
        ranges={"m": (110, 990), "d": (11, 79)},
        swept=("d", "warming"),
    ),
    Kind(
        name="enzyme_rate",
        domain="Biology",
        texts=(
            "An enzyme has a maximal rate of {v} and a Michaelis constant of {k}. What is its rate "
            "at a substrate concentration of {s}?",
        ),
        thought="The rate is v * s / (k + s).",
        expression="round({v} * {s} / ({k} + {s}), 2)",
        mistakes=(
            "round({v} * {s} / {k}, 2)",
            "round({v} * {k} / ({k} + {s}), 2)",
            "round({v} / ({k} + {s}), 2)",
        ),
        ranges={"v": (110, 990), "k": (12, 97), "s": (11, 240)},
        swept=("s", "substrate concentration"),
    ),
    Kind(
        name="polynomial",
        domain="Mathematics",
        texts=("What is the value of {a} * x**3 + {b} * x + {c} at x = {x}?",),
        thought="I put the number in for x.",
        expression="{a} * {x}**3 + {b} * {x} + {c}",
        mistakes=(
            "{a} * {x}**2 + {b} * {x} + {c}",
            "({a} + {b}) * {x} + {c}",
            "{a} * {x}**3 - {b} * {x} + {c}",
        ),
        ranges={"a": (2, 9), "b": (11, 99), "c": (110, 990), "x": (11, 39)},
        swept=("x", "value of x"),
    ),
)


@dataclass(frozen=True)
class Problem:
    """A question of a kind with its numbers.

    Attributes:
        kind: Its kind.
        numbers: The values of the kind's parameters, and `n` for kinds that repeat.
        text: The question.
        value: The right option.
        wrong: The three others.
        table: First and last number of the table that the question asks for; None without one.
    """

    kind: Kind
    numbers: dict[str, int]
    text: str
    value: str
    wrong: tuple[str, ...]
    table: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The kind and its numbers, which decide about the split."""
        return f"{self.kind.name} {sorted(self.numbers.items())}"

    def steps(self) -> list[tuple[str, str]]:
        """The expression of each step with its numbers, and the value it has."""
        steps = []
        numbers = dict(self.numbers)
        for _ in range(numbers.get("n", 1) if self.kind.repeats else 1):
            expression = self.kind.expression.format(**numbers)
            steps.append((expression, value_of(expression)))
            numbers["x"] = int(float(steps[-1][1]))
        return steps


def draw_problem(kind: Kind, rng: random.Random) -> Problem | None:
    """Draw the numbers of a question.

    Args:
        kind: Its kind.
        rng: Source of every choice.

    Returns:
        The question, or None if the numbers drawn make a poor one: options that are equal, not
        positive, or written with an exponent.
    """
    numbers = {name: rng.randint(*bounds) for name, bounds in kind.ranges.items()}
    if kind.repeats:
        # The lesser of two draws: long conversations are rarer.
        numbers["n"] = min(rng.randint(*kind.repeats), rng.randint(*kind.repeats))
    problem = Problem(kind, numbers, rng.choice(kind.texts).format(**numbers), "", ())
    value = problem.steps()[-1][1]
    wrong = _wrong_values(problem, value, rng)
    if len(wrong) < 3 or any("e" in v or float(v) <= 0 for v in (value, *wrong)):
        return None
    return replace(problem, value=value, wrong=tuple(wrong))


def with_table(problem: Problem, rows: int, rng: random.Random) -> Problem:
    """The same question, which now asks to print a table of so many rows first."""
    name, label = problem.kind.swept
    first = max(1, problem.numbers[name] - rng.randrange(rows))
    text = f" First print a table for each {label} from {first} to {first + rows - 1}."
    return replace(problem, text=problem.text + text, table=(first, first + rows - 1))


def value_of(expression: str) -> str:
    """What Python prints for an expression of this file (never for anything from outside)."""
    return str(eval(expression))


def _wrong_values(problem: Problem, value: str, rng: random.Random) -> list[str]:
    numbers = dict(problem.numbers)
    mistakes: Sequence[str] = problem.kind.mistakes
    values = []
    if problem.kind.repeats:
        # One step too few is a typical mistake; the wrong rules make theirs in the last step.
        steps = [problem.numbers["x"], *(int(float(v)) for _, v in problem.steps())]
        values.append(str(steps[-2]))
        numbers["x"] = steps[-2]
    values += [value_of(mistake.format(**numbers)) for mistake in mistakes]
    wrong = [v for v in dict.fromkeys(values) if v != value]
    rng.shuffle(wrong)
    return wrong[:3]
