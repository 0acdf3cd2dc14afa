"""Formulas as docstrings write them, `p ← p − η m̂ / (√v̂ + ε)`, as mathematics that a browser sets by itself (MathML).

The letters are Unicode's: subscripts and superscripts, hats, Greek. There is no LaTeX to be kept beside it, and nothing to load
when a page is read. What can't be read as a formula stays code.
"""

import html
import re
import unicodedata

# Of these one is enough to tell a formula from a program.
SIGNS = re.compile("[←√∛∜‖∂Σ⟨⇒⇔∞∇∈×⊙½−·≤≥α-ωΔΓΘΛ₀-₉ₐ-ₜ⁰-⁹⁻ᵀᵗⁱⁿᵏᵞ\u0302\u0304\u0303]|[ĝŝĥŷ]")
# And of these one is enough for a program.
PROGRAM = re.compile(r'->|\*\*|["\'\[\]{}=]\s*["\'\[{]|==|//|\w\.[a-z]\w*\(|\w=[^=]|\(\)|…\)|^[a-z_]+\(.*[a-z]\(')

ALPHABETS = {
    "sub": dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼᵣᵤᵥ", "0123456789+−=()aeoxhklmnpstijruv", strict=True)),
    "sup": dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁱⁿᵀᵗᵏᵃᵇᶜᵈᵉᵍʰʲˡᵐᵒᵖʳˢᵘᵛʷˣʸᶻᵅᵝᵞ", "0123456789+−=()inTtkabcdeghjlmoprsuvwxyzαβγ", strict=True)),
}
HATS = {"\u0302": "^", "\u0304": "¯", "\u0303": "~", "\u0307": "˙"}
ROOTS = {"√": None, "∛": "3", "∜": "4"}
PAIRS = {"(": ")", "[": "]", "‖": "‖", "|": "|", "⟨": "⟩", "{": "}", "⌊": "⌋", "⌈": "⌉"}
SCRIPTS = "".join("".join(alphabet) for alphabet in ALPHABETS.values())
# Longest first: small letters and digits one by one, words, numbers, combined letters, then any one character.
TOKEN = re.compile(rf"\s+|[{SCRIPTS}]|\d+(?:\.\d+)?|[^\W\d_](?:[A-Za-z]+)?[\u0300-\u036f]?(?:_\w+)*|.", re.DOTALL)


class NoFormula(ValueError):
    """The text can't be read as a formula."""


def is_formula(text: str) -> bool:
    """Whether a piece of code in a text is meant as mathematics.

    >>> is_formula("p ← p − η g"), is_formula("chain(scale(1 / n), negate())"), is_formula("state → dict(a=1)")
    (True, False, False)
    """
    return bool(SIGNS.search(unicodedata.normalize("NFD", text))) and not PROGRAM.search(text)


def mathml(text: str, *, display: bool = False) -> str:
    """The formula as an element of HTML.

    >>> mathml("√v̂ / 2")
    '<math><mfrac><msqrt><mover accent="true"><mi>v</mi><mo>^</mo></mover></msqrt><mn>2</mn></mfrac></math>'

    Raises:
        NoFormula: a bracket has no partner.
    """
    reader = _Reader(text)
    inside = reader.row(None)
    style = ' displaystyle="true"' if display else ""
    return f"<math{style}>{inside}</math>"


