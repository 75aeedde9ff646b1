"""What a run has left in its folder, as a page that opens anywhere: ``python -m experiments report RUN…``.

folder.py    a run read from its folder: config, metrics, summary, table, figures, samples
samples.py   what an experiment hands over to be shown: strings, maps, images, errors by group
figures.py   figures saved as PNG and SVG, with a text; SVG made fit for a page
tables.py    means with their intervals, what differs between runs
pairs.py     models beside each other on the same seeds
attention_maps.py  where a model looks, as a sample and as a figure
page.py      the page: page.html.jinja, page.css
"""
