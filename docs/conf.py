"""Sphinx configuration. pydata-sphinx-theme, because it releases often and NumPy, pandas and Ray use it."""

project = "secateur"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["logs"]
nitpicky = True  # a reference that leads nowhere is a warning

html_theme = "pydata_sphinx_theme"
html_title = project
html_copy_source = False
html_theme_options = {"secondary_sidebar_items": ["page-toc"], "show_nav_level": 2}