class _Reader:
    """Reads a formula from left to right; each method returns the markup of what it has read."""

    def __init__(self, text: str) -> None:
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text))
        # Letters with hats in two characters, where Unicode has one for some.
        text = "".join(unicodedata.normalize("NFD", c) if unicodedata.decomposition(c)[-4:] in _ACCENTS else c for c in text)
        self.tokens = [m.group() for m in TOKEN.finditer(text.strip())]
        self.place = 0
        self.small = False  # In an exponent, where 1/2 is written with a slash.

    @property
    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.place += 1
        return token

    def row(self, end: str | None) -> str:
        """Everything up to the closing bracket, which is taken, too."""
        parts: list[str] = []
        while self.next != (end or ""):
            if not self.next:
                raise NoFormula(f"{end!r} is missing")
            if self.next.isspace():
                parts += self.space(parts)
            elif self.next == "/" and parts and not self.small:
                self.take()
                self.skip()
                over = parts.pop()
                parts.append(f"<mfrac>{_bare(over)}{self.factor(bare=True)}</mfrac>")
            else:
                parts.append(self.factor())
        if end:
            self.take()
        return "".join(_unwrapped(parts))

    def skip(self) -> None:
        while self.next.isspace():
            self.take()

    def space(self, parts: list[str]) -> list[str]:
        """Nothing beside an operator and before a slash, a thin space between factors."""
        self.skip()
        if not parts or not self.next or self.next == "/" or parts[-1].startswith("<mo") or _is_operator(self.next):
            return []
        words = parts[-1].startswith("<mtext") or _is_word(self.next)
        return [f'<mspace width="{"0.3em" if words else "0.17em"}"/>']

    def factor(self, *, bare: bool = False) -> str:
        """An atom with what is above and below it; `bare` leaves out its outer brackets."""
        if self.next in ROOTS:
            degree = ROOTS[self.take()]
            inside = self.factor(bare=True)
            return f"<mroot>{inside}<mn>{degree}</mn></mroot>" if degree else f"<msqrt>{inside}</msqrt>"
        if self.next == "∂":
            return f"<mrow><mo>{self.take()}</mo>{self.factor()}</mrow>"
        if self.next in PAIRS:
            opening = self.take()
            inside, closing = self.row(PAIRS[opening]), PAIRS[opening]
            if bare and opening == "(" and not self.is_scripted():
                return f"<mrow>{inside}</mrow>"
            fence = 'stretchy="true" form="{}"'
            return self.scripted(
                f"<mrow><mo {fence.format('prefix')}>{opening}</mo>{inside}<mo {fence.format('postfix')}>{closing}</mo></mrow>"
            )
        token = self.take()
        atom = self.scripted(_atom(token))
        if self.next == "(" and token[0].isalpha():  # A function of what follows.
            return f"<mrow>{atom}{self.factor()}</mrow>"
        return atom

    def is_scripted(self) -> bool:
        return bool(self.next) and (self.next in "^'*" or any(self.next in alphabet for alphabet in ALPHABETS.values()))

    def scripted(self, base: str) -> str:
        """The base with the scripts that follow."""
        below, above = self.script("sub"), ""
        while self.is_scripted() and self.next not in ALPHABETS["sub"]:
            if self.next == "'":
                self.take()
                above += "<mo>′</mo>"
            elif self.next == "*":
                if not self.is_star():
                    break
                self.take()
                above += "<mo>*</mo>"
            elif self.next == "^":
                self.take()
                above += self.exponent()
            else:
                above += self.script("sup")
        below = below or self.script("sub")
        if below and above:
            return f"<msubsup>{base}{_one(below)}{_one(above)}</msubsup>"
        if below or above:
            return f"<{'msub' if below else 'msup'}>{base}{_one(below or above)}</{'msub' if below else 'msup'}>"
        return base

    def exponent(self) -> str:
        """What follows `^`: a factor, perhaps with a sign, or a quotient of two."""
        outer, self.small = self.small, True
        found = f"<mo>{self.take()}</mo>" if self.next in ("−", "-") else ""
        found += self.factor(bare=True)
        if self.next == "/":
            found += f"<mo>{self.take()}</mo>" + self.factor()
        self.small = outer
        return found

    def is_star(self) -> bool:
        """Whether the star belongs to the letter before it, `f*`, and is no product."""
        after = self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else ""
        return not after or after.isspace() or after in ")]‖,"

    def script(self, kind: str) -> str:
        letters = ""
        while self.next and self.next in ALPHABETS[kind]:
            letters += ALPHABETS[kind][self.take()]
        return "".join(_atom(token) for token in TOKEN.findall(letters))


_ACCENTS = {f"{ord(mark):04X}" for mark in HATS}
_OPEN = '<mrow><mo stretchy="true" form="prefix">(</mo>'
_CLOSE = '<mo stretchy="true" form="postfix">)</mo></mrow>'


def _atom(token: str) -> str:
    """The markup of one token."""
    if token[-1] in HATS:
        return f'<mover accent="true">{_atom(token[:-1])}<mo>{HATS[token[-1]]}</mo></mover>'
    if "_" in token and len(token.partition("_")[0]) == 1:
        letter, _, below = token.partition("_")
        return f"<msub>{_atom(letter)}<mtext>{html.escape(below)}</mtext></msub>"
    if token[0].isdigit() or token == "½":
        return f"<mn>{token}</mn>" if token != "½" else "<mfrac><mn>1</mn><mn>2</mn></mfrac>"
    if _is_word(token):
        return f"<mtext>{html.escape(token)}</mtext>"
    if token.isalpha():
        return f"<mi>{token}</mi>"
    return f"<mo>{html.escape(token)}</mo>"


def _is_word(token: str) -> bool:
    return len(token) > 1 and token[0].isalpha() and token[1] not in HATS and (token[1] != "_" or len(token.split("_")[0]) > 1)


def _is_operator(token: str) -> bool:
    return token in "←=+−-·×⊙,;:<>≤≥⇒∈)]⟩…"


def _one(markup: str) -> str:
    return f"<mrow>{markup}</mrow>"


def _bare(markup: str) -> str:
    """Without brackets around the whole."""
    if markup.startswith(_OPEN) and markup.endswith(_CLOSE):
        return f"<mrow>{markup.removeprefix(_OPEN).removesuffix(_CLOSE)}</mrow>"
    return markup


def _unwrapped(parts: list[str]) -> list[str]:
    """Without spaces at the ends."""
    while parts and parts[-1].startswith("<mspace"):
        parts.pop()
    return parts
