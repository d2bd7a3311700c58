"""An encoder whose tokens can be read with the eye."""

from torch import Tensor

from jpgen.emphasis import TokenWindow


class Letters:
    """A token a letter, a state a number, no begin and no end."""

    def __init__(self, length: int) -> None:
        self.window = TokenWindow(length, (), (), pad=0, fixed=False)

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_ids(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, None]:
        return ids[..., None].float(), None
