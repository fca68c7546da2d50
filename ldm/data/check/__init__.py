"""What is wrong with a set of pictures and captions, and what is in it.

Every example is opened once, by several processes, and looked at (``looking``): what comes back is a few hundred bytes
of facts (``facts``), never a picture. Each check (``pictures``, ``captions``, ``shapes``, ``copies``) reads the facts as
they come and keeps numbers only. What they found is a ``Report``, which is printed (``telling``), written as JSON or as a
list of what to leave out (``lists``), or shown as a page with plots and small pictures (``page``).
"""
