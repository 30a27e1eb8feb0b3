"""The forms in which institutions keep image-text pairs, a module each.

A form has a ``NAME``; ``SEARCHES``, whether its names may lie in a folder that it does not tell;
``find(folder, files)``, the files among ``files`` that describe pairs in this form, none where it
is another form; and ``entries(folder, sources, group_key)``, what they say, as it is written.
``forms`` lists them, ``collection`` checks what they say.
"""
