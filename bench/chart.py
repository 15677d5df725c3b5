"""How the charts of bench look; Matplotlib's own names."""

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "minigpt",  # the same figures give the same file
}
