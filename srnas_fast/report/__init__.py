"""What a person sees: live progress, tables and pictures."""

from srnas_fast.report.architecture import draw_architecture
from srnas_fast.report.curves import draw_curves
from srnas_fast.report.montage import draw_comparison
from srnas_fast.report.progress import Progress
from srnas_fast.report.skipped import print_skipped
from srnas_fast.report.tables import save_table, show_table
from srnas_fast.report.weights import draw_weights, normalised_entropy

__all__ = [
    "Progress",
    "draw_architecture",
    "draw_comparison",
    "draw_curves",
    "draw_weights",
    "normalised_entropy",
    "print_skipped",
    "save_table",
    "show_table",
]
