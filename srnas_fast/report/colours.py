"""The colours of the pictures."""

# Okabe and Ito's palette, told apart by colour-blind readers too, without its yellow; three more at the end.
COLOURS = [
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#666666",
    "#000000",
    "#8c6d1f",
    "#7a4fa3",
]
