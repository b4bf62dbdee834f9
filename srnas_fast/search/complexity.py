"""How much a search minds what its architecture will cost."""

from dataclasses import dataclass

from srnas_fast.errors import InputError, require_number


@dataclass
class ComplexityConfig:
    """The complexity term of the architecture's loss; the defaults are DLSR's.

    Args:
        by: what a candidate costs: params or madds (paper: params).
        coefficient: weight of the term; 0 leaves it out (paper: 1). The paper's code gives the term no gradient; with
            one, 1 soon outweighs the images and the cheapest candidates win, while 0.1 leaves them the choice.

    Raises:
        InputError: a value is out of its range.
    """

    by: str = "params"
    coefficient: float = 1.0

    def __post_init__(self):
        require_number(self, "complexity.", above=[], least=["coefficient"])
        if self.by not in ("params", "madds"):
            raise InputError(f"complexity.by is {self.by!r}; give params or madds")
