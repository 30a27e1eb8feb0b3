"""Changes to pictures and captions that leave what they show and say as it was, or nearly.

``ImageAugmentation``, ``TextAugmentation`` and ``Synonyms`` live in their own modules. Whatever
is random here comes from the generator that is passed in, never from the process's own.
"""
